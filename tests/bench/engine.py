"""The engine as a process: what its socket carries, and how quickly it answers while it is busy.

    .venv/bin/python -m tests.bench.engine [--runs 3] [--only feed,latency,memory,snapshot] [--events 200000]

* `feed`: events made before, published to 1 and to 8 clients, each a process of its own that folds them into
  a view; beside it a bare loop that decodes and folds the same bytes with no socket between.
* `latency`: idle, and while a job of 64 workers on a scripted server keeps both cores busy: a typed letter to
  its frame (a real pty), Enter in a console to the event at a second client, a small read at 10 Hz.
* `memory`: what each further subscribed client costs the engine.
* `snapshot`: from connecting to a whole snapshot on a store of 1,000,000 events by 10,000 agents.

Prints one JSON object; times are wall times in milliseconds unless the name says CPU.
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
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from core.channel.client import Client
from core.channel.launch import home_engine
from core.channel.remote import connect
from core.channel.setup import setup_of
from core.clock import SystemClock
from core.config import Settings, load_settings
from core.domain import events as e
from core.domain.commands import (
    Close,
    FeedItem,
    GetAgents,
    ResumeSwarm,
    RunJob,
    Snapshot,
    StartSwarm,
    StopEngine,
)
from core.domain.ids import uuid7
from core.store.store import Store
from core.view.swarm import SwarmView
from tests.bench.figures import cpu_seconds, machine, quantiles, rss_mib, scripted_server
from tests.bench.pty_console import PtyConsole

SCENARIO = """
model = "bench"
chunk_chars = 64

[[agents]]
path = "*/job_*"
closing = "done"
[agents.captures]
job = { in = "first", match = '^Job ID: (\\S+)' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
next = "end"
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { ok = true } }

[[agents]]
path = "*"
closing = "hello, here is a short answer of some length"
"""
JOB_ROWS = 60_000
READ_HZ = 10
READS = 100
KEYS = 60


def bench_settings(home: Path, base_url: str) -> Settings:
    home.mkdir(exist_ok=True)
    options = {"base_url": base_url, "model": "bench", "sandbox": "off"}
    return load_settings(options=options, home=home, cwd=home, environ={})


@asynccontextmanager
async def background(settings: Settings) -> AsyncIterator[Client]:
    """A background engine of this home, stopped at the end."""
    async with home_engine(settings) as client:
        try:
            yield client
        finally:
            await client.send(StopEngine())


# --- feed ------------------------------------------------------------------------------------------------


def feed_once(clients: int, events: int, folder: Path) -> dict[str, float]:
    """Events a second at the slowest client, and CPU microseconds per event of the server and of a client."""
    socket = folder / f"feed{clients}.sock"
    words = [sys.executable, "-m", "tests.bench.feed", "serve", str(socket), str(events), str(clients)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == "ready"
        words = [sys.executable, "-m", "tests.bench.feed", "client", str(socket), str(events)]
        readers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
        found = [json.loads(reader.communicate()[0]) for reader in readers]
        served = json.loads(server.stdout.readline())
    wall = max(client["end"] for client in found) - served["begin"]
    return {
        "events_per_s": round(events / wall),
        "client_cpu_us": round(statistics.median(c["cpu"] for c in found) / events * 1e6, 2),
        "server_cpu_us": round(served["cpu"] / events * 1e6, 2),
        "lagged": sum(client["lagged"] for client in found),
    }


def feed(runs: int, events: int) -> dict[str, Any]:
    found: dict[str, Any] = {"events": events}
    with tempfile.TemporaryDirectory() as name:
        bare = [
            json.loads(
                subprocess.check_output(
                    [sys.executable, "-m", "tests.bench.feed", "bare", "-", str(events)], text=True
                )
            )
            for _ in range(runs)
        ]
        found["bare"] = {key: round(statistics.median(one[key] for one in bare), 2) for key in bare[0]}
        for clients in (1, 8):
            taken = [feed_once(clients, events, Path(name)) for _ in range(runs)]
            found[f"{clients} clients"] = {
                key: statistics.median(one[key] for one in taken) for key in taken[0]
            }
    return found


# --- latency ---------------------------------------------------------------------------------------------


async def small_reads(settings: Settings, client: Client, swarm: str) -> dict[str, float]:
    """A page of one agent, ten times a second."""
    taken = []
    begin = time.perf_counter()
    for number in range(READS):
        await asyncio.sleep(max(begin + number / READ_HZ - time.perf_counter(), 0))
        started = time.perf_counter()
        await client.page(GetAgents(swarm=swarm, limit=10))
        taken.append(time.perf_counter() - started)
    return quantiles(taken)


async def key_to_effect(console: PtyConsole, client: Client, swarm: str) -> dict[str, float]:
    """Enter in the console's composer to the operator's mail at a second client."""
    taken = []
    async with client.subscribe(swarm) as items:
        iterator = aiter(items)
        assert isinstance(await anext(iterator), Snapshot)
        for _ in range(KEYS):
            console.press("again")
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            console.press("\r")
            await until_mail(iterator)
            taken.append(time.perf_counter() - started)
            await asyncio.sleep(0.2)
    return quantiles(taken)


async def until_mail(items: AsyncIterator[FeedItem]) -> None:
    async for item in items:
        if any(isinstance(event, e.MailQueued) for event in getattr(item, "events", ())):
            return


async def latencies(settings: Settings, client: Client) -> dict[str, Any]:
    """All three, in a console on a swarm of its own."""
    reply = await client.send(StartSwarm(task="hello", setup=setup_of(settings)))
    swarm, root = reply.value["swarm"], reply.value["thread"]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(settings.home),
        "WATCHROOM_HOME": str(settings.home),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.getcwd(),
    }
    found: dict[str, Any] = {}
    with PtyConsole(["attach", swarm], env) as console:
        await asyncio.to_thread(console.until, "AGENTS", "hello")
        await asyncio.sleep(1)
        console.press("m")
        await asyncio.sleep(0.5)
        found["key_to_frame"] = quantiles(await asyncio.to_thread(console.key_to_frame, KEYS, 0.15))
        found["key_to_effect"] = await key_to_effect(console, client, swarm)
        found["small_read"] = await small_reads(settings, client, swarm)
    await client.send(Close(swarm=swarm, thread=root))
    return found


async def latency(folder: Path, base_url: str) -> dict[str, Any]:
    settings = bench_settings(folder / "home", base_url)
    async with background(settings) as client:
        found: dict[str, Any] = {"idle": await latencies(settings, client)}
        rows = folder / "rows.csv"
        rows.write_text("n\n" + "".join(f"{n}\n" for n in range(JOB_ROWS)))
        job = RunJob(
            setup=setup_of(settings), input_path=str(rows), instruction="Row {n}.", max_concurrency=64,
            auto_export=False, cwd=str(folder),
        )  # fmt: skip
        reply = await client.send(job)
        assert reply.ok, reply.error
        await asyncio.sleep(2)
        pid, cpu, started = client.engine.pid, cpu_seconds(client.engine.pid), time.perf_counter()
        found["saturated"] = await latencies(settings, client)
        wall = time.perf_counter() - started
        page = await client.page(GetAgents(swarm=reply.value["swarm"], limit=1))
        found["engine_cpu_share"] = round((cpu_seconds(pid) - cpu) / wall, 2)
        found["rows_done"] = sum(getattr(page, "counts", {}).values())
        found["rows_per_s"] = round(found["rows_done"] / (wall + 2), 1)
        found["load"] = machine()["load"]
    return found


# --- memory and snapshot ---------------------------------------------------------------------------------


async def memory(folder: Path, base_url: str) -> dict[str, Any]:
    """RSS of the engine with 0 and with 48 more clients that follow a swarm."""
    settings = bench_settings(folder / "memory", base_url)
    number = 48
    async with background(settings) as client, AsyncExitStack() as stack:
        reply = await client.send(StartSwarm(task="hello", setup=setup_of(settings)))
        await asyncio.sleep(1)
        before = rss_mib(client.engine.pid)
        socket = socket_of(settings)
        for _ in range(number):
            other = await stack.enter_async_context(connect(socket))
            items = await stack.enter_async_context(other.subscribe(reply.value["swarm"]))
            await anext(aiter(items))
        after = rss_mib(client.engine.pid)
    each = round((after - before) * 1024 / number)
    return {"clients": number, "engine_mib": round(before, 1), "kib_per_client": each}


def socket_of(settings: Settings) -> Path:
    from core.channel.directory import background as record_of

    record = record_of(settings.home)
    assert record is not None
    return Path(record.socket)


async def million(home: Path, agents: int = 10_000, each: int = 100) -> str:
    """A swarm of closed agents with long histories, as a big job leaves it."""
    store = await Store.open(home, clock=SystemClock(), redact=lambda text: text)
    try:
        swarm, root = uuid7(), uuid7()
        await store.create(swarm)
        await store.append(
            swarm,
            [
                e.SwarmStarted(title="big", cwd="/", model="bench", source="exec"),
                e.AgentSpawned(agent=root, path="/root", nickname="root"),
                e.AgentReady(agent=root),
            ],
        )
        for start in range(0, agents, 100):
            batch = [history(root, number, each) for number in range(start, min(start + 100, agents))]
            await asyncio.gather(*(store.append(swarm, events) for events in batch))
        return swarm
    finally:
        await store.aclose()


def history(root: str, number: int, each: int) -> list[e.Event]:
    thread = uuid7()
    events: list[e.Event] = [
        e.AgentSpawned(
            agent=thread, path=f"/root/a{number}", nickname=f"n{number}", parent=root, depth=1, task="Count."
        ),
        e.AgentReady(agent=thread),
        e.TurnStarted(agent=thread, turn="t", cause="mail"),
    ]
    for call in range((each - 5) // 4):
        name = f"c{call}"
        events += [
            e.AssistantMessage(agent=thread, text="Looking at the next file of the list."),
            e.ToolCalled(agent=thread, call=name, name="exec_command", arguments='{"cmd":"wc -l core.py"}'),
            e.ToolResult(agent=thread, call=name, index=0, source="exec_command", text="391 core.py"),
            e.ToolEnded(agent=thread, call=name),
        ]
    events.append(e.TurnCompleted(agent=thread, turn="t", message="391 lines"))
    events += [e.Notice(agent=thread, text="…") for _ in range(each - len(events) - 1)]
    events.append(e.AgentClosed(agent=thread, by="job"))
    return events


async def snapshot(folder: Path, base_url: str, runs: int) -> dict[str, Any]:
    home = folder / "million"
    started = time.perf_counter()
    swarm = await million(home)
    made = time.perf_counter() - started
    settings = bench_settings(home, base_url)
    async with background(settings) as client:
        started = time.perf_counter()
        reply = await client.send(ResumeSwarm(swarm=swarm, setup=setup_of(settings)))
        assert reply.ok, reply.error
        resumed = time.perf_counter() - started
        socket = socket_of(settings)
        taken, folded = [], []
        for _ in range(max(runs, 5)):
            started = time.perf_counter()
            async with connect(socket) as other, other.subscribe(swarm) as items:
                item = await anext(aiter(items))
                taken.append(time.perf_counter() - started)
            view = SwarmView()
            view.feed(item)
            folded.append(time.perf_counter() - started)
        events, agents = view.state.seq, len(view.state.agents)
    return {
        "events": events,
        "agents": agents,
        "store_mib": round((home / "watchroom.db").stat().st_size / 2**20),
        "made_in_s": round(made, 1),
        "resume_ms": round(resumed * 1000, 1),
        "connect_to_snapshot": quantiles(taken),
        "connect_to_view": quantiles(folded),
    }


# --- the whole -------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    wanted = args.only.split(",")
    found: dict[str, Any] = {"benchmark": "engine", "runs": args.runs, "before": machine()}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        scenario = folder / "bench.toml"
        scenario.write_text(SCENARIO)
        base_url = stack.enter_context(scripted_server(scenario))
        if "feed" in wanted:
            found["feed"] = feed(args.runs, args.events)
        if "latency" in wanted:
            found["latency"] = asyncio.run(latency(folder, base_url))
        if "memory" in wanted:
            found["memory"] = asyncio.run(memory(folder, base_url))
        if "snapshot" in wanted:
            found["snapshot"] = asyncio.run(snapshot(folder, base_url, args.runs))
    found["after"] = machine()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine behind its socket.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--only", default="feed,latency,memory,snapshot")
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
