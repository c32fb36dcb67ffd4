from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.domain.events import AgentClosed, JobEnded, JobReportRefused, JobRowClaimed, JobRowEnded
from core.jobs.runner import NO_REPORT
from core.jobs.workers import Outcome, WorkersGone
from core.store.store import StoreError
from core.tools.base import ToolError
from tests.clock import settle
from tests.core.jobs.room import (
    DONE,
    ROOT,
    SWARM,
    Room,
    Worker,
    hangs,
    open_room,
    read_output,
    reports,
    silent,
)


def errors(rows: dict[str, Any]) -> dict[str, str]:
    return {item: row.error for item, row in rows.items() if row.status == "failed"}


# --- every row ends, once --------------------------------------------------------------------------------


async def test_every_row_is_worked_on_once_and_reported(room: Room) -> None:
    summary = await room.run(rows=5, id_column="word", max_concurrency=2)
    assert (summary["status"], summary["completed_items"], summary["failed_items"]) == ("completed", 5, 0)
    assert [worker.item for worker in room.workers] == ["w1", "w2", "w3", "w4", "w5"]
    assert room.peak == 2
    assert [row["result_json"] for row in read_output(summary["output_csv_path"])] == [
        json.dumps({"item": f"w{i}"}) for i in range(1, 6)
    ]


async def test_what_a_worker_is_given(room: Room) -> None:
    summary = await room.run(rows=1, model="m2", role="counter")
    (worker,) = room.workers
    job = summary["job_id"]
    assert worker.name == f"job_{job[:8]}_1"
    assert worker.message.startswith(f"Job ID: {job}\nItem ID: row-1\n\nDo w1\n")
    assert (worker.given["owner"], worker.given["model"], worker.given["role"]) == (ROOT, "m2", "counter")
    assert worker.given["task"] == "Do w1"
    (claimed,) = room.of(JobRowClaimed)
    assert claimed.worker == worker.thread, "the claim that is on disk names the worker before it starts"


async def test_as_many_side_by_side_as_asked_for(room: Room) -> None:
    everyone = asyncio.Event()

    async def waits_for_all(worker: Worker) -> Outcome:
        if room.running == 12:
            everyone.set()
        await everyone.wait()
        return await reports(worker)

    room.behave = waits_for_all
    summary = await room.run(rows=30, max_concurrency=12)
    assert summary["completed_items"] == 30
    assert room.peak == 12


async def test_a_thousand_rows(room: Room) -> None:
    summary = await room.run(rows=1000, slots=64, max_concurrency=64)
    assert summary["completed_items"] == 1000
    assert len({worker.thread for worker in room.workers}) == 1000
    assert len(read_output(summary["output_csv_path"])) == 1000


async def test_a_second_report_is_refused_and_changes_nothing(room: Room) -> None:
    async def twice(worker: Worker) -> Outcome:
        assert await worker.report({"n": 1}) == {"accepted": True}
        again = await worker.report({"n": 2})
        assert again["accepted"] is False
        assert again["reason"]
        return DONE

    room.behave = twice
    summary = await room.run(rows=1)
    (row,) = (await room.stored(summary["job_id"])).values()
    assert json.loads(row.result) == {"n": 1}
    assert [event.result for event in room.of(JobReportRefused)] == ['{"n": 2}']


async def test_only_the_workers_own_row_can_be_reported(room: Room) -> None:
    async def mixes_up(worker: Worker) -> Outcome:
        other = "row-1" if worker.item == "row-2" else "row-2"
        for wrong in ({"item_id": other}, {"job_id": "00000000-0000-4000-8000-000000000000"}):
            answer = await worker.report(**wrong)
            assert answer["accepted"] is False
            assert worker.item in answer["reason"]
        return await reports(worker) if worker.item == "row-1" else DONE

    room.behave = mixes_up
    summary = await room.run(rows=2)
    rows = await room.stored(summary["job_id"])
    assert (rows["row-1"].status, rows["row-2"].status) == ("completed", "failed")


@pytest.mark.parametrize("result", ["text", [1], None, 7])
async def test_a_result_must_be_an_object(room: Room, result: Any) -> None:
    async def no_object(worker: Worker) -> Outcome:
        with pytest.raises(ToolError, match="result"):
            await worker.call(job_id=worker.job, item_id=worker.item, result=result)
        return await reports(worker)

    room.behave = no_object
    assert (await room.run(rows=1))["completed_items"] == 1


async def test_a_result_that_json_cannot_hold_is_sent_back(room: Room) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"x": deep}

    async def odd(worker: Worker) -> Outcome:
        for result in ({"x": float("nan")}, {"x": "a" * 300_000}, deep):
            with pytest.raises(ToolError, match="result"):
                await worker.report(result)
        return await reports(worker)

    room.behave = odd
    assert (await room.run(rows=1))["completed_items"] == 1


# --- rows that fail --------------------------------------------------------------------------------------


async def test_each_failure_has_its_own_words(room: Room) -> None:
    async def behave(worker: Worker) -> Outcome:
        match worker.item:
            case "row-1":
                return Outcome(status="errored", message="https://m.example: 401: bad key")
            case "row-2":
                return Outcome(status="interrupted", message="by operator")
            case "row-3":
                raise ValueError("there is no role 'x'")
            case "row-4":
                return DONE
        return await reports(worker)

    room.behave = behave
    summary = await room.run(rows=5)
    assert (summary["status"], summary["completed_items"], summary["failed_items"]) == ("completed", 1, 4)
    assert errors(await room.stored(summary["job_id"])) == {
        "row-1": "https://m.example: 401: bad key",
        "row-2": "the worker was interrupted by operator",
        "row-3": "there is no role 'x'",
        "row-4": NO_REPORT,
    }
    assert len(summary["failed_item_errors"]) == 4


async def test_workers_that_cannot_start_fail_their_rows_at_once(room: Room) -> None:
    async def cannot(worker: Worker) -> Outcome:
        raise RuntimeError("limit reached: max_depth = 1; do it yourself")

    room.behave = cannot
    summary = await room.run(rows=50)
    assert summary["failed_items"] == 50
    assert len(room.workers) == 50, "no row is tried again and again"


async def test_attempts_are_counted_and_bounded(room: Room) -> None:
    async def second_time(worker: Worker) -> Outcome:
        if worker.item == "row-1" and worker.attempt == 2:
            return await reports(worker)
        return Outcome(status="errored", message=f"no {worker.attempt}")

    room.behave = second_time
    summary = await room.run(rows=2, max_attempts=3)
    rows = await room.stored(summary["job_id"])
    assert (rows["row-1"].status, rows["row-1"].attempt) == ("completed", 2)
    assert (rows["row-2"].status, rows["row-2"].attempt, rows["row-2"].error) == ("failed", 3, "no 3")
    assert len(room.workers) == 5
    assert len({worker.thread for worker in room.workers}) == 5, "each attempt has a worker of its own"


async def test_a_row_past_its_time_limit_fails_and_its_worker_is_stopped(room: Room) -> None:
    late: list[Worker] = []

    async def hang_one(worker: Worker) -> Outcome:
        if worker.item == "row-2":
            late.append(worker)
            return await hangs(worker)
        return await reports(worker)

    room.behave = hang_one
    room.csv(3)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_runtime_seconds=60, max_concurrency=2))
        await room.until(lambda: room.job(job).completed == 2)
        await room.clock.advance(59)
        assert room.job(job).running == 1
        await room.clock.advance(2)
        summary = await service.wait(job)
    assert errors(await room.stored(job)) == {"row-2": "stopped at the row's time limit of 60 s"}
    assert summary["status"] == "completed"
    assert room.running == 0
    assert late[0].thread in room.closed
    assert (await late[0].report())["accepted"] is False, "a report after the limit does not count"
    assert room.job(job).failed == 1


async def test_a_worker_that_will_not_stop_cannot_hold_its_row(room: Room) -> None:
    release = asyncio.Event()

    async def stubborn(worker: Worker) -> Outcome:
        try:
            return await hangs(worker)
        except asyncio.CancelledError:
            assert (await worker.report())["accepted"] is False
            await release.wait()
            raise

    room.behave = stubborn
    room.csv(1)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_runtime_seconds=5))
        await room.until(lambda: room.running == 1)
        await room.clock.advance(6)
        await room.until(lambda: room.job(job).failed == 1)
        assert room.running == 1
        release.set()
        await service.wait(job)
    assert room.running == 0


async def test_an_accepted_report_frees_its_place_before_the_worker_is_closed(room: Room) -> None:
    async def lingers(worker: Worker) -> Outcome:
        await worker.report()
        return await hangs(worker) if worker.item == "row-1" else DONE

    room.behave = lingers
    room.csv(3)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=1))
        await room.until(lambda: room.job(job).completed == 3 and room.running == 1)
        assert len(room.closed) == 2, "row-1's worker is still there while the others came and went"
        await room.clock.advance(11)
        await service.wait(job)
    assert room.running == 0


# --- the schema ------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def test_a_violation_goes_back_with_its_path_and_may_be_corrected(room: Room) -> None:
    async def corrects(worker: Worker) -> Outcome:
        assert worker.tools[0].schema()["properties"]["result"] == SCHEMA
        first = await worker.report({"n": "three"})
        assert first["accepted"] is False
        assert first["violations"] == [{"path": "$.n", "problem": "'three' is not of type 'integer'"}]
        assert await worker.report({"n": 3}) == {"accepted": True}
        return DONE

    room.behave = corrects
    summary = await room.run(rows=2, output_schema=SCHEMA)
    assert summary["completed_items"] == 2
    assert room.of(JobReportRefused) == []


async def test_violations_are_bounded_and_end_up_as_the_rows_error(room: Room) -> None:
    rounds: list[bool] = []

    async def never_learns(worker: Worker) -> Outcome:
        for _ in range(10):
            output = await worker.call(job_id=worker.job, item_id=worker.item, result={})
            rounds.append(output.end_turn)
            if output.end_turn:
                break
        return DONE

    room.behave = never_learns
    summary = await room.run(rows=1, output_schema=SCHEMA)
    assert rounds == [False] * 4 + [True]
    (error,) = errors(await room.stored(summary["job_id"])).values()
    assert "its last one was refused" in error
    assert "'n' is a required property" in error


# --- stopping --------------------------------------------------------------------------------------------


async def test_stop_leaves_the_rest_pending_and_writes_the_csv(room: Room) -> None:
    others = asyncio.Event()

    async def stops(worker: Worker) -> Outcome:
        if worker.item == "row-2":
            assert (await worker.report({"n": 2}, stop=True))["accepted"] is True
            others.set()
            return DONE
        await others.wait()
        return await reports(worker)

    room.behave = stops
    summary = await room.run(rows=6, max_concurrency=2)
    assert summary["status"] == "cancelled"
    rows = await room.stored(summary["job_id"])
    assert [row.status for row in rows.values()] == ["completed", "completed", *["pending"] * 4]
    assert [row["status"] for row in read_output(summary["output_csv_path"])] == [
        row.status for row in rows.values()
    ]
    (ended,) = room.of(JobEnded)
    assert ended.by == f"/root/job_{summary['job_id'][:8]}_2"


async def test_cancel_stops_the_workers_fails_their_rows_and_leaves_the_rest(room: Room) -> None:
    room.behave = hangs
    room.csv(5)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=2, max_attempts=3))
        await room.until(lambda: room.running == 2)
        assert await service.cancel(job, "operator") is True
        assert await service.cancel(job, "operator") is False
        summary = await service.wait(job)
        assert await service.cancel(job, "operator") is False
    assert (summary["status"], summary["failed_items"], summary["pending_items"]) == ("cancelled", 2, 3)
    assert set(errors(await room.stored(job)).values()) == {"stopped: the job was cancelled by operator"}
    assert room.running == 0
    assert not list(room.folder.glob("*.agent-job-*.csv"))
    assert [event.by for event in room.of(JobEnded)] == ["operator"]


@pytest.mark.parametrize("rounds", range(0, 24, 3))
async def test_a_cancel_never_hits_a_blind_window(room: Room, rounds: int) -> None:
    room.csv(20)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=3))
        await settle(rounds)
        cancelled = await service.cancel(job, "operator")
        summary = await service.wait(job)
    assert summary["status"] == ("cancelled" if cancelled else "completed")
    assert summary["running_items"] == 0
    assert room.running == 0


async def test_the_end_of_the_owner_ends_the_job(room: Room) -> None:
    gate = asyncio.Event()

    async def waits(worker: Worker) -> Outcome:
        await gate.wait()
        return Outcome(status="interrupted", message="by operator")

    room.behave = waits
    room.csv(9)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=2))
        await room.until(lambda: room.running == 2)
        await room.store.append(SWARM, [AgentClosed(agent=ROOT, by="operator")])
        gate.set()
        summary = await service.wait(job)
    assert (summary["status"], summary["pending_items"]) == ("cancelled", 7)


@pytest.mark.parametrize("how", ["aclose", "gone"])
async def test_the_end_of_the_engine_fails_no_row(room: Room, how: str) -> None:
    async def gone(worker: Worker) -> Outcome:
        await asyncio.sleep(0)
        raise WorkersGone

    room.behave = hangs if how == "aclose" else gone
    room.csv(5)
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        job = await service.create(ROOT, room.request(max_concurrency=2))
        if how == "aclose":
            await room.until(lambda: room.running == 2)
            await service.aclose()
    state = room.job(job)
    assert (state.status, state.running, state.pending, state.failed) == ("running", 2, 3, 0)
    assert room.running == 0


async def test_a_runner_that_breaks_says_so(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = room.store.jobs.claim
    looks = 0

    async def breaks(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ArithmeticError("odd")
        return await claim(*args)

    async def one_ends(worker: Worker) -> Outcome:
        return await (reports if worker.item == "row-1" else hangs)(worker)

    monkeypatch.setattr(room.store.jobs, "claim", breaks)
    room.behave = one_ends
    summary = await room.run(rows=5, max_concurrency=2)
    assert (summary["status"], summary["failed_items"], summary["pending_items"]) == ("failed", 1, 3)
    assert summary["running_items"] == 0
    assert "the job's runner failed: odd" in summary["last_error"]
    assert room.running == 0


async def test_a_broken_store_is_fatal(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: Any) -> Any:
        raise StoreError("the store cannot be written: disk full")

    room.behave = silent
    monkeypatch.setattr(room.store.jobs, "fail", full)
    with pytest.raises(ExceptionGroup) as caught:
        await room.run(rows=3)
    assert caught.group_contains(StoreError, match="disk full", depth=1)
    assert room.of(JobEnded) == []


# --- everything mixed ------------------------------------------------------------------------------------

KINDS = ["report", "silent", "error", "start", "twice", "stubborn-schema"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.lists(st.lists(st.sampled_from(KINDS), min_size=3, max_size=3), min_size=1, max_size=12),
    concurrency=st.integers(1, 5),
    attempts=st.integers(1, 3),
    yields=st.lists(st.integers(0, 5), min_size=7, max_size=7),
)
async def test_every_row_ends_as_its_attempts_say(
    plan: list[list[str]], concurrency: int, attempts: int, yields: list[int]
) -> None:
    async def behave(worker: Worker) -> Outcome:
        row = int(worker.item.removeprefix("row-")) - 1
        await settle(yields[(row + worker.attempt) % len(yields)])
        match plan[row][worker.attempt - 1]:
            case "error":
                return Outcome(status="errored", message="e")
            case "start":
                raise RuntimeError("s")
            case "silent":
                return DONE
            case "stubborn-schema":
                await worker.report({"wrong": 1}, item_id="row-0")
                return DONE
            case "twice":
                await asyncio.gather(worker.report(), worker.report())
                return DONE
        return await reports(worker)

    with tempfile.TemporaryDirectory() as folder:
        async with open_room(Path(folder)) as room:
            room.behave = behave
            summary = await room.run(rows=len(plan), max_concurrency=concurrency, max_attempts=attempts)
            rows = await room.stored(summary["job_id"])
            completed = [e for e in room.of(JobRowEnded) if e.status == "completed"]
    for index, kinds in enumerate(plan):
        row = rows[f"row-{index + 1}"]
        good = next((n for n, kind in enumerate(kinds[:attempts], 1) if kind in ("report", "twice")), None)
        assert row.status == ("completed" if good else "failed")
        assert row.attempt == (good or attempts)
    assert len(completed) == len({event.item for event in completed}) == summary["completed_items"]
    assert summary["completed_items"] + summary["failed_items"] == len(plan)
    assert room.peak <= concurrency + sum(kind in ("report", "twice") for kinds in plan for kind in kinds)
    assert room.running == 0
