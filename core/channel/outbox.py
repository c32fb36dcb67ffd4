"""What waits to be sent to one client: replies in order, then the items of its feeds in turn."""

from __future__ import annotations

import asyncio
from collections import deque

from core.channel.feed import Reader
from core.channel.hub import Hub
from core.channel.messages import End, encode, encode_item, snapshot_parts
from core.clock import Clock
from core.domain.commands import Snapshot

FULL = 128
"""Replies that may wait before the client is no longer heard."""
FULL_BYTES = 8 * 1024 * 1024
"""The same in bytes: a page may have megabytes."""


class Outbox:
    """One reader (`next`) and any number of writers, all of one loop; writing never waits."""

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._replies: deque[bytes] = deque()
        self._bytes = 0
        self._feeds: dict[int, tuple[str, Reader]] = {}
        self._turns: deque[int] = deque()
        """Ids of the feeds, the one whose turn is next first."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False

    @property
    def waiting(self) -> int:
        return len(self._replies)

    @property
    def feeds(self) -> int:
        return len(self._feeds)

    def put(self, message: bytes) -> None:
        """A reply; it goes before every item of a feed."""
        self._replies.append(message)
        self._bytes += len(message)
        if self._full:
            self._room.clear()
        self._wake.set()

    @property
    def _full(self) -> bool:
        return len(self._replies) >= FULL or self._bytes >= FULL_BYTES

    async def room(self) -> None:
        """Returns once fewer than `FULL` replies and `FULL_BYTES` wait."""
        await self._room.wait()

    def subscribed(self, id: int) -> bool:
        return id in self._feeds

    def subscribe(self, id: int, swarm: str) -> None:
        """Raises ClientError for a swarm that the engine does not run."""
        self._feeds[id] = (swarm, self._hub.subscribe(swarm, self._wake))
        self._turns.append(id)

    def unsubscribe(self, id: int) -> None:
        if id in self._feeds:
            swarm, reader = self._feeds.pop(id)
            self._turns.remove(id)
            self._hub.unsubscribe(swarm, reader)

    def end(self) -> None:
        """Nothing is written any more; `next` gives what is left and then None."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        for id in list(self._feeds):
            self.unsubscribe(id)

    async def next(self) -> bytes | None:
        """The next message; None after `end`, once nothing is left."""
        while True:
            if self._replies:
                message = self._replies.popleft()
                self._bytes -= len(message)
                if not self._full:
                    self._room.set()
                return message
            if (item := await self._item()) is not None:
                return item
            if self._ended:
                return None
            self._wake.clear()
            await self._wake.wait()

    async def _item(self) -> bytes | None:
        for _ in range(len(self._turns)):
            id = self._turns[0]
            self._turns.rotate(-1)
            reader = self._feeds[id][1]
            if isinstance(item := reader.take(), Snapshot):
                parts = []
                for part in snapshot_parts(id, item):
                    parts.append(part)
                    await self._clock.sleep(0)  # the engine's turn
                return b"".join(parts)
            if item is not None:
                return encode_item(id, item)
            if reader.ended:
                self.unsubscribe(id)
                return encode(End(id=id))
        return None
