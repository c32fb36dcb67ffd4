"""The scheduler of one job: rows are claimed in batches, worked on side by side, each ends exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.clock import Clock
from core.domain import events as e
from core.domain.ids import uuid7
from core.domain.state import JobState
from core.domain.status import Budget
from core.jobs.errors import ExportError
from core.jobs.export import export_rows
from core.jobs.prompt import ended_message, first_message
from core.jobs.report import ReportTool
from core.jobs.schema import SchemaChecker
from core.jobs.template import Template
from core.jobs.workers import Workers, WorkersGone, WorkersUnpaid
from core.safety.text import clean_line, shorten
from core.store.jobs import LEASE_SECONDS, Claim
from core.store.store import Store, StoreError
from core.view.words import waits_for

log = logging.getLogger("watchroom.jobs")
NO_REPORT = "the worker ended without calling report_agent_job_result"
TAIL_SECONDS = 10.0
"""What a worker gets to end by itself once its row is over."""
ERROR_CHARS = 2000
HEARTBEAT_SECONDS = LEASE_SECONDS / 3


class JobPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was created: all that its runner needs."""

    swarm: str
    job: str
    owner: str
    """Thread id of the agent that owns it."""
    template: Template
    headers: list[str]
    input_path: Path
    output_path: Path | None
    """Where the CSV goes when the job ends; None: nowhere by itself."""
    concurrency: int
    max_runtime_seconds: float
    max_attempts: int
    schema: dict[str, Any] | None = None
    raw: bool = False
    model: str | None = None
    role: str | None = None
    tell_owner: bool = False
    """Whether the owner gets mail when the job ends: nobody waits for it in a call any more."""


class JobRunner:
    """Runs one job to its end. One `run` per instance; `stop` and `cancel` may be called at any moment."""

    def __init__(self, plan: JobPlan, store: Store, workers: Workers, clock: Clock, *, by: str = "") -> None:
        """`by`: who lets a job go on that was paused or had ended."""
        self.plan = plan
        self._by = by
        self._store = store
        self._workers = workers
        self._clock = clock
        self._wake = asyncio.Event()
        self._live: dict[str, Claim] = {}
        """Rows that are claimed and not over, by worker: each holds one place of the concurrency."""
        self._tasks: dict[str, asyncio.Task[str]] = {}
        """Workers, from their start until they are closed."""
        self._drained = False
        """Nothing was pending at the last look, and nothing went back to the queue since."""
        self.concurrency = plan.concurrency
        self._paused = False
        self._stopped_by: str | None = None
        self._cancelled_by: str | None = None
        self._unpaid: dict[str, WorkersUnpaid] = {}
        """Workers that the budget or the quota stopped: their rows go back to the queue."""
        self._spent: Budget | None = None
        """The budget as it was then."""
        self.detached = False
        """Whoever waited for it in a call does so no more: the owner is told, and not woken."""
        self._ending = False
        self.over = False
        """It looks at nothing any more."""
        self.error: str | None = None
        """What went wrong with the job as a whole."""

    # --- from outside ------------------------------------------------------------------------------------

    def stop(self, by: str) -> bool:
        """Start no further rows; those at work finish; the CSV is written and the job ends cancelled.
        Returns False when it is too late."""
        if self._ending or self._stopped_by is not None:
            return False
        self._stopped_by = by
        self._wake.set()
        return True

    def cancel(self, by: str) -> bool:
        """Like `stop`, but the workers are stopped too: their rows fail and no CSV is written."""
        if self._ending or self._cancelled_by is not None:
            return False
        self._cancelled_by = by
        for task in self._tasks.values():
            task.cancel()
        self._wake.set()
        return True

    def pause(self) -> None:
        """Start no further rows; once nothing is at work any more, `run` returns."""
        self._paused = True
        self._wake.set()

    def proceed(self) -> None:
        """A pause is over before the rows at work were."""
        self._paused = False
        self.requeued()

    def resize(self, concurrency: int) -> None:
        """So many rows side by side from now on; rows at work go on."""
        self.concurrency = concurrency
        self._workers.expect(concurrency)
        self._wake.set()

    def requeued(self) -> None:
        """Rows were put back into the queue, or taken out of it."""
        self._drained = False
        self._wake.set()

    # --- the job -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns when the job has ended, or, with rows left, when its swarm ends, when it is paused, or when
        its budget or quota is used up. Raises StoreError."""
        plan = self.plan
        try:
            await self._store.jobs.start(plan.swarm, plan.job, self.concurrency, self._by, source="pending")
            while not self.over:
                if plan.schema is None:
                    await self._all_rows(None)
                else:
                    async with SchemaChecker(plan.schema) as checker:
                        await self._all_rows(checker)
                await self._finish()
        except Exception as error:
            causes = list(_leaves(error))
            for cause in causes:
                if isinstance(cause, StoreError):
                    raise cause from error
            if any(isinstance(cause, WorkersGone) for cause in causes):
                log.info("job %s: its swarm ends; rows are left", plan.job)
                return
            log.exception("job %s: its runner failed", plan.job)
            await self._fail(f"the job's runner failed: {_sentence(causes[0])}")

    async def _all_rows(self, checker: SchemaChecker | None) -> None:
        async with asyncio.TaskGroup() as group:
            self._workers.expect(self.concurrency)
            heart = group.create_task(self._keep(), name=f"job leases {self.plan.job}")
            while not self._over():
                room = self.concurrency - len(self._live)
                if room > 0 and not self._drained and not self._paused:
                    await self._claim(room, group, checker)
                elif self._live:
                    await self._wait()
                else:
                    break
            while self._live:
                await self._wait()
            heart.cancel()

    async def _keep(self) -> None:
        """Keep the leases of the rows at work, and put those back that nobody keeps."""
        plan = self.plan
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            if self._live:
                await self._store.jobs.heartbeat(plan.swarm, plan.job, list(self._live))
            if await self._store.jobs.reap(plan.swarm, plan.job):
                self.requeued()

    def _over(self) -> bool:
        if self._stopped_by is None and self._cancelled_by is None and self._owner_closed():
            self.cancel(by="the end of its owner")
        return self._stopped_by is not None or self._cancelled_by is not None or bool(self._unpaid)

    def _owner_closed(self) -> bool:
        owner = self._store.state(self.plan.swarm).agents.get(self.plan.owner)
        return owner is not None and owner.status == "shutdown"

    async def _wait(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    async def _claim(self, room: int, group: asyncio.TaskGroup, checker: SchemaChecker | None) -> None:
        # Set before the look: a row that goes back to the queue during it must not be overlooked.
        self._drained = True
        workers = [uuid7() for _ in range(room)]
        claims = await self._store.jobs.claim(self.plan.swarm, self.plan.job, workers)
        if len(claims) == room:
            self._drained = False
        for claim in claims:
            self._live[claim.worker] = claim
            group.create_task(self._row(claim, group, checker), name=f"job row {claim.item}")

    # --- one row -----------------------------------------------------------------------------------------

    async def _row(self, claim: Claim, group: asyncio.TaskGroup, checker: SchemaChecker | None) -> None:
        """One attempt at one row, until the row is over and its worker is closed."""
        plan = self.plan
        if self._cancelled_by is not None:
            # Not begun: it stays pending, as all those do that nobody has claimed.
            why = self._cancelled_text()
            await self._store.jobs.give_back(plan.swarm, plan.job, claim.item, claim.worker, why)
            self._settle(claim)
            return
        tool = ReportTool(
            jobs=self._store.jobs,
            swarm=plan.swarm,
            job=plan.job,
            item=claim.item,
            worker=claim.worker,
            schema=plan.schema,
            checker=checker,
            on_stop=self.stop,
        )
        worker = group.create_task(self._work(claim, tool), name=f"job worker {claim.item}")
        self._tasks[claim.worker] = worker
        over: set[asyncio.Future[Any]] = {worker, tool.accepted}
        error: str | None = None
        try:
            async with self._clock.timeout(plan.max_runtime_seconds):
                await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            error = f"stopped at the row's time limit of {plan.max_runtime_seconds:g} s{self._while(claim)}"
        if tool.accepted.done():
            self._settle(claim)
        elif error is not None:
            # The row fails first, so that a worker which is hard to stop cannot still report.
            await self._row_failed(claim, error)
            worker.cancel()
        elif claim.worker in self._unpaid and self._cancelled_by is None:
            why = str(self._unpaid[claim.worker])
            await self._store.jobs.give_back(plan.swarm, plan.job, claim.item, claim.worker, why)
            self._settle(claim)
        elif worker.cancelled():
            await self._row_failed(claim, self._cancelled_text(), final=self._cancelled_by is not None)
        else:
            await self._row_failed(claim, worker.result())
        await self._end_worker(worker)
        del self._tasks[claim.worker]

    async def _work(self, claim: Claim, tool: ReportTool) -> str:
        """Run the worker; returns the error of its row in case that it made no accepted report."""
        plan = self.plan
        row = dict(zip(plan.headers, claim.values, strict=True))
        instruction = plan.template.render(row)
        message = first_message(
            job=plan.job, item=claim.item, instruction=instruction, row=row, schema=plan.schema
        )
        try:
            outcome = await self._workers.run_worker(
                owner=plan.owner,
                thread=claim.worker,
                name=f"job_{plan.job[:8]}_{claim.row_index + 1}",
                task=instruction,
                message=message,
                tools=[tool],
                job=plan.job,
                item=claim.item,
                model=plan.model,
                role=plan.role,
            )
        except (StoreError, WorkersGone):
            raise
        except WorkersUnpaid as unpaid:
            self._unpaid[claim.worker] = unpaid
            self._spent = self._store.state(plan.swarm).budget
            return str(unpaid)
        except Exception as error:
            log.info("job %s: no worker for %s: %r", plan.job, claim.item, error)
            return _sentence(error)
        if outcome.status == "errored":
            return outcome.message or "the worker failed"
        if outcome.status == "interrupted":
            return f"the worker was interrupted {outcome.message}".strip()
        if tool.problem:
            return f"the worker ended without an accepted report; its last one was refused: {tool.problem}"
        return NO_REPORT

    def _while(self, claim: Claim) -> str:
        """What a worker waits for, in the error of its row: a time limit counts waits as well as work."""
        state = self._store.state(self.plan.swarm)
        worker = state.agents.get(claim.worker)
        if worker is None or worker.wait is None:
            return ""
        place = state.places().get(claim.worker)
        return f", while it waited for {waits_for(worker.wait, place, self._clock.now())}"

    async def _row_failed(self, claim: Claim, error: str, *, final: bool = False) -> None:
        attempts = claim.attempt if final else self.plan.max_attempts
        became = await self._store.jobs.fail(
            self.plan.swarm, self.plan.job, claim.item, claim.worker, shorten(error, ERROR_CHARS), attempts
        )
        if became == "pending":
            self._drained = False
        elif became is None and (by := (await self._store.jobs.stored(self.plan.job)).stopped_by):
            # Its worker was stopped with an accepted report on its lips, which may have ended the job.
            self.stop(by)
        self._settle(claim)

    def _settle(self, claim: Claim) -> None:
        """The row is over: its place is free, even while its worker is still being closed."""
        self._live.pop(claim.worker, None)
        self._wake.set()

    async def _end_worker(self, worker: asyncio.Task[str]) -> None:
        try:
            async with self._clock.timeout(TAIL_SECONDS):
                await asyncio.wait({worker})
        except TimeoutError:
            worker.cancel()
            await asyncio.wait({worker})

    def _cancelled_text(self) -> str:
        if self._cancelled_by is None:
            return "the worker was stopped"
        return f"stopped: the job was cancelled by {self._cancelled_by}"

    # --- the end -----------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """The CSV first: whoever hears that the job has ended finds it complete. Not over, if rows were put
        back into the queue meanwhile."""
        plan = self.plan
        by = self._cancelled_by or self._stopped_by
        if by is None and self._unpaid:
            unpaid = next(iter(self._unpaid.values()))
            if unpaid.by == "budget" and self._spent != self._store.state(plan.swarm).budget:
                # It was changed while the last rows were at work: whether that is enough, the next will tell.
                self._unpaid.clear()
                self.requeued()
                return
            await self._store.jobs.pause(plan.swarm, plan.job, unpaid.by, str(unpaid))
            self.over = True
            return
        job = self._store.state(plan.swarm).jobs[plan.job]
        if job.ended or (by is None and (self._paused or job.status == "paused")):
            self.over = True  # it may have been cancelled before this runner took a row
            return
        self._ending = True
        if plan.output_path is not None and self._cancelled_by is None:
            self.error = await self._export(plan.output_path)
        by = self._cancelled_by or self._stopped_by
        self.over = await self._end("completed" if by is None else "cancelled", self.error, by or "")
        self._ending = self.over
        self.requeued()

    async def _end(
        self, status: Literal["completed", "failed", "cancelled"], error: str | None, by: str
    ) -> bool:
        """Whether the job is over: not, if it would be completed with rows left to do."""
        plan = self.plan
        told: list[e.Event] = []
        if plan.tell_owner or self.detached:
            job = self._store.state(plan.swarm).jobs[plan.job]
            told.append(mail_of_end(job, status, error, wakes=plan.tell_owner))
        ended = await self._store.jobs.end(plan.swarm, plan.job, status, error, by, told=told)
        return ended or self._store.state(plan.swarm).jobs[plan.job].ended

    async def _export(self, output: Path) -> str | None:
        """Write the CSV; returns what went wrong, which ends up as the job's last error."""
        plan = self.plan
        try:
            rows = await export_rows(
                lambda: self._store.jobs.rows(plan.job),
                job=plan.job,
                headers=plan.headers,
                output=output,
                source=plan.input_path,
                raw=plan.raw,
            )
        except ExportError as error:
            return str(error)
        await self._store.jobs.exported(plan.swarm, plan.job, str(output), rows)
        return None

    async def _fail(self, reason: str) -> None:
        """The runner cannot go on: what was at work fails with the reason, the rest stays pending."""
        self._ending = True
        self.error = reason
        for claim in list(self._live.values()):
            await self._row_failed(claim, reason, final=True)
        await self._end("failed", reason, "")
        self.over = True


def mail_of_end(job: JobState, status: str, error: str | None, *, wakes: bool) -> e.MailQueued:
    """What the owner of a job gets that does not wait for it in a call."""
    return e.MailQueued(
        agent=job.owner,
        mail=uuid7(),
        author=f"job {job.job[:8]}",
        kind="MESSAGE",
        text=ended_message(job, status, error),
        trigger=wakes,
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _sentence(error: BaseException) -> str:
    return shorten(clean_line(str(error)) or type(error).__name__, ERROR_CHARS)
