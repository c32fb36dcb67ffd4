"""Which rows a filter leaves and in what order, from a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.channel.local import open_engine
from core.domain.commands import (
    GetJobOrder,
    GetJobRows,
    JobOrderPage,
    JobRowsPage,
    JobSort,
    RetryRows,
    RunJob,
)
from core.jobs.workers import Outcome
from tests.core.harness import settings_for
from tests.core.jobs.room import DONE, Room, Worker, reports


@pytest.fixture
async def mixed(room: Room) -> tuple[Room, str]:
    """Five rows: the second and the fifth fail, the second after more tries; each takes longer than the one
    before it."""

    async def behave(worker: Worker) -> Outcome:
        await room.clock.advance(int(worker.item[4:]) * 10)
        if worker.item in ("row-2", "row-5"):
            return Outcome(status="errored", message=f"Broken {worker.item}")
        return await reports(worker)

    room.behave = behave
    room.csv(5)
    summary = await room.run(max_concurrency=1, max_attempts=2)
    return room, summary["job_id"]


@pytest.mark.parametrize(
    ("status", "text", "sort", "descending", "expected"),
    [
        ((), "", "row", False, [0, 1, 2, 3, 4]),
        ((), "", "row", True, [4, 3, 2, 1, 0]),
        (("failed",), "", "row", False, [1, 4]),
        (("failed", "completed"), "", "state", False, [1, 4, 0, 2, 3]),
        ((), "", "tries", True, [1, 4, 0, 2, 3]),
        ((), "", "time", False, [0, 1, 2, 3, 4]),
        ((), "", "time", True, [4, 3, 2, 1, 0]),
        ((), "W3", "row", False, [2]),
        ((), "broken", "row", False, [1, 4]),
        (("completed",), "row-4", "time", True, [3]),
        ((), "100%_", "row", False, []),
        (("nothing such",), "", "row", False, []),
    ],
)
async def test_filters_and_orders(
    mixed: tuple[Room, str],
    status: tuple[str, ...],
    text: str,
    sort: JobSort,
    descending: bool,
    expected: list[int],
) -> None:
    room, job = mixed
    found, more = await room.store.jobs.order(job, status, text, sort, descending=descending)
    assert (found, more) == (expected, False)


async def test_rows_are_read_by_their_numbers(mixed: tuple[Room, str]) -> None:
    room, job = mixed
    rows, more = await room.store.jobs.chosen(job, [4, 1, 99, -1, 1])
    assert ([row.row_index for row in rows], more) == ([1, 4], False)
    assert rows[0].error == "Broken row-2"


async def test_rows_that_have_not_begun_come_last_however_they_are_sorted_by_time(room: Room) -> None:
    room.csv(3)

    async def stops(worker: Worker) -> Outcome:
        await worker.report(stop=True)
        return DONE

    room.behave = stops
    job = (await room.run(max_concurrency=1))["job_id"]
    for descending in (False, True):
        found, _ = await room.store.jobs.order(job, (), "", "time", descending=descending)
        assert found == [0, 1, 2]


async def test_an_engine_answers_both_and_names_an_unknown_row(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "count-lines")
    work = tmp_path / "work"
    (work / "in.csv").write_text("path\n" + "".join(f"f{n}.txt\n" for n in range(3)))
    async with open_engine(settings) as client:
        command = RunJob(input_path="in.csv", instruction="Count the lines of {path}.", cwd=str(work))
        reply = await client.send(command)
        assert reply.ok, reply.error
        swarm, job = reply.value["swarm"], reply.value["job"]
        order = await client.page(GetJobOrder(swarm=swarm, job=job, descending=True))
        assert isinstance(order, JobOrderPage)
        assert (order.rows, order.total, order.truncated) == ((2, 1, 0), 3, False)
        page = await client.page(GetJobRows(swarm=swarm, job=job, rows=(2, 0)))
        assert isinstance(page, JobRowsPage)
        assert [row.row_index for row in page.rows] == [0, 2]
        refused = await client.send(RetryRows(swarm=swarm, job=job, items=("row-9",)))
        assert (refused.ok, refused.code) == (False, "not_found")
        assert "has no row row-9" in refused.error
