"""The feed of a swarm: one snapshot, then every event after it, and the text still being written.

Publishing never waits. A reader that does not keep up loses its backlog, is told so, and starts again from
a snapshot; deltas of one answer are merged, events never.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from core.domain.commands import Batch, Delta, FeedItem, Lagged, Snapshot, Streaming
from core.domain.events import AnyEvent, AssistantMessage, TurnCompleted, TurnFailed, TurnInterrupted
from core.domain.state import SwarmState

BACKLOG = 20_000
"""Events and deltas kept for one reader before it counts as too slow."""
BATCH = 1000
_SETTLES = (AssistantMessage, TurnCompleted, TurnFailed, TurnInterrupted)


class Feed:
    """What one swarm's readers subscribe to. `state` gives the live, committed state."""

    def __init__(self, state: Callable[[], SwarmState]) -> None:
        self._state = state
        self._readers: set[Reader] = set()
        self._streaming: dict[str, Streaming] = {}

    def publish(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            if isinstance(event, _SETTLES) and event.agent is not None:
                self._streaming.pop(event.agent, None)
        for reader in self._readers:
            reader.push(events)

    def publish_delta(self, delta: Delta) -> None:
        known = self._streaming.get(delta.thread)
        if delta.offset == 0:
            text = delta.text
        elif known is not None and known.response == delta.response:
            text = known.text + delta.text
        else:
            return
        if text:
            self._streaming[delta.thread] = Streaming(thread=delta.thread, response=delta.response, text=text)
        else:
            self._streaming.pop(delta.thread, None)
        for reader in self._readers:
            reader.push((delta,))

    def snapshot(self) -> Snapshot:
        return Snapshot(state=self._state().copy(), streaming=tuple(self._streaming.values()))

    def subscribe(self) -> Reader:
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    def unsubscribe(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def close(self) -> None:
        """No more will come: readers end after what they have."""
        for reader in self._readers:
            reader.end()


class Reader:
    """One subscription: an async iterator of feed items, a Snapshot first. Ends when the feed does."""

    def __init__(self, feed: Feed, backlog: int = BACKLOG) -> None:
        self._feed = feed
        self._backlog = backlog
        self._queue: deque[AnyEvent | Delta] = deque()
        self._wake = asyncio.Event()
        self._fresh = True
        """A snapshot is due."""
        self._lagged = False
        self._ended = False
        self._seq = 0

    def push(self, items: Sequence[AnyEvent | Delta]) -> None:
        if self._fresh or self._lagged:
            return  # The snapshot that is due will hold them.
        if len(self._queue) + len(items) > self._backlog:
            self._queue.clear()
            self._lagged = True
        else:
            for item in items:
                if not isinstance(item, Delta):
                    if item.seq > self._seq:
                        self._queue.append(item)
                elif not self._merge(item):
                    self._queue.append(item)
        self._wake.set()

    def _merge(self, delta: Delta) -> bool:
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, Delta) or (last.thread, last.response) != (delta.thread, delta.response):
            return False
        if delta.offset != last.offset + len(last.text) or not delta.text:
            return False
        self._queue[-1] = Delta(
            thread=last.thread, response=last.response, offset=last.offset, text=last.text + delta.text
        )
        return True

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> FeedItem:
        while True:
            if self._lagged:
                self._lagged, self._fresh = False, True
                return Lagged()
            if self._fresh:
                self._fresh = False
                snapshot = self._feed.snapshot()
                self._seq = snapshot.state.seq
                return snapshot
            if self._queue:
                return self._next()
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> Batch | Delta:
        first = self._queue.popleft()
        if isinstance(first, Delta):
            return first
        events = [first]
        while self._queue and len(events) < BATCH and not isinstance(self._queue[0], Delta):
            event = self._queue.popleft()
            assert not isinstance(event, Delta)
            events.append(event)
        self._seq = events[-1].seq
        return Batch(events=tuple(events))
