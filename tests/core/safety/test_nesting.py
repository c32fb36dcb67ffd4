from __future__ import annotations

from typing import Any

from core.safety.nesting import depth_of


def test_depth_stops_counting_above_its_limit() -> None:
    assert depth_of({}, 5) == 0
    assert depth_of({"a": [1]}, 5) == 2
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert depth_of(deep, 5) == 6
