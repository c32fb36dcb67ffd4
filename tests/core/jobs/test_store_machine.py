"""The job store as a machine: every transition in any order, crashes between them, against a model in memory.

`JobStoreMachine` knows a store only by `Kit`: another store runs the same machine with a kit of its own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.domain.events import AgentSpawned, JobCreated, SwarmStarted
from core.domain.state import JobState
from core.store.errors import NotFound, RowsBusy
from core.store.jobs import Claim, JobInput, JobStore
from core.store.store import Store
from tests.clock import FakeClock

SWARM, JOB, ROOT = "s1", "j1", "t0"
LEASE = 60.0
T = TypeVar("T")


class Kit(Protocol):
    """What the machine needs of a store beside its `JobStore`."""

    jobs: JobStore

    def state(self) -> JobState:
        """The job with the counters that its transactions keep."""
        ...

    async def crash(self) -> None:
        """The process dies without a word; another one goes on with what is on disk."""
        ...

    async def aclose(self) -> None: ...


class SqliteKit:
    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self._folder = folder
        self._clock = clock
        self._lives = 0

    async def open(self) -> SqliteKit:
        await self._open(self._folder / "0")
        await self.store.create(SWARM)
        started = SwarmStarted(title="t", cwd="/", model="m", source="job")
        await self.store.append(SWARM, [started, AgentSpawned(agent=ROOT, path="/root", nickname="root")])
        return self

    async def _open(self, home: Path) -> None:
        self._home = home
        self.store = await Store.open(home, clock=self._clock, redact=lambda text: text)
        self.jobs = self.store.jobs

    def state(self) -> JobState:
        return self.store.state(SWARM).jobs[JOB]

    async def crash(self) -> None:
        # A copy of the files at this moment is what a process that was killed leaves behind.
        self._lives += 1
        home = self._folder / str(self._lives)
        shutil.copytree(self._home, home)
        await self.store.aclose()
        await self._open(home)
        await self.store.reopen(SWARM)
        await self.jobs.take_over(SWARM, [])

    async def aclose(self) -> None:
        await self.store.aclose()


@dataclass
class Row:
    status: str = "pending"
    attempt: int = 0
    worker: str | None = None
    lease: float = 0.0
    result: str | None = None
    stale: int = 0


@dataclass
class Model:
    """What the store must be like."""

    status: str = "pending"
    concurrency: int = 2
    cancelling: bool = False
    rows: dict[str, Row] = field(default_factory=dict)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """(item, worker) of every report that was taken."""

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    def in_status(self, *statuses: str) -> list[str]:
        return [item for item, row in self.rows.items() if row.status in statuses]


class JobStoreMachine(RuleBasedStateMachine):
    max_attempts = 2

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.folder = Path(tempfile.mkdtemp(prefix="watchroom-jobs-"))
        self.kit: Kit = self.run(self.make_kit())
        self.model = Model()
        self.claims: list[Claim] = []
        """Every claim there ever was: a worker may speak up at any time."""
        self.workers = 0

    async def make_kit(self) -> Kit:
        return await SqliteKit(self.folder, self.clock).open()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.run(self.kit.aclose())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    @initialize(count=st.integers(1, 6))
    def create(self, count: int) -> None:
        rows = [JobInput(f"i{n}", None, n, [str(n)]) for n in range(count)]
        event = JobCreated(
            agent=ROOT,
            job=JOB,
            name="job",
            instruction="do {n}",
            input_path="/in.csv",
            output_path=None,
            total=count,
            concurrency=2,
            max_attempts=self.max_attempts,
        )
        self.run(self.kit.jobs.create(SWARM, event, ["n"], rows, None, False))
        self.model.rows = {row.item: Row() for row in rows}

    # --- the engine's side -------------------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        could = self.model.status in ("pending", "paused")
        assert self.run(self.kit.jobs.start(SWARM, JOB, self.model.concurrency)) == could
        if could:
            self.model.status = "running"

    @rule(count=st.integers(1, 3))
    def claim(self, count: int) -> None:
        workers = [f"w{self.workers + n}" for n in range(count)]
        self.workers += count
        claims = self.run(self.kit.jobs.claim(SWARM, JOB, workers, LEASE))
        pending = self.model.in_status("pending")
        assert len(claims) == (min(count, len(pending)) if self.model.status == "running" else 0)
        order = sorted(pending, key=lambda item: (self.model.rows[item].attempt, int(item[1:])))
        assert [claim.item for claim in claims] == order[: len(claims)]
        for claim in claims:
            row = self.model.rows[claim.item]
            assert claim.attempt == row.attempt + 1
            row.status, row.worker, row.attempt = "running", claim.worker, claim.attempt
            row.lease = self.clock.monotonic() + LEASE
        self.claims += claims

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """Of the worker that has the row, or of any that once had one."""
        claim = data.draw(st.sampled_from(self.claims))
        row = self.model.rows[claim.item]
        holds = row.status == "running" and row.worker == claim.worker
        result = json.dumps({"by": claim.worker})
        taken, reason = self.run(self.kit.jobs.report(SWARM, JOB, claim.item, claim.worker, result))
        assert taken == holds
        assert bool(reason) != taken
        if taken:
            row.status, row.result = "completed", result
            self.model.accepted.append((claim.item, claim.worker))
        else:
            row.stale += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        row = self.model.rows[claim.item]
        became = self.run(
            self.kit.jobs.fail(SWARM, JOB, claim.item, claim.worker, "no luck", self.max_attempts)
        )
        if row.status != "running" or row.worker != claim.worker:
            assert became is None
            return
        row.status = "pending" if row.attempt < self.max_attempts else "failed"
        row.worker = None if row.status == "pending" else row.worker
        assert became == row.status

    @rule(seconds=st.sampled_from([10.0, 50.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))

    @rule()
    def heartbeat(self) -> None:
        """For every worker that ever was: only those that hold a row are heard."""
        workers = list(dict.fromkeys(claim.worker for claim in self.claims))
        holders = [row for row in self.model.rows.values() if row.status == "running"]
        assert self.run(self.kit.jobs.heartbeat(SWARM, JOB, workers, LEASE)) == len(holders)
        for row in holders:
            row.lease = self.clock.monotonic() + LEASE

    @rule()
    def reap(self) -> None:
        now = self.clock.monotonic()
        over = [row for row in self.model.rows.values() if row.status == "running" and row.lease < now]
        assert self.run(self.kit.jobs.reap(SWARM, JOB)) == len(over)
        self._requeue(over)

    @rule()
    def crash(self) -> None:
        self.run(self.kit.crash())
        if not self.model.ended:
            self._requeue([row for row in self.model.rows.values() if row.status == "running"])

    def _requeue(self, rows: list[Row]) -> None:
        for row in rows:
            row.status, row.worker, row.attempt = "pending", None, row.attempt - 1

    @rule(status=st.sampled_from(["completed", "failed", "cancelled"]))
    def end(self, status: Any) -> None:
        if self.model.in_status("running"):
            return  # a runner ends a job when nobody works on it any more
        could = not self.model.ended
        assert self.run(self.kit.jobs.end(SWARM, JOB, status, None, "test")) == could
        if could:
            self.model.status, self.model.cancelling = status, False

    # --- the operator's side -----------------------------------------------------------------------------

    @rule()
    def pause(self) -> None:
        could = self.model.status in ("pending", "running")
        assert self.run(self.kit.jobs.pause(SWARM, JOB, "operator")) == could
        if could:
            self.model.status = "paused"

    @rule()
    def cancel(self) -> None:
        could = not self.model.ended and not self.model.cancelling
        assert self.run(self.kit.jobs.cancelling(SWARM, JOB, "operator")) == could
        self.model.cancelling = self.model.cancelling or could

    @rule(concurrency=st.integers(1, 4))
    def change(self, concurrency: int) -> None:
        could = not self.model.ended and concurrency != self.model.concurrency
        assert self.run(self.kit.jobs.change(SWARM, JOB, concurrency, "operator")) == could
        if could:
            self.model.concurrency = concurrency

    @rule(data=st.data(), named=st.booleans())
    def retry(self, data: st.DataObject, named: bool) -> None:
        items = data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), min_size=1)) if named else []
        chosen = list(dict.fromkeys(items)) or self.model.in_status("failed")
        busy = [item for item in chosen if self.model.rows[item].status not in ("failed", "skipped")]
        if busy:
            with pytest.raises(RowsBusy, match=r"row i\d is (pending|running|completed)"):
                self.run(self.kit.jobs.retry(SWARM, JOB, items, "operator"))
            return
        assert self.run(self.kit.jobs.retry(SWARM, JOB, items, "operator")) == len(chosen)
        for item in chosen:
            self.model.rows[item].status, self.model.rows[item].worker = "pending", None
        if chosen and self.model.ended:
            self.model.status = "pending"

    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        items = data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), min_size=1, unique=True))
        busy = [item for item in items if self.model.rows[item].status not in ("pending", "failed")]
        if busy:
            with pytest.raises(RowsBusy, match=r"row i\d is (skipped|running|completed)"):
                self.run(self.kit.jobs.skip(SWARM, JOB, items, "operator"))
            return
        assert self.run(self.kit.jobs.skip(SWARM, JOB, items, "operator")) == len(items)
        for item in items:
            self.model.rows[item].status, self.model.rows[item].worker = "skipped", None

    @rule()
    def an_unknown_row_is_named(self) -> None:
        known = next(iter(self.model.rows))
        for verb in (self.kit.jobs.retry, self.kit.jobs.skip):
            with pytest.raises(NotFound, match="has no row nobody"):
                self.run(verb(SWARM, JOB, ["nobody", known], "operator"))

    # --- what always holds -------------------------------------------------------------------------------

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        if not self.model.rows:
            return
        page, _ = self.run(self.kit.jobs.page(JOB, 0, 100))
        found = {row.item: (row.status, row.attempt, row.worker) for row in page}
        expected = {item: (row.status, row.attempt, row.worker) for item, row in self.model.rows.items()}
        assert {i: f[:2] for i, f in found.items()} == {i: x[:2] for i, x in expected.items()}
        for item, (status, _, worker) in expected.items():
            if status == "running":
                assert found[item][2] == worker
        assert {row.item: row.result for row in page if row.status == "completed"} == {
            item: row.result for item, row in self.model.rows.items() if row.status == "completed"
        }

    @invariant()
    def the_counters_are_a_recount(self) -> None:
        if not self.model.rows:
            return
        job = self.kit.state()
        assert job.status == self.model.status
        assert bool(job.cancelling) == self.model.cancelling
        assert job.concurrency == self.model.concurrency
        for status in ("pending", "running", "completed", "failed", "skipped"):
            assert getattr(job, status) == len(self.model.in_status(status)), status
        assert job.refused == sum(row.stale for row in self.model.rows.values())

    @invariant()
    def no_row_is_reported_twice(self) -> None:
        items = [item for item, _ in self.model.accepted]
        assert len(items) == len(set(items))


TestJobStore = JobStoreMachine.TestCase
TestJobStore.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
