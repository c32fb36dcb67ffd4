"""The engine in the face's own process, behind the same interface that a socket will have."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from core.channel.client import Client, ClientError
from core.channel.feed import Feed
from core.clock import Clock
from core.config import Settings
from core.domain.commands import AnyCommand, Delta, EngineInfo, FeedItem, Page, PageRequest, Reply
from core.domain.events import AnyEvent
from core.domain.ids import uuid7
from core.engine.engine import Engine, EngineError
from core.version import VERSION


class LocalClient:
    """`core.channel.client.Client` on an engine of this loop."""

    outlives = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.engine = EngineInfo(engine=uuid7(), pid=os.getpid(), kind="local", version=VERSION)
        self._feeds: dict[str, Feed] = {}
        self._commands: set[asyncio.Task[Reply]] = set()
        self._closed = False
        engine.on_events = self._publish
        engine.on_delta = self._publish_delta

    async def send(self, command: AnyCommand) -> Reply:
        if self._closed:
            raise ClientError("the engine has stopped")
        # A command that was accepted is carried out, also when whoever sent it no longer waits.
        task = asyncio.create_task(self._engine.handle(command))
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def subscribe(self, swarm: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        feed = self._feed(swarm)
        if feed is None:
            raise ClientError(f"this engine runs no swarm {swarm}")
        reader = feed.subscribe()
        try:
            yield reader
        finally:
            feed.unsubscribe(reader)

    async def page(self, request: PageRequest) -> Page:
        try:
            return await self._engine.page(request)
        except EngineError as error:
            raise ClientError(str(error)) from error

    async def aclose(self) -> None:
        """End the feeds. Commands on their way are waited for."""
        self._closed = True
        if self._commands:
            await asyncio.wait(set(self._commands))
        for feed in self._feeds.values():
            feed.close()

    def _feed(self, swarm: str) -> Feed | None:
        feed = self._feeds.get(swarm)
        if feed is None and self._engine.runs(swarm):
            feed = self._feeds[swarm] = Feed(lambda: self._engine.state(swarm))
        return feed

    def _publish(self, swarm: str, events: Sequence[AnyEvent], bodies: Sequence[str]) -> None:
        if (feed := self._feeds.get(swarm)) is not None:
            feed.publish(events)

    def _publish_delta(self, swarm: str, delta: Delta) -> None:
        if (feed := self._feeds.get(swarm)) is not None:
            feed.publish_delta(delta)


@asynccontextmanager
async def open_engine(settings: Settings, *, clock: Clock | None = None) -> AsyncIterator[Client]:
    """An engine in this process. Raises ClientError, one sentence, if it cannot start or if it broke."""
    try:
        async with Engine.running(settings, clock) as engine:
            client = LocalClient(engine)
            try:
                yield client
            finally:
                await client.aclose()
    except EngineError as error:
        raise ClientError(str(error)) from error
