"""The single exit to the terminal: spans become a strip here, and nowhere else.

A span is a text and a style name of `tui.themes.Palette`. Text is data: it is never parsed, and what could
drive a terminal is taken out once more (it was cleaned field by field where it entered the view).
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from core.safety.text import clean
from tui.themes import Palette

Span = tuple[str, str]
Line = list[Span]


def net(text: str) -> str:
    """`text` as one line that no terminal obeys."""
    if text.isprintable():
        return text
    return clean(text).replace("\n", " ").replace("\t", " ")


def width_of(line: Line) -> int:
    """Cells that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def paint(
    line: Line,
    width: int,
    palette: Palette,
    *,
    ground: str = "bg",
    override: Style | None = None,
    plain: dict[int, str] | None = None,
) -> Strip:
    """The strip of `line`: exactly `width` cells, cut at the right, padded with the ground colour.

    `plain` replaces characters by others of one cell, for a terminal that lacks them.
    """
    segments: list[Segment] = []
    used = 0
    for raw, name in line:
        text = net(raw)
        if not text:
            continue
        if plain:
            text = text.translate(plain)
        size = cell_len(text)
        if used + size > width:
            text, size = set_cell_size(text, width - used), width - used
        segments.append(Segment(text, override or palette.style(name, ground)))
        used += size
        if used >= width:
            break
    if used < width:
        segments.append(Segment(" " * (width - used), override or palette.style("fg", ground)))
    return Strip(segments, width)


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` and `right` at the two ends of `width` cells. If both do not fit, the right one goes."""
    gap = width - width_of(left) - width_of(right)
    if gap < 1:
        return left
    return [*left, (" " * gap, "fg"), *right]
