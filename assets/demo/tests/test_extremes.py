import math
import unittest
from datetime import datetime, timedelta

from tide.extremes import extremes
from tide.log import Level

START = datetime(2026, 3, 14)


def wave(hours: float) -> float:
    return 2.0 + 1.4 * math.cos(2 * math.pi * hours / 12.42)


class Extremes(unittest.TestCase):
    def test_a_tide_has_lows_and_highs_in_turn(self) -> None:
        levels = [Level(START + timedelta(minutes=30 * i), wave(i / 2)) for i in range(48)]
        assert [extreme.kind for extreme in extremes(levels)] == ["low", "high", "low"]

    def test_none_across_a_gap(self) -> None:
        levels = [Level(START + timedelta(hours=2 * i), wave(2 * i)) for i in range(12)]
        assert extremes(levels) == []


if __name__ == "__main__":
    unittest.main()
