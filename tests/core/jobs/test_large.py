"""Large jobs on their way into the store: in pieces, unseen until they are whole, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.domain.events import JobCreated, Notice, SwarmStarted
from core.jobs.errors import JobInputError
from core.jobs.request import check_request
from core.safety.text import clean_line
from core.store.jobs import CHUNK, JobInput
from core.store.store import Store, StoreError
from tests.clock import FakeClock
from tests.core.jobs.room import ROOT, SWARM, Room, read_output

OTHER = "01900000-0000-7000-8000-0000000000ff"
ROWS = 3 * CHUNK + 7


def created(job: str, total: int = ROWS) -> JobCreated:
    return JobCreated(
        agent=ROOT,
        job=job,
        name=job,
        instruction="x",
        input_path="in.csv",
        output_path=None,
        total=total,
        concurrency=1,
        max_attempts=1,
        max_runtime_seconds=1,
    )


def rows(count: int = ROWS) -> Iterator[JobInput]:
    for i in range(count):
        yield JobInput(f"row-{i}", None, i, [str(i), "x"])


class Gate:
    """Rows that stop before the last of them until somebody opens."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __iter__(self) -> Iterator[JobInput]:
        for row in rows():
            if row.row_index == ROWS - 1:
                self.reached.set()
                assert self.open.wait(30)
            yield row


def kept(home: Path) -> dict[str, int]:
    """job → rows in the file, whoever they belong to; and how many jobs are being staged."""
    with sqlite3.connect(home / "watchroom.db") as db:
        found = dict(db.execute("SELECT job, count(*) FROM agent_job_items GROUP BY job"))
        (staging,) = db.execute("SELECT count(*) FROM agent_job_staging").fetchone()
    db.close()
    return {**found, **({"staging": staging} if staging else {})}


@asynccontextmanager
async def other_store(home: Path) -> AsyncIterator[Store]:
    store = await Store.open(home, clock=FakeClock(), redact=lambda text: text)
    try:
        await store.create(OTHER)
        await store.append(OTHER, [SwarmStarted(title="t", cwd="/", model="m", source="job")])
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def home(room: Room) -> Path:
    return room.store.home


async def test_others_write_meanwhile_and_nobody_sees_half_a_job(room: Room, home: Path) -> None:
    gate = Gate()
    store = room.store
    await store.create(OTHER)
    creating = asyncio.create_task(store.jobs.create(SWARM, created("j"), ["n", "x"], gate, None, False))
    await asyncio.to_thread(gate.reached.wait)
    # Another swarm of this engine, and one of another process.
    await store.append(OTHER, [Notice(agent=None, text="hello")])
    await store.release(OTHER)
    async with other_store(home / "elsewhere"):
        pass
    assert kept(home)["staging"] == 1
    assert (await store.reader.jobs())["jobs"] == []
    assert (await store.reader.load_state(SWARM)).jobs == store.state(SWARM).jobs == {}
    gate.open.set()
    await creating
    assert kept(home) == {"j": ROWS}
    assert [job["total_items"] for job in (await store.reader.jobs())["jobs"]] == [ROWS]
    assert store.state(SWARM).jobs["j"].pending == ROWS
    read = [row async for row in store.jobs.rows("j")]
    assert [(row.row_index, row.values) for row in read] == [(i, [str(i), "x"]) for i in range(ROWS)]


@pytest.mark.parametrize("total", [ROWS, 3])
async def test_what_fails_leaves_nothing(room: Room, home: Path, total: int) -> None:
    def breaks() -> Iterator[JobInput]:
        yield from rows(total - 1)
        raise JobInputError("in.csv was changed")

    jobs = room.store.jobs
    with pytest.raises(JobInputError, match="was changed"):
        await jobs.create(SWARM, created("j", total), ["n", "x"], breaks(), None, False)
    with pytest.raises(StoreError, match="came with"):
        await jobs.create(SWARM, created("j", total + 1), ["n", "x"], rows(total), None, False)
    assert kept(home) == {}
    await jobs.create(SWARM, created("j", total), ["n", "x"], rows(total), None, False)
    assert kept(home) == {"j": total}


async def test_one_that_is_cancelled_is_taken_away_by_the_next(room: Room, home: Path) -> None:
    gate = Gate()
    jobs = room.store.jobs
    creating = asyncio.create_task(jobs.create(SWARM, created("gone"), ["n", "x"], gate, None, False))
    await asyncio.to_thread(gate.reached.wait)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    gate.open.set()
    assert (await room.store.reader.jobs())["jobs"] == []
    await jobs.create(SWARM, created("j"), ["n", "x"], rows(), None, False)
    assert kept(home) == {"j": ROWS}


async def test_the_rows_of_somebody_who_lives_stay(room: Room, home: Path) -> None:
    """Two engines on one store, each with a large job at the same time."""
    gate = Gate()
    jobs = room.store.jobs
    creating = asyncio.create_task(jobs.create(SWARM, created("slow"), ["n", "x"], gate, None, False))
    await asyncio.to_thread(gate.reached.wait)
    async with other_store(home) as other:
        await other.jobs.create(OTHER, created("fast"), ["n", "x"], rows(), None, False)
        assert kept(home)["fast"] == ROWS
        gate.open.set()
        await creating
    assert kept(home) == {"fast": ROWS, "slow": ROWS}


KILLED = textwrap.dedent(
    """
    import asyncio, sys, threading
    from pathlib import Path
    from tests.core.jobs.test_large import Gate, OTHER, created, other_store

    async def main():
        gate = Gate()
        async with other_store(Path(sys.argv[1])) as store:
            creating = asyncio.create_task(
                store.jobs.create(OTHER, created("killed"), ["n", "x"], gate, None, False))
            await asyncio.to_thread(gate.reached.wait)
            print("staged", flush=True)
            await creating

    asyncio.run(main())
    """
)


async def test_a_crash_in_between_leaves_no_job_and_its_rows_go(room: Room, home: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(home)),
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"staged\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    store = room.store
    assert kept(home) == {"killed": 2 * CHUNK, "staging": 1}
    assert (await store.reader.jobs())["jobs"] == []
    assert (await store.reader.load_state(OTHER)).jobs == {}
    # A small job is stored at once; the next large one clears up.
    await store.jobs.create(SWARM, created("small", 3), ["n", "x"], rows(3), None, False)
    assert kept(home)["killed"] == 2 * CHUNK
    await store.jobs.create(SWARM, created("j"), ["n", "x"], rows(), None, False)
    assert kept(home) == {"small": 3, "j": ROWS}


async def test_an_input_that_changes_before_it_is_stored(room: Room) -> None:
    async with asyncio.TaskGroup() as group:
        service = room.service(group)
        room.csv(3)
        checked = await check_request(room.request(), service.settings, 16)
        room.csv(5)
        with pytest.raises(JobInputError, match=r"in\.csv was changed while it was read; nothing was stored"):
            await service.launch(ROOT, checked)
        assert room.store.state(SWARM).jobs == {}
        # The others of the group are not touched by that.
        assert (await service.run(ROOT, room.request()))["completed_items"] == 5


async def test_cells_of_a_megabyte_go_in_and_out_in_pieces(room: Room) -> None:
    big = "ä" * 1_000_000
    path = room.folder / "in.csv"
    path.write_text("n,word\n" + "".join(f"{i},{big}\n" for i in range(12)))
    summary = await room.run(instruction="Look at {n}", max_concurrency=4)
    assert (summary["status"], summary["completed_items"]) == ("completed", 12)
    stored = await room.stored(summary["job_id"])
    assert [row.values for row in stored.values()] == [[str(i), big] for i in range(12)]
    assert [row["word"] for row in read_output(summary["output_csv_path"])] == [big] * 12


# --- measured --------------------------------------------------------------------------------------------

MEASURED = textwrap.dedent(
    """
    import asyncio, json, re, sys, time
    from pathlib import Path
    from core.config import JobsSettings
    from core.domain.events import Notice, SwarmStarted
    from core.jobs.export import export_job
    from core.jobs.request import JobRequest, check_request
    from tests.core.jobs.room import SWARM
    from tests.core.jobs.test_large import OTHER, created, other_store
    from msgspec.structs import replace

    def rss():
        # The peak of this process; the one of getrusage may be its parent's.
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    async def main():
        folder, count = Path(sys.argv[1]), int(sys.argv[2])
        with (folder / "in.csv").open("w") as file:
            file.write("path,area,note\\n")
            for i in range(count):
                file.write(f"src/module_{i:07}.py,core,{'x' * 40}\\n")
        async with other_store(folder / "home") as store:
            await store.create(SWARM)
            request = JobRequest(input_path="in.csv", instruction="{path}", cwd=folder, id_column="path")
            settings = JobsSettings()
            # Everything is imported and warm with a small one.
            (folder / "warm.csv").write_text("path\\na\\n")
            await check_request(replace(request, input_path="warm.csv"), settings, 16)
            before, begun = rss(), time.monotonic()
            checked = await check_request(request, settings, 16)
            checking = time.monotonic() - begun
            after_check = rss() - before
            worst, over = 0.0, False

            async def beside():
                nonlocal worst
                while not over:
                    at = time.monotonic()
                    await store.append(SWARM, [Notice(agent=None, text="meanwhile")])
                    worst = max(worst, time.monotonic() - at)
                    await asyncio.sleep(0.02)

            other = asyncio.create_task(beside())
            begun = time.monotonic()
            event = created("j", len(checked.table.rows))
            await store.jobs.create(OTHER, event, checked.table.headers, checked.table.rows, None, False)
            storing = time.monotonic() - begun
            over = True
            await other
            stored = rss() - before
            begun = time.monotonic()
            rows = await export_job(store.jobs, "j", folder / "out.csv")
            print(json.dumps({
                "rows": rows, "check_s": checking, "store_s": storing, "export_s": time.monotonic() - begun,
                "check_mb": after_check, "store_mb": stored, "all_mb": rss() - before,
                "worst_commit_s": worst,
            }))

    asyncio.run(main())
    """
)


@pytest.mark.parametrize(
    "count",
    [
        40_000,
        pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
async def test_memory_and_the_wait_of_others_do_not_grow_with_the_rows(tmp_path: Path, count: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURED, str(tmp_path), str(count)),
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(out)
    print(clean_line(out.decode()))
    assert found["rows"] == count
    # Held as objects a million rows take 700 MB; 64 bits of each id take 16 to 32.
    assert found["all_mb"] < 90
    assert found["worst_commit_s"] < 5
