"""What a job's rows cost, and whether as many are worked on side by side as were asked for.

    .venv/bin/python -m tests.bench.jobs [--runs 3] [--rows 30,300,1000] [--width 16,64] [--latency 0,50,200]

One request per row: the worker reports at once. For each combination, in a process of its own: rows a second,
CPU of the engine, requests in flight on average while rows are left to start (sampled each 5 ms), memory,
threads and file handles that are held when the job has ended. Beside it, in the same process and before it, a
bare loop sends as many requests of the same size, as many at a time, with the same HTTP client and no engine.
The scripted server runs in another process, whose CPU is not counted. Memory per row is the slope between the
smallest and the largest job. Linux only. Prints one JSON object.

The original, measured on such a machine: 11 to 15 rows/s at best, 1.5 MB, 5.6 threads and 11 handles kept for
each row, at most 5 requests in flight; 1,000 rows at 64 never ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from core.channel.hub import Hub
from core.channel.local import LocalClient
from core.clock import SystemClock
from core.config import load_settings
from core.domain.commands import RunJob
from core.domain.state import SwarmState
from core.engine.engine import Engine
from core.models.http import make_http
from core.models.responses import ResponsesClient
from tests.bench.figures import machine, rss_mib, scripted_server
from tests.bench.turns import Timer, request_of

AIMS = {
    "rows_per_second_at_0_ms": 300,
    "cpu_ratio_to_bare": 4,
    "kib_per_row": 20,
    "share_in_flight_at_200_ms": 0.95,
    "share_in_flight_at_50_ms": 0.60,
}
SAMPLE_SECONDS = 0.005
SCENARIO = """\
model = "bench"
chunk_chars = 64
latency_ms = {latency}
[[agents]]
path = "*/job_*"
closing = "done"
[agents.captures]
job = {{ in = "first", match = '^Job ID: (\\S+)' }}
item = {{ in = "first", match = '^Item ID: (.+)$' }}
[[agents.steps]]
calls = [{{ name = "report_agent_job_result", arguments = {{ job_id = "{{job}}", item_id = "{{item}}", result = {{ score = 1 }} }} }}]
[[agents]]
path = "*"
closing = "hello, here is a short answer of some length"
"""  # noqa: E501


def held() -> dict[str, float]:
    return {
        "rss_mib": round(rss_mib(os.getpid()), 1),
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
    }


# --- what runs in a process of its own ---------------------------------------------------------------------


async def bare(url: str, rows: int, width: int) -> dict[str, float]:
    http = make_http()
    client = ResponsesClient(url, None, http, clock=SystemClock())
    body = client._body(request_of(0))
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    left = iter(range(rows))

    async def one() -> None:
        for _ in left:
            reply = await http.post(f"{url}/responses", headers, body)
            while await reply.read():
                pass
            await reply.aclose()

    with Timer() as timer:
        await asyncio.gather(*(one() for _ in range(min(width, rows))))
    await http.aclose()
    return {"rows_per_second": rows / timer.wall, "cpu_ms_per_row": timer.cpu * 1000 / rows}


async def job(url: str, home: Path, rows: int, width: int) -> dict[str, Any]:
    settings = load_settings(
        options={"base_url": url, "model": "bench", "sandbox": "off"}, home=home, cwd=home, environ={}
    )
    async with Engine.running(settings) as engine:
        client = LocalClient(Hub(engine))
        before = held()
        command = RunJob(
            input_path="in.csv", instruction="Score {path}.", cwd=str(home), max_concurrency=width
        )
        with Timer() as timer:
            reply = await client.send(command)
            assert reply.ok, reply.error
            state = engine.state(reply.value["swarm"])
            async with sampling(engine, state, width) as samples, client.subscribe(state.swarm) as feed:
                async for _ in feed:
                    if all(job.ended for job in state.jobs.values()):
                        break
        (ended,) = state.jobs.values()
        assert (ended.status, ended.completed) == ("completed", rows), ended
        await client.aclose()
        return {
            "rows_per_second": rows / timer.wall,
            "cpu_ms_per_row": timer.cpu * 1000 / rows,
            "in_flight": statistics.mean(samples) if samples else None,
            "before": before,
            "after": held(),
        }


@contextlib.asynccontextmanager
async def sampling(engine: Engine, state: SwarmState, width: int) -> AsyncIterator[list[int]]:
    """Requests in flight, for as long as there are rows that nobody works on yet."""
    samples: list[int] = []

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            if any(job.pending for job in state.jobs.values()):
                views = (view for _, view in engine.limits())
                samples.append(sum(view.in_flight for view in views))

    task = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.wait({task})


def written(home: Path, rows: int) -> Path:
    """A folder with a file of `rows` rows."""
    home.mkdir()
    (home / "in.csv").write_text("path,area\n" + "".join(f"core/file{n}.py,core\n" for n in range(rows)))
    return home


def one(url: str, folder: Path, rows: int, width: int) -> dict[str, Any]:
    few = min(width, 16)
    warm, home = written(folder / "warm", few), written(folder / "home", rows)

    async def both() -> dict[str, Any]:
        await bare(url, few, width)
        await job(url, warm, few, width)
        return {"bare": await bare(url, rows, width), "job": await job(url, home, rows, width)}

    return asyncio.run(both())


# --- the whole ---------------------------------------------------------------------------------------------


def apart(url: str, rows: int, width: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.bench.jobs", "--url", url, "--rows", str(rows)]
    done = subprocess.run(
        [*words, "--width", str(width)], stdout=subprocess.PIPE, check=True, text=True, timeout=900
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures_of(found: list[dict[str, Any]], width: int) -> dict[str, Any]:
    def median(who: str, what: str) -> float:
        return round(statistics.median(run[who][what] for run in found), 2)

    flights = [run["job"]["in_flight"] for run in found if run["job"]["in_flight"] is not None]
    figures: dict[str, Any] = {
        f"{who}_{what}": median(who, what)
        for who in ("bare", "job")
        for what in ("rows_per_second", "cpu_ms_per_row")
    }
    figures["cpu_ratio_to_bare"] = round(figures["job_cpu_ms_per_row"] / figures["bare_cpu_ms_per_row"], 2)
    figures["share_in_flight"] = round(statistics.median(flights) / width, 2) if flights else None
    for key in held():
        more = statistics.median(run["job"]["after"][key] - run["job"]["before"][key] for run in found)
        figures[f"more_{key}"] = round(more, 1)
    return figures


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def whole(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    for latency in numbers(args.latency):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.toml"
            file.write_text(SCENARIO.format(latency=latency))
            with scripted_server(file) as url:
                for width in numbers(args.width):
                    for rows in numbers(args.rows):
                        found = [apart(url, rows, width) for _ in range(args.runs)]
                        yield f"{rows} rows, {width} wide, {latency} ms", figures_of(found, width)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a job's rows cost.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", default="30,300,1000")
    parser.add_argument("--width", default="16,64")
    parser.add_argument("--latency", default="0,50,200")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        with tempfile.TemporaryDirectory() as folder:
            found = one(args.url, Path(folder), int(args.rows), int(args.width))
        sys.stdout.write(json.dumps(found))
        return
    started = time.time()
    result: dict[str, Any] = {"benchmark": "jobs", "aims": AIMS, "runs": args.runs}
    result |= whole(args)
    sizes = numbers(args.rows)
    if len(sizes) > 1:
        latency, width = numbers(args.latency)[0], numbers(args.width)[0]
        least, most = (result[f"{n} rows, {width} wide, {latency} ms"] for n in (min(sizes), max(sizes)))
        slope = (most["more_rss_mib"] - least["more_rss_mib"]) * 1024 / (max(sizes) - min(sizes))
        result["kib_per_row"] = round(slope, 1)
    result["seconds"] = round(time.time() - started)
    result["machine"] = machine()
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
