"""The store of one engine: opens the file, owns swarms by their locks, hands writes to the writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from core.clock import Clock
from core.domain import events as e
from core.domain.state import SwarmState
from core.safety.redact import storable
from core.store.blobs import Blob
from core.store.connection import connect_writer, prepare_home
from core.store.errors import NotFound, StoreError
from core.store.jobs import JobStore
from core.store.loading import load_live
from core.store.locks import Owner, SwarmLock
from core.store.projection import LiveSwarm
from core.store.readers import Reader
from core.store.schema import migrate
from core.store.writer import Committed, Op, Writer

__all__ = ["NotFound", "Store", "StoreError"]
T = TypeVar("T")


class Store:
    """Made by `open`, ended by `aclose`. All methods belong to one event loop."""

    def __init__(
        self, home: Path, writer: Writer, reader: Reader, clock: Clock, redact: Callable[[str], str]
    ) -> None:
        self.home = home
        self.clock = clock
        self.reader = reader
        """Read-only, sees what is committed."""
        self.redact = redact
        """Text as it would be stored: without secrets."""
        self.owner: Owner | None = None
        """What is written into the locks of its swarms; None: only the process. Set before the first."""
        self.jobs = JobStore(self, reader, redact)
        self._writer = writer
        self._locks: dict[str, SwarmLock] = {}

    @classmethod
    async def open(cls, home: Path, *, clock: Clock, redact: Callable[[str], str]) -> Store:
        """Open or make the store in `home`. Raises StoreError, one sentence."""
        path = await asyncio.to_thread(prepare_home, home)
        db = await connect_writer(path)
        try:
            await migrate(db, str(path))
            reader = await Reader.open(home, clock=clock)
        except BaseException:
            await db.close()
            raise

        def door(text: str) -> str:
            return redact(storable(text))

        writer = Writer(db, str(path), clock, door)
        writer.start()
        return cls(home, writer, reader, clock, door)

    async def aclose(self) -> None:
        """Write what is queued, close the file, give up every swarm."""
        try:
            # The last connection to close puts the WAL back into the file; one that only reads cannot.
            await self.reader.aclose()
            await self._writer.aclose()
        finally:
            for swarm in list(self._locks):
                self._locks.pop(swarm).release()

    @property
    def on_commit(self) -> Committed | None:
        """Called with (swarm, events, their JSON) after each commit, in order; synchronous."""
        return self._writer.on_commit

    @on_commit.setter
    def on_commit(self, called: Committed | None) -> None:
        self._writer.on_commit = called

    @property
    def failed(self) -> asyncio.Future[StoreError]:
        """Done, with the error as its result, once the store can no longer be written (decision 13)."""
        return self._writer.failed

    # --- swarms ------------------------------------------------------------------------------------------

    async def create(self, swarm: str) -> None:
        """Own a new swarm; from now on it can be written. Raises StoreError if it exists or has an owner."""
        await self._own(swarm, new=True)

    async def reopen(self, swarm: str) -> SwarmState:
        """Own a swarm that the store holds, as its last owner left it. Raises StoreError or NotFound."""
        await self._own(swarm, new=False)
        return self.state(swarm)

    async def _own(self, swarm: str, *, new: bool) -> None:
        if swarm in self._locks:
            raise StoreError(f"swarm {swarm} is open already")
        lock = await asyncio.to_thread(SwarmLock.acquire, self.home, swarm, self.owner)
        try:
            found = await self.reader.exists(swarm)
            if new and found:
                raise StoreError(f"swarm {swarm} exists already")
            if not new and not found:
                raise NotFound(f"there is no swarm {swarm} in the store")
            if new:
                live = LiveSwarm(SwarmState(swarm=swarm))
            else:
                async with self.reader.snapshot() as db:
                    live = await load_live(db, swarm)
        except BaseException:
            lock.release()
            raise
        self._locks[swarm] = lock
        self._writer.swarms[swarm] = live

    async def release(self, swarm: str) -> None:
        """Give a swarm up, after everything that was appended to it is on disk."""
        if swarm in self._locks:
            if not self.failed.done():
                await self._writer.submit(swarm, None, [], last=True)
            self._writer.swarms.pop(swarm, None)
            self._locks.pop(swarm).release()

    def owns(self, swarm: str) -> bool:
        return swarm in self._locks

    def state(self, swarm: str) -> SwarmState:
        """The live state: what is committed, always the same object. Raises StoreError if it is not ours."""
        try:
            return self._writer.swarms[swarm].state
        except KeyError:
            raise StoreError(f"swarm {swarm} is not this engine's") from None

    # --- writing -----------------------------------------------------------------------------------------

    async def append(
        self, swarm: str, events: Sequence[e.Event], *, blobs: Sequence[Blob] = ()
    ) -> list[e.AnyEvent]:
        """Record events, all or none. Returns them stamped with seq, time and swarm, and without secrets,
        once they are on disk, folded, and told to `on_commit`. `blobs`: the pictures that they name, written
        in the same transaction, so that no event names one that is not there. Raises StoreError."""
        stamped: list[e.AnyEvent] = await self._writer.submit(swarm, None, list(events), blobs=blobs)
        return stamped

    async def transact(self, swarm: str, op: Op[T]) -> T:
        """Run `op` in the writer's transaction, on its thread, and record the events it returns with it; its
        value, once that is on disk. What `op` raises reaches the caller, and then nothing of it is stored."""
        value: T = await self._writer.submit(swarm, op, [])
        return value
