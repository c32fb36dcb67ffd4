"""An agent's history as the model sees it: the fold of its events into Responses items.

The same fold serves a running agent and a reloaded one, so both send the same request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from core.domain import events as e

Item = dict[str, Any]
NAME_CHARS = 64
MARK = "image_mark"
"""The type of the part that stands for a picture; no server knows it."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


def text_part(text: str) -> Item:
    return {"type": "input_text", "text": text}


def user_item(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [text_part(text)]}


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
                self._append_user(mail_text(event, self.path))
            case e.AssistantMessage():
                content = [{"type": "output_text", "text": event.text, "annotations": []}]
                self.items.append({"type": "message", "role": "assistant", "content": content})
            case e.Reasoning():
                if event.item is not None:
                    self.items.append(event.item)
            case e.ToolCalled():
                self.call_ids.add(event.call)
                self.items.append(
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
                output = last if event.output is None else event.output
                told = [text_part(output), *map(image_mark, event.images)] if event.images else output
                self.items.append({"type": "function_call_output", "call_id": event.call, "output": told})
            case e.Notice() if not event.hidden:
                self._append_user(event.text)
            case _:
                return
        self._user_text = None

    def _add_user(self, text: str) -> None:
        """What an operator queued while the agent was busy goes out as one message (decision 47)."""
        if self._user_text is not None:
            text = f"{self._user_text}\n\n{text}"
            self.items.pop()
        self._user_text = text
        self._append_user(text)

    def _append_user(self, text: str) -> None:
        """Reasoning that led to nothing (its answer was cut) goes: servers refuse it without what follows."""
        while self.items and self.items[-1].get("type") == "reasoning":
            self.items.pop()
        self.items.append(user_item(text))

    def fork(self, turns: int | None) -> list[Item]:
        """What a fork takes over: messages of users and answers, no reasoning, no calls. `turns` None: all,
        else the last N turns (a turn begins with a user message)."""
        kept: list[Item] = []
        for index, item in enumerate(self.items):
            if item.get("type") != "message":
                continue
            following = self.items[index + 1] if index + 1 < len(self.items) else None
            final = following is None or following.get("role") == "user"
            if item["role"] == "user" or final:
                kept.append(item)
        if turns is None:
            return kept
        starts = [i for i, item in enumerate(kept) if item["role"] == "user"]
        return kept[starts[-turns] :] if len(starts) > turns else kept
