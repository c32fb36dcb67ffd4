"""Who hears of a job's end, and what a restart makes of one that was paused, cancelled or put back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from core.domain import commands as c
from core.domain.commands import JobRowsPage
from core.domain.events import AnyEvent, JobEnded, MailQueued, TurnStarted
from core.engine.steer_jobs import steer_job
from core.jobs.errors import JobInputError
from core.jobs.service import JobService
from core.jobs.workers import Outcome
from core.view.swarm import JobRows, RowEvent
from tests.core.jobs.room import DONE, ROOT, SWARM, Room, Worker, hangs, reports, silent
from tests.core.jobs.test_ownerless import steer
from tests.core.jobs.test_resume import begun, goes_on
from tests.core.jobs.test_steering import Gate, serving
from tests.core.jobs.test_tools import call

SPAWN = {"csv_path": "in.csv", "instruction": "a", "max_concurrency": 1}


def told(room: Room) -> list[tuple[str | None, bool]]:
    return [(event.agent, event.trigger) for event in room.of(MailQueued)]


async def rests(service: JobService, job: str) -> None:
    await asyncio.wait([service._tasks[job]])


async def in_a_turn(room: Room) -> None:
    await room.store.append(SWARM, [TurnStarted(agent=ROOT, turn="t1", cause="input")])


async def test_a_paused_job_that_is_cancelled_tells_the_agent_that_does_not_wait(room: Room) -> None:
    gate = Gate(room)
    room.csv(2)
    await in_a_turn(room)
    async with serving(room) as service:
        job = (await call(room, service, "spawn_agents_on_csv", **SPAWN, wait=False))["job_id"]
        await room.until(lambda: room.running == 1)
        await service.pause(job, "operator")
        gate.let(1)
        await rests(service, job)
        assert await service.cancel(job, "operator")
    assert told(room) == [(ROOT, True)]


async def test_an_agent_that_waits_over_a_pause_hears_of_the_end_once(room: Room) -> None:
    gate = Gate(room)
    room.csv(2)
    await in_a_turn(room)
    async with serving(room) as service:
        waiting = asyncio.create_task(call(room, service, "spawn_agents_on_csv", **SPAWN))
        await room.until(lambda: room.running == 1)
        (job,) = room.store.state(SWARM).jobs
        await service.pause(job, "operator")
        gate.let(2)
        await rests(service, job)
        await service.proceed(job, "operator")
        assert (await waiting)["status"] == "completed"
    assert told(room) == []


@pytest.mark.parametrize("then", ["proceed", "cancel"])
async def test_an_agent_interrupted_while_its_job_is_paused_is_told_and_not_woken(
    room: Room, then: str
) -> None:
    gate = Gate(room)
    room.csv(2)
    await in_a_turn(room)
    async with serving(room) as service:
        waiting = asyncio.create_task(call(room, service, "spawn_agents_on_csv", **SPAWN))
        await room.until(lambda: room.running == 1)
        (job,) = room.store.state(SWARM).jobs
        await service.pause(job, "operator")
        gate.let(2)
        await rests(service, job)
        waiting.cancel()
        await asyncio.wait([waiting])
        await getattr(service, then)(job, "operator")
        await service.wait(job)
    assert told(room) == [(ROOT, False)]


async def test_a_job_that_was_being_cancelled_when_its_engine_ended_is_not_run_on(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=3, at_work=1, max_concurrency=1) as job:
        # What the engine recorded before it was killed.
        await room.store.jobs.cancelling(SWARM, job, "nora")
        await goes_on(room)
    assert (room.job(job).status, room.job(job).pending, len(room.workers)) == ("cancelled", 3, 1)
    assert [event.by for event in room.of(JobEnded)] == ["nora"]


async def test_a_job_cancelled_in_its_pause_runs_when_its_rows_are_put_back(room: Room) -> None:
    room.behave = silent
    room.csv(2)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.job(job).failed == 1)
        await service.pause(job, "operator")
        await rests(service, job)
        if not room.job(job).ended:
            await service.cancel(job, "operator")
    assert room.job(job).status == "cancelled"
    assert room.job(job).paused_by == ""
    assert (await steer(room, c.RetryRows, job)).value["changed"]
    room.behave = reports
    await goes_on(room)
    assert (room.job(job).status, room.job(job).failed) == ("completed", 0)


async def test_a_cancel_that_comes_before_the_runner_writes_no_file(room: Room) -> None:
    room.behave = silent
    room.csv(1)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request())
        await service.wait(job)
        output = room.job(job).output_path
        assert output is not None
        await asyncio.to_thread((room.folder / output).unlink)
        room.behave = reports
        retrying = asyncio.create_task(service.retry(job, [], "operator"))
        await room.until(lambda: room.job(job).status == "pending")
        cancelled = await service.cancel(job, "operator")
        await retrying
        await service.wait(job)
        assert cancelled
        assert room.job(job).status == "cancelled"
        assert not (room.folder / output).exists()
        assert len(room.workers) == 1


async def test_concurrency_set_while_a_job_is_let_go_on_is_kept(room: Room) -> None:
    gate = Gate(room)
    room.csv(8)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        await service.pause(job, "operator")
        gate.let(1)
        await rests(service, job)
        changed, _ = await asyncio.gather(service.resize(job, 3, "operator"), service.proceed(job, "another"))
        assert changed == (True, 3)
        await room.until(lambda: room.running > 0)
        await room.until(lambda: room.running == room.job(job).concurrency)
        assert room.running == 3


async def test_a_cancel_while_the_engine_stops_is_refused_and_not_taken_for_one_that_works(
    room: Room,
) -> None:
    room.behave = hangs
    room.csv(1)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request())
        await room.until(lambda: room.running == 1)
        await service.aclose()
        command = c.CancelJob(swarm=SWARM, job=job, author="nora")
        with pytest.raises(JobInputError, match="the swarm is ending"):
            await steer_job(command, service, room.store.state(SWARM))
    assert room.job(job).cancelling == ""


async def test_the_pace_is_that_since_the_job_went_on(room: Room) -> None:
    gate = Gate(room)
    room.csv(6)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.running == 1)
        await room.clock.advance(30)
        await service.pause(job, "operator")
        gate.let(1)
        await rests(service, job)
        await room.clock.advance(36_000)
        await service.proceed(job, "operator")
        await room.until(lambda: room.running == 1)
        shown = await service.summary(job)
        assert (shown["rate_per_minute"], shown["eta_seconds"]) == (None, None)
        await room.clock.advance(30)
        gate.let(1)
        await room.until(lambda: room.job(job).completed == 2 and room.running == 1)
        shown = await service.summary(job)
        assert (shown["rate_per_minute"], shown["eta_seconds"]) == (2.0, 120)
        # What an operator takes out is not work that was done.
        await service.skip(job, ["row-6"], "operator")
        shown = await service.summary(job)
        assert (shown["rate_per_minute"], shown["eta_seconds"]) == (2.0, 90)
        assert (await room.store.reader.job(job))["rate_per_minute"] == 2.0


async def test_a_report_that_stops_the_job_counts_when_its_worker_is_stopped_at_that_moment(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = room.store.jobs.report

    async def taken_and_not_heard(*args: Any, **more: Any) -> tuple[bool, str]:
        await report(*args, **more)
        await asyncio.Event().wait()
        raise AssertionError

    async def stops(worker: Worker) -> Outcome:
        await worker.report(stop=True)
        return DONE

    monkeypatch.setattr(room.store.jobs, "report", taken_and_not_heard)
    room.behave = stops
    room.csv(3)
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1, max_runtime_seconds=5))
        await room.until(lambda: room.job(job).completed == 1)
        monkeypatch.undo()
        await room.clock.advance(6)
        summary = await service.wait(job)
    assert (summary["status"], summary["completed_items"], summary["pending_items"]) == ("cancelled", 1, 2)


async def test_rows_kept_current_by_events_are_the_rows_of_the_store(room: Room) -> None:
    async def second_time(worker: Worker) -> Outcome:
        return await (hangs(worker) if worker.attempt == 2 else silent(worker))

    room.behave = second_time
    room.csv(2)
    shown: JobRows | None = None

    async def look(what: str) -> None:
        rows, _ = await room.store.jobs.page(job, 0, 10)
        assert shown is not None
        for kept, row in zip(shown.rows.values(), rows, strict=True):
            assert (kept.status, kept.worker, kept.result) == (row.status, row.worker, row.result), what
            assert (kept.ended_at is None) == (row.ended_at is None), what

    def on_commit(swarm: str, events: Sequence[AnyEvent], bodies: Sequence[str] = ()) -> None:
        for event in events:
            if shown is not None and isinstance(event, RowEvent):
                shown.apply(event)
        room.on_commit(swarm, events, bodies)

    room.store.on_commit = on_commit
    async with serving(room) as service:
        job = await service.create(ROOT, room.request(max_concurrency=1, max_attempts=2))
        shown = JobRows(job)
        rows, _ = await room.store.jobs.page(job, 0, 10)
        shown.load(JobRowsPage(rows=tuple(rows), total=2, seq=room.store.state(SWARM).seq))
        await room.until(lambda: len(room.workers) == 3)
        await look("tried again")
        await service.pause(job, "operator")
    await room.store.jobs.take_over(SWARM, [])
    await look("given back")
    room.behave = reports
    async with serving(room) as service:
        await service.proceed(job, "operator")
        await service.wait(job)
    await look("reported")


async def test_a_row_that_was_claimed_and_not_begun_stays_pending_when_its_job_is_cancelled(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.csv(2)
    async with serving(room) as service:
        claim = room.store.jobs.claim

        async def cancelled_meanwhile(*args: Any) -> Any:
            claims = await claim(*args)
            assert await service.cancel(args[1], "operator")
            return claims

        monkeypatch.setattr(room.store.jobs, "claim", cancelled_meanwhile)
        job = await service.create(ROOT, room.request(max_concurrency=1))
        summary = await service.wait(job)
    assert room.workers == []
    assert (summary["status"], summary["failed_items"], summary["pending_items"]) == ("cancelled", 0, 2)
    assert {row.attempt for row in (await room.stored(job)).values()} == {0}
