"""An engine in this process that others can find and reach: announced in its home, listening on a socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from core.channel import directory
from core.channel.client import Client, ClientError
from core.channel.directory import Claim, EngineRecord
from core.channel.hub import Hub
from core.channel.local import LocalClient
from core.channel.server import Server
from core.channel.sockets import socket_folders, socket_path
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain.commands import EngineInfo
from core.domain.ids import uuid7
from core.engine.engine import Engine
from core.engine.errors import EngineError
from core.store.connection import prepare_home
from core.store.errors import StoreError
from core.store.locks import Owner
from core.version import VERSION

log = logging.getLogger("watchroom.host")
BACKGROUND = "background"
SETTLE_SECONDS = 1.0
"""How long a change is let stand before it is asked again whether anything still happens."""


class EngineRuns(ClientError):
    """The home has a background engine already."""

    def __init__(self, record: EngineRecord) -> None:
        where = f"process {record.pid}" + ("" if record.here else f" on {record.host}")
        super().__init__(
            f"an engine of this home runs already ({where});"
            " watchroom attach shows it, watchroom stop ends it"
        )
        self.record = record


class Hosting:
    """An engine with everything around it."""

    def __init__(self, engine: Engine, client: LocalClient, server: Server | None, socket: str) -> None:
        self.engine = engine
        self.client = client
        self.server = server
        self.socket = socket
        """Path of its socket; "" without one."""


@asynccontextmanager
async def host_engine(settings: Settings, *, kind: str, clock: Clock | None = None) -> AsyncIterator[Client]:
    """An engine in this process that a console can attach to while it runs. Without a socket it runs all the
    same. Raises ClientError, one sentence, if it cannot start or if it broke."""
    async with hosting(settings, kind, clock or SystemClock()) as hosted:
        yield hosted.client


@asynccontextmanager
async def hosting(settings: Settings, kind: str, clock: Clock) -> AsyncIterator[Hosting]:
    """As `host_engine`. A background engine that cannot be reached is of no use: that is a ClientError."""
    info = EngineInfo(engine=uuid7(), pid=os.getpid(), kind=kind, version=VERSION)
    try:
        hidden = [*socket_folders(), settings.logs]  # the log tells about other swarms
        async with Engine.running(settings, clock, hidden=hidden) as engine:
            engine.store.owner = Owner(pid=info.pid, engine=info.engine, kind=kind)
            hub = Hub(engine)
            async with AsyncExitStack() as stack:
                server, socket = await _listen(stack, settings, hub, info, clock)
                hosted = Hosting(engine, LocalClient(hub, info), server, socket)
                # What the imports made lives as long as the process. Without this each full collection walks
                # all of it, and the loop stands still for 40 ms.
                gc.freeze()
                try:
                    yield hosted
                finally:
                    # Clients see how everything ends before their connections do.
                    await engine.end_swarms()
                    await hosted.client.aclose()
    except EngineError as error:
        raise ClientError(str(error)) from error


async def _listen(
    stack: AsyncExitStack, settings: Settings, hub: Hub, info: EngineInfo, clock: Clock
) -> tuple[Server | None, str]:
    """Open the socket, then announce it, so that whoever reads of it can connect."""
    background = info.kind == BACKGROUND
    try:
        await asyncio.to_thread(directory.sweep, settings.home)
        path = socket_path(info.engine)
        listening = Server.listening(hub, path, info=info, clock=clock, starts=background)
        async with AsyncExitStack() as opened:
            server = await opened.enter_async_context(listening)
            record = EngineRecord(
                engine=info.engine,
                pid=info.pid,
                kind=info.kind,
                version=info.version,
                socket=str(path),
                started_at=clock.now(),
                host=directory.host_name(),
            )
            opened.callback(directory.announce(settings.home, record).close)
            stack.push_async_exit(opened.pop_all())
    except ClientError as error:
        if background:
            raise
        log.warning("no console can attach to this run: %s", error)
        return None, ""
    return server, str(path)


# --- the background engine -------------------------------------------------------------------------------


def claim(settings: Settings) -> Claim:
    """The right to be the home's background engine. BLOCKS while another one starts or ends: call it before
    there is a loop, or in a thread. Raises EngineRuns or another ClientError."""
    try:
        prepare_home(settings.home)
    except StoreError as error:
        raise ClientError(str(error)) from error
    found = directory.claim(settings.home)
    if isinstance(found, EngineRecord):
        raise EngineRuns(found)
    return found


async def run_background(
    settings: Settings,
    *,
    ready: Callable[[str], None],
    clock: Clock | None = None,
    claimed: Claim | None = None,
    started: Callable[[Engine], None] = lambda _: None,
) -> str:
    """Be the home's background engine until somebody stops it, or `idle_seconds` pass without work and
    without a client. `ready` gets the path of the socket once clients can connect; `started` the engine,
    before. Returns why it ended. Raises EngineRuns if there is one, and ClientError."""
    clock = clock or SystemClock()
    held = await asyncio.to_thread(claim, settings) if claimed is None else claimed
    try:
        async with hosting(settings, BACKGROUND, clock) as hosted:
            started(hosted.engine)
            held.started()
            log.info("engine %s listens at %s", hosted.client.engine.engine, hosted.socket)
            ready(hosted.socket)
            why = "a signal, or the fault that is told next"
            try:
                why = await _until_done(hosted, settings.engine.idle_seconds, clock)
            finally:
                log.info("the engine ends: %s", why)
        return why
    finally:
        held.close()


async def _until_done(hosted: Hosting, idle_seconds: float, clock: Clock) -> str:
    """Until there is a reason to end; returns it."""
    asked = asyncio.create_task(hosted.engine.stop_asked.wait())
    idle = asyncio.create_task(_idle(hosted, idle_seconds, clock))
    try:
        await asyncio.wait({asked, idle}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return "it was stopped"
        idle.result()
        return f"nothing to do and no client for {idle_seconds:g} seconds"
    finally:
        for task in (asked, idle):
            task.cancel()
        await asyncio.wait({asked, idle})


async def _idle(hosted: Hosting, seconds: float, clock: Clock) -> None:
    """Returns after `seconds` in which nothing happened and nobody was connected."""
    engine, server = hosted.engine, hosted.server
    assert server is not None
    while True:
        engine.changed.clear()
        quiet = not engine.busy() and not server.clients
        try:
            async with clock.timeout(seconds if quiet else None):
                await engine.changed.wait()
        except TimeoutError:
            return
        # A busy engine changes all the time; looking at all its agents each time would be work of its own.
        await clock.sleep(min(SETTLE_SECONDS, seconds))
