"""The feed of a swarm: one snapshot, then every event after it, and the text still being written.

Publishing never waits. A reader that does not keep up loses its backlog, is told so, and starts again from
a snapshot; deltas of one answer are merged, events never.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from core.domain.commands import Batch, Delta, FeedItem, Lagged, Snapshot, Streaming
from core.domain.events import AnyEvent, AssistantMessage, TurnCompleted, TurnFailed, TurnInterrupted
from core.domain.state import SwarmState

BACKLOG = 20_000
"""Events and deltas kept for one reader before it counts as too slow."""
BACKLOG_BYTES = 64 * 1024 * 1024
"""The same in characters of JSON. Readers of one feed share the text that they wait for."""
BATCH = 1000
BATCH_BYTES = 1024 * 1024
_SETTLES = (AssistantMessage, TurnCompleted, TurnFailed, TurnInterrupted)


class Events:
    """Consecutive events and their JSON as it is stored; shared by all readers, changed by none."""

    __slots__ = ("bodies", "events", "settles", "size")

    def __init__(self, events: Sequence[AnyEvent], bodies: Sequence[str]) -> None:
        self.events = events
        self.bodies = bodies
        self.size = sum(map(len, bodies))
        self.settles = tuple(e.agent for e in events if e.agent is not None and isinstance(e, _SETTLES))
        """Agents whose streaming text is whole with these."""

    def after(self, seq: int) -> Events | None:
        """What of it is newer than `seq`."""
        if self.events[0].seq > seq:
            return self
        skip = seq + 1 - self.events[0].seq
        return Events(self.events[skip:], self.bodies[skip:]) if skip < len(self.events) else None


class _Text:
    """A delta that more text may still be added to."""

    __slots__ = ("length", "offset", "parts", "response", "thread")

    def __init__(self, delta: Delta) -> None:
        self.thread = delta.thread
        self.response = delta.response
        self.offset = delta.offset
        self.parts = [delta.text]
        self.length = len(delta.text)

    def takes(self, delta: Delta) -> bool:
        """Whether it goes on where this ends; if so it is added."""
        fits = delta.response == self.response and delta.offset == self.offset + self.length
        if fits and delta.text:
            self.parts.append(delta.text)
            self.length += len(delta.text)
        return fits and bool(delta.text)

    def text(self) -> str:
        self.parts = ["".join(self.parts)]
        return self.parts[0]


class Feed:
    """What one swarm's readers subscribe to. `state` gives the live, committed state."""

    def __init__(self, state: Callable[[], SwarmState]) -> None:
        self._state = state
        self._readers: set[Reader] = set()
        self._streaming: dict[str, _Text] = {}
        self._closed = False

    @property
    def watched(self) -> bool:
        """Whether somebody reads it."""
        return bool(self._readers)

    def publish(self, events: Sequence[AnyEvent], bodies: Sequence[str]) -> None:
        """Committed events, in order, and the JSON of each."""
        for piece in _pieces(events, bodies):
            for thread in piece.settles:
                self._streaming.pop(thread, None)
            for reader in self._readers:
                reader.push(piece)

    def publish_delta(self, delta: Delta) -> None:
        known = self._streaming.get(delta.thread)
        if delta.offset == 0:
            self._streaming[delta.thread] = _Text(delta)
            if not delta.text:
                del self._streaming[delta.thread]
        elif known is None or not known.takes(delta):
            return
        for reader in self._readers:
            reader.push_delta(delta)

    def snapshot(self) -> Snapshot:
        streaming = tuple(
            Streaming(thread=text.thread, response=text.response, text=text.text())
            for text in self._streaming.values()
        )
        return Snapshot(state=self._state().copy(), streaming=streaming)

    def subscribe(
        self, wake: asyncio.Event | None = None, *, backlog: int = BACKLOG, backlog_bytes: int = BACKLOG_BYTES
    ) -> Reader:
        """A new reader. `wake` is set whenever it may have something; one event may serve many readers."""
        reader = Reader(self, wake or asyncio.Event(), backlog, backlog_bytes)
        if self._closed:
            reader.end()
        self._readers.add(reader)
        return reader

    def unsubscribe(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def close(self) -> None:
        """No more will come: readers end after what they have."""
        self._closed = True
        for reader in self._readers:
            reader.end()


class Reader:
    """One subscription. A Snapshot comes first; `ended` is set once nothing more will come."""

    def __init__(self, feed: Feed, wake: asyncio.Event, backlog: int, backlog_bytes: int) -> None:
        self._feed = feed
        self._wake = wake
        self._backlog = backlog
        self._backlog_bytes = backlog_bytes
        self._queue: deque[Events | _Text] = deque()
        self._open: dict[str, _Text] = {}
        """The queued text of each thread that may still grow."""
        self._count = 0
        self._bytes = 0
        self._fresh = True
        """A snapshot is due."""
        self._lagged = False
        self._ended = False
        self._seq = 0
        wake.set()

    def push(self, piece: Events) -> None:
        if self._fresh or self._lagged:
            return  # The snapshot that is due will hold them.
        newer = piece.after(self._seq)
        if newer is None:
            return
        for thread in newer.settles:
            self._open.pop(thread, None)
        self._add(newer, len(newer.events), newer.size)

    def push_delta(self, delta: Delta) -> None:
        if self._fresh or self._lagged:
            return
        known = self._open.get(delta.thread)
        if known is not None and known.takes(delta):
            self._count_in(0, len(delta.text))
        else:
            text = self._open[delta.thread] = _Text(delta)
            self._add(text, 1, text.length)

    def _add(self, entry: Events | _Text, count: int, size: int) -> None:
        self._queue.append(entry)
        self._count_in(count, size)

    def _count_in(self, count: int, size: int) -> None:
        self._count += count
        self._bytes += size
        if self._count > self._backlog or self._bytes > self._backlog_bytes:
            self._forget()
            self._lagged = True
        self._wake.set()

    def _forget(self) -> None:
        self._queue.clear()
        self._open.clear()
        self._count = self._bytes = 0

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    @property
    def ended(self) -> bool:
        """Whether nothing is left and nothing will come."""
        return self._ended and not (self._queue or self._fresh or self._lagged)

    def take(self) -> Snapshot | Lagged | Delta | Events | None:
        """What is next; None if there is nothing now."""
        if self._lagged:
            self._lagged, self._fresh = False, True
            return Lagged()
        if self._fresh:
            self._fresh = False
            snapshot = self._feed.snapshot()
            self._seq = snapshot.state.seq
            return snapshot
        if not self._queue:
            return None
        first = self._queue.popleft()
        if isinstance(first, _Text):
            self._count -= 1
            self._bytes -= first.length
            if self._open.get(first.thread) is first:
                del self._open[first.thread]
            return Delta(thread=first.thread, response=first.response, offset=first.offset, text=first.text())
        return self._gather(first)

    def _gather(self, first: Events) -> Events:
        """`first` and the pieces behind it, as far as they fit into one batch."""
        count, size = len(first.events), first.size
        pieces = [first]
        while self._queue and isinstance(piece := self._queue[0], Events):
            if count + len(piece.events) > BATCH or size + piece.size > BATCH_BYTES:
                break
            count += len(piece.events)
            size += piece.size
            pieces.append(piece)
            self._queue.popleft()
        self._count -= count
        self._bytes -= size
        if len(pieces) == 1:
            return first
        return Events([e for p in pieces for e in p.events], [b for p in pieces for b in p.bodies])

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> FeedItem:
        while True:
            item = self.take()
            if isinstance(item, Events):
                return Batch(events=tuple(item.events))
            if item is not None:
                return item
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()


def _pieces(events: Sequence[AnyEvent], bodies: Sequence[str]) -> Iterator[Events]:
    """Parts that fit into a batch each; an event that is larger than a batch is one alone."""
    start = size = 0
    for index, body in enumerate(bodies):
        if index > start and (index - start >= BATCH or size + len(body) > BATCH_BYTES):
            yield Events(events[start:index], bodies[start:index])
            start, size = index, 0
        size += len(body)
    if start < len(events):
        yield Events(events[start:], bodies[start:])
