"""An engine behind a socket of its own, and clients of it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from core.channel import messages as m
from core.channel.client import Client
from core.channel.feed import BACKLOG
from core.channel.frames import MAX_TO_CLIENT, pack, read_frame
from core.channel.hub import Hub
from core.channel.local import LocalClient
from core.channel.remote import connect
from core.channel.server import Server
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.domain.apply import apply
from core.domain.commands import EngineInfo
from core.domain.ids import uuid7
from core.domain.state import SwarmState
from core.engine.engine import Engine
from core.version import VERSION

SWARM = "swarm"


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


class Stage:
    """The outside of an engine with one swarm, `SWARM`, whose journal the test writes itself."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.journal: list[e.AnyEvent] = []
        self.now = SwarmState(swarm=SWARM)
        self.on_events: Any = None
        self.on_delta: Any = None
        self.begun: list[str] = []
        """Texts of commands that were accepted, and "page" for a page."""
        self.done: list[str] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        """Commands and pages take until it is set."""
        self.gate.set()

    def runs(self, swarm: str) -> bool:
        return swarm == SWARM

    def touch(self, swarm: str) -> None:
        """A reader left; this swarm stays anyway."""

    def state(self, swarm: str) -> SwarmState:
        return self.now

    async def handle(self, command: c.AnyCommand) -> c.Reply:
        text = command.text if isinstance(command, c.SendInput) else type(command).__name__
        await self._work(text)
        if text == "break":
            raise RuntimeError("a bug")
        return c.Reply(value={"text": text})

    async def page(self, request: c.PageRequest) -> c.Page:
        await self._work("page")
        assert isinstance(request, c.GetEvents)
        return c.EventsPage(
            events=tuple(event for event in self.journal if event.seq > request.after), seq=self.now.seq
        )

    async def _work(self, text: str) -> None:
        self.begun.append(text)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        self.done.append(text)

    def happen(self, *events: e.Event) -> None:
        """Commit events, as the store's writer does."""
        stamped: list[Any] = []
        for event in events:
            stamped.append(replace(event, seq=len(self.journal) + 1, swarm=SWARM))
            self.journal.append(stamped[-1])
            apply(self.now, stamped[-1])
        self.on_events(SWARM, stamped, [e.encode(event).decode() for event in stamped])

    def spawn(self, count: int) -> None:
        first = len(self.journal) + 1
        numbers = range(first, first + count)
        self.happen(*[e.AgentSpawned(agent=f"t{n}", path=f"/root/a{n}", nickname=f"n{n}") for n in numbers])


class Staged(msgspec.Struct, kw_only=True):
    stage: Stage
    hub: Hub
    server: Server
    socket: Path


@asynccontextmanager
async def staged(
    *, backlog: int = BACKLOG, clock: Clock | None = None, kind: str = "background", starts: bool = True
) -> AsyncIterator[Staged]:
    """A `Stage` behind a socket."""
    stage = Stage()
    hub = Hub(cast("Engine", stage), backlog=backlog)
    info = EngineInfo(engine=uuid7(), pid=os.getpid(), kind=kind, version=VERSION)
    with tempfile.TemporaryDirectory(prefix="wr-") as folder:
        path = Path(folder) / "engine.sock"
        async with (
            asyncio.timeout(30),
            Server.listening(hub, path, info=info, clock=clock or SystemClock(), starts=starts) as server,
        ):
            try:
                yield Staged(stage=stage, hub=hub, server=server, socket=path)
            finally:
                stage.gate.set()
                await hub.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop and its sockets go on until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is the sockets that are waited for
            await asyncio.sleep(0)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def raw(socket: Path) -> AsyncIterator[Streams]:
    """A connection that keeps to nothing."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def introduced(socket: Path) -> AsyncIterator[Streams]:
    """A connection that has shaken hands and does by hand what comes next."""
    async with raw(socket) as (reader, writer):
        tell(writer, m.Hello(protocol=m.PROTOCOL, version=VERSION))
        assert isinstance(m.decode_welcome(await heard(reader)), m.Welcome)
        yield reader, writer


def tell(writer: asyncio.StreamWriter, message: Any) -> None:
    writer.write(pack(m.encode(message), MAX_TO_CLIENT))


async def heard(reader: asyncio.StreamReader) -> bytes:
    frame = await read_frame(reader, MAX_TO_CLIENT)
    assert frame is not None, "the connection ended"
    return frame
