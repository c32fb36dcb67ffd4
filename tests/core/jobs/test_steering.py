"""What an operator does to a job while it runs, after it, and at the moment at which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from core.domain.events import JobCancelling, JobEnded, JobPaused, JobReopened, JobRowMoved, JobStarted
from core.jobs import runner
from core.jobs.service import JobService
from core.jobs.workers import Outcome
from core.store.errors import NotFound, RowsBusy
from core.store.jobs import LEASE_SECONDS
from tests.core.jobs.room import DONE, ROOT, Room, Worker, hangs, read_output, reports, silent


class Gate:
    """Workers that report when they are let."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._open = asyncio.Semaphore(0)
        room.behave = self.behave

    async def behave(self, worker: Worker) -> Outcome:
        await self._open.acquire()
        return await reports(worker)

    def let(self, count: int) -> None:
        for _ in range(count):
            self._open.release()


@asynccontextmanager
async def serving(room: Room, **settings: Any) -> AsyncIterator[JobService]:
    async with asyncio.TaskGroup() as group:
        service = room.service(group, **settings)
        try:
            yield service
        finally:
            await service.aclose()


async def test_a_pause_lets_rows_at_work_end_and_starts_no_other(room: Room) -> None:
    gate = Gate(room)
    room.csv(6)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.running == 2)
        assert await service.pause(job, "operator")
        gate.let(2)
        await room.until(lambda: room.job(job).completed == 2 and not room.running)
        assert not await service.pause(job, "operator")
        assert (room.job(job).status, room.job(job).pending) == ("paused", 4)
        assert len(room.workers) == 2
        waiting = asyncio.create_task(service.wait(job))
        assert await service.proceed(job, "operator")
        assert not await service.proceed(job, "operator")
        gate.let(4)
        summary = await waiting
    assert (summary["status"], summary["completed_items"]) == ("completed", 6)
    assert [event.by for event in room.of(JobPaused)] == ["operator"]
    assert [event.by for event in room.of(JobStarted)] == ["", "operator"]


async def test_a_pause_that_is_over_before_its_rows_are_is_no_pause(room: Room) -> None:
    gate = Gate(room)
    room.csv(3)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        await service.pause(job, "operator")
        await service.proceed(job, "operator")
        gate.let(3)
        assert (await service.wait(job))["completed_items"] == 3
    assert room.peak == 1


async def test_whoever_waits_for_a_job_waits_over_its_pause_and_hears_of_its_end(room: Room) -> None:
    Gate(room)
    room.csv(2)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        waiting = asyncio.create_task(service.wait(job))
        await service.pause(job, "operator")
        assert await service.cancel(job, "operator")
        assert (await waiting)["status"] == "cancelled"


async def test_more_and_fewer_side_by_side_while_it_runs(room: Room) -> None:
    gate = Gate(room)
    room.csv(20)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.running == 2)
        assert await service.resize(job, 5, "operator") == (True, 5)
        assert room.expected == [2, 5]
        await room.until(lambda: room.running == 5)
        assert await service.resize(job, 1, "operator") == (True, 1)
        gate.let(4)
        await room.until(lambda: room.running == 1)
        assert await service.resize(job, 1, "operator") == (False, 1)
        gate.let(1)
        await room.until(lambda: room.job(job).completed == 5)
        await room.until(lambda: len(room.workers) == 6)
        assert room.job(job).concurrency == 1
        gate.let(20)
        await service.wait(job)


async def test_slots_cap_what_is_asked_for(room: Room) -> None:
    Gate(room)
    room.csv(8)
    async with serving(room, slots=3) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        assert await service.resize(job, 64, "operator") == (True, 3)
        await room.until(lambda: room.running == 3)


async def test_a_cancel_is_seen_before_it_has_happened(room: Room) -> None:
    stopping = asyncio.Event()

    async def slow_to_stop(worker: Worker) -> Outcome:
        try:
            return await hangs(worker)
        finally:
            await stopping.wait()

    room.behave = slow_to_stop
    room.csv(3)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.running == 2)
        assert await service.cancel(job, "operator")
        assert not await service.cancel(job, "another")
        assert (room.job(job).cancelling, room.job(job).ended) == ("operator", False)
        stopping.set()
        summary = await service.wait(job)
    assert (summary["status"], summary["failed_items"], summary["pending_items"]) == ("cancelled", 2, 1)
    assert room.job(job).cancelling == ""
    assert [event.by for event in room.of(JobCancelling)] == ["operator"]


async def test_failed_rows_are_tried_again_after_the_end(room: Room) -> None:
    room.behave = silent
    room.csv(3)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request())
        assert (await service.wait(job))["failed_items"] == 3
        room.behave = reports
        assert await service.retry(job, ["row-2"], "operator", dry_run=True) == 1
        assert room.job(job).failed == 3
        assert await service.retry(job, ["row-2"], "operator") == 1
        summary = await service.wait(job)
        assert (summary["completed_items"], summary["failed_items"]) == (1, 2)
        assert await service.retry(job, [], "operator") == 2
        summary = await service.wait(job)
    assert (summary["status"], summary["completed_items"]) == ("completed", 3)
    assert [row["status"] for row in read_output(summary["output_csv_path"])] == ["completed"] * 3
    assert len(room.of(JobReopened)) == 2
    assert len(room.of(JobEnded)) == 3


async def test_rows_put_back_while_the_job_ends_are_done_before_it_does(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row has failed and the CSV is being written: a retry at that moment is not lost."""
    exporting, go_on = asyncio.Event(), asyncio.Event()
    export = runner.export_rows

    async def slowly(*args: Any, **fields: Any) -> int:
        exporting.set()
        await go_on.wait()
        return await export(*args, **fields)

    monkeypatch.setattr(runner, "export_rows", slowly)
    room.behave = silent
    room.csv(1)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request())
        await exporting.wait()
        room.behave = reports
        assert await service.retry(job, [], "operator") == 1
        go_on.set()
        summary = await service.wait(job)
    assert (summary["status"], summary["completed_items"], summary["pending_items"]) == ("completed", 1, 0)
    assert [row["status"] for row in read_output(summary["output_csv_path"])] == ["completed"]
    assert len(room.of(JobEnded)) == 1


async def test_skipped_rows_are_not_worked_on_and_the_job_ends_without_them(room: Room) -> None:
    gate = Gate(room)
    room.csv(3)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        with pytest.raises(RowsBusy, match="row row-1 is running"):
            await service.skip(job, ["row-1"], "operator")
        with pytest.raises(NotFound, match="has no row row-9"):
            await service.skip(job, ["row-2", "row-9"], "operator")
        assert await service.skip(job, ["row-2", "row-3", "row-2"], "operator") == 2
        gate.let(1)
        summary = await service.wait(job)
    assert (summary["completed_items"], summary["skipped_items"]) == (1, 2)
    assert [(event.item, event.status) for event in room.of(JobRowMoved)] == [
        ("row-2", "skipped"),
        ("row-3", "skipped"),
    ]
    assert [row["status"] for row in read_output(summary["output_csv_path"])] == [
        "completed",
        "skipped",
        "skipped",
    ]


async def test_rows_at_work_keep_their_leases_for_as_long_as_it_takes(room: Room) -> None:
    gate = Gate(room)
    room.csv(2)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=2, max_runtime_seconds=10_000))
        await room.until(lambda: room.running == 2)
        for _ in range(12):
            await room.clock.advance(LEASE_SECONDS / 3)
            await room.store.append("01900000-0000-7000-8000-000000000001", [])
        gate.let(2)
        summary = await service.wait(job)
    assert summary["completed_items"] == 2
    assert len(room.workers) == 2


async def test_a_row_whose_lease_nobody_keeps_is_given_to_another_worker(room: Room) -> None:
    """As when another engine had claimed it and died."""
    gate = Gate(room)
    room.csv(2)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        (lost,) = await room.store.jobs.claim("01900000-0000-7000-8000-000000000001", job, ["elsewhere"], 5)
        gate.let(1)
        await room.until(lambda: room.job(job).completed == 1)
        await room.clock.advance(LEASE_SECONDS / 3)
        await room.until(lambda: room.running == 1)
        taken, reason = await room.store.jobs.report(
            "01900000-0000-7000-8000-000000000001", job, lost.item, "elsewhere", "{}"
        )
        assert (taken, "no longer yours" in reason) == (False, True)
        gate.let(1)
        summary = await service.wait(job)
    assert summary["completed_items"] == 2
    assert DONE.status == "completed"
