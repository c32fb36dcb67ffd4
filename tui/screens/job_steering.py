"""Steering jobs: what the keys of the job table do, with the question before it that says how far it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.domain.commands import (
    CancelJob,
    ContinueJob,
    JobRow,
    PauseJob,
    RetryRows,
    SetJob,
    SkipRows,
)
from core.domain.state import JobState
from tui import text
from tui.screens.confirm import Choice, ConfirmScope

if TYPE_CHECKING:
    from tui.screens.swarm import SwarmScreen

STEP = 4
"""Of `+` and `-`, for a concurrency of up to that many 1."""


class JobSteering:
    """Sends commands about the job on show, for the screen that it belongs to."""

    def __init__(self, screen: SwarmScreen) -> None:
        self.screen = screen
        self._verbs: dict[str, Callable[[JobState], None]] = {
            "pause": self._pause,
            "cancel": self._cancel,
            "retry": self._retry,
            "skip": self._skip,
            "more": lambda job: self._resize(job, 1),
            "fewer": lambda job: self._resize(job, -1),
        }

    def do(self, verb: str) -> None:
        job = self.screen.table.state
        if job is None:
            self.screen.app.say("no job in this swarm")
        elif job.ended and verb != "retry":
            self.screen.app.say(f"job {text.one_line(job.name)} has ended as {job.status}")
        else:
            self._verbs[verb](job)

    @property
    def _swarm(self) -> str:
        return self.screen.view.state.swarm

    def _pause(self, job: JobState) -> None:
        app, name = self.screen.app, text.one_line(job.name)
        if job.status == "paused":
            app.command(ContinueJob(swarm=self._swarm, job=job.job), f"job {name} goes on")
            return

        def told(value: Mapping[str, Any]) -> str:
            left = int(value.get("running", 0))
            return f"job {name} is paused" + (f"; {_rows(left)} at work go on to the end" if left else "")

        app.command(PauseJob(swarm=self._swarm, job=job.job), told)

    def _cancel(self, job: JobState) -> None:
        name = text.one_line(job.name)
        about = f"{_rows(job.running)} at work stop and fail, {_rows(job.pending)} stay undone."

        def answer(choice: str | None) -> None:
            if choice is not None:
                command = CancelJob(swarm=self._swarm, job=job.job)
                self.screen.app.command(command, f"job {name} is being cancelled")

        self._ask(f"Cancel job {name}?", about, [("x", "cancel it", "cancel")], answer)

    def _retry(self, job: JobState) -> None:
        """The row under the cursor if it failed or was skipped, or all that failed: the operator says."""
        row = self.screen.table.row()
        one = row if row is not None and row.status in ("failed", "skipped") else None
        if one is None and not job.failed:
            self.screen.app.say("no row of this job has failed")
        elif one is not None and job.failed <= (one.status == "failed"):
            self._send_retry(job, (one.item,))
        else:
            again = f" The job has ended as {job.status} and runs again." if job.ended else ""
            choices: list[Choice] = [("r", f"row {one.row_index + 1} alone", "one")] if one else []
            choices.append(("R", f"all {_rows(job.failed)} that failed", "all"))

            def answer(choice: str | None) -> None:
                if choice is not None:
                    self._send_retry(job, (one.item,) if one is not None and choice == "one" else ())

            about = f"Each is tried once more at least.{again}"
            self._ask(f"Retry rows of job {text.one_line(job.name)}?", about, choices, answer)

    def _send_retry(self, job: JobState, items: tuple[str, ...]) -> None:
        command = RetryRows(swarm=self._swarm, job=job.job, items=items)
        self.screen.app.command(command, lambda value: f"{_rows(value.get('rows', 0))} to be tried again")

    def _skip(self, job: JobState) -> None:
        row: JobRow | None = self.screen.table.row()
        if row is None or row.status not in ("pending", "failed"):
            self.screen.app.say("select a row that waits or has failed, to skip it")
            return
        command = SkipRows(swarm=self._swarm, job=job.job, items=(row.item,))
        self.screen.app.command(command, f"row {row.row_index + 1} is skipped")

    def _resize(self, job: JobState, sign: int) -> None:
        wanted = max(job.concurrency + sign * max(job.concurrency // STEP, 1), 1)
        if wanted == job.concurrency:
            self.screen.app.say("one row at a time is the least; space pauses the job")
            return
        command = SetJob(swarm=self._swarm, job=job.job, max_concurrency=wanted)

        def told(value: Mapping[str, Any]) -> str:
            now = int(value.get("concurrency", wanted))
            capped = "; the swarm has no more slots" if now < wanted else ""
            return f"{_rows(now)} at a time{capped}"

        self.screen.app.command(command, told)

    def _ask(
        self, title: str, about: str, choices: list[Choice], answer: Callable[[str | None], None]
    ) -> None:
        self.screen.app.push_screen(ConfirmScope(title, about, choices, self.screen.glyphs), answer)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")
