"""What an engine offers its faces, in this process or behind a socket: commands, pages, feeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from core.channel.client import ClientError, EngineGone
from core.channel.feed import BACKLOG, Feed, Reader
from core.domain.commands import AnyCommand, Delta, Page, PageRequest, Reply
from core.domain.events import AnyEvent
from core.engine.engine import Engine
from core.engine.errors import EngineError
from core.safety.text import clean_line

log = logging.getLogger("watchroom.channel")


class Hub:
    """One per engine; takes the engine's two sinks. `aclose` ends the feeds and waits for commands.

    `backlog`: events and deltas kept for one reader before it has lagged."""

    def __init__(self, engine: Engine, *, backlog: int = BACKLOG) -> None:
        self._engine = engine
        self._backlog = backlog
        self._feeds: dict[str, Feed] = {}
        self._commands: set[asyncio.Task[Reply]] = set()
        self._closed = False
        engine.on_events = self._publish
        engine.on_delta = self._publish_delta
        engine.on_given_up = self._forget
        engine.watched = self._watched

    async def send(self, command: AnyCommand) -> Reply:
        """Carry out a command. One that was accepted is carried out, also when whoever sent it no longer
        waits. A bug behind it is a reply too. Raises EngineGone once the engine stops."""
        if self._closed:
            raise EngineGone("the engine has stopped")
        task = asyncio.create_task(self._handle(command))
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)
        return await asyncio.shield(task)

    async def _handle(self, command: AnyCommand) -> Reply:
        try:
            return await self._engine.handle(command)
        except Exception:
            log.exception("a command failed: %s", type(command).__name__)
            return Reply(ok=False, code="error", error="the engine failed on this command; its log says how")

    async def page(self, request: PageRequest) -> Page:
        """Raises ClientError."""
        try:
            return await self._engine.page(request)
        except EngineError as error:
            raise ClientError(str(error)) from error
        except Exception as error:
            log.exception("a page failed: %s", type(request).__name__)
            raise ClientError("the engine failed on this page; its log says how") from error

    def subscribe(self, swarm: str, wake: asyncio.Event | None = None) -> Reader:
        """A reader of the swarm's feed, to be given back by `unsubscribe`. Raises ClientError."""
        feed = self._feed(swarm)
        if feed is None:
            raise ClientError(f"this engine runs no swarm {clean_line(swarm)}")
        return feed.subscribe(wake, backlog=self._backlog)

    def unsubscribe(self, swarm: str, reader: Reader) -> None:
        if (feed := self._feeds.get(swarm)) is not None:
            feed.unsubscribe(reader)
            self._engine.touch(swarm)

    def changed(self) -> None:
        """Whoever watches whether this engine is still needed looks again."""
        self._engine.changed.set()

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
            if self._closed:
                feed.close()
        return feed

    def _watched(self, swarm: str) -> bool:
        feed = self._feeds.get(swarm)
        return feed is not None and feed.watched

    def _forget(self, swarm: str) -> None:
        if (feed := self._feeds.pop(swarm, None)) is not None:
            feed.close()

    def _publish(self, swarm: str, events: Sequence[AnyEvent], bodies: Sequence[str]) -> None:
        if (feed := self._feed(swarm)) is not None:
            feed.publish(events, bodies)

    def _publish_delta(self, swarm: str, delta: Delta) -> None:
        if (feed := self._feed(swarm)) is not None:
            feed.publish_delta(delta)
