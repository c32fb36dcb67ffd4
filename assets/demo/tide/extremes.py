"""High and low waters of a series of readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Literal, NamedTuple

from tide.log import Level

GAP = timedelta(hours=1)
"""Readings further apart than this do not belong to one segment."""


class Extreme(NamedTuple):
    kind: Literal["high", "low"]
    level: Level


def segments(levels: Sequence[Level]) -> Iterator[list[Level]]:
    """Runs of readings without a gap."""
    run: list[Level] = []
    for level in levels:
        if run and level.at - run[-1].at > GAP:
            yield run
            run = []
        run.append(level)
    if run:
        yield run


def extremes(levels: Sequence[Level], reach: int = 3) -> list[Extreme]:
    """Readings that no neighbour within `reach` beats; the first of equal ones."""
    found: list[Extreme] = []
    for run in segments(levels):
        for i in range(reach, len(run) - reach):
            before = [level.metres for level in run[i - reach : i]]
            after = [level.metres for level in run[i + 1 : i + 1 + reach]]
            here = run[i].metres
            if here > max(before) and here >= max(after):
                found.append(Extreme("high", run[i]))
            elif here < min(before) and here <= min(after):
                found.append(Extreme("low", run[i]))
    return found
