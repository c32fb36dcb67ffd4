"""The jobs of one swarm: created when everything about them is right, run by the engine, not by a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.clock import Clock
from core.config import JobsSettings
from core.domain.events import JobCreated, Notice
from core.domain.state import JobState
from core.domain.status import Spending, Usage
from core.jobs.errors import JobInputError
from core.jobs.export import export_job
from core.jobs.request import CheckedJob, JobRequest, check_request
from core.jobs.runner import JobPlan, JobRunner, mail_of_end
from core.jobs.template import Template
from core.jobs.workers import Workers
from core.safety.text import clean_line, shorten
from core.store import shapes
from core.store.jobs import StoredJob
from core.store.store import Store

MAX_REASON_CHARS = 1000
SHOWN_FAILURES = 5
Hears = Literal["waits", "told", "woken"]
"""The owner of a job waits for its end in a call, finds a message about it, or is woken by that."""
OUT_OF_MEANS = ("budget", "quota")
"""What pauses a job until somebody has paid."""


class JobService:
    """Creates, runs and cancels the jobs of one swarm. Runners live in `group`, which the engine owns; the
    engine calls `aclose` before it ends the swarm's agents, so that no row fails because the engine ends."""

    def __init__(
        self,
        *,
        swarm: str,
        store: Store,
        workers: Workers,
        clock: Clock,
        settings: JobsSettings,
        slots: int,
        group: asyncio.TaskGroup,
    ) -> None:
        self.swarm = swarm
        self.settings = settings
        self.slots = slots
        self._store = store
        self._workers = workers
        self._clock = clock
        self._group = group
        self._runners: dict[str, JobRunner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._hears: dict[str, Hears] = {}
        """How the owner hears of a job's end, as far as it is known here."""
        self._closed = False
        self._moved = asyncio.Event()

    async def create(self, owner: str, request: JobRequest) -> str:
        """Check a request, store the job with all its rows, and start it. Returns its id.

        `owner` is the thread id of the agent that the workers belong to. Raises JobInputError, or StoreError.
        """
        return await self.launch(owner, await check_request(request, self.settings, self.slots))

    async def launch(self, owner: str, checked: CheckedJob, *, tell_owner: bool = False) -> str:
        """Store and start a job that `check_request` has passed. Cancelling the call stops neither: there is
        no moment at which a job is stored that nobody will run. `tell_owner`: it gets mail when the job ends,
        for it does not wait."""
        if self._closed:
            raise JobInputError("the swarm is ending; no job is started")
        self._workers.check_role(checked.request.role)
        self._workers.check_room()
        plan = _plan(self.swarm, owner, checked, tell_owner=tell_owner)
        runner = JobRunner(plan, self._store, self._workers, self._clock)
        stored: asyncio.Future[JobInputError | None] = asyncio.get_running_loop().create_future()
        self._runners[checked.job] = runner
        self._notes[checked.job] = checked.notes
        self._hears[checked.job] = "woken" if tell_owner else "waits"
        task = self._group.create_task(self._job(owner, [checked], runner, stored), name=f"job {checked.job}")
        self._tasks[checked.job] = task
        task.add_done_callback(self._moves)
        first: set[asyncio.Future[Any]] = {task, stored}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not stored.done():
            if task.cancelled():
                raise JobInputError("the swarm is ending; no job is started")
            task.result()  # raises what kept it from being stored
        elif (problem := stored.result()) is not None:
            raise problem
        return checked.job

    async def _job(
        self,
        owner: str,
        checked: list[CheckedJob],
        runner: JobRunner,
        stored: asyncio.Future[JobInputError | None],
    ) -> None:
        try:
            # Taken out of its box: a job that runs for hours must not hold what it was made of.
            await self._create(owner, checked.pop())
        except JobInputError as error:
            # The input was changed after it was checked. That is nothing for the group that runs the jobs.
            self._runners.pop(runner.plan.job, None)
            stored.set_result(error)
            return
        stored.set_result(None)
        await runner.run()

    async def _create(self, owner: str, checked: CheckedJob) -> None:
        request = checked.request
        event = JobCreated(
            agent=owner,
            job=checked.job,
            name=checked.name,
            instruction=request.instruction,
            input_path=str(checked.input_path),
            output_path=str(checked.output_path) if checked.output_path is not None else None,
            total=len(checked.table.rows),
            concurrency=checked.concurrency,
            max_attempts=checked.max_attempts,
            max_runtime_seconds=checked.max_runtime_seconds,
            call=request.call,
        )
        schema = None
        if request.output_schema is not None:
            schema = msgspec.json.encode(request.output_schema).decode()
        table = checked.table
        await self._store.jobs.create(
            self.swarm,
            event,
            table.headers,
            table.rows,
            schema,
            request.raw,
            auto_export=request.auto_export,
            model=request.model,
            role=request.role,
        )
        notes = [Notice(agent=owner, text=f"job {checked.name}: {note}") for note in checked.notes]
        if notes:
            await self._store.append(self.swarm, notes)

    # --- going on ----------------------------------------------------------------------------------------

    async def left_over(self) -> list[StoredJob]:
        """The jobs of this swarm that another engine began and did not end."""
        return await self._store.jobs.left_over(self.swarm)

    def go_on(self, left: Sequence[StoredJob]) -> None:
        """Run them to their ends. Their rows that were at work are back in the queue already. One that an
        operator has paused stays so."""
        jobs = self._store.state(self.swarm).jobs
        for stored in left:
            if jobs[stored.job].paused_by in ("", *OUT_OF_MEANS):
                self._run_stored(stored, again=True)

    def _run_stored(self, stored: StoredJob, by: str = "", *, again: bool = False) -> None:
        self._runners.pop(stored.job, None)
        task = self._group.create_task(self._go_on(stored, by, again), name=f"job {stored.job}")
        self._tasks[stored.job] = task
        task.add_done_callback(self._moves)
        self._notes[stored.job] = ()

    async def _go_on(self, stored: StoredJob, by: str, again: bool) -> None:
        """`again`: it may be paused because it was out of means, and is tried."""
        state = self.state(stored.job)
        if state.ended:
            return  # somebody cancelled it meanwhile
        if state.cancelling:
            # Its engine ended before its workers had.
            await self._end_unrun(stored.job, "cancelled", None, state.cancelling)
            return
        # It may have been changed since it was read.
        stored = stored._replace(concurrency=state.concurrency)
        hears = self._heard_by_owner(state)
        try:
            self._workers.check_role(stored.role)
            plan = plan_of(self.swarm, stored, self.slots, tell_owner=hears == "woken")
        except (JobInputError, ValueError) as error:
            reason = shorten(clean_line(f"the job cannot be gone on with: {error}"), MAX_REASON_CHARS)
            await self._end_unrun(stored.job, "failed", reason, "")
            return
        runner = self._runners[stored.job] = JobRunner(plan, self._store, self._workers, self._clock, by=by)
        runner.detached = hears == "told"
        if again and state.paused_by in OUT_OF_MEANS:
            await self._store.jobs.start(self.swarm, stored.job, plan.concurrency, by, source="paused")
        if stored.stopped_by is not None:
            runner.stop(stored.stopped_by)
        await runner.run()

    def _heard_by_owner(self, job: JobState) -> Hears:
        """No call outlives its engine: after a restart nobody waits, and who never had a turn began none."""
        if (known := self._hears.get(job.job)) is not None:
            return known
        owner = self._store.state(self.swarm).agents.get(job.owner or "")
        return "woken" if owner is not None and owner.turns > 0 else "waits"

    async def _end_unrun(
        self, job: str, status: Literal["failed", "cancelled"], error: str | None, by: str
    ) -> bool:
        """End a job that has no runner; False if it had ended."""
        state = self.state(job)
        hears = self._heard_by_owner(state)
        told = []
        if hears != "waits" and state.owner is not None:
            told.append(mail_of_end(state, status, error, wakes=hears == "woken"))
        ended = await self._store.jobs.end(self.swarm, job, status, error, by, told=told)
        self._moves()
        return ended

    async def wait(self, job: str) -> dict[str, Any]:
        """Wait for the end of a job of this swarm, or until it is out of means; its summary. One that an
        operator has paused is waited for. Cancelling the wait stops nothing.
        Raises JobInputError if the engine stops first: then the job goes on when its swarm is resumed."""
        while True:
            # Before the look, so that no end is missed.
            moved = self._moved
            task = self._tasks.get(job)
            over = task is None or task.done()
            state = self._store.state(self.swarm).jobs[job]
            if over and (state.ended or state.paused_by in OUT_OF_MEANS):
                # What comes of it later, the owner does not wait for.
                self._hears.pop(job, None)
                return await self.summary(job)
            if self._closed and over:
                raise JobInputError("the engine was stopped; the job goes on when the swarm is resumed")
            await moved.wait()

    def _moves(self, *_: object) -> None:
        """Something happened to a job: those who wait look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    def find(self, ref: str) -> str:
        """A job of this swarm by its id, a unique beginning of it, or its name. Raises JobInputError."""
        jobs = self._store.state(self.swarm).jobs
        if ref in jobs:
            return ref
        found = [job.job for job in jobs.values() if ref and (job.name == ref or job.job.startswith(ref))]
        if len(found) == 1:
            return found[0]
        shown = shorten(clean_line(ref), 60)
        if not found:
            raise JobInputError(f"there is no job {shown} in this swarm")
        raise JobInputError(f"{shown} stands for {len(found)} jobs of this swarm; give more of the id")

    def state(self, job: str) -> JobState:
        """A job of this swarm as it stands. Raises KeyError."""
        return self._store.state(self.swarm).jobs[job]

    def detach(self, job: str) -> None:
        """Nobody waits for it any more: its owner finds a message about its end, which does not wake it."""
        self._hears[job] = "told"
        if (runner := self._running(job)) is not None:
            runner.detached = True

    async def export(self, job: str, output: Path) -> None:
        """Write a job's CSV as it stands. Raises ExportError."""
        rows = await export_job(self._store.jobs, job, output)
        await self._store.jobs.exported(self.swarm, job, str(output), rows)

    async def run(self, owner: str, request: JobRequest) -> dict[str, Any]:
        """Create a job, run it to its end, and return its summary."""
        return await self.wait(await self.create(owner, request))

    # --- what an operator does ---------------------------------------------------------------------------

    async def cancel(self, job: str, by: str) -> bool:
        """Stop a job and its workers; rows not started stay pending. False when it has ended already, or
        when the engine stops: what ends with it is not the job."""
        if self._closed:
            return False
        runner = self._running(job)
        if runner is None:
            return await self._end_unrun(job, "cancelled", None, by)
        if not runner.cancel(by):
            return False
        await self._store.jobs.cancelling(self.swarm, job, by)
        return True

    async def pause(self, job: str, by: str) -> bool:
        """Start no further rows; those at work go on to their ends. False if it is paused or has ended."""
        self.refuse_when_closed()
        # First the runner, which then ends no job for want of rows that it may not have.
        if (runner := self._running(job)) is not None:
            runner.pause()
        return await self._store.jobs.pause(self.swarm, job, by)

    async def proceed(self, job: str, by: str) -> bool:
        """Go on with a paused job, or run one whose rows were put back. False if it runs, or has ended."""
        self.refuse_when_closed()
        state = self._store.state(self.swarm).jobs[job]
        if state.ended or (state.status == "running" and self.runs(job)):
            return False
        started = await self._store.jobs.start(self.swarm, job, None, by)
        if (runner := self._running(job)) is not None:
            runner.proceed()
        else:
            await self._run_again(job, by)
        return started

    async def resize(self, job: str, concurrency: int, by: str) -> tuple[bool, int]:
        """Change how many rows are worked on side by side; whether that changed, and what it is now: at most
        the swarm's slots."""
        self.refuse_when_closed()
        concurrency = max(1, min(concurrency, self.slots))
        changed = await self._store.jobs.change(self.swarm, job, concurrency, by)
        if changed and (runner := self._running(job)) is not None:
            runner.resize(concurrency)
        return changed, self._store.state(self.swarm).jobs[job].concurrency

    async def retry(self, job: str, items: Sequence[str], by: str, *, dry_run: bool = False) -> int:
        """Put `items`, or all rows that failed, back into the queue; how many. A job that has ended runs
        again; a paused one stays paused. Raises NotFound or RowsBusy."""
        self.refuse_when_closed()
        moved = await self._store.jobs.retry(self.swarm, job, items, by, dry_run=dry_run)
        if moved and not dry_run:
            await self._queue_changed(job, by)
        return moved

    async def skip(self, job: str, items: Sequence[str], by: str, *, dry_run: bool = False) -> int:
        """Take rows out of the job that nobody works on; how many. Raises NotFound or RowsBusy."""
        self.refuse_when_closed()
        moved = await self._store.jobs.skip(self.swarm, job, items, by, dry_run=dry_run)
        if moved and not dry_run and (runner := self._running(job)) is not None:
            runner.requeued()
        return moved

    async def _queue_changed(self, job: str, by: str) -> None:
        if (runner := self._running(job)) is not None:
            runner.requeued()
        elif self._store.state(self.swarm).jobs[job].status != "paused":
            await self._run_again(job, by)

    async def _run_again(self, job: str, by: str) -> None:
        stored = await self._store.jobs.stored(job)
        if not self.runs(job) and not self._closed:
            self._run_stored(stored, by)

    def runs(self, job: str) -> bool:
        """Whether somebody works on it here, or is about to."""
        task, runner = self._tasks.get(job), self._runners.get(job)
        return task is not None and not task.done() and (runner is None or not runner.over)

    def _running(self, job: str) -> JobRunner | None:
        """Its runner, if it still takes a hint; one that is only about to run needs none."""
        return self._runners.get(job) if self.runs(job) else None

    def refuse_when_closed(self) -> None:
        """Raises JobInputError when the engine stops: nothing that is asked of a job would happen."""
        if self._closed:
            raise JobInputError("the swarm is ending; its jobs stay as they are")

    async def aclose(self) -> None:
        """Stop all runners and their workers; their jobs stay running in the store, to be gone on with."""
        self._closed = True
        self._moves()
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def error(self, job: str) -> str | None:
        """What keeps a job as a whole: its pause, its runner or its CSV, not its rows."""
        if (state := self.state(job)).status == "paused":
            return state.pause_reason or f"paused by {state.paused_by}"
        runner = self._runners.get(job)
        return runner.error if runner is not None else None

    def notes(self, job: str) -> tuple[str, ...]:
        return self._notes[job]

    async def summary(self, job: str) -> dict[str, Any]:
        """A job in the shape of `job show --json`."""
        state = self._store.state(self.swarm)
        found = state.jobs[job]
        tokens: Usage | None = None
        spent = Spending()
        for agent in state.agents.values():
            if agent.job != job:
                continue
            spent += agent.spending
            if agent.tokens is not None:
                tokens = (tokens or Usage()) + agent.tokens
        failures = await self._store.jobs.failures(job, SHOWN_FAILURES)
        return shapes.job_with_details(found, self._clock.now(), failures, shapes.tokens(tokens), spent)


def _plan(swarm: str, owner: str, checked: CheckedJob, *, tell_owner: bool) -> JobPlan:
    request = checked.request
    return JobPlan(
        swarm=swarm,
        job=checked.job,
        owner=owner,
        template=checked.template,
        headers=checked.table.headers,
        input_path=checked.input_path,
        output_path=checked.output_path if request.auto_export else None,
        concurrency=checked.concurrency,
        max_runtime_seconds=checked.max_runtime_seconds,
        max_attempts=checked.max_attempts,
        schema=request.output_schema,
        raw=request.raw,
        model=request.model,
        role=request.role,
        tell_owner=tell_owner,
    )


def plan_of(swarm: str, stored: StoredJob, slots: int, *, tell_owner: bool) -> JobPlan:
    """The plan of a job that is in the store. Raises JobInputError, or ValueError, if it cannot be read."""
    headers: list[str] = json.loads(stored.headers)
    return JobPlan(
        swarm=swarm,
        job=stored.job,
        owner=stored.owner or "",
        template=Template.parse(stored.instruction, headers),
        headers=headers,
        input_path=Path(stored.input_path),
        output_path=Path(stored.output_path) if stored.output_path and stored.auto_export else None,
        concurrency=max(1, min(stored.concurrency, slots)),
        max_runtime_seconds=stored.max_runtime_seconds,
        max_attempts=stored.max_attempts,
        schema=json.loads(stored.output_schema) if stored.output_schema is not None else None,
        raw=bool(stored.raw),
        model=stored.model,
        role=stored.role,
        tell_owner=tell_owner,
    )
