"""Text with values from the request in it: `{name}`, `{name:int}`, `{name:json}`, `{name:sh}`; `{{` and `}}`
are braces."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

_PIECE = re.compile(r"\{\{|\}\}|\{([a-z_][a-z0-9_]*)(?::([a-z]+))?\}|[{}]")
_FILTERS = ("int", "json", "sh")


class Missing(Exception):
    """A value that the request does not hold, or that is not what the filter wants. `str()` says which."""


class Slot(NamedTuple):
    name: str
    filter: str


class Template:
    """Compiled text. Raises ValueError for a brace that is no slot and not doubled, or an unknown filter."""

    def __init__(self, text: str) -> None:
        self.parts: list[str | Slot] = []
        position = 0
        for found in _PIECE.finditer(text):
            self.parts.append(text[position : found.start()])
            position = found.end()
            piece = found[0]
            if piece in ("{{", "}}"):
                self.parts.append(piece[0])
            elif piece in ("{", "}"):
                raise ValueError(f"a single {piece!r} in {text!r}: write {piece * 2!r} for a brace")
            else:
                if found[2] and found[2] not in _FILTERS:
                    raise ValueError(
                        f"unknown filter {found[2]!r} in {piece!r}: one of {', '.join(_FILTERS)}"
                    )
                self.parts.append(Slot(found[1], found[2] or ""))
        self.parts.append(text[position:])
        self.parts = [part for part in self.parts if part != ""]
        self.names = {part.name for part in self.parts if isinstance(part, Slot)}

    def text(self, value: Callable[[str], Any]) -> str:
        """Everything as text. Raises Missing."""
        return "".join(
            part if isinstance(part, str) else _as_text(part, value(part.name)) for part in self.parts
        )

    def leaf(self, value: Callable[[str], Any]) -> Any:
        """A string leaf of arguments: text, or the typed value when it is one `{x:int}` or `{x:json}`."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Slot):
            slot = self.parts[0]
            if slot.filter == "int":
                return _as_int(slot, value(slot.name))
            if slot.filter == "json":
                return _as_json(slot, value(slot.name))
        return self.text(value)


@lru_cache(maxsize=8192)
def template(text: str) -> Template:
    return Template(text)


def fill(node: Any, value: Callable[[str], Any]) -> Any:
    """Arguments with every string leaf filled in; keys stay as they are. Raises Missing."""
    if isinstance(node, str):
        return template(node).leaf(value)
    if isinstance(node, Mapping):
        return {key: fill(item, value) for key, item in node.items()}
    if isinstance(node, list):
        return [fill(item, value) for item in node]
    return node


def names_in(node: Any) -> set[str]:
    """All names that the strings of `node` use. Raises ValueError as Template does."""
    if isinstance(node, str):
        return set(template(node).names)
    if isinstance(node, Mapping):
        return set().union(*(names_in(item) for item in node.values()))
    if isinstance(node, list):
        return set().union(*(names_in(item) for item in node))
    return set()


def _as_text(slot: Slot, value: Any) -> str:
    if slot.filter == "int":
        return str(_as_int(slot, value))
    if slot.filter == "json":
        return json.dumps(_as_json(slot, value), ensure_ascii=False)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shlex.quote(text) if slot.filter == "sh" else text


def _as_int(slot: Slot, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise Missing(f"{slot.name} is not a whole number") from None


def _as_json(slot: Slot, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Missing(f"{slot.name} is not JSON") from None
