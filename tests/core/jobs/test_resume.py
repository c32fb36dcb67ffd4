"""A job whose engine ended goes on as it was asked for, and no worker of the old engine counts any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from core.domain import events as e
from core.jobs.errors import JobInputError
from core.jobs.prompt import ended_message
from core.jobs.service import JobService, plan_of
from core.jobs.workers import Outcome
from core.store.store import StoreError
from tests.core.jobs.room import DONE, ROOT, SWARM, Room, Worker, hangs, read_output, reports

SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


@asynccontextmanager
async def begun(
    room: Room, *, rows: int, at_work: int, started: int | None = None, **fields: Any
) -> AsyncIterator[str]:
    """A job that a first engine began and left with `at_work` of the `started` workers in their rows."""
    room.csv(rows)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(**fields))
        await room.until(lambda: len(room.workers) == (started or at_work) and room.running == at_work)
        await service.aclose()
    assert room.job(job).running == at_work
    yield job


async def goes_on(room: Room, **fields: Any) -> JobService:
    """A second engine takes the swarm over and works its jobs off."""
    await room.store.jobs.take_over(SWARM, [])
    async with asyncio.TaskGroup() as group:
        service = room.service(group, **fields)
        service.go_on(await service.left_over())
    return service


def some_hang(items: set[str]) -> Any:
    async def behave(worker: Worker) -> Outcome:
        return await (hangs(worker) if worker.item in items else reports(worker))

    return behave


async def test_the_rest_is_done_and_what_was_reported_stays(room: Room) -> None:
    room.behave = some_hang({"row-2", "row-4"})
    async with begun(room, rows=5, at_work=2, started=4, max_concurrency=2) as job:
        first = {worker.item: worker for worker in room.workers}
        assert set(first) == {"row-1", "row-2", "row-3", "row-4"}
        room.behave = reports
        await goes_on(room)
        state = room.job(job)
        assert (state.status, state.completed, state.running, state.pending) == ("completed", 5, 0, 0)
        again = [worker.item for worker in room.workers[4:]]
        assert sorted(again) == ["row-2", "row-4", "row-5"]
        rows = await room.stored(job)
        assert {row.attempt for row in rows.values()} == {1}
        assert [row["status"] for row in read_output(state.output_path or "")] == ["completed"] * 5
        # The fencing: another worker has the row now, and the old one is told so.
        assert first["row-2"].thread not in {worker.thread for worker in room.workers[4:]}
        answer = await first["row-2"].report()
        assert not answer["accepted"]
        assert "no longer yours" in answer["reason"]
        assert room.job(job).completed == 5
        shown = {row["item_id"]: row async for row in room.store.reader.job_rows(job)}
        [late] = shown["row-2"]["stale_reports"]
        assert (late["worker"], late["reason"]) == (first["row-2"].thread, answer["reason"])
        assert late["result"] == {"item": "row-2"}
        assert shown["row-4"]["stale_reports"] == []


async def test_between_the_engines_nobody_may_report(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=1, at_work=1) as job:
        await room.store.jobs.take_over(SWARM, [])
        answer = await room.workers[0].report()
        assert answer["reason"] == "item row-1 is not assigned to anybody now; this attempt is over"
        [refused] = room.of(e.JobReportRefused)
        assert refused.job == job
        [back] = room.of(e.JobRowEnded)
        assert (back.status, back.attempt, back.error) == ("pending", 1, "the process ended")
        # A second takeover finds nothing to do.
        before = len(room.events)
        await room.store.jobs.take_over(SWARM, [])
        assert len(room.events) == before


async def test_a_death_uses_up_no_attempt_but_a_failure_does(room: Room) -> None:
    async def fails_then_hangs(worker: Worker) -> Outcome:
        return DONE if worker.attempt == 1 else await hangs(worker)

    room.behave = fails_then_hangs
    async with begun(room, rows=1, at_work=1, started=2, max_attempts=2) as job:
        assert len(room.workers) == 2

        async def silent(worker: Worker) -> Outcome:
            return DONE

        room.behave = silent
        await goes_on(room)
        # One honest try was left, and it was had.
        assert len(room.workers) == 3
        [row] = (await room.stored(job)).values()
        assert (row.status, row.attempt) == ("failed", 2)
        [shown] = [row async for row in room.store.reader.job_rows(job)]
        attempts = shown["attempts"]
        assert [(a["attempt"], a["status"]) for a in attempts] == [
            (1, "failed"),
            (2, "interrupted"),
            (2, "failed"),
        ]


async def test_the_plan_is_what_was_asked_for(room: Room) -> None:
    room.behave = hangs
    asked: dict[str, Any] = {
        "instruction": "Do {word} with {{care}}",
        "max_concurrency": 3,
        "max_runtime_seconds": 77.5,
        "max_attempts": 4,
        "output_schema": SCHEMA,
        "output_path": "there.csv",
        "raw": True,
        "model": "m2",
        "role": "auditor",
    }
    async with begun(room, rows=3, at_work=3, **asked):
        old = dict(room.workers[0].given)
        [stored] = await room.store.jobs.left_over(SWARM)
        plan = plan_of(SWARM, stored, 2, tell_owner=False)
        assert (plan.concurrency, plan.max_runtime_seconds, plan.max_attempts) == (2, 77.5, 4)
        assert (plan.model, plan.role, plan.raw, plan.schema) == ("m2", "auditor", True, SCHEMA)
        assert plan.output_path == room.folder / "there.csv"
        assert plan.headers == ["n", "word"]

        async def done(worker: Worker) -> Outcome:
            wrong = await worker.report({"word": 1})
            assert not wrong["accepted"]
            assert await worker.report({"word": "x"}) == {"accepted": True}
            return DONE

        room.behave = done
        await goes_on(room)
        new = next(worker for worker in room.workers[3:] if worker.item == old["item"]).given
        same = ("owner", "name", "task", "message", "job", "item", "model", "role")
        assert {name: new[name] for name in same} == {name: old[name] for name in same}
        assert new["tools"][0].schema() == old["tools"][0].schema()
        assert [row["status"] for row in read_output(room.folder / "there.csv")] == ["completed"] * 3


@pytest.mark.parametrize("path", [None, "named.csv"])
async def test_no_csv_is_written_by_itself_where_none_was_wanted(room: Room, path: str | None) -> None:
    room.behave = hangs
    async with begun(room, rows=1, at_work=1, auto_export=False, output_path=path) as job:
        room.behave = reports
        await goes_on(room)
        assert room.job(job).status == "completed"
        assert [file.name for file in room.folder.iterdir()] == ["in.csv"]


async def test_a_role_that_is_gone_ends_the_job_and_fails_no_row(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=3, at_work=2, max_concurrency=2, role="auditor") as job:
        room.no_roles = {"auditor"}
        before = len(room.workers)
        await goes_on(room)
        state = room.job(job)
        assert (state.status, state.failed, state.pending) == ("failed", 0, 3)
        assert state.last_error == "the job cannot be gone on with: there is no role 'auditor'"
        assert len(room.workers) == before


async def test_a_stop_that_was_accepted_is_not_forgotten(room: Room) -> None:
    async def stops(worker: Worker) -> Outcome:
        if worker.item == "row-2":
            return await hangs(worker)
        assert await worker.report(stop=True) == {"accepted": True}
        return DONE

    room.behave = stops
    async with begun(room, rows=5, at_work=1, started=2, max_concurrency=2) as job:
        assert room.job(job).completed == 1
        room.behave = reports
        before = len(room.workers)
        await goes_on(room)
        state = room.job(job)
        assert (state.status, state.completed, state.pending) == ("cancelled", 1, 4)
        assert len(room.workers) == before
        [ended] = room.of(e.JobEnded)
        assert ended.by == f"/root/{room.workers[0].name}"
        assert len(read_output(state.output_path or "")) == 5


async def test_a_job_that_died_between_its_csv_and_its_end(room: Room, monkeypatch: Any) -> None:
    room.csv(2)

    async def broken(*args: Any, **kwargs: Any) -> bool:
        raise StoreError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(room.store.jobs, "end", broken)
        with pytest.raises(BaseExceptionGroup):
            await room.run()
    [job] = room.store.state(SWARM).jobs
    assert room.job(job).status == "running"
    assert len(room.of(e.JobExported)) == 1
    await goes_on(room)
    assert room.job(job).status == "completed"
    assert len(room.workers) == 2


async def test_a_job_that_cannot_be_read_back_fails_with_the_reason(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=1, at_work=1) as job:
        [stored] = await room.store.jobs.left_over(SWARM)
        with pytest.raises(JobInputError):
            plan_of(SWARM, stored._replace(instruction="{gone}"), 1, tell_owner=False)
        async with asyncio.TaskGroup() as group:
            room.service(group).go_on([stored._replace(headers="[")])
        state = room.job(job)
        assert state.status == "failed"
        assert state.last_error.startswith("the job cannot be gone on with: ")


async def test_jobs_that_have_ended_are_left_alone(room: Room) -> None:
    await room.run(rows=2)
    events = len(room.events)
    service = await goes_on(room)
    assert len(room.events) == events
    assert await service.left_over() == []


async def test_the_owner_is_told_when_it_is_an_agent_at_work(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=2, at_work=2) as job:
        turn = e.TurnStarted(agent=ROOT, turn="t")
        await room.store.append(SWARM, [turn, e.TurnInterrupted(agent=ROOT, turn="t", by="engine")])
        room.behave = reports
        await goes_on(room)
        [mail] = room.of(e.MailQueued)
        assert (mail.agent, mail.author, mail.trigger) == (ROOT, f"job {job[:8]}", True)
        assert mail.text == ended_message(room.job(job), "completed", None)
        assert "2 of 2 rows are done. The CSV is " in mail.text
        # In the transaction that ended the job: no death can come between.
        ended = next(n for n, event in enumerate(room.events) if isinstance(event, e.JobEnded))
        assert room.events[ended + 1] is mail


async def test_a_root_without_turns_gets_no_mail(room: Room) -> None:
    room.behave = hangs
    async with begun(room, rows=1, at_work=1):
        room.behave = reports
        await goes_on(room)
        assert room.of(e.MailQueued) == []


async def test_the_end_of_the_engine_cancels_no_job(room: Room) -> None:
    room.csv(2)
    room.behave = hangs
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request())
        await room.until(lambda: room.running == 2)
        waits = asyncio.ensure_future(service.wait(job))
        await service.aclose()
        with pytest.raises(JobInputError, match="goes on when the swarm is resumed"):
            await waits
        assert not await service.cancel(job, by="/root")
    assert room.job(job).status == "running"
