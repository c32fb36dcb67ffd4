"""Cost of a turn and of a spawned agent at zero model latency, beside a bare loop.

    python -m tests.bench.turns [--runs 5] [--agents 200] [--turns 20]

The scripted server runs in a process of its own, so that its CPU time is not counted. Per run, in turn:

* `bare`: the same number of requests with the same HTTP client, bodies of the same size, answers read to the
  end, not parsed;
* `client`: the same requests through the Responses client, parsed, with no engine;
* `turns`: one engine, 16 swarms side by side, each root given `turns` inputs one after the other;
* `spawn`: one root that spawns `agents` sub-agents, each with one turn, and waits for all of them.

Prints one JSON object: medians of CPU and wall milliseconds per unit, the ratio to `bare`, the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.agents.history import user_item
from core.channel.local import open_engine
from core.clock import SystemClock
from core.config import load_settings
from core.domain.commands import SendInput, StartSwarm
from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import Completed, ModelRequest

WIDTH = 16
ANSWER = "hello, here is a short answer of some length"
CHUNK = 20
"""Spawn calls in one response."""


def scenario(agents: int) -> str:
    """A root that spawns in batches and waits when it is told to spawn, and else answers at once."""
    lines = ['model = "bench"', "chunk_chars = 64"]
    lines += ["[[agents]]", 'path = "/root"', "first = '^spawn'", 'closing = "done"']
    for start in range(0, agents, CHUNK):
        calls = [
            f'{{ name = "spawn_agent", arguments = {{ task_name = "a{i}", message = "Say hello." }} }}'
            for i in range(start, min(start + CHUNK, agents))
        ]
        lines += ["[[agents.steps]]", f"calls = [{', '.join(calls)}]"]
    targets = ", ".join(f'"a{i}"' for i in range(agents))
    wait = f'{{ targets = [{targets}], mode = "all", timeout_ms = 600000 }}'
    lines += ["[[agents.steps]]", f'calls = [{{ name = "wait_agent", arguments = {wait} }}]']
    lines += ["[[agents]]", 'path = "*"', 'closing = "hello, here is a short answer of some length"']
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def server(file: Path) -> Iterator[str]:
    program = "import sys; from tui.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "scripted-server", "--port", "0", "--scenario", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                words = [word.rstrip(".,") for word in line.split() if word.startswith("http://")]
                if words:
                    yield words[0]
                    return
            raise RuntimeError("the scripted server did not start")
        finally:
            process.terminate()


class Timer:
    """CPU and wall time of this process."""

    def __enter__(self) -> Timer:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def per(self, units: int) -> dict[str, float]:
        return {"cpu_ms": self.cpu * 1000 / units, "wall_ms": self.wall * 1000 / units}


def request_of(turn: int) -> ModelRequest:
    """What the engine would send at a turn: the growing history of short inputs and answers."""
    answer = {
        "type": "output_text",
        "text": "hello, here is a short answer of some length",
        "annotations": [],
    }
    items: list[dict[str, Any]] = []
    for _ in range(turn):
        items += [user_item("again"), {"type": "message", "role": "assistant", "content": [answer]}]
    tools = [
        {"type": "function", "name": f"t{i}", "description": "x" * 300, "strict": False, "parameters": {}}
        for i in range(9)
    ]
    text = "Agent path: /root\n" + "x" * 1200
    return ModelRequest(
        model="bench", instructions=text, input=[*items, user_item("again")], tools=tools, cache_key="k"
    )


async def bare(base_url: str, turns: int, width: int = WIDTH) -> dict[str, float]:
    http = make_http()
    client = ResponsesClient(base_url, None, http, clock=SystemClock())
    bodies = [client._body(request_of(turn)) for turn in range(turns)]
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}

    async def one() -> None:
        for body in bodies:
            reply = await http.post(f"{base_url}/responses", headers, body)
            last = b""
            while chunk := await reply.read():
                last = chunk
            await reply.aclose()
            assert reply.status == 200, last
            assert b"response.completed" in last

    with Timer() as timer:
        await asyncio.gather(*(one() for _ in range(width)))
    await http.aclose()
    return timer.per(turns * width)


async def client(base_url: str, turns: int) -> dict[str, float]:
    http = make_http()
    model = ResponsesClient(base_url, None, http, clock=SystemClock())

    async def one() -> None:
        for turn in range(turns):
            events = [event async for event in model.stream(request_of(turn))]
            assert isinstance(events[-1], Completed)

    with Timer() as timer:
        await asyncio.gather(*(one() for _ in range(WIDTH)))
    await http.aclose()
    return timer.per(turns * WIDTH)


async def turns_of(base_url: str, turns: int, home: Path, width: int = WIDTH) -> dict[str, float]:
    settings = load_settings(
        options={"base_url": base_url, "model": "bench", "sandbox": "off"}, home=home, cwd=home, environ={}
    )
    async with open_engine(settings) as engine:
        replies = [await engine.send(StartSwarm(task=None)) for _ in range(width)]

        async def one(value: dict[str, Any]) -> None:
            swarm, thread = value["swarm"], value["thread"]
            async with engine.subscribe(swarm) as feed:
                done = 0
                await engine.send(SendInput(swarm=swarm, thread=thread, text="again"))
                async for item in feed:
                    for event in getattr(item, "events", ()):
                        if type(event).__name__ == "TurnCompleted":
                            done += 1
                            if done == turns:
                                return
                            await engine.send(SendInput(swarm=swarm, thread=thread, text="again"))

        with Timer() as timer:
            await asyncio.gather(*(one(reply.value) for reply in replies))
    return timer.per(turns * width)


async def spawn_of(
    base_url: str, agents: int, home: Path, afterwards: Callable[[], None] | None = None
) -> dict[str, float]:
    """`afterwards` is called when all have ended and the engine is still there."""
    settings = load_settings(
        options={
            "base_url": base_url,
            "model": "bench",
            "sandbox": "off",
            "agents": {"max_agents": agents + 1},
        },
        home=home,
        cwd=home,
        environ={},
    )
    async with open_engine(settings) as engine:
        with Timer() as timer:
            reply = await engine.send(StartSwarm(task="spawn"))
            async with engine.subscribe(reply.value["swarm"]) as feed:
                async for item in feed:
                    names = [type(event).__name__ for event in getattr(item, "events", ())]
                    failed = [
                        e.error for e in getattr(item, "events", ()) if type(e).__name__ == "TurnFailed"
                    ]
                    assert not failed, failed
                    ended = [
                        event
                        for event in getattr(item, "events", ())
                        if type(event).__name__ == "TurnCompleted" and event.agent == reply.value["thread"]
                    ]
                    if ended and names:
                        break
        if afterwards is not None:
            afterwards()
    return timer.per(agents)


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


async def measure(base_url: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    figures: dict[str, list[dict[str, float]]] = {"bare": [], "client": [], "turns": [], "spawn": []}
    for run in range(args.runs + 1):
        found = {
            "bare": await bare(base_url, args.turns),
            "client": await client(base_url, args.turns),
            "turns": await turns_of(base_url, args.turns, make(folder / f"turns{run}")),
            "spawn": await spawn_of(base_url, args.agents, make(folder / f"spawn{run}")),
        }
        if run:  # the first run warms up
            for name, value in found.items():
                figures[name].append(value)
    medians = {
        name: {key: round(statistics.median(v[key] for v in values), 3) for key in values[0]}
        for name, values in figures.items()
    }
    ratios = [t["cpu_ms"] / b["cpu_ms"] for t, b in zip(figures["turns"], figures["bare"], strict=True)]
    return {
        "benchmark": "turns",
        "medians_per_unit": medians,
        "cpu_ratio_turn_to_bare": round(statistics.median(ratios), 2),
        "runs": args.runs,
        "turns": args.turns * WIDTH,
        "agents": args.agents,
        "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "machine": machine(),
    }


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost per turn and per spawned agent.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--turns", type=int, default=20, help="turns of each of the 16 roots")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "bench.toml"
        file.write_text(scenario(args.agents))
        with server(file) as base_url:
            result = asyncio.run(measure(base_url, args, folder))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
