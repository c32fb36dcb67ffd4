"""An agent's history as the model sees it: the fold of its events into Responses items.

The same fold serves a running agent and a reloaded one, so both send the same request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from core.agents import prompts
from core.domain import events as e
from core.safety.text import head_and_tail

Item = dict[str, Any]
NAME_CHARS = 64
MARK = "image_mark"
"""The type of the part that stands for a picture; no server knows it."""
UNREAD = 4
"""Messages that the model has not answered stay whole; where the server found the history too long, so many
times as much of them as of the others."""
LEAST = 200
"""Of a message fewer bytes than this are no use."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


def text_part(text: str) -> Item:
    return {"type": "input_text", "text": text}


def user_item(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [text_part(text)]}


def text_of(item: Item) -> str:
    """What a message says."""
    return "".join(str(part.get("text") or "") for part in item["content"])


def size_of(text: str) -> int:
    """In bytes, as it is sent."""
    return len(text.encode("utf-8", "replace"))


def image_mark(image: e.Image) -> Item:
    """A picture as histories hold it: by its name in the store. `core.agents.images` puts the bytes in its
    place when a request is sent, so that no history holds megabytes."""
    return {"type": MARK, "blob": image.blob, "media_type": image.media_type, "size": image.size}


def wire_name(name: str) -> str:
    """A tool's name as servers take it back. One that a model made up ("functions.x") would otherwise have
    every later request of the agent refused."""
    return _NOT_IN_NAMES.sub("_", name)[:NAME_CHARS] or "_"


def mail_text(message: e.AgentMessage, recipient: str) -> str:
    """Mail on the wire: a user message with four header lines (decision 21)."""
    header = f"Message Type: {message.kind}\nTask name: {recipient}\nSender: {message.author}\nPayload:"
    return f"{header}\n{message.text}"


class History:
    """Items in order. `path` is the agent's own, the recipient of its mail."""

    def __init__(self, path: str, forked: Iterable[Item] = ()) -> None:
        self.path = path
        self.items: list[Item] = list(forked)
        self.call_ids: set[str] = set()
        """Of every call that there ever was, compacted ones too."""
        self.asked = False
        """Whether somebody wants it compacted."""
        self.summary = ""
        """What the last compaction made of everything before."""
        self.counted: tuple[int, int] | None = None
        """Tokens of the last request and its answer, as the server counted them, and how many items there
        were before the answer. Not a part of the fold."""
        self._open: set[str] = set()
        self._heard: list[Item] = []
        """Of the items, those that operator and agents said."""
        self._tasks: list[Item] = []
        """Of those, what the operator typed and the tasks: a turn of a fork begins with each of them."""
        self._answered = len(self.items)
        """Before this index are the items that the model has made or answered."""
        self._base: int | None = None
        """The index behind the last summary."""
        self._last_text: dict[str, str] = {}
        self._user_text: str | None = None
        """The text of the last item, if it is the operator's."""

    def add(self, event: e.Event) -> None:
        """Fold one event of this agent; events the model does not see change nothing."""
        match event:
            case e.UserMessage():
                self._add_user(event.text)
                return
            case e.AgentMessage():
                self._heard.append(item := self._append_user(mail_text(event, self.path)))
                if event.kind == "NEW_TASK":
                    self._tasks.append(item)
            case e.AssistantMessage():
                content = [{"type": "output_text", "text": event.text, "annotations": []}]
                self._append_own({"type": "message", "role": "assistant", "content": content})
            case e.Reasoning():
                if event.item is not None:
                    self._append_own(event.item)
            case e.ToolCalled():
                self.call_ids.add(event.call)
                self._open.add(event.call)
                self._append_own(
                    {
                        "type": "function_call",
                        "call_id": event.call,
                        "name": wire_name(event.name),
                        "arguments": event.arguments or "{}",
                    }
                )
            case e.ToolResult():
                self._last_text[event.call] = event.text
            case e.ToolEnded():
                last = self._last_text.pop(event.call, "")
                if event.call not in self._open:
                    return  # servers refuse an output without its call
                self._open.discard(event.call)
                output = last if event.output is None else event.output
                told = [text_part(output), *map(image_mark, event.images)] if event.images else output
                self._append_own({"type": "function_call_output", "call_id": event.call, "output": told})
            case e.Notice() if not event.hidden:
                self._append_user(event.text)
            case e.CompactionAsked():
                self.asked = True
                return
            case e.HistoryCompacted():
                self._compact(event)
            case _:
                return
        self._user_text = None

    def _add_user(self, text: str) -> None:
        """What an operator queued while the agent was busy goes out as one message (decision 47)."""
        if self._user_text is not None:
            text = f"{self._user_text}\n\n{text}"
            self.items.pop()
            self._heard.pop()
            self._tasks.pop()
        self._user_text = text
        item = self._append_user(text)
        self._heard.append(item)
        self._tasks.append(item)

    def _append_user(self, text: str) -> Item:
        """Reasoning that led to nothing (its answer was cut) goes: servers refuse it without what follows."""
        while self.items and self.items[-1].get("type") == "reasoning":
            self.items.pop()
        self._answered = min(self._answered, len(self.items))
        self.items.append(item := user_item(text))
        return item

    def _append_own(self, item: Item) -> None:
        self.items.append(item)
        self._answered = len(self.items)

    # --- compaction ----------------------------------------------------------------------------------------

    @property
    def answered(self) -> list[Item]:
        """All but the messages that the model has not seen yet: what a summary is made of."""
        return self.items[: self._answered]

    @property
    def fresh(self) -> bool:
        """Whether nothing but messages came since the last compaction."""
        return self._base == self._answered

    @property
    def base(self) -> int:
        """The index behind the last summary, 0 if there is none."""
        return self._base or 0

    def _compact(self, event: e.HistoryCompacted) -> None:
        said, tasks = _ids(self._heard), _ids(self._tasks)
        answered, new = self.items[: self._answered], self.items[self._answered :]
        if event.reason == "error" and new:
            most = UNREAD * event.keep // len(new)
            kept = [(item, _cut(item, most)) for item in new]
        else:
            kept = [(item, item) for item in new]
        left = event.keep - sum(size_of(text_of(item)) for _, item in kept)
        heard = [item for item in answered if id(item) in said]
        old = _newest(heard, left)
        about = prompts.compacted(event.summary, event.team)
        self.items = [*old, *([user_item(about)] if about else []), *(item for _, item in kept)]
        moved = [*zip(heard[len(heard) - len(old) :], old, strict=True), *kept]
        self._heard = [item for was, item in moved if id(was) in said]
        self._tasks = [item for was, item in moved if id(was) in tasks]
        self._answered = self._base = len(self.items) - len(kept)
        self._open.clear()
        self._last_text.clear()
        self.summary = event.summary
        self.asked = False

    # --- forks ---------------------------------------------------------------------------------------------

    def inherit(self, above: History, fork: str) -> None:
        """Begin with what a fork takes over of `above`: `all` or a number of turns."""
        self.items = above.fork(None if fork == "all" else int(fork))
        said, tasks = _ids(above._heard), _ids(above._tasks)
        self._heard = [item for item in self.items if id(item) in said]
        self._tasks = [item for item in self.items if id(item) in tasks]
        self._answered = len(self.items)

    def fork(self, turns: int | None) -> list[Item]:
        """What a fork takes over: what the operator typed, tasks and answers; no reasoning, no calls, none of
        the mail that its agents sent each other beside. `turns` None: all, else the last N turns (one begins
        with what the operator typed, or a task)."""
        tasks = _ids(self._tasks)
        beside = _ids(self._heard) - tasks
        kept: list[Item] = []
        for index, item in enumerate(self.items):
            if item.get("type") != "message" or id(item) in beside:
                continue
            following = self.items[index + 1] if index + 1 < len(self.items) else None
            final = following is None or following.get("role") == "user"
            if item["role"] == "user" or final:
                kept.append(item)
        if turns is None:
            return kept
        starts = [i for i, item in enumerate(kept) if id(item) in tasks]
        return kept[starts[-turns] :] if len(starts) > turns else kept


def _ids(items: Iterable[Item]) -> set[int]:
    return {id(item) for item in items}


def _newest(items: Sequence[Item], limit: int) -> list[Item]:
    """The last of some messages, `limit` bytes in all: the oldest of them may be cut."""
    kept: list[Item] = []
    for item in reversed(items):
        if limit < LEAST:
            break
        cut = _cut(item, limit)
        kept.append(cut)
        limit -= size_of(text_of(cut))
        if cut is not item:
            break
    return kept[::-1]


def _cut(item: Item, limit: int) -> Item:
    """A message with about `limit` bytes at most."""
    text = text_of(item)
    size = size_of(text)
    return item if size <= limit else user_item(head_and_tail(text, limit * len(text) // size))
