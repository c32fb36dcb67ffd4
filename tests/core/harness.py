"""A whole engine on the scripted model, in process: what tests of agents, jobs and faces start from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.channel.client import Client
from core.channel.local import open_engine
from core.clock import Clock
from core.config import Settings, load_settings
from core.domain.commands import Decide, StartSwarm
from core.domain.events import AnyEvent, Event
from core.domain.state import AgentState, SwarmState
from core.view.swarm import SwarmView

T = TypeVar("T", bound=Event)


def settings_for(tmp_path: Path, scenario: str, **options: Any) -> Settings:
    """Settings of an empty home in `tmp_path`, on a scenario given as TOML text or by name."""
    base = scenario
    if "\n" in scenario:
        file = tmp_path / "scenario.toml"
        file.write_text(scenario)
        base = str(file)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return load_settings(
        options={"base_url": f"scripted:{base}", "model": "scripted", **options},
        home=tmp_path / "home",
        cwd=work,
        environ={},
    )


class Watched:
    """One swarm under test: its view, every event it published, and ways to wait for what matters."""

    def __init__(self, client: Client, swarm: str, root: str) -> None:
        self.client = client
        self.swarm = swarm
        self.root = root
        self.view = SwarmView()
        self.events: list[AnyEvent] = []
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        async with self.client.subscribe(self.swarm) as feed:
            async for item in feed:
                self.view.feed(item)
                self.events += getattr(item, "events", ())
                self._changed.set()

    @property
    def state(self) -> SwarmState:
        return self.view.state

    def at(self, path: str) -> AgentState:
        agent = self.state.by_path(path)
        assert agent is not None, f"no agent at {path}"
        return agent

    def of(self, kind: type[T], path: str | None = None) -> list[T]:
        """The events of a kind so far, of one agent if `path` is given."""
        thread = self.at(path).thread if path is not None else None
        return [e for e in self.events if isinstance(e, kind) and thread in (None, e.agent)]

    async def until(self, condition: Callable[[SwarmState], bool], seconds: float = 20) -> SwarmState:
        """Wait for a state; fails with what was there instead."""
        try:
            async with asyncio.timeout(seconds):
                while not (self.state.swarm and condition(self.state)):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            shown = [(a.path, a.status, a.wait and a.wait.reason) for a in self.state.agents.values()]
            raise AssertionError(f"never came to pass; agents: {shown}") from None
        return self.state

    async def quiet(self) -> SwarmState:
        return await self.until(lambda state: state.quiet())

    async def approve_all(self) -> None:
        """Answer every approval with yes, for as long as the task runs."""
        answered: set[str] = set()
        while True:
            for approval in list(self.state.approvals):
                if approval not in answered:
                    answered.add(approval)
                    await self.client.send(Decide(swarm=self.swarm, approval=approval, approve=True))
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def engine(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Client]:
    async with asyncio.timeout(50), open_engine(settings, clock=clock) as client:
        yield client


@asynccontextmanager
async def swarm(client: Client, task: str | None = "go", **fields: Any) -> AsyncIterator[Watched]:
    """Start a swarm and follow it."""
    reply = await client.send(StartSwarm(task=task, **fields))
    assert reply.ok, reply.error
    watched = Watched(client, reply.value["swarm"], reply.value["thread"])
    follower = asyncio.create_task(watched.follow())
    try:
        await watched.until(lambda state: True)
        yield watched
    finally:
        follower.cancel()
        await asyncio.wait({follower})
