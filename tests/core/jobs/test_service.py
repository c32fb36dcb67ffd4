from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.domain.commands import RunJob
from core.domain.events import JobCreated, JobEnded, JobExported, JobStarted, Notice
from core.jobs.errors import JobInputError
from core.jobs.request import JobRequest, resolve
from core.jobs.service import JobService
from core.jobs.tools import SpawnAgentsOnCsv
from core.jobs.workers import Outcome
from core.tools.base import ToolError, parse_args
from tests.core.jobs.room import ROOT, SWARM, Context, Room, Worker, read_output, reports, silent


@pytest.fixture
async def service(room: Room) -> AsyncIterator[JobService]:
    async with asyncio.TaskGroup() as group:
        yield (made := room.service(group))
        await made.aclose()


# --- creating --------------------------------------------------------------------------------------------


async def test_the_defaults(room: Room) -> None:
    summary = await room.run(rows=2)
    job = summary["job_id"]
    assert summary["name"] == f"agent-job-{job[:8]}"
    assert summary["output_csv_path"] == str(room.folder / f"in.agent-job-{job[:8]}.csv")
    (created,) = room.of(JobCreated)
    assert (created.agent, created.total, created.concurrency) == (ROOT, 2, 16)
    assert (created.max_attempts, created.max_runtime_seconds) == (1, 1800)
    assert len(read_output(summary["output_csv_path"])) == 2


async def test_the_summary_is_what_job_show_prints(room: Room) -> None:
    summary = await room.run(rows=2, output_path="o.csv", name="count")
    assert summary == {
        "job_id": summary["job_id"],
        "name": "count",
        "status": "completed",
        "total_items": 2,
        "completed_items": 2,
        "failed_items": 0,
        "running_items": 0,
        "pending_items": 0,
        "skipped_items": 0,
        "rate_per_minute": None,
        "eta_seconds": None,
        "input_path": str(room.folder / "in.csv"),
        "output_csv_path": str(room.folder / "o.csv"),
        "created_at": "2026-01-01T00:00:00.000000Z",
        "last_error": None,
        "failed_item_errors": [],
        "in_flight": 0,
        "tokens": None,
        "cost": None,
        "cost_partial": False,
        "max_concurrency": 16,
        "refused_reports": 0,
        "paused_by": None,
        "pause_reason": None,
        "cancelling_by": None,
    }


async def test_rate_and_eta_are_unknown_until_a_row_has_ended(room: Room, service: JobService) -> None:
    gates = {f"row-{n}": asyncio.Event() for n in range(1, 5)}

    async def waits(worker: Worker) -> Outcome:
        await gates[worker.item].wait()
        return await reports(worker)

    room.behave = waits
    room.csv(4)
    job = await service.create(ROOT, room.request())
    await room.until(lambda: room.running == 4)
    await room.clock.advance(30)
    before = await service.summary(job)
    assert (before["rate_per_minute"], before["eta_seconds"]) == (None, None)
    gates["row-1"].set()
    await room.until(lambda: room.job(job).completed == 1)
    after = await service.summary(job)
    assert (after["rate_per_minute"], after["eta_seconds"]) == (2.0, 90)
    for gate in gates.values():
        gate.set()
    await service.wait(job)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"input_path": "none.csv"}, "there is no file"),
        ({"input_path": ""}, "is not a path"),
        ({"input_path": "a\0b"}, "is not a path"),
        ({"instruction": "  "}, "the instruction is empty"),
        ({"instruction": "{nope}"}, "the columns are: n, word"),
        ({"id_column": "nope"}, "no column 'nope'"),
        ({"max_concurrency": 0}, "max_concurrency is 0; it must be from 1 to 10000"),
        ({"max_concurrency": 2**63}, f"max_concurrency is {2**63}; it must be from 1 to 10000"),
        ({"max_runtime_seconds": float("inf")}, "max_runtime_seconds is inf"),
        ({"max_runtime_seconds": 0.5}, "max_runtime_seconds is 0.5"),
        ({"max_runtime_seconds": float("nan")}, "max_runtime_seconds is nan"),
        ({"max_attempts": 0}, "max_attempts is 0; it must be from 1 to 100"),
        ({"output_schema": {"type": "string"}}, "a result is always an object"),
        ({"output_path": "in.csv"}, "is the input itself"),
        ({"output_path": "link.csv"}, "is the input itself"),
        ({"output_path": "."}, "is a folder"),
        ({"output_path": "in.csv/out.csv"}, "is not a folder"),
    ],
)
async def test_a_bad_request_is_refused_before_anything_is_stored(
    room: Room, service: JobService, fields: dict[str, Any], sentence: str
) -> None:
    room.csv(2)
    (room.folder / "link.csv").symlink_to("in.csv")
    before = len(room.events)
    with pytest.raises(JobInputError) as caught:
        await service.create(ROOT, room.request(**fields))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(room.events) == before
    assert room.store.state(SWARM).jobs == {}


async def test_jobs_that_are_turned_off_or_have_no_slot(room: Room) -> None:
    room.csv(1)
    async with asyncio.TaskGroup() as group:
        with pytest.raises(JobInputError, match=r"jobs\.enabled"):
            await room.service(group, enabled=False).create(ROOT, room.request())
        with pytest.raises(JobInputError, match=r"agents\.max_threads"):
            await room.service(group, slots=0).create(ROOT, room.request())


async def test_a_capped_concurrency_and_blank_rows_are_said(room: Room) -> None:
    (room.folder / "in.csv").write_text("n,word\n1,a\n\n,\n2,b\n")
    await room.run(slots=4, max_concurrency=64)
    assert [event.concurrency for event in room.of(JobStarted)] == [4]
    notices = " ".join(event.text for event in room.of(Notice))
    assert "2 blank rows of in.csv left out" in notices
    assert "max_concurrency 64 is capped to 4 by agents.max_threads = 5" in notices


async def test_no_export_when_none_is_wanted(room: Room) -> None:
    summary = await room.run(rows=1, auto_export=False)
    assert summary["output_csv_path"] is None
    assert room.of(JobExported) == []
    assert list(room.folder.iterdir()) == [room.folder / "in.csv"]


async def test_the_csv_is_complete_when_the_end_is_told(room: Room) -> None:
    summary = await room.run(rows=3)
    kinds = [type(event) for event in room.events]
    assert kinds.index(JobExported) < kinds.index(JobEnded)
    assert {row["status"] for row in read_output(summary["output_csv_path"])} == {"completed"}


async def test_an_output_that_cannot_be_written_leaves_a_completed_job_that_says_so(room: Room) -> None:
    async def in_the_way(worker: Worker) -> Outcome:
        (room.folder / "out.csv").mkdir()
        return await reports(worker)

    room.behave = in_the_way
    summary = await room.run(rows=1, output_path="out.csv")
    assert (summary["status"], summary["completed_items"]) == ("completed", 1)
    assert "is a folder" in summary["last_error"]


async def test_the_input_may_change_while_the_job_runs(room: Room) -> None:
    async def changes(worker: Worker) -> Outcome:
        (room.folder / "in.csv").write_text("other\nthing\n")
        return await reports(worker)

    room.behave = changes
    summary = await room.run(rows=2)
    assert [(row["n"], row["word"]) for row in read_output(summary["output_csv_path"])] == [
        ("1", "w1"),
        ("2", "w2"),
    ]


async def test_a_caller_that_is_cancelled_while_it_creates_leaves_a_job_that_runs(
    room: Room, service: JobService
) -> None:
    room.csv(3)
    call = asyncio.create_task(service.create(ROOT, room.request()))
    await room.until(lambda: bool(room.store.state(SWARM).jobs))
    call.cancel()
    await asyncio.wait({call})
    (job,) = room.store.state(SWARM).jobs
    assert (await service.wait(job))["completed_items"] == 3


async def test_after_the_close_nothing_starts(room: Room, service: JobService) -> None:
    room.csv(1)
    await service.aclose()
    with pytest.raises(JobInputError, match="ending"):
        await service.create(ROOT, room.request())


def test_a_command_is_a_request(tmp_path: Path) -> None:
    command = RunJob(
        input_path="i.csv", instruction="Do", cwd=str(tmp_path), max_attempts=3, raw=True, name="n"
    )
    request = JobRequest.of(command)
    assert (request.cwd, request.max_attempts, request.raw, request.name) == (tmp_path, 3, True, "n")
    assert not request.inside


# --- paths -----------------------------------------------------------------------------------------------


def test_an_agents_paths_stay_in_the_workspace(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (work / "out").symlink_to(tmp_path)
    (work / "loop").symlink_to("loop")
    (work / "fine").symlink_to("sub")
    assert resolve("sub/../a.csv", work, inside=True) == work / "a.csv"
    assert resolve("fine/a.csv", work, inside=True) == work / "sub/a.csv"
    assert resolve(str(work / "a.csv"), work, inside=True) == work / "a.csv"
    for path in ("../secret", "out/secret", "/etc/passwd", "sub/../../secret", "/proc/self/cwd/../x", "out"):
        with pytest.raises(JobInputError, match="leads out of the workspace"):
            resolve(path, work, inside=True)
    with pytest.raises(JobInputError):
        resolve("loop/x", work, inside=True)
    assert resolve("../secret", work, inside=False).read_text() == "x"


# --- the tool --------------------------------------------------------------------------------------------


async def call(room: Room, service: JobService, **arguments: Any) -> tuple[dict[str, Any], Context]:
    tool = SpawnAgentsOnCsv(service)
    context = Context(cwd=room.folder, clock=room.clock)
    output = await tool.run(parse_args(tool, json.dumps(arguments)), context)
    return json.loads(output.text), context


async def test_one_call_runs_the_job_and_answers_with_its_end(room: Room, service: JobService) -> None:
    async def one_fails(worker: Worker) -> Outcome:
        return await (silent if worker.item == "row-2" else reports)(worker)

    room.behave = one_fails
    room.csv(3)
    answer, context = await call(
        room,
        service,
        csv_path="in.csv",
        instruction="Count {word}",
        output_csv_path="sub/out.csv",
        max_workers=99,
        agent_type="counter",
        model="m3",
    )
    assert list(answer)[:6] == [
        "job_id",
        "status",
        "output_csv_path",
        "total_items",
        "completed_items",
        "failed_items",
    ]
    assert (answer["status"], answer["completed_items"], answer["failed_items"]) == ("completed", 2, 1)
    assert "job_error" not in answer
    assert len(answer["failed_item_errors"]) == 1
    assert "capped to 16" in answer["notes"][0]
    assert len(read_output(room.folder / "sub" / "out.csv")) == 3
    assert context.blocks == ["in job", "out job"]
    assert context.emitted[0][0] == "started"
    assert "3 rows of in.csv, 16 side by side" in context.emitted[0][1]
    assert {(w.given["model"], w.given["role"]) for w in room.workers} == {("m3", "counter")}
    (created,) = room.of(JobCreated)
    assert created.call == context.call


async def test_the_instruction_may_be_a_file(room: Room, service: JobService) -> None:
    room.csv(1)
    (room.folder / "do.md").write_text("Look at {word}\n")
    answer, _ = await call(room, service, csv_path="in.csv", instruction_path="do.md")
    assert answer["completed_items"] == 1
    assert "Look at w1" in room.workers[0].message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"csv_path": "in.csv"}, "exactly one of instruction and instruction_path"),
        ({"csv_path": "in.csv", "instruction": "a", "instruction_path": "b"}, "exactly one"),
        ({"csv_path": "../in.csv", "instruction": "a"}, "leads out of the workspace"),
        ({"csv_path": "/etc/passwd", "instruction": "a"}, "leads out of the workspace"),
        ({"csv_path": "in.csv", "instruction_path": "/etc/passwd"}, "leads out of the workspace"),
        ({"csv_path": "in.csv", "instruction_path": "none.md"}, "cannot be read"),
        ({"csv_path": "in.csv", "instruction": "a", "output_csv_path": "/tmp/x.csv"}, "leads out of"),
        ({"csv_path": "in.csv", "instruction": "{x}"}, "the columns are: n, word"),
        ({"csv_path": "in.csv", "instruction": "a", "wait": "later"}, "wait"),
        ({"csv_path": "in.csv", "instruction": "a", "max_concurrency": 0}, "greater than or equal to 1"),
        ({"csv_path": "in.csv", "instruction": "a", "max_concurrency": 1, "max_workers": 2}, "max_workers"),
    ],
)
async def test_wrong_arguments_are_an_answer(
    room: Room, service: JobService, arguments: dict[str, Any], sentence: str
) -> None:
    room.csv(1)
    with pytest.raises(ToolError, match=sentence):
        await call(room, service, **arguments)
    assert room.of(JobCreated) == []


def test_what_the_model_is_shown() -> None:
    definition = SpawnAgentsOnCsv.__new__(SpawnAgentsOnCsv).definition()
    assert set(definition["parameters"]["properties"]) == {
        "csv_path",
        "instruction",
        "instruction_path",
        "id_column",
        "job_name",
        "output_csv_path",
        "output_schema",
        "max_concurrency",
        "max_runtime_seconds",
        "max_attempts",
        "auto_export",
        "model",
        "agent_type",
        "wait",
    }
    assert definition["parameters"]["required"] == ["csv_path"]


@pytest.mark.parametrize("setting", ["detach", "cancel"])
async def test_what_an_interrupt_of_the_caller_does_is_a_setting(room: Room, setting: str) -> None:
    go = asyncio.Event()

    async def waits(worker: Worker) -> Outcome:
        await go.wait()
        return await reports(worker)

    room.behave = waits
    room.csv(3)
    async with asyncio.TaskGroup() as group:
        service = room.service(group, on_interrupt=setting)
        turn = asyncio.create_task(call(room, service, csv_path="in.csv", instruction="a"))
        await room.until(lambda: room.running == 3)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        (job,) = room.store.state(SWARM).jobs
        go.set()
        summary = await service.wait(job)
    assert summary["status"] == ("completed" if setting == "detach" else "cancelled")


async def test_two_jobs_of_one_swarm_run_beside_each_other(room: Room, service: JobService) -> None:
    both = asyncio.Event()

    async def meet(worker: Worker) -> Outcome:
        if len({other.job for other in room.workers}) == 2:
            both.set()
        await both.wait()
        return await reports(worker)

    room.behave = meet
    room.csv(2)
    room.csv(2, "two.csv")
    first = asyncio.create_task(service.run(ROOT, room.request()))
    second = asyncio.create_task(service.run(ROOT, room.request(input_path="two.csv")))
    assert [(await first)["completed_items"], (await second)["completed_items"]] == [2, 2]
