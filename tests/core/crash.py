"""Engines that die, and those that come after them. `Stand` is an engine without a channel. `leave` keeps the
home as it is on disk at this moment, which is what kill -9 leaves; `killed` really kills a process."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from core.clock import Clock
from core.config import Settings
from core.domain import events as e
from core.domain.commands import AnyCommand, Reply, ResumeSwarm
from core.domain.state import AgentState, SwarmState
from core.engine.engine import Engine
from core.store.connection import FILE_NAME
from tests.core.domain.strategies import fold
from tests.core.harness import settings_for

T = TypeVar("T", bound=e.Event)


class Stand:
    """An engine under test: what it published, and ways to wait."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: list[e.AnyEvent] = []
        """Of all its swarms, in order of their commits."""
        self.after_commit: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()
        engine.on_events = self._committed

    def _committed(self, swarm: str, events: Sequence[e.AnyEvent], bodies: Sequence[str]) -> None:
        self.events += events
        self._changed.set()
        self.after_commit()

    async def send(self, command: AnyCommand) -> dict[str, Any]:
        reply = await self.engine.handle(command)
        assert reply.ok, reply.error
        return reply.value

    async def resume(self, swarm: str, **fields: Any) -> Reply:
        return await self.engine.handle(ResumeSwarm(swarm=swarm, **fields))

    def of(self, kind: type[T], thread: str | None = None) -> list[T]:
        return [event for event in self.events if isinstance(event, kind) and thread in (None, event.agent)]

    def at(self, swarm: str, path: str) -> AgentState:
        agent = self.engine.state(swarm).by_path(path)
        assert agent is not None, f"no agent at {path}"
        return agent

    async def until(
        self, swarm: str, condition: Callable[[SwarmState], bool], seconds: float = 20
    ) -> SwarmState:
        state = self.engine.state(swarm)
        try:
            async with asyncio.timeout(seconds):
                while not condition(state):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            shown = [(a.path, a.status, a.wait and a.wait.reason) for a in state.agents.values()]
            raise AssertionError(f"never came to pass; {shown}, {list(state.jobs.values())}") from None
        return state

    async def quiet(self, swarm: str) -> SwarmState:
        return await self.until(swarm, lambda state: state.quiet())


@asynccontextmanager
async def stand(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Stand]:
    async with asyncio.timeout(50), Engine.running(settings, clock) as engine:
        yield Stand(engine)


def leave(home: Path, to: Path) -> None:
    """The home as a process that dies now leaves it. Call it between two writes: from a commit."""
    to.mkdir(parents=True)
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        if (home / name).exists():
            shutil.copyfile(home / name, to / name)


def home_settings(folder: Path, home: Path, scenario: str, **options: Any) -> Settings:
    """As `settings_for`, in another home."""
    return settings_for(folder, scenario, **options).model_copy(update={"home": home})


async def journal(engine: Engine, swarm: str) -> list[e.AnyEvent]:
    """All events of a swarm as they are stored."""
    found: list[e.AnyEvent] = []
    while page := (await engine.store.reader.events(swarm, after=len(found), limit=5000)).events:
        found += page
    return found


async def check(engine: Engine, swarm: str) -> None:
    """What holds for every swarm in which nothing goes on, whatever it has been through."""
    check_events(await journal(engine, swarm), engine.state(swarm))


def check_events(events: list[e.AnyEvent], state: SwarmState) -> None:
    """The same of a journal and the state that it must make."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert fold(events) == state
    assert not state.calls
    assert not state.approvals
    called = [(event.agent, event.call) for event in events if isinstance(event, e.ToolCalled)]
    ended = [(event.agent, event.call) for event in events if isinstance(event, e.ToolEnded)]
    assert sorted(called) == sorted(ended)
    begun = [event.turn for event in events if isinstance(event, e.TurnStarted)]
    over = [event.turn for event in events if isinstance(event, e.TurnCompleted | e.TurnInterrupted)]
    assert len(set(begun)) == len(begun)
    assert set(begun) <= set(over)
    assert len(set(over)) == len(over)
    assert not [event for event in events if isinstance(event, e.TurnFailed)]
    delivered = [m.mail for m in events if isinstance(m, e.UserMessage | e.AgentMessage) and m.mail]
    assert len(set(delivered)) == len(delivered)
    names = [agent.nickname for agent in state.agents.values()]
    assert len(set(names)) == len(names)
    open_paths = [agent.path for agent in state.agents.values() if agent.status != "shutdown"]
    assert len(set(open_paths)) == len(open_paths)


SCRIPT = """
import asyncio, sys
import msgspec
from pathlib import Path
from core.config import load_settings
from core.domain import events as e
from core.domain.commands import RunJob, StartSwarm
from core.engine.engine import Engine

home, cwd, scenario, task, options = sys.argv[1:]

async def main():
    settings = load_settings(
        options={"base_url": f"scripted:{scenario}", "model": "scripted", **msgspec.json.decode(options)},
        home=Path(home), cwd=Path(cwd), environ={})
    async with Engine.running(settings) as engine:
        engine.on_events = lambda swarm, events, bodies: print(*bodies, sep="\\n", flush=True)
        if task.endswith(".csv"):
            command = RunJob(input_path=task, instruction="Do {n}.", output_path="out.csv")
        else:
            command = StartSwarm(task=task, source="exec")
        reply = await engine.handle(command)
        assert reply.ok, reply.error
        await asyncio.sleep(40)

asyncio.run(main())
"""


def killed(
    settings: Settings, task: str, when: Callable[[list[e.AnyEvent]], bool], **options: Any
) -> list[e.AnyEvent]:
    """Run an engine in a process of its own until its events are such, then kill -9 it; the events that it
    had told. A task that ends with .csv is a job over that file."""
    assert settings.scripted is not None
    arguments = [settings.home, settings.cwd, settings.scripted, task, msgspec.json.encode(options).decode()]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    guard = threading.Timer(30, process.kill)
    guard.start()
    events: list[e.AnyEvent] = []
    with process.stdout, process.stderr:
        try:
            while not when(events):
                line = process.stdout.readline()
                assert line, process.stderr.read().decode()[-2000:]
                events.append(e.decode(line))
        finally:
            process.kill()
            guard.cancel()
            rest = process.stdout.read().splitlines(keepends=True)
            events += [e.decode(line) for line in rest if line.endswith(b"\n")]
            process.wait()
    return events
