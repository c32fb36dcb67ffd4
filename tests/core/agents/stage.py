"""An engine on a scripted model whose requests are kept, with tools of the test's own: for tests that look at
what agents really send and run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import core.engine.hosting
import core.engine.models
from core.agents.swarm import Swarm
from core.agents.tools import control_tools
from core.clock import Clock
from core.domain import events as e
from core.scripted.engine import Logged
from core.scripted.scenario import Scenario
from core.scripted.transport import ScriptedTransport
from core.tools.base import Tool, ToolArgs, ToolContext, ToolOutput
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import scenario
from tests.core.harness import Watched, engine, settings_for, swarm

WAIT = 600_000
HANGING: dict[str, Any] = {"text": "never", "fault": {"kind": "hang", "after_events": 0, "times": 0}}
"""A step at which the model never answers."""


class Stage:
    """`play` runs one swarm. `tools` are offered to its agents beside the engine's own."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: Sequence[Tool] = ()) -> None:
        self.folder = tmp_path
        self.tools = list(tools)
        self._transports: list[ScriptedTransport] = []
        monkeypatch.setattr(core.engine.models, "ScriptedTransport", self._transport)
        monkeypatch.setattr(core.engine.hosting, "control_tools", self._tools)

    def _transport(self, played: Scenario, clock: Clock) -> ScriptedTransport:
        self._transports.append(ScriptedTransport(played, clock, keep=1000))
        return self._transports[-1]

    def _tools(self, of: Swarm) -> list[Tool]:
        return [*control_tools(of), *self.tools]

    @property
    def log(self) -> list[Logged]:
        return list(self._transports[-1].requests.log)

    def bodies(self, path: str = "/root") -> list[dict[str, Any]]:
        """The requests of one agent, repeated ones too, as the server read them."""
        return [entry.body for entry in self.log if entry.agent == path and entry.body is not None]

    @asynccontextmanager
    async def play(
        self,
        agents: dict[str, list[dict[str, Any]]],
        *,
        clock: Clock | None = None,
        task: str = "go",
        limits: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        **top: Any,
    ) -> AsyncIterator[Watched]:
        """`limits`: the settings' table [agents]; `options`: others; `top`: of the scenario."""
        others = {**({"agents": limits} if limits else {}), **(options or {})}
        settings = settings_for(self.folder, scenario(agents, **top), sandbox="off", **others)
        async with engine(settings, clock) as client, swarm(client, task) as watched:
            yield watched


async def passes(clock: FakeClock, seconds: float) -> None:
    """Let everything that is ready go to sleep first, then let time pass."""
    await settle()
    await clock.advance(seconds)


def outputs(watched: Watched, path: str, name: str) -> list[str]:
    """What the model was given for the calls of one tool, in the order in which they ended."""
    thread = watched.at(path).thread
    names = {c.call: c.name for c in watched.of(e.ToolCalled, path)}
    last: dict[str, str] = {}
    found = []
    for event in watched.events:
        if event.agent != thread:
            continue
        if isinstance(event, e.ToolResult):
            last[event.call] = event.text
        if isinstance(event, e.ToolEnded) and names.get(event.call) == name:
            found.append(event.output if event.output is not None else last.get(event.call, ""))
    return found


class Number(ToolArgs):
    n: int = 0


class Tick(Tool):
    """Counts how often it really ran."""

    name = "tick"
    description = "ticks"
    Args = Number

    def __init__(self) -> None:
        self.ran: list[int] = []

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self.ran.append(args.n)
        return ToolOutput(text=f"tick {args.n}")


class Gate(Tool):
    """A call that runs until the test opens it."""

    name = "gate"
    description = "waits"
    Args = Number

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self.entered.set()
        await self.open.wait()
        return ToolOutput(text="open")
