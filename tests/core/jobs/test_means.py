"""Jobs whose means come and go while their rows are at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.domain.events import AgentSpawned, AgentWaits, BudgetSet, JobPaused
from core.domain.status import Budget, Wait
from core.jobs.workers import Outcome, WorkersUnpaid
from tests.core.jobs.room import DONE, ROOT, SWARM, Room, Worker, hangs, open_room, reports


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with open_room(tmp_path) as room:
        yield room


class OneIsUnpaid:
    """The first worker is stopped, the second works until the test says so."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.go = asyncio.Event()
        self.stopped = 0

    async def __call__(self, worker: Worker) -> Outcome:
        if worker.name.endswith("_1") and not self.stopped:
            self.stopped += 1
            raise WorkersUnpaid("limit reached", by=self.by)  # type: ignore[arg-type]
        if worker.name.endswith("_2") and not self.go.is_set():
            await self.go.wait()
        return await reports(worker)


@pytest.mark.parametrize("by", ["budget", "quota"])
async def test_a_raise_before_the_last_row_at_work_is_over(room: Room, by: str) -> None:
    """The budget that stopped a worker is another one by the time at which the job would pause for it."""
    room.behave = behaviour = OneIsUnpaid(by)
    room.csv(4)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.job(job).running == 1 and behaviour.stopped == 1)
        await room.store.append(SWARM, [BudgetSet(budget=Budget(tokens=10**9), by="operator")])
        behaviour.go.set()
        summary = await service.wait(job)
    if by == "quota":  # no budget pays for that
        assert room.job(job).paused_by == "quota"
        return
    assert room.of(JobPaused) == []
    assert (summary["status"], room.job(job).completed) == ("completed", 4)


async def test_the_same_budget_pauses_it(room: Room) -> None:
    room.behave = behaviour = OneIsUnpaid("budget")
    room.csv(4)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.job(job).running == 1 and behaviour.stopped == 1)
        behaviour.go.set()
        await service.wait(job)
    assert room.job(job).paused_by == "budget"
    assert [event.reason for event in room.of(JobPaused)] == ["limit reached"]


async def test_a_row_whose_time_ran_out_while_its_worker_waited_says_for_what(room: Room) -> None:
    """The time limit is the longest that a row may take: waits count."""

    async def waits(worker: Worker) -> Outcome:
        detail = "limit reached: budget.tokens = 5,000; 980 are spent, and it needs 4,557"
        born = AgentSpawned(agent=worker.thread, path=f"/root/{worker.name}", nickname="a", parent=ROOT)
        told = AgentWaits(agent=worker.thread, wait=Wait(reason="budget", detail=detail))
        await room.store.append(SWARM, [born, told])
        await hangs(worker)
        return DONE

    room.behave = waits
    room.csv(1)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_runtime_seconds=60))
        await room.until(lambda: any(agent.wait for agent in room.store.state(SWARM).agents.values()))
        await room.clock.advance(60)
        await service.wait(job)
    assert room.job(job).last_error == (
        "stopped at the row's time limit of 60 s, while it waited for budget: tokens = 5,000; 980 are spent,"
        " and it needs 4,557"
    )
