"""What waits to be sent to one client: replies in order, then the items of its feeds in turn."""

from __future__ import annotations

import asyncio
from collections import deque

from core.channel.feed import Reader
from core.channel.hub import Hub
from core.channel.messages import End, encode, encode_item

FULL = 128
"""Replies that may wait before the client is no longer heard."""


class Outbox:
    """One reader (`next`) and any number of writers, all of one loop; writing never waits."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._replies: deque[bytes] = deque()
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
        if len(self._replies) >= FULL:
            self._room.clear()
        self._wake.set()

    async def room(self) -> None:
        """Returns once fewer than `FULL` replies wait."""
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
                if len(self._replies) < FULL:
                    self._room.set()
                return message
            if (item := self._item()) is not None:
                return item
            if self._ended:
                return None
            self._wake.clear()
            await self._wake.wait()

    def _item(self) -> bytes | None:
        for _ in range(len(self._turns)):
            id = self._turns[0]
            self._turns.rotate(-1)
            reader = self._feeds[id][1]
            if (item := reader.take()) is not None:
                return encode_item(id, item)
            if reader.ended:
                self.unsubscribe(id)
                return encode(End(id=id))
        return None
