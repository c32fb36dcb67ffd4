from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.models.retry import backoff, hint, worth_retrying

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "Thu, 01 Jan 2026 12:01:00 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "later"}, None),
    ],
)
def test_hint(headers: dict[str, str], seconds: float | None) -> None:
    assert hint(headers, NOW) == seconds


def test_statuses() -> None:
    retried = {s for s in range(400, 600) if worth_retrying(s, {})}
    assert retried == {408, 409, 429, *range(500, 600)}
    assert worth_retrying(400, {"x-should-retry": "true"})
    assert not worth_retrying(500, {"x-should-retry": "false"})
    assert worth_retrying(500, {"x-should-retry": "maybe"})


def test_backoff_doubles_up_to_eight_seconds_and_takes_off_a_quarter_at_most() -> None:
    assert [backoff(n, 0.0) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert backoff(3, 0.999) == pytest.approx(1.5, rel=0.01)
    assert backoff(10_000, 0.0) == 8
