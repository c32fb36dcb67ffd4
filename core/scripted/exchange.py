"""A request read as a conversation: who asks, what the model has answered so far, what it was told since."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

Item = dict[str, Any]

_PATH = re.compile(r"^Agent path: (\S+)", re.MULTILINE)
_OWN_TASK = re.compile(r"\AMessage Type: NEW_TASK\nTask name: (\S+)$", re.MULTILINE)
_PAYLOAD = re.compile(r"^Payload:\n", re.MULTILINE)
SUMMARY_ASKED = "<compaction_request>"
"""How a message begins that asks for a summary of the conversation."""
_SUMMARY = "<compacted_history>"
_STOOD = re.compile(r"^scripted: (\d+) responses, step (\d+)$", re.MULTILINE)
_BY_MODEL = frozenset({"function_call", "reasoning"})


def text_of(content: Any) -> str:
    """The text of a message's content or of a call's output: a string, or parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(_part(part) for part in parts if isinstance(part, dict))


def _part(part: Any) -> str:
    """Scenarios see of an image that it is there and of which kind."""
    if part.get("type") == "input_image":
        return f"<{str(part.get('image_url')).partition(',')[0][:100]}>"
    return str(part.get("text") or "")


def images_in(items: list[Item]) -> list[Item]:
    """The images of messages and outputs."""
    return [
        part
        for item in items
        for parts in (item.get("content"), item.get("output"))
        if isinstance(parts, list)
        for part in parts
        if isinstance(part, dict) and part.get("type") == "input_image"
    ]


def by_model(item: Item) -> bool:
    return item.get("type") in _BY_MODEL or item.get("role") == "assistant"


def place_mark(responses: int, step: int) -> str:
    """What a summary says of where the conversation stood: the scripted model has no other memory."""
    return f"scripted: {responses} responses, step {step}"


class View:
    """The part of a conversation that the model saw before one of its responses."""

    def __init__(self, path: str, items: list[Item], since: int) -> None:
        self.path = path
        self._items = items
        self._since = since
        """Where the items after the latest earlier response begin."""

    def source(self, name: str) -> str:
        value = getattr(self, name)
        assert isinstance(value, str)
        return value

    @cached_property
    def first(self) -> str:
        return next((text_of(i.get("content")) for i in self._items if i.get("role") == "user"), "")

    @cached_property
    def task(self) -> str:
        """The first message without the headers of mail."""
        found = _PAYLOAD.search(self.first) if self.first.startswith("Message Type: ") else None
        return self.first[found.end() :] if found else self.first

    @cached_property
    def last_message(self) -> str:
        return next((text_of(i.get("content")) for i in reversed(self._items) if i.get("role") == "user"), "")

    @cached_property
    def last_output(self) -> str:
        return _outputs(self._items[self._since :])

    @cached_property
    def outputs(self) -> str:
        return _outputs(self._items)

    @cached_property
    def input(self) -> str:
        texts = (
            str(item.get("arguments") or "") or text_of(item.get("content") or item.get("output"))
            for item in self._items
        )
        return "\n".join(texts)


def _outputs(items: list[Item]) -> str:
    return "\n".join(text_of(i.get("output")) for i in items if i.get("type") == "function_call_output")


class Exchange:
    """`everything` is the whole input, `items` the agent's own: what a fork took over from its parent comes
    before its task and is left out. A response is a maximal run of items that the model made."""

    def __init__(self, body: dict[str, Any]) -> None:
        found = _PATH.search(body.get("instructions") or "")
        self.path = found[1] if found else ""
        everything: list[Item] = body["input"]
        self.everything = everything
        start = 0
        if self.path:
            for index, item in enumerate(everything):
                own = item.get("role") == "user" and _OWN_TASK.match(text_of(item.get("content")))
                if own and own[1] == self.path:
                    start = index
                    break
        self.items = everything[start:]
        self.asks_summary = text_of(self.items[-1].get("content")).startswith(SUMMARY_ASKED)
        self.compacted = False
        self.past, self.stood = 0, 0
        """How many responses a summary stands for, and the step that came next."""
        for item in reversed(self.items):
            text = text_of(item.get("content")) if item.get("role") == "user" else ""
            if text.startswith(_SUMMARY):
                self.compacted = True
                if marks := _STOOD.findall(text):
                    self.past, self.stood = map(int, marks[-1])
                break
        self.runs: list[tuple[int, int]] = []
        begun: int | None = None
        for index, item in enumerate(self.items):
            if by_model(item):
                begun = index if begun is None else begun
            elif begun is not None:
                self.runs.append((begun, index))
                begun = None
        if begun is not None:
            self.runs.append((begun, len(self.items)))

    def before(self, run: int) -> View:
        """What the model saw before its response number `run`; `run` = len(runs): what it sees now."""
        end = self.runs[run][0] if run < len(self.runs) else len(self.items)
        since = self.runs[run - 1][1] if run > 0 else 0
        return View(self.path, self.items[:end], since)
