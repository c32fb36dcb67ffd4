"""How the original fails, measured on two cores: each of its ways is a test here (the last paragraph of the
reference on agent jobs). Whole engines on the scripted model; signals go to the real program."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import Client
from core.config import Settings
from core.domain import events as e
from core.scripted.scenario import parse_scenario
from core.scripted.server import serve
from core.store.readers import Reader
from tests.core.agents.scenarios import step
from tests.core.harness import Watched, engine, settings_for
from tests.core.jobs.room import read_output
from tests.core.jobs.test_faults import job, only, report, rows, scenario

ROOT = Path(__file__).resolve().parents[3]
WELL = scenario({"well": [step(report())]})


def prepared(folder: Path, count: int, text: str = WELL, **options: Any) -> Settings:
    settings = settings_for(folder, text, sandbox="off", **options)
    rows(settings, ["well"] * count)
    return settings


def check_all_done(settings: Settings, watched: Watched, count: int) -> None:
    state = only(watched)
    assert (state.status, state.completed, state.failed, state.pending) == ("completed", count, 0, 0)
    found = read_output(settings.cwd / "out.csv")
    assert [row["item_id"] for row in found] == [f"row-{n}" for n in range(1, count + 1)]
    assert {(row["status"], row["result_json"], row["attempt_count"]) for row in found} == {
        ("completed", '{"score": 5}', "1")
    }


async def run(client: Client, **fields: Any) -> Watched:
    async with job(client, **fields) as (watched, _):
        await watched.until(lambda s: only(watched).ended, seconds=45)
    return watched


async def test_a_thousand_rows_at_64_come_to_an_end(tmp_path: Path) -> None:
    """There they hung for ever with all items completed, in two of two runs."""
    settings = prepared(tmp_path, 1000)
    async with engine(settings) as client:
        check_all_done(settings, await run(client, max_concurrency=64), 1000)


async def test_no_report_is_lost_however_soon_it_comes(tmp_path: Path) -> None:
    """There 1 to 7 of 300 rows were lost: the report came before the assignment was written."""
    settings = prepared(tmp_path, 300)
    async with engine(settings) as client:
        watched = await run(client, max_concurrency=64)
    check_all_done(settings, watched, 300)
    assert watched.of(e.JobReportRefused) == []
    claimed = {event.worker: event.seq for event in watched.of(e.JobRowClaimed)}
    begun = {event.agent: event.seq for event in watched.of(e.TurnStarted)}
    assert len(claimed) == 300
    assert set(begun) == set(claimed)
    assert all(claimed[worker] < begun[worker] for worker in claimed), "a worker began before it had its row"


async def test_as_many_are_in_flight_as_are_asked_for(tmp_path: Path) -> None:
    """There at most 5 requests were in flight at a nominal 16 or 64."""
    async with serve(parse_scenario(f"latency_ms = 300\n{WELL}")) as server:
        settings = prepared(tmp_path, 128, base_url=server.base_url, api_key_env="")
        async with engine(settings) as client:
            watched = await run(client, max_concurrency=64)
        assert server.requests.max_in_flight == 64
    check_all_done(settings, watched, 128)


def held() -> tuple[int, int, int]:
    """Threads, file handles, and bytes of memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return threading.active_count(), len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_a_row_keeps_no_thread_no_handle_and_little_memory(tmp_path: Path) -> None:
    """There each row kept 1.5 MB, 5.6 threads and 11 file handles."""
    settings = prepared(tmp_path, 200)
    async with engine(settings) as client:
        await run(client, max_concurrency=16)
        threads, handles, memory = held()
        await run(client, max_concurrency=16)
        more_threads, more_handles, more_memory = held()
    assert more_threads <= threads + 2  # of the pool that reads files
    assert more_handles <= handles + 8  # of the store's readers, whatever the number of rows
    assert (more_memory - memory) / 200 < 150_000


async def test_a_model_error_is_told_as_what_it_is(tmp_path: Path) -> None:
    """There every such row said that the worker did not call the tool."""
    refused = step(report(), fault={"kind": "unauthorized", "times": 0, "message": "Your key has expired."})
    settings = prepared(tmp_path, 2, scenario({"well": [refused]}))
    async with engine(settings) as client:
        watched = await run(client)
    assert only(watched).failed == 2
    for row in read_output(settings.cwd / "out.csv"):
        assert row["status"] == "failed"
        assert "HTTP 401: Your key has expired." in row["last_error"]
        assert "report_agent_job_result" not in row["last_error"]


async def test_a_result_is_held_against_the_schema(tmp_path: Path) -> None:
    """There output_schema was never looked at."""
    schema = {"type": "object", "properties": {"score": {"maximum": 4}}}
    settings = prepared(tmp_path, 1)
    async with engine(settings) as client:
        watched = await run(client, output_schema=schema)
    assert (only(watched).completed, only(watched).failed) == (0, 1)
    (row,) = read_output(settings.cwd / "out.csv")
    assert row["result_json"] == ""
    assert "$.score: 5 is greater than the maximum of 4" in row["last_error"]


# --- the program -----------------------------------------------------------------------------------------


@contextmanager
def watchroom(settings: Settings, *words: str) -> Iterator[subprocess.Popen[str]]:
    environ = {n: text for n, text in os.environ.items() if not n.startswith(("WATCHROOM_", "OPENAI_"))}
    assert settings.scripted is not None
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())", *words],
        cwd=settings.cwd,
        env={**environ, "PYTHONPATH": str(ROOT), "WATCHROOM_HOME": str(settings.home)}
        | {"OPENAI_BASE_URL": f"scripted:{settings.scripted}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def stored(settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job as `job list` shows it, and its rows."""
    async with Reader.open(settings.home) as reader:
        (job,) = (await reader.jobs())["jobs"]
        async with aclosing(reader.job_rows(job["job_id"])) as found:
            return job, [row async for row in found]


RUN = ("job", "run", "in.csv", "--instruction", "Do {how}", "--output", "out.csv", "--progress", "lines")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_no_signal_leaves_a_row_running_for_good(tmp_path: Path, signum: int) -> None:
    """There job and items stayed `running`, and nothing could go on with them."""
    settings = prepared(tmp_path, 40, f"latency_ms = 100\n{WELL}")
    with watchroom(settings, *RUN, "--max-concurrency", "4") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r" [1-9]\d*/40 ", line):
                break
        process.send_signal(signum)
        _, said = process.communicate(timeout=30)
    shown, _ = await stored(settings)
    assert (shown["status"], shown["running_items"], shown["failed_items"]) == ("paused", 0, 0)
    done = shown["completed_items"]
    assert 0 < done < 40
    assert shown["pending_items"] == 40 - done
    if signum == signal.SIGKILL:
        assert process.returncode == -signum
    else:
        assert process.returncode == 128 + signum
        assert f"watchroom job resume {shown['job_id'][:8]}" in said
    with watchroom(settings, "job", "resume", shown["job_id"]) as again:
        out, err = again.communicate(timeout=40)
    assert (again.returncode, out) == (0, f"{settings.cwd / 'out.csv'}\n"), err
    found = read_output(settings.cwd / "out.csv")
    assert [(row["item_id"], row["status"]) for row in found] == [
        (f"row-{n}", "completed") for n in range(1, 41)
    ]
    # What had been reported was not done again.
    _, tried = await stored(settings)
    assert sum(len(row["attempts"]) == 1 for row in tried) >= done


def test_progress_is_told_all_along(tmp_path: Path) -> None:
    """There nothing was to be seen until the end."""
    settings = prepared(tmp_path, 40, f"latency_ms = 50\n{WELL}")
    with watchroom(settings, *RUN, "--max-concurrency", "4") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, f"{settings.cwd / 'out.csv'}\n")
    told = [line for line in err.splitlines() if line.startswith("job ") and "/40 " in line]
    assert len(told) >= 2
    assert "40/40 100%" in told[-1]
    assert any("/min" in line for line in told)
