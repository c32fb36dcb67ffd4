"""A small engine behind the Client interface: it plays given events, as a store would stamp them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from core.channel.client import Client, ClientError
from core.config import Settings
from core.domain.apply import apply
from core.domain.commands import (
    AnyCommand,
    Batch,
    Decide,
    EventsPage,
    FeedItem,
    GetEvents,
    Lagged,
    Page,
    PageRequest,
    Reply,
    ResumeSwarm,
    RunJob,
    Snapshot,
    StartSwarm,
)
from core.domain.events import AnyEvent, ApprovalDecided, ApprovalRequested
from core.domain.state import SwarmState

START = datetime(2026, 11, 20, 10, 3, 11, tzinfo=UTC)
SWARM, ROOT, JOB = "swarm-1", "thread-root", "8184e894-0000-4000-8000-000000000000"


def stamp(events: Sequence[AnyEvent], first: int = 1) -> list[AnyEvent]:
    """Dense seqs, one second apart."""
    return [
        replace(event, seq=seq, at=START + timedelta(seconds=seq), swarm=SWARM)
        for seq, event in enumerate(events, first)
    ]


class FakeEngine:
    """`before` has happened when the reply comes, `after` comes through the feed. `lag_at`: the feed loses
    the events from this seq on and starts again from a snapshot. `hang`: nothing ever ends."""

    def __init__(
        self,
        before: Sequence[AnyEvent] = (),
        after: Sequence[AnyEvent] = (),
        *,
        refuse: Reply | None = None,
        lag_at: int | None = None,
        hang: bool = False,
        on_close: Callable[[], None] = lambda: None,
        broken: str | None = None,
    ) -> None:
        self.events = stamp([*before, *after])
        self.happened = len(before)
        self.refuse = refuse
        self.lag_at = lag_at
        self.hang = hang
        self.on_close = on_close
        self.broken = broken
        self.commands: list[AnyCommand] = []
        self.settings: Settings | None = None
        self._decided = asyncio.Event()

    def connect(self, settings: Settings) -> AbstractAsyncContextManager[Client]:
        return self._open(settings)

    @asynccontextmanager
    async def _open(self, settings: Settings) -> AsyncIterator[Client]:
        self.settings = settings
        if self.broken is not None:
            raise ClientError(self.broken)
        try:
            yield self
        finally:
            self.on_close()

    async def send(self, command: AnyCommand) -> Reply:
        self.commands.append(command)
        if self.refuse is not None:
            return self.refuse
        match command:
            case StartSwarm() | ResumeSwarm():
                return Reply(value={"swarm": SWARM, "thread": ROOT})
            case RunJob():
                return Reply(value={"swarm": SWARM, "thread": ROOT, "job": JOB})
            case Decide():
                self._decided.set()
        return Reply()

    @asynccontextmanager
    async def subscribe(self, swarm: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        yield self._feed()

    async def _feed(self) -> AsyncIterator[FeedItem]:
        yield self._snapshot(self.happened)
        for event in self.events[self.happened :]:
            if self.lag_at is not None and event.seq == self.lag_at:
                yield Lagged()
                yield self._snapshot(len(self.events))
                return
            if isinstance(event, ApprovalDecided):
                await self._decided.wait()
            yield Batch(events=(event,))
            if isinstance(event, ApprovalRequested):
                await asyncio.sleep(0)
        if self.hang:
            await asyncio.Event().wait()

    def _snapshot(self, count: int) -> Snapshot:
        state = SwarmState(swarm=SWARM)
        for event in self.events[:count]:
            apply(state, event)
        return Snapshot(state=state)

    async def page(self, request: PageRequest) -> Page:
        assert isinstance(request, GetEvents)
        found = [event for event in self.events if event.seq > request.after]
        return EventsPage(events=tuple(found[:3]), seq=len(self.events))

    async def aclose(self) -> None:
        pass
