"""The MCP servers of a swarm: started side by side, shared by its agents, all ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from core.clock import Clock
from core.config import McpSettings
from core.safety.redact import secret_values
from core.safety.text import clean_line
from core.tools.approval import Policy
from core.tools.base import Tool
from core.tools.mcp.errors import McpStartError
from core.tools.mcp.names import wire_name
from core.tools.mcp.server import Elicit, McpServer, Status
from core.tools.mcp.tool import tool_of

CLOSE_SECONDS = 8.0
"""For all servers to end in their own way; then their owners are cancelled, which ends processes at once."""


class McpServers:
    """`await start()`, use `tools`, `await aclose()`; or `async with`. Any task may do either.

    `on_status` is called, on the loop, whenever a server starts, is ready, fails, changes or ends; the status
    that is the first after "starting" carries the seconds of its start-up. It must not raise or wait.
    """

    def __init__(
        self,
        settings: Mapping[str, McpSettings],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        clock: Clock,
        policy: Policy,
        elicit: Elicit | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._settings = {name: one for name, one in sorted(settings.items()) if one.enabled}
        self._cwd = cwd
        self._environment = environment
        self._clock = clock
        self._policy: Policy = policy
        self._elicit = elicit
        self._on_status = on_status
        self._servers: dict[str, McpServer] = {}
        self._owners: dict[str, asyncio.Task[None]] = {}
        self.tools: dict[str, Tool] = {}
        """By their names on the wire; of servers that are ready once `start` has returned."""

    async def __aenter__(self) -> McpServers:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start all enabled servers beside each other and wait until each has started or failed; every one
        has its own time-out. Raises McpStartError if a required one failed, after all others have been ended;
        a failed optional one is a status, and its tools are missing. Cancelled, it leaves none running."""
        assert not self._owners, "started twice"
        for name, settings in self._settings.items():
            server = McpServer(
                name,
                settings,
                cwd=self._cwd,
                environment=self._environment,
                clock=self._clock,
                elicit=self._elicit,
                on_status=self._on_status,
            )
            self._servers[name] = server
            self._on_status(server.status)
            self._owners[name] = asyncio.create_task(server.run(), name=f"mcp {clean_line(name)}")
        servers = self._servers.values()
        try:
            await asyncio.gather(*(server.ready() for server in servers), return_exceptions=True)
            failed = {
                s.name: s.status.detail for s in servers if s.status.required and s.status.state != "ready"
            }
            if failed:
                raise McpStartError(failed)
        except BaseException:
            await self.aclose()
            raise
        self._collect()

    def _collect(self) -> None:
        for server in self._servers.values():
            for offer in server.offers.values():
                name = wire_name(server.name, offer.tool, self.tools)
                self.tools[name] = tool_of(server, offer, name, self._policy)

    @property
    def starting(self) -> list[str]:
        """Names of the servers that are still starting: what an agent waits for."""
        return [s.name for s in self._servers.values() if s.status.state == "starting"]

    @property
    def statuses(self) -> list[Status]:
        return [server.status for server in self._servers.values()]

    def secrets(self) -> set[str]:
        """Values given to servers that are or look like keys: what must not reach the journal."""
        given: set[str] = set()
        for settings in self._settings.values():
            passed = {name: self._environment.get(name, "") for name in settings.env_vars}
            given |= secret_values(passed | settings.env, settings.env_vars)
        return given

    async def aclose(self) -> None:
        """End all servers and wait for that. Cancelled meanwhile, it is done faster, not less."""
        owners = set(self._owners.values())
        for name, server in self._servers.items():
            server.stop()
            if server.status.state == "starting":
                self._owners[name].cancel()
        if not owners:
            return
        try:
            async with self._clock.timeout(CLOSE_SECONDS):
                await asyncio.wait(owners)
        except TimeoutError:
            for owner in owners:
                owner.cancel()
            await asyncio.wait(owners)
        except asyncio.CancelledError:
            for owner in owners:
                owner.cancel()
            await asyncio.wait(owners)
            raise
