"""The tools for jobs that exist already, and a job that nobody waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from core.domain.events import JobEnded, JobExported, JobStarted, MailQueued
from core.domain.limits import Limits
from core.jobs.asking import Words, asking_tools
from core.jobs.service import JobService
from core.jobs.tools import SpawnAgentsOnCsv
from core.tools.base import Tool, ToolError, parse_args
from tests.clock import settle
from tests.core.jobs.room import ROOT, Context, Room, read_output, reports, silent
from tests.core.jobs.test_steering import Gate

LIMITS = Limits(min_wait_ms=1000, default_wait_ms=5000, max_wait_ms=60_000)


@pytest.fixture
async def service(room: Room) -> AsyncIterator[JobService]:
    async with asyncio.TaskGroup() as group:
        yield (made := room.service(group))
        await made.aclose()


async def silence(thread: str) -> None:
    """The operator types nothing."""
    await asyncio.Event().wait()


def tools(service: JobService, words: Words = silence) -> dict[str, Tool]:
    made = [SpawnAgentsOnCsv(service), *asking_tools(service, LIMITS, words)]
    return {tool.name: tool for tool in made}


async def call(
    room: Room, service: JobService, name: str, context: Context | None = None, **args: Any
) -> dict[str, Any]:
    tool = tools(service)[name]
    context = context or Context(cwd=room.folder, clock=room.clock)
    output = await tool.run(parse_args(tool, json.dumps(args)), context)
    answer = json.loads(output.text)
    assert isinstance(answer, dict)
    return answer


async def started(room: Room, service: JobService, rows: int = 2, **fields: Any) -> str:
    """A job that somebody else of the swarm has begun, with its first rows at work."""
    room.csv(rows)
    job = await service.create(ROOT, room.request(**fields))
    await room.until(lambda: room.running > 0)
    return job


def mail(room: Room) -> list[MailQueued]:
    return room.of(MailQueued)


async def test_a_job_that_is_not_waited_for_answers_with_its_id_and_tells_its_end_by_mail(
    room: Room, service: JobService
) -> None:
    gate = Gate(room)
    room.csv(2)
    given = {"csv_path": "in.csv", "instruction": "a", "output_csv_path": "out.csv", "wait": False}
    answer = await call(room, service, "spawn_agents_on_csv", **given)
    assert answer["status"] in ("pending", "running")
    assert (answer["total_items"], answer["completed_items"]) == (2, 0)
    assert mail(room) == []
    gate.let(2)
    await service.wait(answer["job_id"])
    (told,) = mail(room)
    assert (told.agent, told.trigger) == (ROOT, True)
    assert f"Job ID {answer['job_id']}) has ended: completed. 2 of 2 rows are done." in told.text
    assert str(room.folder / "out.csv") in told.text
    # In one transaction with the end: whoever sees the end finds the mail.
    (ended,) = room.of(JobEnded)
    assert abs(ended.seq - told.seq) == 1


async def test_a_job_that_is_waited_for_sends_no_mail(room: Room, service: JobService) -> None:
    room.csv(1)
    await call(room, service, "spawn_agents_on_csv", csv_path="in.csv", instruction="a")
    assert mail(room) == []


async def test_a_caller_that_was_interrupted_finds_a_message_and_is_not_woken_by_it(
    room: Room, service: JobService
) -> None:
    gate = Gate(room)
    room.csv(1)
    turn = asyncio.create_task(call(room, service, "spawn_agents_on_csv", csv_path="in.csv", instruction="a"))
    await room.until(lambda: room.running == 1)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    gate.let(1)
    (job,) = service._store.state(service.swarm).jobs
    await service.wait(job)
    (told,) = mail(room)
    assert (told.agent, told.trigger) == (ROOT, False)


async def test_the_status_is_the_object_of_job_show(room: Room, service: JobService) -> None:
    Gate(room)
    job = await started(room, service, name="count")
    for ref in (job, job[:6], "count"):
        assert await call(room, service, "get_agent_job_status", job_id=ref) == await service.summary(job)
    await service.pause(job, "operator")
    answer = await call(room, service, "get_agent_job_status", job_id=job)
    assert (answer["status"], answer["paused_by"], answer["pause_reason"]) == ("paused", "operator", None)


@pytest.mark.parametrize(
    "name", ["run_agent_job", "get_agent_job_status", "wait_agent_job", "export_agent_job_csv"]
)
async def test_a_job_that_is_not_there_or_not_the_only_one(
    room: Room, service: JobService, name: str
) -> None:
    with pytest.raises(ToolError, match="there is no job nope in this swarm"):
        await call(room, service, name, job_id="nope")
    with pytest.raises(ToolError, match="job_id"):
        await call(room, service, name, job_id="")
    room.csv(1)
    for _ in range(2):
        await service.run(ROOT, room.request(name="twins"))
    with pytest.raises(ToolError, match="twins stands for 2 jobs of this swarm; give more of the id"):
        await call(room, service, name, job_id="twins")


async def test_a_wait_ends_with_the_job(room: Room, service: JobService) -> None:
    gate = Gate(room)
    job = await started(room, service)
    context = Context(cwd=room.folder, clock=room.clock)
    waiting = asyncio.create_task(call(room, service, "wait_agent_job", context, job_id=job))
    gate.let(2)
    answer = await waiting
    assert (answer["status"], answer["completed_items"], answer["timed_out"]) == ("completed", 2, False)
    assert context.blocks == ["in job", "out job"]
    again = await call(room, service, "wait_agent_job", job_id=job)
    assert (again["status"], again["timed_out"]) == ("completed", False)


@pytest.mark.parametrize(("asked", "seconds"), [(None, 5), (1, 1), (7000, 7)])
async def test_a_wait_is_over_in_time_and_the_job_goes_on(
    room: Room, service: JobService, asked: int | None, seconds: float
) -> None:
    gate = Gate(room)
    job = await started(room, service)
    more = {} if asked is None else {"timeout_ms": asked}
    waiting = asyncio.create_task(call(room, service, "wait_agent_job", job_id=job, **more))
    await settle()
    await room.clock.advance(seconds - 0.5)
    assert not waiting.done()
    await room.clock.advance(0.5)
    answer = await waiting
    assert (answer["status"], answer["timed_out"]) == ("running", True)
    gate.let(2)
    assert (await service.wait(job))["completed_items"] == 2


async def test_a_wait_has_the_bounds_of_wait_agent(room: Room, service: JobService) -> None:
    Gate(room)
    job = await started(room, service)
    with pytest.raises(ToolError, match="timeout_ms may be at most 60000"):
        await call(room, service, "wait_agent_job", job_id=job, timeout_ms=60_001)
    with pytest.raises(ToolError, match="greater than 0"):
        await call(room, service, "wait_agent_job", job_id=job, timeout_ms=0)


async def test_the_engine_stops_while_an_agent_waits(room: Room) -> None:
    Gate(room)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await started(room, service)
        waiting = asyncio.create_task(call(room, service, "wait_agent_job", job_id=job))
        await settle()
        await service.aclose()
        with pytest.raises(ToolError, match="the job goes on when the swarm is resumed"):
            await waiting


async def test_a_job_out_of_means_is_run_again_by_an_agent_and_one_that_was_paused_is_not(
    room: Room, service: JobService
) -> None:
    gate = Gate(room)
    job = await started(room, service, rows=3, max_concurrency=1)
    await service.pause(job, "operator")
    with pytest.raises(ToolError, match="was paused by operator; only an operator lets it go on"):
        await call(room, service, "run_agent_job", job_id=job)
    await service.proceed(job, "operator")
    answer = await call(room, service, "run_agent_job", job_id=job)
    assert (answer["status"], answer["total_items"]) == ("running", 3)
    await service.pause(job, "budget")
    gate.let(1)
    assert (await service.wait(job))["completed_items"] == 1
    answer = await call(room, service, "run_agent_job", job_id=job)
    assert answer["status"] == "running"
    assert room.of(JobStarted)[-1].by == "/root"
    gate.let(2)
    assert (await service.wait(job))["completed_items"] == 3
    with pytest.raises(ToolError, match="has ended: completed; there is nothing left to run"):
        await call(room, service, "run_agent_job", job_id=job)


async def test_an_export_at_any_moment(room: Room, service: JobService) -> None:
    gate = Gate(room)
    job = await started(room, service, rows=3, max_concurrency=1, auto_export=False)
    gate.let(1)
    await room.until(lambda: room.job(job).completed == 1 and room.job(job).running == 1)
    answer = await call(room, service, "export_agent_job_csv", job_id=job, output_csv_path="half.csv")
    assert answer["output_csv_path"] == str(room.folder / "half.csv")
    assert [row["status"] for row in read_output(room.folder / "half.csv")] == [
        "completed",
        "running",
        "pending",
    ]
    gate.let(2)
    await service.wait(job)
    again = await call(room, service, "export_agent_job_csv", job_id=job)
    assert [row["status"] for row in read_output(again["output_csv_path"])] == ["completed"] * 3
    assert [event.rows for event in room.of(JobExported)] == [3, 3]


async def test_a_default_place_is_beside_the_input(room: Room, service: JobService) -> None:
    room.csv(1)
    job = (await service.run(ROOT, room.request(auto_export=False)))["job_id"]
    answer = await call(room, service, "export_agent_job_csv", job_id=job)
    assert answer["output_csv_path"] == str(room.folder / f"in.agent-job-{job[:8]}.csv")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("in.csv", "is the input itself"),
        ("../out.csv", "leads out of the workspace"),
        ("/etc/passwd", "leads out of the workspace"),
        (".", "is a folder"),
        ("in.csv/out.csv", "is not a folder"),
        (" ", "is not a path"),
    ],
)
async def test_an_export_to_a_place_that_is_none(
    room: Room, service: JobService, output: str, sentence: str
) -> None:
    room.csv(1)
    job = (await service.run(ROOT, room.request()))["job_id"]
    before = (room.folder / "in.csv").read_text()
    with pytest.raises(ToolError, match=sentence):
        await call(room, service, "export_agent_job_csv", job_id=job, output_csv_path=output)
    assert (room.folder / "in.csv").read_text() == before


async def test_a_job_that_an_operator_lets_write_elsewhere_is_not_written_there_by_an_agent(
    room: Room, service: JobService
) -> None:
    room.csv(1)
    outside = room.folder.parent / "out.csv"
    job = (await service.run(ROOT, room.request(output_path=str(outside))))["job_id"]
    outside.unlink()
    with pytest.raises(ToolError, match="leads out of the workspace"):
        await call(room, service, "export_agent_job_csv", job_id=job)
    assert not outside.exists()


async def test_descriptions_say_what_each_call_is_for(room: Room, service: JobService) -> None:
    room.behave = reports
    made = tools(service)
    for name, tool in made.items():
        if name == "spawn_agents_on_csv":
            assert (
                "This one call starts the job, waits until it has ended and writes a CSV" in tool.description
            )
            assert "a row without a report is a failure" in tool.description
        else:
            assert tool.description.startswith("For a job that exists already")
            assert tool.category == "job"
            assert tool.brief({"job_id": "\x1b[1m8184e894-0000"}) == "8184e894-0000"
    room.behave = silent
