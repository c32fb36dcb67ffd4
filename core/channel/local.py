"""The engine in the face's own process, behind the same interface as one behind a socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.channel.client import Client, ClientError
from core.channel.hub import Hub
from core.clock import Clock
from core.config import Settings
from core.domain.commands import AnyCommand, EngineInfo, FeedItem, Page, PageRequest, Reply
from core.domain.ids import uuid7
from core.engine.engine import Engine
from core.engine.errors import EngineError
from core.version import VERSION


class LocalClient:
    """`core.channel.client.Client` on an engine of this loop. Closing it closes the hub."""

    outlives = False

    def __init__(self, hub: Hub, info: EngineInfo | None = None) -> None:
        self._hub = hub
        self.engine = info or EngineInfo(engine=uuid7(), pid=os.getpid(), kind="local", version=VERSION)

    async def send(self, command: AnyCommand) -> Reply:
        return await self._hub.send(command)

    @asynccontextmanager
    async def subscribe(self, swarm: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        reader = self._hub.subscribe(swarm)
        try:
            yield reader
        finally:
            self._hub.unsubscribe(swarm, reader)

    async def page(self, request: PageRequest) -> Page:
        return await self._hub.page(request)

    async def aclose(self) -> None:
        await self._hub.aclose()


@asynccontextmanager
async def open_engine(settings: Settings, *, clock: Clock | None = None) -> AsyncIterator[Client]:
    """An engine in this process. Raises ClientError, one sentence, if it cannot start or if it broke."""
    try:
        async with Engine.running(settings, clock) as engine:
            client = LocalClient(Hub(engine))
            try:
                yield client
            finally:
                await client.aclose()
    except EngineError as error:
        raise ClientError(str(error)) from error
