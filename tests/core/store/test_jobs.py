from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from core.domain import events as e
from core.store import jobs as jobs_module
from core.store import readers
from core.store.jobs import JobInput
from core.store.store import Store, StoreError
from tests.core.store.tools import new_swarm, opened, query

JOB = "11111111-1111-4111-8111-111111111111"
OTHER = "11111111-1111-4111-8111-222222222222"


def created(owner: str, total: int, job: str = JOB, name: str = "count lines") -> e.JobCreated:
    return e.JobCreated(
        agent=owner,
        job=job,
        name=name,
        instruction="count {path}",
        input_path="in.csv",
        output_path="out.csv",
        total=total,
        concurrency=4,
    )


def inputs(total: int) -> list[JobInput]:
    return [JobInput(f"row-{n}", f"id {n}", n, [f"file{n}.py", ""]) for n in range(total)]


async def make(store: Store, total: int, job: str = JOB) -> str:
    swarm, [root] = await new_swarm(store)
    await store.jobs.create(swarm, created(root, total, job), ["path", "note"], inputs(total), None, False)
    return swarm


async def test_a_job_from_start_to_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm = await make(store, 3)
        jobs = store.jobs
        assert await jobs.headers(JOB) == ["path", "note"]
        assert await jobs.claim(swarm, JOB, ["early"]) == []
        assert await jobs.start(swarm, JOB, 2)
        assert not await jobs.start(swarm, JOB, 2)
        first, second = await jobs.claim(swarm, JOB, ["w0", "w1"])
        assert (first.item, first.attempt, first.worker, first.values) == ("row-0", 1, "w0", ["file0.py", ""])
        assert second.row_index == 1
        # Written with the claim, before any worker runs.
        assert query(
            tmp_path, "SELECT item, worker FROM agent_job_items WHERE worker IS NOT NULL ORDER BY item"
        ) == [
            ("row-0", "w0"),
            ("row-1", "w1"),
        ]
        assert await jobs.report(swarm, JOB, "row-0", "w0", '{"lines": 3}') == (True, "")
        assert await jobs.fail(swarm, JOB, "row-1", "w1", "model said no", 1) == "failed"
        [third] = await jobs.claim(swarm, JOB, ["w2", "w3"])
        assert third.item == "row-2"
        assert await jobs.report(swarm, JOB, "row-2", "w2", "{}") == (True, "")
        assert await jobs.end(swarm, JOB, "completed", None, "engine")
        await jobs.exported(swarm, JOB, "out.csv", 3)
        state = store.state(swarm).jobs[JOB]
        assert (state.status, state.completed, state.failed, state.pending) == ("completed", 2, 1, 0)
        assert await jobs.failures(JOB, 5) == [
            {"item_id": "row-1", "source_id": "id 1", "last_error": "model said no"}
        ]
        rows = [row async for row in jobs.rows(JOB)]
        assert [(row.item, row.status, row.result, row.error) for row in rows] == [
            ("row-0", "completed", '{"lines": 3}', None),
            ("row-1", "failed", None, "model said no"),
            ("row-2", "completed", "{}", None),
        ]
        assert rows[0].reported_at is not None
        assert rows[1].reported_at is None
        page, more = await jobs.page(JOB, 1, 1)
        assert [(row.item, row.status, row.attempt, row.label) for row in page] == [
            ("row-1", "failed", 1, "file1.py")
        ]
        assert more, "there is a row behind it"


async def test_pages_of_rows_are_bounded_by_size_and_nothing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PAGE_SIZE", 1000)
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        rows = [
            JobInput(f"row-{n}", None, n, ["x" * size]) for n, size in enumerate([5, 600, 600, 3000, 5, 5])
        ]
        await store.jobs.create(swarm, created(root, 6), ["text"], rows, None, False)
        seen: list[list[int]] = []
        more = True
        while more:
            page, more = await store.jobs.page(JOB, sum(map(len, seen)), 100)
            seen.append([row.row_index for row in page])
        assert seen == [[0, 1], [2], [3], [4, 5]]
        for start, limit in ((2**63, 1), (0, 2**63), (-(2**63), -1)):
            await store.jobs.page(JOB, start, limit)


async def test_the_first_end_stands(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm = await make(store, 1)
        ends = await asyncio.gather(
            store.jobs.end(swarm, JOB, "cancelled", None, "operator"),
            store.jobs.end(swarm, JOB, "failed", "late", "engine"),
        )
        assert ends == [True, False]
        assert store.state(swarm).jobs[JOB].status == "cancelled"
        assert query(tmp_path, "SELECT status, last_error FROM agent_jobs") == [("cancelled", "")]


async def test_reports_race_and_one_is_taken(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm = await make(store, 1)
        await store.jobs.start(swarm, JOB, 1)
        await store.jobs.claim(swarm, JOB, ["w"])
        answers = await asyncio.gather(
            *(store.jobs.report(swarm, JOB, "row-0", "w", json.dumps({"n": n})) for n in range(10))
        )
        assert [accepted for accepted, _ in answers].count(True) == 1
        assert {reason for accepted, reason in answers if not accepted} == {
            "item row-0 is completed already; a row is reported once"
        }
        refused = query(tmp_path, "SELECT count(*) FROM events WHERE type = 'job_report_refused'")
        assert refused == [(9,)]
        assert query(tmp_path, "SELECT result FROM agent_job_items") == [('{"n": 0}',)]


async def test_refusals_say_why(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm = await make(store, 2)
        report = store.jobs.report
        await store.jobs.start(swarm, JOB, 1)
        assert "not assigned" in (await report(swarm, JOB, "row-0", "w", "{}"))[1]
        assert "no item nope" in (await report(swarm, JOB, "nope", "w", "{}"))[1]
        await store.jobs.claim(swarm, JOB, ["w"])
        assert "belongs to another worker" in (await report(swarm, JOB, "row-0", "someone", "{}"))[1]
        assert await store.jobs.fail(swarm, JOB, "row-0", "w", "x", 2) == "pending"
        assert await store.jobs.fail(swarm, JOB, "row-0", "w", "x", 2) is None
        await store.jobs.claim(swarm, JOB, ["a", "b"])
        accepted, reason = await report(swarm, JOB, "row-0", "w", "{}")
        assert not accepted
        assert "attempt 2 belongs to another worker" in reason


async def test_a_bad_job_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        twice = [*inputs(2), JobInput("row-0", None, 2, ["x", "y"])]
        with pytest.raises(StoreError, match="contradicts"):
            await store.jobs.create(swarm, created(root, 3), ["path", "note"], twice, None, False)
        with pytest.raises(StoreError, match="announced with 3 rows and came with 2"):
            await store.jobs.create(swarm, created(root, 3), ["path", "note"], inputs(2), None, False)
        for table in ("agent_jobs", "agent_job_items"):
            assert query(tmp_path, f"SELECT count(*) FROM {table}") == [(0,)]
        assert store.state(swarm).jobs == {}
        with pytest.raises(StoreError, match="no job"):
            await store.jobs.headers(JOB)


async def test_long_jobs_are_written_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "CHUNK", 7)
    async with opened(tmp_path) as store:
        await make(store, 40)
        rows = [row async for row in store.jobs.rows(JOB)]
        assert [row.row_index for row in rows] == list(range(40))
        assert rows[39].values == ["file39.py", ""]
        rows, more = await store.jobs.page(JOB, 35, 100)
        assert ([row.row_index for row in rows], more) == (list(range(35, 40)), False)


async def test_secrets_in_rows_results_and_errors_are_not_stored(tmp_path: Path) -> None:
    def redact(text: str) -> str:
        return text.replace("canary", "[redacted]")

    async with opened(tmp_path, redact=redact) as store:
        swarm, [root] = await new_swarm(store)
        rows = [JobInput("row-0", "canary", 0, ["canary"]), JobInput("row-1", None, 1, ["b"])]
        await store.jobs.create(swarm, created(root, 2), ["canary"], rows, '{"title": "canary"}', False)
        await store.jobs.start(swarm, JOB, 2)
        [claim, _] = await store.jobs.claim(swarm, JOB, ["w0", "w1"])
        assert claim.values == ["[redacted]"]
        await store.jobs.report(swarm, JOB, "row-0", "w0", '{"key": "canary"}')
        await store.jobs.report(swarm, JOB, "row-0", "w0", '{"key": "canary"}')
        await store.jobs.fail(swarm, JOB, "row-1", "w1", "canary \ud800", 1)
        # Ids come from a column, too; they stay one of a kind.
        rows = [JobInput(f"canary{n}"[: 6 + n], "canary", n, ["canary"]) for n in range(2)]
        await store.jobs.create(swarm, created(root, 2, OTHER), ["a"], rows, None, False)
        assert [row.item async for row in store.jobs.rows(OTHER)] == ["[redacted]-1", "[redacted]1-2"]
    assert b"canary" not in (tmp_path / "watchroom.db").read_bytes()
