"""The job store as a machine: every transition in any order, crashes between them, against a model in memory.

`Machine` knows a store only by `Kit`: another store runs the same stories with a kit of its own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.domain.events import AgentSpawned, JobCreated, SwarmStarted
from core.domain.state import JobState
from core.store.errors import NotFound, RowsBusy
from core.store.jobs import Claim, JobInput, JobStore
from core.store.store import Store
from tests.clock import FakeClock

SWARM, JOB, ROOT = "s1", "j1", "t0"
LEASE = 60.0


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


class Machine:
    """One job through all that may happen to it. Every step takes a number that says which of its choices."""

    max_attempts = 2

    def __init__(self, kit: Kit, clock: FakeClock) -> None:
        self.kit = kit
        self.clock = clock
        self.model = Model()
        self.claims: list[Claim] = []
        """Every claim there ever was: a worker may speak up at any time."""
        self.workers = 0

    def items(self, pick: int) -> list[str]:
        """Some of the rows, not always those that a step is meant for."""
        items = sorted(self.model.rows)
        return [item for n, item in enumerate(items) if pick >> n & 1] or items[:1]

    async def create(self, count: int) -> None:
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
        await self.kit.jobs.create(SWARM, event, ["n"], rows, None, False)
        self.model.rows = {row.item: Row() for row in rows}

    # --- the engine's side -------------------------------------------------------------------------------

    async def start(self, _: int) -> None:
        could = self.model.status in ("pending", "paused")
        assert await self.kit.jobs.start(SWARM, JOB, self.model.concurrency) == could
        if could:
            self.model.status = "running"

    async def claim(self, pick: int) -> None:
        count = pick % 3 + 1
        workers = [f"w{self.workers + n}" for n in range(count)]
        self.workers += count
        claims = await self.kit.jobs.claim(SWARM, JOB, workers, LEASE)
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

    async def report(self, pick: int) -> None:
        """Of the worker that has the row, or of any that once had one."""
        if not self.claims:
            return
        claim = self.claims[-1 - pick % len(self.claims)]
        row = self.model.rows[claim.item]
        holds = row.status == "running" and row.worker == claim.worker
        result = json.dumps({"by": claim.worker})
        taken, reason = await self.kit.jobs.report(SWARM, JOB, claim.item, claim.worker, result)
        assert taken == holds
        assert bool(reason) != taken
        if taken:
            row.status, row.result = "completed", result
            self.model.accepted.append((claim.item, claim.worker))
        else:
            row.stale += 1

    async def fail(self, pick: int) -> None:
        if not self.claims:
            return
        claim = self.claims[-1 - pick % len(self.claims)]
        row = self.model.rows[claim.item]
        became = await self.kit.jobs.fail(SWARM, JOB, claim.item, claim.worker, "no luck", self.max_attempts)
        if row.status != "running" or row.worker != claim.worker:
            assert became is None
            return
        row.status = "pending" if row.attempt < self.max_attempts else "failed"
        row.worker = None if row.status == "pending" else row.worker
        assert became == row.status

    async def time_passes(self, pick: int) -> None:
        await self.clock.advance((10.0, 50.0, 61.0)[pick % 3])

    async def heartbeat(self, _: int) -> None:
        """For every worker that ever was: only those that hold a row are heard."""
        workers = list(dict.fromkeys(claim.worker for claim in self.claims))
        holders = [row for row in self.model.rows.values() if row.status == "running"]
        assert await self.kit.jobs.heartbeat(SWARM, JOB, workers, LEASE) == len(holders)
        for row in holders:
            row.lease = self.clock.monotonic() + LEASE

    async def reap(self, _: int) -> None:
        now = self.clock.monotonic()
        over = [row for row in self.model.rows.values() if row.status == "running" and row.lease < now]
        assert await self.kit.jobs.reap(SWARM, JOB) == len(over)
        self._requeue(over)

    async def crash(self, _: int) -> None:
        await self.kit.crash()
        if not self.model.ended:
            self._requeue([row for row in self.model.rows.values() if row.status == "running"])

    def _requeue(self, rows: list[Row]) -> None:
        for row in rows:
            row.status, row.worker, row.attempt = "pending", None, row.attempt - 1

    async def end(self, pick: int) -> None:
        status: Any = ("completed", "failed", "cancelled")[pick % 3]
        if self.model.in_status("running"):
            return  # a runner ends a job when nobody works on it any more
        could = not self.model.ended and (status != "completed" or not self.model.in_status("pending"))
        assert await self.kit.jobs.end(SWARM, JOB, status, None, "test") == could
        if could:
            self.model.status, self.model.cancelling = status, False

    # --- the operator's side -----------------------------------------------------------------------------

    async def pause(self, _: int) -> None:
        could = self.model.status in ("pending", "running")
        assert await self.kit.jobs.pause(SWARM, JOB, "operator") == could
        if could:
            self.model.status = "paused"

    async def cancel(self, _: int) -> None:
        could = not self.model.ended and not self.model.cancelling
        assert await self.kit.jobs.cancelling(SWARM, JOB, "operator") == could
        self.model.cancelling = self.model.cancelling or could

    async def change(self, pick: int) -> None:
        concurrency = pick % 4 + 1
        could = not self.model.ended and concurrency != self.model.concurrency
        assert await self.kit.jobs.change(SWARM, JOB, concurrency, "operator") == could
        if could:
            self.model.concurrency = concurrency

    async def retry(self, pick: int) -> None:
        """All that failed, some of those that may be, or any."""
        some = self.model.in_status("failed", "skipped")[: pick // 3 % 3]
        items = ([], some, self.items(pick // 3))[pick % 3]
        chosen = items or self.model.in_status("failed")
        busy = [item for item in chosen if self.model.rows[item].status not in ("failed", "skipped")]
        if busy:
            with pytest.raises(RowsBusy, match=r"row i\d is (pending|running|completed)"):
                await self.kit.jobs.retry(SWARM, JOB, items, "operator")
            return
        assert await self.kit.jobs.retry(SWARM, JOB, items, "operator") == len(chosen)
        for item in chosen:
            self.model.rows[item].status, self.model.rows[item].worker = "pending", None
        if chosen and self.model.ended:
            self.model.status = "pending"

    async def skip(self, pick: int) -> None:
        some = self.model.in_status("pending", "failed")[: pick // 2 % 3]
        items = some if some and pick % 2 else self.items(pick // 2)
        busy = [item for item in items if self.model.rows[item].status not in ("pending", "failed")]
        if busy:
            with pytest.raises(RowsBusy, match=r"row i\d is (skipped|running|completed)"):
                await self.kit.jobs.skip(SWARM, JOB, items, "operator")
            return
        assert await self.kit.jobs.skip(SWARM, JOB, items, "operator") == len(items)
        for item in items:
            self.model.rows[item].status, self.model.rows[item].worker = "skipped", None

    async def unknown(self, _: int) -> None:
        known = next(iter(self.model.rows))
        for verb in (self.kit.jobs.retry, self.kit.jobs.skip):
            with pytest.raises(NotFound, match="has no row nobody"):
                await verb(SWARM, JOB, ["nobody", known], "operator")

    # --- what always holds -------------------------------------------------------------------------------

    async def the_store_is_what_the_model_says(self) -> None:
        if not self.model.rows:
            return
        page, _ = await self.kit.jobs.page(JOB, 0, 100)
        found = {row.item: (row.status, row.attempt, row.worker) for row in page}
        expected = {item: (row.status, row.attempt, row.worker) for item, row in self.model.rows.items()}
        assert {i: f[:2] for i, f in found.items()} == {i: x[:2] for i, x in expected.items()}
        for item, (status, _, worker) in expected.items():
            if status == "running":
                assert found[item][2] == worker
        assert {row.item: row.result for row in page if row.status == "completed"} == {
            item: row.result for item, row in self.model.rows.items() if row.status == "completed"
        }

    async def the_counters_are_a_recount(self) -> None:
        if not self.model.rows:
            return
        job = self.kit.state()
        assert job.status == self.model.status
        assert bool(job.cancelling) == self.model.cancelling
        assert job.concurrency == self.model.concurrency
        for status in ("pending", "running", "completed", "failed", "skipped"):
            assert getattr(job, status) == len(self.model.in_status(status)), status
        assert job.refused == sum(row.stale for row in self.model.rows.values())


STEPS = (
    *("claim", "claim", "claim", "report", "report", "fail", "fail", "start", "start", "retry", "skip"),
    *("heartbeat", "reap", "time_passes", "crash", "end", "pause", "cancel", "change", "unknown"),
)
stories = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 63)), min_size=20, max_size=60)


async def play(kit: Kit, clock: FakeClock, rows: int, story: list[tuple[str, int]]) -> Machine:
    machine = Machine(kit, clock)
    await machine.create(rows)
    await machine.start(0)
    for step, pick in story:
        await getattr(machine, step)(pick)
        await machine.the_store_is_what_the_model_says()
        await machine.the_counters_are_a_recount()
    return machine


async def play_sqlite(rows: int, story: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="watchroom-jobs-") as folder:
        clock = FakeClock()
        kit = await SqliteKit(Path(folder), clock).open()
        try:
            machine = await play(kit, clock, rows, story)
        finally:
            await kit.aclose()
        items = [item for item, _ in machine.model.accepted]
        assert len(items) == len(set(items)), "a row was reported twice"


TOO_LATE = [("claim", 0), ("fail", 0), ("claim", 0), ("report", 1), ("fail", 1), ("report", 0)]
AGAIN = [("claim", 0), ("fail", 0), ("claim", 0), ("fail", 0), ("end", 2), ("retry", 0), ("start", 0)]
EXPIRED = [("claim", 1), ("time_passes", 2), ("reap", 0), ("heartbeat", 0), ("claim", 0), ("report", 1)]


@example(rows=1, story=TOO_LATE)
@example(rows=1, story=AGAIN)
@example(rows=2, story=EXPIRED)
@given(st.integers(1, 6), stories)
@settings(max_examples=50, deadline=None)
def test_any_story_of_a_job_leaves_the_store_as_the_model_says(
    rows: int, story: list[tuple[str, int]]
) -> None:
    asyncio.run(play_sqlite(rows, story))
