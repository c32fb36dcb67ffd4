"""What an agent costs: CPU, wall time, memory, threads and file handles, as their number grows.

    .venv/bin/python -m tests.bench.agents [--runs 3] [--only spawn,idle,turns]

* `spawn`: one root with 50, 200 and 1,000 children that answer at once; per agent, with what is still held
  when all have ended. The memory of an agent is the slope between the smallest and the largest number.
* `idle`: a swarm of 10,000 agents that have ended their turns comes back from the store: memory, seconds.
* `turns`: 200 turns of one agent, one after the other, beside the same requests sent bare.

Each figure is taken in a process of its own; the scripted server runs in another, whose CPU is not counted.
Memory and handles: Linux only. Prints one JSON object. The aims are a tenth of what Codex 0.169 needs: 45 ms
of CPU and 1.3 MB for each agent, 14 ms for each turn.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.channel.local import open_engine
from core.clock import SystemClock
from core.config import load_settings
from core.domain import events as e
from core.domain.commands import ResumeSwarm
from core.domain.ids import uuid7
from core.store.store import Store
from tests.bench.figures import machine, rss_mib, scripted_server
from tests.bench.turns import bare, make, scenario, spawn_of, turns_of

SIZES = (50, 200, 1000)
IDLE = 10_000
TURNS = 200
AIMS = {"cpu_ms_per_agent": 4.5, "kib_per_agent": 133, "ms_per_turn": 1.4}


def held() -> dict[str, float]:
    """What this process has now."""
    return {
        "rss_mib": round(rss_mib(os.getpid()), 1),
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
    }


# --- what runs in a process of its own ---------------------------------------------------------------------


def spawn_one(url: str, folder: Path, size: int) -> dict[str, Any]:
    """One swarm of `size` children. A first, small one warms up what every process pays once."""
    asyncio.run(spawn_of(url, 2, make(folder / "warm")))
    before, after = held(), {}

    def take() -> None:
        after.update(held())

    took = asyncio.run(spawn_of(url, size, make(folder / "home"), take))
    return {**took, "before": before, "after": after}


def turns_one(url: str, folder: Path, size: int) -> dict[str, Any]:
    async def both() -> dict[str, Any]:
        await turns_of(url, 5, make(folder / "warm"), width=1)
        return {
            "bare": await bare(url, size, width=1),
            "engine": await turns_of(url, size, make(folder / "home"), width=1),
        }

    return asyncio.run(both())


def idle_one(url: str, folder: Path, size: int) -> dict[str, Any]:
    """`size` agents at rest in one engine."""

    async def come_back() -> dict[str, Any]:
        home = folder / "home"
        swarm = await at_rest(home, size)
        found = load_settings(
            options={"base_url": url, "model": "bench", "sandbox": "off", "agents": {"max_agents": size + 1}},
            home=home,
            cwd=folder,
            environ={},
        )
        async with open_engine(found) as engine:
            before = held()
            started = time.perf_counter()
            reply = await engine.send(ResumeSwarm(swarm=swarm))
            assert reply.ok, reply.error
            seconds = time.perf_counter() - started
            return {"seconds": round(seconds, 2), "before": before, "after": held()}

    return asyncio.run(come_back())


async def at_rest(home: Path, size: int) -> str:
    """A stored swarm whose root and children have ended their turns; its id."""
    swarm, root = uuid7(), uuid7()
    store = await Store.open(home, clock=SystemClock(), redact=lambda text: text)
    try:
        await store.create(swarm)
        first = e.SwarmStarted(title="big", cwd=str(home), model="bench", source="exec")
        await store.append(swarm, [first, *ended(root, "/root", None)])
        for start in range(0, size, 500):
            batch = [
                ended(uuid7(), f"/root/a{n}", root, f"n{n}") for n in range(start, min(start + 500, size))
            ]
            await asyncio.gather(*(store.append(swarm, events) for events in batch))
    finally:
        await store.aclose()
    return swarm


def ended(thread: str, path: str, parent: str | None, name: str = "root") -> list[e.Event]:
    """The story of an agent that did one thing."""
    return [
        e.AgentSpawned(
            agent=thread,
            path=path,
            nickname=name,
            parent=parent,
            depth=path.count("/") - 1,
            task="Say hello.",
        ),
        e.AgentReady(agent=thread),
        e.TurnStarted(agent=thread, turn=uuid7(), cause="mail"),
        e.AssistantMessage(agent=thread, text="hello, here is a short answer of some length"),
        e.TurnCompleted(agent=thread, turn=uuid7(), message="hello"),
    ]


ONES: dict[str, Callable[[str, Path, int], dict[str, Any]]] = {
    "spawn": spawn_one,
    "turns": turns_one,
    "idle": idle_one,
}


# --- the whole ---------------------------------------------------------------------------------------------


def apart(kind: str, url: str, size: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.bench.agents", "--one", kind, "--size", str(size), "--url", url]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def spawn(runs: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    grown: dict[int, dict[str, float]] = {}
    for size in SIZES:
        with serving(scenario(size)) as url:
            found = [apart("spawn", url, size) for _ in range(runs)]
        grown[size] = {key: median(one["after"][key] - one["before"][key] for one in found) for key in held()}
        figures[f"{size} agents"] = {
            "cpu_ms_per_agent": median(one["cpu_ms"] for one in found),
            "wall_ms_per_agent": median(one["wall_ms"] for one in found),
            "rss_mib": median(one["after"]["rss_mib"] for one in found),
            "more_threads": grown[size]["threads"],
            "more_handles": grown[size]["handles"],
        }
    least, most = grown[SIZES[0]], grown[SIZES[-1]]
    slope = (most["rss_mib"] - least["rss_mib"]) * 1024 / (SIZES[-1] - SIZES[0])
    return {**figures, "kib_per_agent": round(slope, 1)}


def turns(runs: int) -> dict[str, Any]:
    with serving(scenario(1)) as url:
        found = [apart("turns", url, TURNS) for _ in range(runs)]
    figures: dict[str, Any] = {
        f"{who}_{what}": median(one[who][what] for one in found)
        for who in ("bare", "engine")
        for what in ("cpu_ms", "wall_ms")
    }
    return {**figures, "cpu_ratio_to_bare": round(figures["engine_cpu_ms"] / figures["bare_cpu_ms"], 2)}


def idle(runs: int) -> dict[str, Any]:
    with serving(scenario(1)) as url:
        found = [apart("idle", url, IDLE) for _ in range(runs)]
    more = [one["after"]["rss_mib"] - one["before"]["rss_mib"] for one in found]
    return {
        "agents": IDLE,
        "resume_seconds": median(one["seconds"] for one in found),
        "rss_mib": median(one["after"]["rss_mib"] for one in found),
        "kib_per_agent": round(statistics.median(more) * 1024 / IDLE, 1),
        "threads": median(one["after"]["threads"] for one in found),
        "handles": median(one["after"]["handles"] for one in found),
    }


def median(values: Any) -> float:
    return round(statistics.median(values), 2)


@contextlib.contextmanager
def serving(text: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(text)
        with scripted_server(file) as url:
            yield url


def main() -> None:
    parser = argparse.ArgumentParser(description="What agents cost as their number grows.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="spawn,idle,turns")
    parser.add_argument("--one", choices=sorted(ONES), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            found = ONES[args.one](args.url, Path(folder), args.size)
        sys.stdout.write(json.dumps(found))
        return
    parts = {"spawn": spawn, "idle": idle, "turns": turns}
    result: dict[str, Any] = {"benchmark": "agents", "aims": AIMS, "runs": args.runs}
    for name in args.only.split(","):
        result[name] = parts[name](args.runs)
    result["machine"] = machine()
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
