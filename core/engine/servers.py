"""The MCP servers of a swarm: one set that its agents share, and sets of their own for those whose role wants
that. What becomes of each server is an event of the swarm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.agents.agent import AgentSpec
from core.agents.startup import StartupError, startup_wait
from core.agents.swarm import Swarm
from core.clock import Clock
from core.config import McpSettings
from core.domain import events as e
from core.safety.text import clean_line, shorten
from core.store.errors import StoreError
from core.tools.approval import Policy
from core.tools.base import Tool
from core.tools.mcp.errors import McpStartError
from core.tools.mcp.offers import show
from core.tools.mcp.server import NOBODY, Question, Reply, Status
from core.tools.mcp.servers import McpServers
from core.tools.mcp.tool import McpTool

log = logging.getLogger("watchroom.engine")
STOPPED = "its servers were stopped"
ASKED = "a question of an MCP server, in its own words; approved, it is told yes, without any values"


class _Set:
    """Servers that are started together: once for all who ask, and anew for the next after a failure."""

    def __init__(self, names: Sequence[str], make: Callable[[], McpServers]) -> None:
        self.names = names
        self._make = make
        self._servers: McpServers | None = None
        self._start: asyncio.Task[McpServers] | None = None

    @property
    def up(self) -> McpServers | None:
        """The servers, once all of them have started or failed."""
        task = self._start
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    @property
    def starting(self) -> list[str]:
        return self._servers.starting if self._servers is not None else []

    async def start(self) -> McpServers:
        """Raises StartupError. Cancelling whoever waits does not stop the start: others may wait too."""
        if self._start is None or (self._start.done() and self.up is None):
            self._start = asyncio.create_task(self._run(), name="start of mcp servers")
            self._start.add_done_callback(_seen)
        task = self._start
        await asyncio.wait({task})
        if task.cancelled():
            raise StartupError(STOPPED)
        return task.result()

    async def _run(self) -> McpServers:
        self._servers = servers = self._make()
        try:
            await servers.start()
        except McpStartError as error:
            raise StartupError(str(error)) from None
        return servers

    async def aclose(self) -> None:
        if self._start is not None and not self._start.done():
            self._start.cancel()
            await asyncio.wait({self._start})
        if self._servers is not None:
            await self._servers.aclose()


class SwarmServers:
    """`core.agents.startup.Supplier` with the servers of the settings. Made before its swarm, which it gets
    as `swarm`; `aclose` it when the swarm is over."""

    swarm: Swarm

    def __init__(
        self,
        settings: Mapping[str, McpSettings],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        clock: Clock,
        policy: Policy,
    ) -> None:
        self._settings = {name: one for name, one in sorted(settings.items()) if one.enabled}
        self._cwd = cwd
        self._environment = environment
        self._clock = clock
        self._policy: Policy = policy
        self._shared = self._set(None, self._settings)
        self._own: dict[str, _Set] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, tuple[AgentSpec, str]] = {}
        """Agents that wait for servers, by thread, with what was said last that they wait for."""
        self._untold: list[e.McpServerChanged] = []
        self._teller: asyncio.Task[None] | None = None

    def secrets(self) -> set[str]:
        """What must not reach the journal; told before any server starts."""
        return self._servers(None, self._settings).secrets()

    # --- the supplier of agents ---------------------------------------------------------------------------

    def ready(self, spec: AgentSpec) -> Sequence[Tool] | None:
        if not self._names(spec):
            return ()
        found = self._own.get(spec.thread) if spec.own_servers else self._shared
        servers = found.up if found is not None else None
        return self._tools(servers, spec) if servers is not None else None

    async def start(self, spec: AgentSpec) -> Sequence[Tool]:
        self._waiting[spec.thread] = spec, self.waits_for(spec)
        try:
            return await self._started(spec)
        finally:
            # Before its agent goes on: nothing is said of its waiting any more.
            del self._waiting[spec.thread]

    async def _started(self, spec: AgentSpec) -> Sequence[Tool]:
        if not spec.own_servers:
            return self._tools(await self._shared.start(), spec)
        if (end := self._ends.get(spec.thread)) is not None:
            await asyncio.wait({end})
        settings = {name: self._settings[name] for name in self._names(spec)}
        own = self._own.setdefault(spec.thread, self._set(spec.thread, settings))
        try:
            return self._tools(await own.start(), spec)
        except asyncio.CancelledError:
            await self.end(spec.thread)
            raise

    def waits_for(self, spec: AgentSpec) -> str:
        # Those who share are up when all of them are.
        names = self._names(spec) if spec.own_servers else self._settings
        return _words(self._starting(spec) or [show(name) for name in names])

    def _starting(self, spec: AgentSpec) -> list[str]:
        found = self._own.get(spec.thread) if spec.own_servers else self._shared
        return found.starting if found is not None else []

    def registered(self, thread: str) -> None:
        self._tell()

    def drop(self, thread: str) -> None:
        own = self._own.pop(thread, None)
        if own is None:
            return
        self._ends[thread] = end = asyncio.create_task(own.aclose(), name="end of mcp servers")
        end.add_done_callback(lambda _: self._ended(thread))

    def _ended(self, thread: str) -> None:
        self._ends.pop(thread, None)
        if thread not in self.swarm.state.agents:
            # It was never registered, and nobody hears of what was started for it.
            self._untold = [event for event in self._untold if event.agent != thread]

    async def end(self, thread: str) -> None:
        self.drop(thread)
        if (end := self._ends.get(thread)) is not None:
            await asyncio.wait({end})
            await self._told()

    async def aclose(self) -> None:
        """End all servers, those that are starting too, and record it."""
        for thread in list(self._own):
            self.drop(thread)
        ends = {asyncio.create_task(self._shared.aclose()), *self._ends.values()}
        try:
            await asyncio.wait(ends)
        except asyncio.CancelledError:
            for end in ends:
                end.cancel()  # they go on, faster
            await asyncio.wait(ends)
            raise
        await self._told()

    # --- sets ---------------------------------------------------------------------------------------------

    def _names(self, spec: AgentSpec) -> list[str]:
        return [name for name in self._settings if spec.servers is None or name in spec.servers]

    def _set(self, thread: str | None, settings: Mapping[str, McpSettings]) -> _Set:
        return _Set(list(settings), lambda: self._servers(thread, settings))

    def _servers(self, thread: str | None, settings: Mapping[str, McpSettings]) -> McpServers:
        return McpServers(
            settings,
            cwd=self._cwd,
            environment=self._environment,
            clock=self._clock,
            policy=self._policy,
            elicit=self._ask,
            on_status=lambda status: self._changed(thread, status),
        )

    def _tools(self, servers: McpServers, spec: AgentSpec) -> list[Tool]:
        wanted = {show(name) for name in self._names(spec)}
        return [
            tool
            for _, tool in sorted(servers.tools.items())
            if isinstance(tool, McpTool) and tool.server in wanted
        ]

    # --- what is told -------------------------------------------------------------------------------------

    def _changed(self, thread: str | None, status: Status) -> None:
        event = e.McpServerChanged(
            agent=thread,
            server=status.server,
            status=status.state,
            detail=status.detail,
            tools=status.tools,
            required=status.required,
            seconds=status.seconds,
        )
        # A server that changes all the time is told as it is when somebody gets to write it down.
        same = (event.agent, event.server, event.status)
        for index, earlier in enumerate(self._untold):
            if (earlier.agent, earlier.server, earlier.status) == same:
                self._untold[index] = event
                break
        else:
            self._untold.append(event)
        self._tell()

    def _tell(self) -> None:
        if self._tellable() and (self._teller is None or self._teller.done()):
            self._teller = asyncio.create_task(self._write(), name="mcp events")

    def _tellable(self) -> list[e.McpServerChanged]:
        """Of an agent that is not registered yet nothing is told."""
        if not self._untold:
            return []
        known = self.swarm.state.agents
        return [event for event in self._untold if event.agent is None or event.agent in known]

    async def _write(self) -> None:
        while batch := self._tellable():
            self._untold = [event for event in self._untold if event not in batch]
            try:
                await self.swarm.append([*batch, *self._fewer()])
            except StoreError as error:
                log.warning("swarm %s: what became of MCP servers is not recorded: %s", self.swarm.id, error)
                return

    def _fewer(self) -> list[e.AgentWaits]:
        """What agents wait for that wait for fewer servers than was said."""
        events = []
        for thread, (spec, said) in self._waiting.items():
            starting = self._starting(spec)
            if starting and (words := _words(starting)) != said and thread in self.swarm.state.agents:
                self._waiting[thread] = spec, words
                events.append(e.AgentWaits(agent=thread, wait=startup_wait(words)))
        return events

    async def _told(self) -> None:
        self._tell()
        if self._teller is not None:
            await asyncio.wait({self._teller})

    # --- questions ----------------------------------------------------------------------------------------

    async def _ask(self, question: Question) -> Reply:
        """A server's question, put to the operator as an approval on the root's thread, if yes and no can
        answer it."""
        required = question.schema.get("required")
        if required:
            names = required if isinstance(required, list) else [required]
            shown = shorten(clean_line(", ".join(str(name) for name in names)), 200)
            return Reply(
                action="decline", reason=f"its form needs values ({shown}), and nobody can enter any"
            )
        root = self.swarm.root
        if root is None or self.swarm.config.unattended == "refuse":
            return Reply(action="decline", reason=NOBODY)
        verdict = await self.swarm.approvals.question(
            thread=root.thread,
            text=f"{question.server} asks: {clean_line(question.message)}",
            cwd=self._cwd,
            reason=ASKED,
        )
        if verdict.approved:
            return Reply(action="accept", content={})
        return Reply(action="decline", reason=verdict.reason)


def _words(names: Sequence[str]) -> str:
    return f"MCP server{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _seen(task: asyncio.Task[McpServers]) -> None:
    """Look at a failure that nobody waited for any more."""
    if not task.cancelled():
        task.exception()
