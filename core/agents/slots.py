"""Execution slots: how many turns of sub-agents run at once (decision 16).

The root's own turn never queues, so sub-agents share the limit less one. A full house queues in order of
arrival. A turn that is blocked lends its slot and gets one back ahead of that queue. With `slots = "spawned"`
an agent keeps its slot from spawn to close, and a full house refuses (decision 17).
"""

from __future__ import annotations

import asyncio
from collections import deque

LENDERS = 1_000_000_000
"""So far ahead of the others are those who lent their slot."""


class SlotPool:
    """`capacity` slots. Fair: whoever waits longest goes first, those who lent one before those who wait."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._tickets = 0
        self._lenders: deque[asyncio.Future[None]] = deque()
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """Slots that can be taken at once."""
        return 0 if self.waiting else max(self.capacity - self.used, 0)

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._lenders)

    def take(self) -> bool:
        """A slot at once, if one is free and nobody waits."""
        if self.free:
            self.used += 1
            return True
        return False

    def ticket(self, *, lender: bool) -> int:
        """A number for whoever is about to queue: smaller ones are served first."""
        self._tickets += 1
        return self._tickets - LENDERS if lender else self._tickets

    async def wait(self, *, lender: bool) -> None:
        """Queue for a slot; it is held when this returns. Cancelling leaves the queue."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._lenders if lender else self._queue
        queue.append(future)
        self._serve()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back()
            elif future in queue:  # not if it was passed over since it was cancelled
                queue.remove(future)
            raise

    def give_back(self) -> None:
        self.used -= 1
        self._serve()

    def _serve(self) -> None:
        while self.used < self.capacity and (self._lenders or self._queue):
            future = (self._lenders or self._queue).popleft()
            if not future.done():
                self.used += 1
                future.set_result(None)


class Slot:
    """One agent's hold on the pool. Every method may be called in any state; none counts twice."""

    def __init__(self, pool: SlotPool | None, *, keeps: bool = False) -> None:
        """`pool` None: an agent that needs no slot (the root). `keeps`: once held it stays so until `end`."""
        self._pool = pool
        self._keeps = keeps
        self.held = False
        self.lent = False

    def take(self) -> bool:
        """Hold a slot if that needs no waiting."""
        if self._pool is None or self.held:
            return True
        self.held = self._pool.take()
        if self.held:
            self.lent = False
        return self.held

    def ticket(self) -> int:
        """Where this one will stand in the line, as a number to compare with those of the others."""
        return self._pool.ticket(lender=self.lent) if self._pool is not None else 0

    async def acquire(self) -> None:
        """Hold a slot; one that was lent comes back ahead of the queue."""
        if self._pool is None or self.held:
            return
        if not self.take():
            await self._pool.wait(lender=self.lent)
            self.held = True
        self.lent = False

    def lend(self) -> None:
        """Let others run while this turn is blocked."""
        if self._pool is not None and self.held and not self._keeps:
            self.held = False
            self.lent = True
            self._pool.give_back()

    def release(self) -> None:
        """The turn is over."""
        if not self._keeps:
            self.end()

    def end(self) -> None:
        """The agent is over."""
        if self._pool is not None and self.held:
            self.held = False
            self._pool.give_back()
        self.lent = False

    def claim(self) -> None:
        """Hold a slot whether one is free or not: its agent was there before this pool."""
        if self._pool is not None and not self.held:
            self._pool.used += 1
            self.held = True
