"""A day as text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from tide.extremes import extremes
from tide.log import Level

FEET = 3.28084


def in_unit(metres: float, unit: str) -> str:
    """Metres to the centimetre, feet to the tenth."""
    return f"{metres * FEET:.1f} ft" if unit == "ft" else f"{metres:.2f} m"


def daily_report(levels: Sequence[Level], day: date, unit: str = "m") -> str:
    """High and low waters in order, then the range."""
    lines = [f"Tide report for {day.isoformat()}"]
    if not levels:
        return "\n".join([*lines, "no readings"])
    for kind, level in extremes(levels):
        lines.append(f"{level.at:%H:%M}  {kind:<4}  {in_unit(level.metres, unit)}")
    heights = [level.metres for level in levels]
    # FIXME: a day with a gap reports the range of what was measured without saying that hours are missing
    lines.append(f"range  {in_unit(max(heights) - min(heights), unit)}")
    return "\n".join(lines)
