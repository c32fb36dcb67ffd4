"""Text for cells: widths, cutting, wrapping, short numbers. Everything here measures in terminal cells."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells, set_cell_size

TAB = "    "


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells; a cut leaves an ellipsis. A wide character is never halved."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    head = set_cell_size(text, width - 1)
    return head.rstrip(" ") + "…" if head.endswith(" ") else head + "…"


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` cut and padded to exactly `width` cells."""
    text = cut(text, width)
    pad = " " * max(width - cell_len(text), 0)
    return pad + text if right else text + pad


def one_line(text: str) -> str:
    """The words of `text` on one line."""
    return " ".join(text.split())


def first_line(text: str) -> str:
    """The first line of `text` that holds something."""
    for line in text.lstrip().splitlines():
        return line.rstrip()
    return ""


def wrap(text: str, width: int) -> list[str]:
    """`text` as lines of at most `width` cells: broken at spaces, long words by cells, tabs expanded.

    Indentation and inner spaces stay as they are; an empty text is one empty line.
    """
    width = max(width, 1)
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.replace("\t", TAB).rstrip()
        if (len(line) if line.isascii() else cell_len(line)) <= width:
            lines.append(line)
        else:
            lines.extend(_wrap_line(line, width))
    return lines


def _wrap_line(line: str, width: int) -> list[str]:
    if line.isascii():
        return _wrap_ascii(line, width)
    lines: list[str] = []
    current, used = "", 0
    for word in line.split(" "):
        size = cell_len(word)
        if current and used + 1 + size <= width:
            current, used = f"{current} {word}", used + 1 + size
            continue
        if current:
            lines.append(current)
        if size > width:
            *whole, word = chop_cells(word, width) or [""]
            lines.extend(whole)
            size = cell_len(word)
        current, used = word, size
    return [*lines, current]


def _wrap_ascii(line: str, width: int) -> list[str]:
    lines: list[str] = []
    start, end = 0, len(line)
    while end - start > width:
        space = line.rfind(" ", start, start + width + 1)
        if space <= start or not line[start:space].strip():
            lines.append(line[start : start + width])
            start += width
        else:
            lines.append(line[start:space])
            start = space + 1
    lines.append(line[start:])
    return lines


def age(seconds: float) -> str:
    """How long ago, in at most 4 cells: 4s, 12m, 3h, 12d."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def took(seconds: float) -> str:
    """How long something took, in at most 7 cells: 0.8s, 41.2s, 7m58s, 2h03m."""
    if seconds < 120:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def running(seconds: float) -> str:
    """A clock of something that runs, in whole seconds: 8s, 7m58s, 2h03m."""
    whole = max(int(seconds), 0)
    return f"{whole}s" if whole < 60 else took(max(whole, 120)) if whole >= 120 else f"1m{whole - 60:02d}s"


def count(number: int) -> str:
    """A number in at most 5 cells: 950, 4.4k, 181k, 2.1M."""
    if number < 1000:
        return str(number)
    if number < 9950:
        return f"{number / 1000:.1f}k"
    if number < 999_500:
        return f"{number / 1000:.0f}k"
    return f"{number / 1_000_000:.1f}M" if number < 99_500_000 else f"{number / 1_000_000:.0f}M"
