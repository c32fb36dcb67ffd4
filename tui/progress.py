"""The progress line of a job: `job 8184e894 [####----] 6/30 20% ✗0 ◍5 ◌19 12.4/min eta 2m`."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Literal, Protocol

from core.domain.state import JobState
from core.safety.text import clean_line

WINDOW_SECONDS = 60.0
BAR = 20
Mode = Literal["auto", "line", "lines", "off"]


class Rate:
    """Rows per minute over the last minute of `JobRowEnded` events; None while it is unknown."""

    def __init__(self) -> None:
        self._ends: deque[datetime] = deque(maxlen=2000)
        self._start: datetime | None = None

    def begin(self, at: datetime) -> None:
        self._start = self._start or at

    def add(self, at: datetime) -> None:
        self.begin(at)
        self._ends.append(at)

    def per_minute(self, now: datetime) -> float | None:
        if self._start is None:
            return None
        while self._ends and (now - self._ends[0]).total_seconds() > WINDOW_SECONDS:
            self._ends.popleft()
        # A full deque spans less than the window: its first end opens it.
        opened = self._ends[0] if len(self._ends) == self._ends.maxlen else self._start
        span = min((now - opened).total_seconds(), WINDOW_SECONDS)
        return len(self._ends) / span * 60 if self._ends and span > 0 else None


def line(job: JobState, *, rate: float | None = None, width: int | None = None, glyphs: bool = True) -> str:
    """One line; in at most `width` columns if that is given: first the bar shrinks, then the end is cut."""
    percent = job.done * 100 // job.total if job.total else 100
    failed, running, pending = ("✗", "◍", "◌") if glyphs else ("f", "r", "p")
    parts = [
        f"{job.done}/{job.total} {percent}%",
        f"{failed}{job.failed} {running}{job.running} {pending}{job.pending}",
    ]
    if job.ended and job.status != "completed":
        parts.append(job.status)
    elif job.cancelling and not job.ended:
        parts.append("cancelling")
    elif job.status == "paused":
        parts.append(f"paused by {clean_line(job.paused_by) or 'the end of its engine'}")
    elif rate is not None:
        parts.append(f"{rate:.1f}/min")
        left = job.pending + job.running
        if rate > 0 and left and not job.ended:
            parts.append(f"eta {duration(left / rate * 60)}")
    head, tail = f"job {job.job[:8]} ", " ".join(parts)
    size = BAR if width is None else min(BAR, width - len(head) - len(tail) - 3)
    bar = ""
    if size >= 4:
        filled = job.done * size // job.total if job.total else size
        bar = "[" + "#" * filled + "-" * (size - filled) + "] "
    text = head + bar + tail
    return text if width is None or len(text) <= width else text[: max(width - 2, 0)] + ".."[: max(width, 0)]


def duration(seconds: float) -> str:
    """`40s`, `2m`, `1h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{round(seconds / 60)}m"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _Stream(Protocol):
    async def write(self, text: str) -> None: ...

    async def line(self, text: str) -> None: ...


class ProgressLine:
    """Draws a job's line on `out`: in place (`line`), as sparse lines (`lines`), or not at all (`off`).

    Other text must go through `note`, so that it never lands in the middle of a line drawn in place.
    """

    def __init__(self, out: _Stream, mode: Literal["line", "lines", "off"]) -> None:
        self._out = out
        self._mode = mode
        self._drawn = ""
        self._last: float | None = None

    @property
    def in_place(self) -> bool:
        return self._mode == "line"

    async def show(self, text: str, now: float, *, last: bool = False) -> None:
        """`now` in monotonic seconds. Lines: the first, the last, at most one a second between; in place: at
        most eight a second."""
        if self._mode == "off" or text == self._drawn:
            return
        pause = 1.0 if self._mode == "lines" else 0.125
        if not last and self._last is not None and now - self._last < pause:
            return
        self._last, self._drawn = now, text
        if self._mode == "lines":
            await self._out.line(text)
        else:
            await self._out.write(f"\r{text}\x1b[K")

    async def note(self, text: str) -> None:
        """A line of its own; a line in place moves below it."""
        if self._mode == "line" and self._drawn:
            await self._out.write("\r\x1b[K")
            await self._out.line(text)
            await self._out.write(self._drawn)
        else:
            await self._out.line(text)

    async def end(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._mode == "line" and self._drawn:
            await self._out.write("\n")
            self._drawn = ""
