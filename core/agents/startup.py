"""What an agent needs before its first turn, started beside everything else: the agent is there meanwhile.

A new agent is `pending_init` until its MCP servers are up: nothing is typed to it, its mail waits. If one
that is required fails, it is `errored`, and stays so until it is resumed. Whether an agent starts up, or
could not, is what the state says: nothing here knows better. One that came back from the store starts up with
its next turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from core.domain import events as e
from core.domain.state import AgentState
from core.domain.status import Wait
from core.safety.text import clean_line, shorten
from core.tools.base import Tool

if TYPE_CHECKING:
    from core.agents.agent import Agent, AgentSpec

log = logging.getLogger("watchroom.agents")
WAIT_CHARS = 200


class StartupError(Exception):
    """What an agent needs cannot be started: `server: error`, joined by `; `."""


class Supplier(Protocol):
    """Starts what agents need, and ends what is an agent's own."""

    def ready(self, spec: AgentSpec) -> Sequence[Tool] | None:
        """The tools that it brings, if nothing has to be waited for; None: `start` it."""
        ...

    async def start(self, spec: AgentSpec) -> Sequence[Tool]:
        """Wait until everything is up. Raises StartupError. Cancelled, it leaves nothing that is the agent's
        own."""
        ...

    def waits_for(self, spec: AgentSpec) -> str:
        """What `start` waits for, for people: `MCP server docs`."""
        ...

    def registered(self, thread: str) -> None:
        """An agent that was started before it was registered is there now."""
        ...

    def drop(self, thread: str) -> None:
        """Begin to end what is an agent's own; a later `start` waits for that end."""
        ...

    async def end(self, thread: str) -> None:
        """End what is an agent's own, and wait for that."""
        ...


class Nothing:
    """The supplier of agents that need nothing."""

    def ready(self, spec: AgentSpec) -> Sequence[Tool] | None:
        return ()

    async def start(self, spec: AgentSpec) -> Sequence[Tool]:
        return ()

    def waits_for(self, spec: AgentSpec) -> str:
        return ""

    def registered(self, thread: str) -> None:
        return None

    def drop(self, thread: str) -> None:
        return None

    async def end(self, thread: str) -> None:
        return None


class Startup:
    """The start-up of one agent. `first` for one that never had a turn, `prepare` before a turn."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._up = False
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stop waiting, if `first` does: the agent is closed, or its first turn is interrupted."""
        if self._task is not None:
            self._task.cancel()

    def lost(self) -> None:
        """The agent is not in memory any more, and what is its own goes too."""
        self._up = False
        self._agent.swarm.supplier.drop(self._agent.thread)

    def given(self, tools: Sequence[Tool]) -> None:
        """Everything is up."""
        self._agent.provide(tools)
        self._up = True

    async def first(self) -> str | None:
        """Start up, and record that the agent is ready or why it is not; returns that reason. Nothing is
        recorded for one that is closed or interrupted meanwhile: a late failure is silent. So is one of a
        swarm that ends: what ends the swarm may have ended the servers, and its next engine starts anew."""
        agent = self._agent
        if self._at_once():
            await agent.swarm.append([e.AgentReady(agent=agent.thread)])
            return None
        began = agent.swarm.clock.monotonic()
        self._task = task = asyncio.create_task(self._start(), name=f"start-up {agent.path}")
        if agent.stopping:
            task.cancel()
        try:
            await asyncio.wait({task})
        finally:
            self._task = None
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        error = None if task.cancelled() else task.exception()
        if agent.stopping or (agent.swarm.ending and (task.cancelled() or error is not None)):
            return None
        if not task.cancelled() and error is None:
            seconds = round(agent.swarm.clock.monotonic() - began, 3)
            await agent.swarm.append([e.AgentReady(agent=agent.thread, seconds=seconds)])
            return None
        if error is None:
            why = "its start-up was stopped"
        elif isinstance(error, StartupError):
            why = str(error)
        else:
            log.error("start-up of %s failed", agent.path, exc_info=error)
            why = f"internal error: {error!r}"
        await agent.cannot_start(why)
        return why

    async def _start(self) -> None:
        await self._tell()
        self.given(await self._supplier.start(self._agent.spec))

    async def prepare(self) -> None:
        """Have everything up before a turn's first request. Lends the slot while that takes time: whoever
        calls takes it again. Raises StartupError."""
        if self._up or self._at_once():
            return
        agent = self._agent
        agent.slot.lend()
        await self._tell()
        self.given(await self._supplier.start(agent.spec))
        await agent.swarm.append([e.AgentWaits(agent=agent.thread, wait=None)])

    def _at_once(self) -> bool:
        tools = self._supplier.ready(self._agent.spec)
        if tools is None:
            return False
        self.given(tools)
        return True

    async def _tell(self) -> None:
        agent = self._agent
        wait = startup_wait(self._supplier.waits_for(agent.spec))
        await agent.swarm.append([e.AgentWaits(agent=agent.thread, wait=wait)])

    @property
    def _supplier(self) -> Supplier:
        return self._agent.swarm.supplier


def startup_wait(words: str) -> Wait:
    return Wait(reason="startup", detail=shorten(clean_line(words), WAIT_CHARS))


def not_ready(agent: AgentState | None, path: str) -> str | None:
    """Why an agent takes no input now, in a sentence; None if it does. Its mail waits in either case."""
    if agent is None or agent.status == "pending_init":
        waits = f" (waiting for {agent.wait.detail})" if agent and agent.wait and agent.wait.detail else ""
        return f"{path} is still starting up{waits}; it takes input once it is ready"
    if agent.start_failed:
        return f"{path} could not start: {agent.status_message}; resume it to try again"
    return None
