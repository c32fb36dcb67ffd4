"""Aligned plain-text tables for the reading verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from core.safety.text import clean_line

MAX_CELLS = 60
"""The last column is cut only by the edge of a terminal: a reader may want it whole."""


def show(
    columns: Sequence[tuple[str, str]],
    rows: Sequence[Mapping[str, Any]],
    gives_way: Sequence[str] = (),
    last: int = 14,
) -> None:
    """Print a table; on a terminal so that no line of it wraps. `gives_way` are the keys of columns that are
    left out, the least important first, until the last one has the cells it needs, at most `last`."""
    width = _terminal_width()
    shown = list(columns)
    for key in gives_way:
        if width is None or _least(table(shown, rows), last) <= width:
            break
        shown = [column for column in shown if column[0] != key]
    for line in table(shown, rows):
        print(line if width is None else _cut(line, width))


def _terminal_width() -> int | None:
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or None


def _least(lines: Sequence[str], last: int) -> int:
    """Cells that a table needs whose last column has at most `last`."""
    before = cell_len(lines[0][: lines[0].rindex("  ") + 2])
    return min(max(cell_len(line) for line in lines), before + last)


def _cut(line: str, width: int) -> str:
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 1).rstrip() + "…"


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines with a header. `columns` are (key, heading); numbers go to the right, None is shown as a dash."""
    cells = [[_cell(row.get(key)) for key, _ in columns] for row in rows]
    right = [
        bool(rows) and all(isinstance(row.get(key), int | float | None) for row in rows) for key, _ in columns
    ]
    lines = [[heading for _, heading in columns], *cells]
    widths = [min(MAX_CELLS, max(cell_len(line[i]) for line in lines)) for i in range(len(columns))]
    return [_line(line, widths, right) for line in lines]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if right[index]:
            parts.append(" " * (width - cell_len(cell)) + cell)
        elif index == len(cells) - 1:
            parts.append(cell)
        elif cell_len(cell) > width:
            parts.append(set_cell_size(_cut(cell, width), width))
        else:
            parts.append(set_cell_size(cell, width))
    return "  ".join(parts).rstrip()


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else clean_line(str(value))


def cost_cell(row: Mapping[str, Any]) -> str | None:
    """What a row of a reading verb cost: "$2.10", "$2.10+" if that is not all, "n/a" if nobody knows; None if
    nothing was used."""
    from core.view.words import UNKNOWN, dollars

    if row["cost"] is None:
        return None if row["tokens"] is None else UNKNOWN
    return dollars(row["cost"]) + ("+" if row["cost_partial"] else "")


def moment(value: str | None) -> str | None:
    """An RFC 3339 time in local time, to the minute."""
    if value is None:
        return None
    from datetime import datetime

    return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M")
