"""An engine behind a socket of its own, and clients of it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from core.channel.client import Client
from core.channel.hub import Hub
from core.channel.local import LocalClient
from core.channel.remote import connect
from core.channel.server import Server
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain.commands import EngineInfo
from core.domain.ids import uuid7
from core.engine.engine import Engine
from core.version import VERSION


class Wire(msgspec.Struct, kw_only=True):
    """A served engine: `local` is in its process, `socket` where the others go."""

    engine: Engine
    local: LocalClient
    server: Server
    socket: Path
    info: EngineInfo


@asynccontextmanager
async def wired(
    settings: Settings, *, starts: bool = True, clock: Clock | None = None, kind: str = "background"
) -> AsyncIterator[Wire]:
    info = EngineInfo(engine=uuid7(), pid=os.getpid(), kind=kind, version=VERSION)
    clock = clock or SystemClock()
    with tempfile.TemporaryDirectory(prefix="wr-") as folder:  # short: a socket path has about 100 bytes
        path = Path(folder) / "engine.sock"
        async with asyncio.timeout(50), Engine.running(settings, clock) as engine:
            hub = Hub(engine)
            local = LocalClient(hub, info)
            async with Server.listening(hub, path, info=info, clock=clock, starts=starts) as server:
                try:
                    yield Wire(engine=engine, local=local, server=server, socket=path, info=info)
                finally:
                    await local.aclose()


@asynccontextmanager
async def remote_engine(settings: Settings) -> AsyncIterator[Client]:
    """Like `local.open_engine`, with a socket in between."""
    async with wired(settings) as wire, connect(wire.socket) as client:
        yield client
