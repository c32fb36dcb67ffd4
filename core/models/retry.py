"""Which failures are worth another request, and when: the rules of the Responses servers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

RETRY_STATUSES = frozenset({408, 409, 429})
"""Beside every 5xx."""
LONGEST_HINT = 120.0
"""Seconds; a server that asks for a longer wait has refused the request."""
PATIENCE = 10
"""Further requests after rate limits, two minutes at least: the limiter needs time to find what the server
takes, and an agent's work should not be lost to it."""
LONGEST_LIMITED = 30.0
_FIRST, _LONGEST, _JITTER = 0.5, 8.0, 0.25


def worth_retrying(status: int, headers: Mapping[str, str]) -> bool:
    """By the server's own word (x-should-retry), else by the status."""
    match headers.get("x-should-retry", "").strip().lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            return status in RETRY_STATUSES or status >= 500


def hint(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait: retry-after-ms, else retry-after (seconds or an HTTP date).
    None when it says nothing that can be read as a time to come."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        seconds = _number(value)
        if seconds is not None:
            seconds *= unit
        elif unit == 1.0:
            seconds = _until(value, now)
        if seconds is not None and seconds > 0:
            return seconds
    return None


def backoff(failures: int, spread: float, longest: float = _LONGEST) -> float:
    """Seconds before the next request after `failures` (>= 1) of them, `longest` at most; `spread` in [0, 1)
    takes off up to a quarter, so that many agents do not come back at the same moment."""
    delay: float = min(_FIRST * 2.0 ** min(failures - 1, 10), longest)
    return delay * (1.0 - _JITTER * spread)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _until(value: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    return (moment - now).total_seconds()
