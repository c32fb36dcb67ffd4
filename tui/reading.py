"""What the reading verbs share: the store read-only, JSON out."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from core.config import Settings
from tui import signals
from tui.output import escape_json

if TYPE_CHECKING:
    from core.store.readers import Reader


def read(settings: Settings, ask: Callable[[Reader], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The answer of `ask` from the store of these settings. Raises StoreError or NotFound, one sentence."""
    from core.store.readers import Reader

    answer: dict[str, Any] = {}

    async def main() -> int:
        async with Reader.open(settings.home) as reader:
            answer.update(await ask(reader))
        return 0

    code = signals.run(main)
    if code:
        raise SystemExit(code)
    return answer


def print_json(value: object) -> None:
    """One JSON document on standard output, indented, in UTF-8; nothing in it can drive a terminal."""
    _in_utf8()
    print(_text(value))


async def print_json_list(name: str, entries: AsyncIterator[object]) -> None:
    """`print_json({name: [...]})` for a list that need not fit into memory. Nothing is printed before the
    first entry is there, so that a refusal stands alone."""
    first = True
    async for entry in entries:
        if first:
            _in_utf8()
        print(f'{{\n  "{name}": [\n' if first else ",\n", end="")
        print("    " + _text(entry).replace("\n", "\n    "), end="")
        first = False
    print(f'{{\n  "{name}": []\n}}' if first else "\n  ]\n}")


def _text(value: object) -> str:
    return escape_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _in_utf8() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
