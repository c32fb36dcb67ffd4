"""Starting the fake servers, and calling their tools as an agent does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from core.clock import Clock, SystemClock
from core.config import McpSettings
from core.tools.approval import Policy
from core.tools.base import ToolError, ToolOutput, parse_args
from core.tools.mcp.server import Elicit, Status
from core.tools.mcp.servers import McpServers
from tests.core.tools.context import FakeContext

SCRIPT = Path(__file__).with_name("fake_server.py")


def fake(behaviour: str = "good", marker: str = "", **settings: Any) -> McpSettings:
    """The settings of a fake server."""
    args = ["-I", "-S", str(SCRIPT), behaviour, *([marker] if marker else [])]
    return McpSettings(command=sys.executable, args=args, **settings)


class Fixture:
    """A swarm's servers, and an agent that calls their tools."""

    def __init__(self, cwd: Path) -> None:
        self.context = FakeContext(cwd)
        self.statuses: list[Status] = []
        self._listeners: list[tuple[Callable[[Status], bool], asyncio.Event]] = []
        self.servers: McpServers

    def status(self, status: Status) -> None:
        self.statuses.append(status)
        for wanted, event in self._listeners:
            if wanted(status):
                event.set()

    async def until(self, state: str) -> Status:
        """Wait for a status, one that was there before included."""
        event = asyncio.Event()
        self._listeners.append((lambda status: status.state == state, event))
        if not any(status.state == state for status in self.statuses):
            await asyncio.wait_for(event.wait(), 10)
        return next(status for status in reversed(self.statuses) if status.state == state)

    def build(
        self,
        settings: Mapping[str, McpSettings],
        *,
        policy: Policy = "untrusted",
        elicit: Elicit | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> McpServers:
        self.servers = McpServers(
            settings,
            cwd=self.context.cwd,
            environment=os.environ if environment is None else environment,
            clock=clock or SystemClock(),
            policy=policy,
            elicit=elicit,
            on_status=self.status,
        )
        return self.servers

    @asynccontextmanager
    async def running(self, settings: Mapping[str, McpSettings], **more: Any) -> AsyncIterator[McpServers]:
        async with self.build(settings, **more) as servers:
            yield servers

    async def call(self, name: str, /, context: FakeContext | None = None, **arguments: Any) -> ToolOutput:
        tool = self.servers.tools[name]
        return await tool.run(parse_args(tool, json.dumps(arguments)), context or self.context)

    async def failure(self, name: str, /, **arguments: Any) -> str:
        """The text of the ToolError that a call ends with."""
        try:
            output = await self.call(name, **arguments)
        except ToolError as error:
            return str(error)
        raise AssertionError(f"no error but {output}")
