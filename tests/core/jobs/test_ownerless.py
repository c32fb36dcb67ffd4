"""Steering a job that nobody runs: what is stored, who is kept out, and that it goes on after."""

from __future__ import annotations

from typing import Any

import pytest

from core.domain import commands as c
from core.domain import events as e
from core.engine.errors import REFUSALS, refusal
from core.engine.offline import steer_ownerless
from core.engine.resume import threads_of
from core.engine.steer_jobs import JobSteering, steer_job
from core.jobs.workers import Outcome
from core.store.errors import Owned
from core.store.locks import owner_alive
from core.store.readers import Reader
from tests.core.harness import settings_for
from tests.core.jobs.room import DONE, SWARM, Room, Worker, reports, silent
from tests.core.jobs.test_resume import begun, goes_on, some_hang
from tests.core.jobs.test_steering import serving


def home(room: Room) -> Any:
    return room.folder.parent / "home"


async def steer(room: Room, kind: Any, job: str, **fields: Any) -> c.Reply:
    """A command, while nobody owns the swarm."""
    command = kind(swarm=SWARM, job=job, author=fields.pop("author", "nora"), **fields)
    await room.store.release(SWARM)
    try:
        return await steer_ownerless(home(room), command, clock=room.clock, redact=lambda text: text)
    finally:
        assert not owner_alive(home(room), SWARM)
        await room.store.reopen(SWARM)


async def journal(room: Room, after: int = 0) -> list[e.AnyEvent]:
    return list((await room.store.reader.events(SWARM, after, 1000)).events)


async def recounted(room: Room, job: str) -> None:
    """The counters are those of the rows."""
    state, rows = room.job(job), [row.status for row in (await room.stored(job)).values()]
    for status in ("pending", "running", "completed", "failed", "skipped"):
        assert getattr(state, status) == rows.count(status), status


async def test_who_owns_the_swarm_is_asked_and_not_passed_by(room: Room) -> None:
    room.behave = some_hang({"row-2"})
    async with begun(room, rows=2, at_work=1, started=2) as job:
        before = room.store.state(SWARM).seq
        command = c.PauseJob(swarm=SWARM, job=job, author="nora")
        with pytest.raises(Owned):
            await steer_ownerless(home(room), command, clock=room.clock, redact=lambda text: text)
        assert room.store.state(SWARM).seq == before
        assert room.job(job).status == "running"


async def test_a_pause_holds_until_somebody_goes_on(room: Room) -> None:
    room.behave = some_hang({"row-1", "row-2"})
    async with begun(room, rows=4, at_work=2, max_concurrency=2) as job:
        seq = room.store.state(SWARM).seq
        reply = await steer(room, c.PauseJob, job)
        assert reply == c.Reply(value={"changed": True, "could": True, "running": 0})
        *back, paused = await journal(room, seq)
        assert all(isinstance(event, e.JobRowEnded) and event.status == "pending" for event in back)
        assert len(back) == 2
        assert isinstance(paused, e.JobPaused)
        assert paused.by == "nora"
        await recounted(room, job)
        again = await steer(room, c.PauseJob, job)
        assert again == c.Reply(value={"changed": False, "could": False, "running": 0})
        await goes_on(room)
        assert (room.job(job).status, len(room.workers)) == ("paused", 2)
        async with serving(room) as service:
            room.behave = reports
            assert await service.proceed(job, "nora")
            summary = await service.wait(job)
        assert (summary["status"], summary["completed_items"]) == ("completed", 4)
        assert {row.attempt for row in (await room.stored(job)).values()} == {1}


async def test_rows_that_were_at_work_are_skipped_and_the_rest_goes_on(room: Room) -> None:
    room.behave = some_hang({"row-1", "row-2"})
    async with begun(room, rows=3, at_work=2, started=2, max_concurrency=2) as job:
        dry = await steer(room, c.SkipRows, job, items=("row-1", "row-3"), dry_run=True)
        assert dry == c.Reply(value={"changed": False, "rows": 2})
        assert room.job(job).running == 2
        reply = await steer(room, c.SkipRows, job, items=("row-1", "row-3"))
        assert reply == c.Reply(value={"changed": True, "rows": 2})
        await recounted(room, job)
        assert not (await steer(room, c.SkipRows, job, items=())).ok
        room.behave = reports
        await goes_on(room)
        assert (room.job(job).status, room.job(job).completed, room.job(job).skipped) == ("completed", 1, 2)
        refused = await steer(room, c.SkipRows, job, items=("row-2",))
        assert (refused.ok, refused.code) == (False, "refused")
        assert "row-2 is completed" in refused.error


async def test_a_cancel_fails_no_row(room: Room) -> None:
    room.behave = some_hang({"row-1", "row-2"})
    async with begun(room, rows=3, at_work=2, max_concurrency=2) as job:
        reply = await steer(room, c.CancelJob, job)
        assert reply == c.Reply(value={"changed": True, "could": True, "running": 0})
        assert (room.job(job).status, room.job(job).pending, room.job(job).failed) == ("cancelled", 3, 0)
        await recounted(room, job)
        ended = [event for event in await journal(room) if isinstance(event, e.JobEnded)]
        assert [event.by for event in ended] == ["nora"]
        await goes_on(room)
        assert len(room.workers) == 2


async def test_failed_rows_go_back_and_their_job_with_them(room: Room) -> None:
    async def second_fails(worker: Worker) -> Outcome:
        return await (silent(worker) if worker.item == "row-2" else reports(worker))

    room.behave = second_fails
    job = (await room.run(rows=3))["job_id"]
    assert room.job(job).status == "completed"
    dry = await steer(room, c.RetryRows, job, dry_run=True)
    assert dry == c.Reply(value={"changed": False, "rows": 1})
    assert room.job(job).status == "completed"
    reply = await steer(room, c.RetryRows, job)
    assert reply == c.Reply(value={"changed": True, "rows": 1})
    assert (room.job(job).status, room.job(job).pending) == ("pending", 1)
    await recounted(room, job)
    room.behave = reports
    await goes_on(room)
    assert (room.job(job).status, room.job(job).completed) == ("completed", 3)
    assert {row.attempt for row in (await room.stored(job)).values()} == {1, 2}
    assert [row.worker for row in room.of(e.JobRowClaimed)][-1] == room.workers[-1].thread


async def test_the_concurrency_is_kept_for_whoever_goes_on(room: Room) -> None:
    room.behave = some_hang({"row-1"})
    async with begun(room, rows=6, at_work=1, max_concurrency=1) as job:
        slots = room.store.state(SWARM).slots
        assert (await steer(room, c.SetJob, job, max_concurrency=3)).value == {
            "changed": True,
            "concurrency": 3,
        }
        # Its slots come along with it; those of an agent's swarm are what they are.
        more = await steer(room, c.SetJob, job, max_concurrency=slots + 5)
        assert more.value == {"changed": True, "concurrency": slots + 5}
        assert threads_of(room.store.state(SWARM), settings_for(room.folder, "demo")) == slots + 6
        assert (await steer(room, c.SetJob, job, max_concurrency=2, dry_run=True)).value == {
            "changed": False,
            "concurrency": 2,
        }
        assert (await steer(room, c.SetJob, job, max_concurrency=2)).value["changed"]
        for wrong in (0, 10_001):
            assert (await steer(room, c.SetJob, job, max_concurrency=wrong)).code == "usage"
        room.behave, room.peak = reports, 0
        await goes_on(room)
        assert (room.job(job).status, room.peak) == ("completed", 2)


@pytest.mark.parametrize(
    "author", ["", " ", "/root", "engine", "engine: x", "budget", "quota", "a\x1bb", "x" * 61]
)
async def test_nobody_else_is_impersonated(room: Room, author: str) -> None:
    job = (await room.run(rows=1))["job_id"]
    reply = await steer(room, c.CancelJob, job, author=author)
    assert (reply.ok, reply.code) == (False, "usage")


async def test_the_replies_are_those_of_an_engine(room: Room) -> None:
    async def some_fail(worker: Worker) -> Outcome:
        return DONE if worker.item == "row-2" else await reports(worker)

    room.behave = some_fail
    job = (await room.run(rows=3))["job_id"]
    asked: list[JobSteering] = []
    for dry_run in (True, False):
        who = {"swarm": SWARM, "job": job, "author": "nora", "dry_run": dry_run}
        asked += [
            c.PauseJob(**who),
            c.CancelJob(**who),
            c.SetJob(**who, max_concurrency=4),
            c.SetJob(**who, max_concurrency=0),
            c.SkipRows(**who, items=()),
            c.SkipRows(**who, items=("row-1",)),
            c.SkipRows(**who, items=("nope",)),
            c.RetryRows(**who, items=("row-1",)),
            c.RetryRows(**{**who, "job": "nope"}),
        ]
    asked.append(c.SkipRows(swarm=SWARM, job=job, author="nora", dry_run=True, items=("row-2", "row-2")))
    for command in asked:
        async with serving(room) as service:
            try:
                told = c.Reply(value=await steer_job(command, service, room.store.state(SWARM)))
            except REFUSALS as error:
                told = refusal(error)
        await room.store.release(SWARM)
        said = await steer_ownerless(home(room), command, clock=room.clock, redact=lambda text: text)
        await room.store.reopen(SWARM)
        assert said == told, command
    left = await steer(room, c.ContinueJob, job)
    assert (left.ok, left.code) == (False, "refused")


async def test_a_reader_sees_the_change_at_once(room: Room) -> None:
    room.behave = some_hang({"row-1"})
    async with begun(room, rows=1, at_work=1) as job:
        await steer(room, c.PauseJob, job)
        await room.store.release(SWARM)
        async with Reader.open(home(room), clock=room.clock) as reader:
            shown = await reader.job(job)
            assert (shown["status"], shown["paused_by"], shown["pending_items"]) == ("paused", "nora", 1)
        await room.store.reopen(SWARM)
