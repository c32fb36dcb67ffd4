"""The log: one line per reading, `time,metres`; see docs/format.md."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


class LogError(Exception):
    """A log that cannot be read; names the line."""


@dataclass(frozen=True)
class Level:
    at: datetime
    metres: float


def read_log(path: Path) -> list[Level]:
    """Readings in time order. A line that goes back in time is an error: the gauge's clock was wrong."""
    levels: list[Level] = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                level = Level(datetime.fromisoformat(row["time"]), float(row["metres"]))
            except (KeyError, TypeError, ValueError) as error:
                raise LogError(f"{path.name}, line {number}: {error}") from error
            if levels and level.at <= levels[-1].at:
                raise LogError(f"{path.name}, line {number}: {row['time']} is not after the line before it")
            levels.append(level)
    if not levels:
        raise LogError(f"{path.name} holds no readings")
    return levels
