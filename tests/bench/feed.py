"""The processes of the `feed` benchmark: an engine that only publishes, a client that folds, and a bare loop.

    python -m tests.bench.feed serve SOCKET EVENTS CLIENTS | client SOCKET EVENTS | bare - EVENTS

Everything real is between them: hub, server, socket, remote client, view. Only the store is left out: the
events are made before. The backlog is as long as the run, so that nobody lags and every event is carried.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from core.channel import feed
from core.channel.feed import Events
from core.channel.hub import Hub
from core.channel.messages import Item, decode_to_client, encode_item
from core.channel.remote import connect
from core.channel.server import Server
from core.clock import SystemClock
from core.domain import events as e
from core.domain.commands import EngineInfo, Lagged
from core.domain.ids import uuid7
from core.domain.state import SwarmState
from core.version import VERSION
from core.view.swarm import SwarmView

SWARM = "pre-made"
AGENTS = 50
BATCH = 200


def premade(count: int) -> tuple[list[e.AnyEvent], list[str]]:
    """Agents that say, call and get results in turn; each event and its JSON."""
    threads = [uuid7() for _ in range(AGENTS)]
    made: list[e.Event] = [e.SwarmStarted(title="feed", cwd="/", model="bench", source="exec")]
    for number, thread in enumerate(threads):
        path = f"/root/a{number}" if number else "/root"
        parent = threads[0] if number else None
        made.append(e.AgentSpawned(agent=thread, path=path, nickname=f"n{number}", parent=parent))
    call = 0
    while len(made) < count:
        thread, name = threads[call % AGENTS], f"c{call}"
        made += [
            e.AssistantMessage(agent=thread, text="Looking at the next file of the list."),
            e.ToolCalled(
                agent=thread, call=name, name="exec_command", arguments='{"cmd":"wc -l core.py"}', brief="wc"
            ),
            e.ToolResult(agent=thread, call=name, index=0, source="exec_command", text="391 core.py"),
            e.ToolEnded(agent=thread, call=name, seconds=0.01),
        ]
        call += 1
    stamped: list[Any] = [
        msgspec.structs.replace(event, seq=seq, swarm=SWARM) for seq, event in enumerate(made[:count], 1)
    ]
    return stamped, [e.encode(event).decode() for event in stamped]


class Publisher:
    """What a hub needs of an engine."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.on_events: Any = None
        self.on_delta: Any = None
        self._state = SwarmState(swarm=SWARM)

    def runs(self, swarm: str) -> bool:
        return swarm == SWARM

    def touch(self, swarm: str) -> None:
        """A reader left; this swarm stays anyway."""

    def state(self, swarm: str) -> SwarmState:
        return self._state


async def serve(socket: Path, count: int, clients: int) -> None:
    feed.Feed.subscribe.__kwdefaults__.update(backlog_bytes=1 << 40)
    events, bodies = premade(count)
    engine: Any = Publisher()
    hub = Hub(engine, backlog=10 * count)
    info = EngineInfo(engine=uuid7(), pid=os.getpid(), kind="exec", version=VERSION)
    async with Server.listening(hub, socket, info=info, clock=SystemClock(), starts=False) as server:
        print("ready", flush=True)
        while server.clients < clients:
            engine.changed.clear()
            await engine.changed.wait()
        await asyncio.sleep(0.5 + clients / 4)  # until each has its snapshot
        cpu, begin = time.process_time(), time.perf_counter()
        for start in range(0, count, BATCH):
            engine.on_events(SWARM, events[start : start + BATCH], bodies[start : start + BATCH])
            await asyncio.sleep(0)
        while server.clients:
            engine.changed.clear()
            await engine.changed.wait()
        print(json.dumps({"begin": begin, "cpu": time.process_time() - cpu}), flush=True)
        await hub.aclose()


async def client(socket: Path, count: int) -> None:
    view = SwarmView()
    lagged = 0
    async with connect(socket, backlog=10 * count) as remote, remote.subscribe(SWARM) as items:
        cpu = None
        async for item in items:
            cpu = cpu or time.process_time()
            lagged += isinstance(item, Lagged)
            view.feed(item)
            if view.state.seq >= count:
                break
        end = time.perf_counter()
        assert cpu is not None
        spent = time.process_time() - cpu
    assert len(view.state.agents) == AGENTS
    print(json.dumps({"end": end, "cpu": spent, "lagged": lagged}))


def bare(count: int) -> None:
    """The same bytes decoded and folded in a loop, from memory."""
    events, bodies = premade(count)
    frames = [
        encode_item(1, Events(events[start : start + 1000], bodies[start : start + 1000]))
        for start in range(0, count, 1000)
    ]
    view = SwarmView()
    view.state.swarm = SWARM
    began, cpu = time.perf_counter(), time.process_time()
    for frame in frames:
        message = decode_to_client(frame)
        assert isinstance(message, Item)
        view.feed(message.item)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert view.state.seq == count
    print(json.dumps({"events_per_s": round(count / wall), "cpu_us": cpu / count * 1e6}))


def main() -> None:
    what, socket, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "serve":
        asyncio.run(serve(socket, count, int(sys.argv[4])))
    elif what == "client":
        asyncio.run(client(socket, count))
    else:
        bare(count)


if __name__ == "__main__":
    main()
