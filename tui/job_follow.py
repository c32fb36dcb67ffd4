"""A job followed to its end: progress, failures and asks on standard error, last words, the exit code."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Literal

from core.channel.client import Client
from core.clock import Clock, SystemClock
from core.domain.events import (
    AnyEvent,
    JobCancelling,
    JobChanged,
    JobEnded,
    JobExported,
    JobPaused,
    JobReopened,
    JobRowEnded,
    JobRowMoved,
    JobStarted,
)
from core.domain.state import JobState, SwarmState
from core.safety.text import clean_line
from core.view.swarm import SwarmView
from tui import exits, headless, setup, spent
from tui.farewell import short_id
from tui.output import Out
from tui.plain import PlainLines
from tui.progress import ProgressLine, Rate, line

SHOWN_FAILURES = 5
MEANS = {"budget": exits.BUDGET, "quota": exits.QUOTA}
"""Who pauses a job until somebody has paid, and the exit code that says so."""
_DRAWN = (JobStarted, JobPaused, JobCancelling, JobChanged, JobReopened, JobEnded)
"""Events that change what the progress says at once, however short ago it was drawn."""


@dataclass
class Run:
    """What is known of a job's run, also when it was cut short."""

    swarm: str = ""
    job: str = ""
    state: JobState | None = None
    output: str | None = None
    error: str | None = None
    """Why the job failed, or why its CSV could not be written."""
    failures: int = field(default=0)
    paused: JobPaused | None = None
    """The pause that it is in."""
    elsewhere: bool = False
    """Another engine runs it: it goes on when nobody follows it any more."""

    @property
    def short(self) -> str:
        return self.job[:8]

    @property
    def out_of(self) -> str | None:
        """The means for want of which it stands still."""
        return self.paused.by if self.paused is not None and self.paused.by in MEANS else None


async def follow(client: Client, so_far: Run, progress: str, *, after: int = 0, whole: bool = False) -> int:
    """Tell what happens behind event `after` until the job has ended or is out of means; with `whole` until
    nothing else of its swarm runs either. One that an operator has paused is waited for. The exit code."""
    view = SwarmView()
    teller = _Teller(view, so_far, _mode(progress), SystemClock())

    def over(state: SwarmState) -> bool:
        job = state.jobs.get(so_far.job)
        if job is None or not (job.ended or (so_far.out_of is not None and not job.running)):
            return False
        return not (whole and state.active())

    try:
        await headless.until_quiet(client, so_far.swarm, view, teller.tell, over, after=after)
    finally:
        so_far.state = view.state.jobs.get(so_far.job, so_far.state)
        await teller.progress.end()
    return judge(so_far)


class _Teller:
    def __init__(
        self, view: SwarmView, so_far: Run, mode: Literal["line", "lines", "off"], clock: Clock
    ) -> None:
        err = Out.stderr()
        self.progress = ProgressLine(err, mode)
        self._view = view
        self._run = so_far
        self._clock = clock
        self._rate = Rate()
        self._glyphs = setup.glyphs_fit()
        self._lines = PlainLines(view, "headless", glyphs=self._glyphs)

    async def tell(self, event: AnyEvent) -> None:
        run, view = self._run, self._view
        run.state = view.state.jobs.get(run.job)
        ours = getattr(event, "job", None) == run.job
        said = self._lines.lines(event)
        if ours and isinstance(event, JobRowEnded) and event.status == "failed":
            run.failures += 1
            if run.failures > SHOWN_FAILURES:
                rest = f"more rows failed: watchroom job show {run.short}"
                said = [rest] if run.failures == SHOWN_FAILURES + 1 else []
        for text in said:
            await self.progress.note(text)
        if ours:
            await self._told(event)

    async def _told(self, event: AnyEvent) -> None:
        run = self._run
        match event:
            case JobStarted():
                self._rate.begin(event.at)
                run.paused = None
            case JobRowEnded():
                self._rate.add(event.at)
            case JobExported():
                run.output = event.path
            case JobEnded():
                run.error, run.paused = event.error, None
            case JobPaused():
                run.paused = event
            case JobCancelling() | JobChanged() | JobReopened() | JobRowMoved():
                pass
            case _:
                return
        await self._draw(event)

    async def _draw(self, event: AnyEvent) -> None:
        job = self._run.state
        if job is None:
            return
        width = _columns() if self.progress.in_place else None
        text = line(job, rate=self._rate.per_minute(event.at), width=width, glyphs=self._glyphs)
        await self.progress.show(text, self._clock.monotonic(), last=isinstance(event, _DRAWN))


def _mode(progress: str) -> Literal["line", "lines", "off"]:
    if progress == "auto":
        return "line" if sys.stderr.isatty() else "lines"
    return "off" if progress == "off" else "line" if progress == "line" else "lines"


def _columns() -> int:
    try:
        return max(os.get_terminal_size(sys.stderr.fileno()).columns - 1, 20)
    except OSError:
        return 79


# --- the end ---------------------------------------------------------------------------------------------


def judge(so_far: Run) -> int:
    """The exit code for how the job stands."""
    job = so_far.state
    if so_far.out_of is not None:
        return MEANS[so_far.out_of]
    if job is None or job.status == "failed" or so_far.error is not None:
        return exits.ERROR
    return exits.OK if job.status == "completed" and not job.failed else exits.FAILED_ROWS


def close(so_far: Run, code: int | None) -> None:
    """The last words: what is stored and where, and the command that goes on, unless all went well. `code` is
    None if the run raised."""
    job = so_far.state
    if code in (exits.OK, exits.PIPE) or not so_far.job:
        return
    if so_far.error is not None:
        say(so_far.error)
    if so_far.out_of is not None and so_far.paused is not None:
        say(f"the {so_far.out_of} stopped it: {so_far.paused.reason or 'it is spent'}")
    if job is not None:
        done = f"{job.completed} of {job.total} rows done, {job.failed} failed"
        say(f"{done}; results so far are stored: watchroom job show {so_far.short}")
    if job is not None and job.ended:
        if job.status == "completed" and so_far.error is not None:
            say(f"write them elsewhere: watchroom job export {so_far.short} --output FILE")
        if job.failed:
            say(f"try the failed rows again: watchroom job retry {so_far.short}")
        return
    if so_far.elsewhere and code is not None and code > 128:
        say(f"its engine goes on with it; follow it again with: {way_on(so_far)}")
    elif so_far.elsewhere and so_far.out_of == "budget":
        say(f"raise its budget with: watchroom agent budget {short_id(so_far.swarm)} --help")
        say(f"then go on with: watchroom job resume {so_far.short}")
    else:
        say(f"go on with: {way_on(so_far)}")


def way_on(so_far: Run) -> str:
    """The command that goes on; with a larger budget if that is what is missing."""
    reason = so_far.paused.reason if so_far.out_of == "budget" and so_far.paused is not None else ""
    return f"watchroom job resume {so_far.short}" + spent.larger(reason)


def say(text: str) -> None:
    print(f"watchroom: {clean_line(text)}", file=sys.stderr)
