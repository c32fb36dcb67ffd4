"""The one task that touches the writing connection (decision 14).

Group commit without a timer: whatever gathered while the last commit ran goes into the next. A batch is
folded into a second state of each swarm, and into the live one only once its events are on disk, so what
others see is never ahead of the disk. A batch that cannot be committed is fatal (decision 13): its callers
and all later ones are told why, and the live states stay what the disk holds.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from msgspec.structs import replace

from core.clock import Clock
from core.domain import events as e
from core.safety.redact import redact_struct
from core.store.blobs import Blob, kept
from core.store.connection import Db, Transaction
from core.store.errors import StoreError, sentence
from core.store.projection import LiveSwarm, Projection

log = logging.getLogger("watchroom.store")
T = TypeVar("T")
Op = Callable[[Transaction], tuple[T, Sequence[e.Event]]]
"""Runs on the connection's thread: a trip there and back for each of its statements would cost a busy loop
more than the statements."""
Committed = Callable[[str, Sequence[e.AnyEvent], Sequence[str]], None]
"""(swarm, events, their JSON): what was written once is not encoded again for those who only pass it on."""

QUEUE = 1024
"""Requests that may wait; further callers wait for room."""
BATCH_EVENTS = 1000
BUSY_TRIES = 6
"""Times that the busy time-out of the connection may pass before the store counts as lost."""


class _Request:
    def __init__(
        self,
        swarm: str,
        op: Op[Any] | None,
        events: Sequence[e.Event],
        blobs: Sequence[Blob],
        last: bool,
    ) -> None:
        self.swarm = swarm
        self.op = op
        self.events = events
        self.blobs = blobs
        self.last = last
        """With this the swarm is given up."""
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.stamped: list[tuple[e.AnyEvent, str]] = []
        self.value: Any = None
        self.error: Exception | None = None

    def refuse(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def settle(self) -> None:
        if self.error is not None:
            self.refuse(self.error)
        elif not self.done.done():
            self.done.set_result(self.value)


class _Head:
    """Where a swarm's journal ends, while a batch is stamped; and the batch's time."""

    def __init__(self, seq: int, at: datetime) -> None:
        self.seq = seq
        self.at = at


class Writer:
    """Owns the writing connection from `start` to `aclose`."""

    def __init__(self, db: Db, where: str, clock: Clock, redact: Callable[[str], str]) -> None:
        self._db = db
        self._where = where
        self._clock = clock
        self._redact = redact
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue(QUEUE)
        self._task: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._closing = False
        self._stopped: StoreError | None = None
        self.swarms: dict[str, LiveSwarm] = {}
        self.on_commit: Committed | None = None
        self.failed: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="store writer")

    async def submit(
        self,
        swarm: str,
        op: Op[Any] | None,
        events: Sequence[e.Event],
        *,
        blobs: Sequence[Blob] = (),
        last: bool = False,
    ) -> Any:
        """Queue one atomic piece of work and wait until it is on disk. Raises StoreError, or what `op`
        raised. A caller that is cancelled after this has queued does not undo it. `last`: the swarm is given
        up with it; what is written later is refused.
        """
        self._check(swarm)
        request = _Request(swarm, op, events, blobs, last)
        await self._queue.put(request)
        if self._stopped is not None:
            # It waited for room while the writer ended. Emptying the queue lets the next one in.
            self._refuse_queued(self._stopped)
        return await request.done

    def _check(self, swarm: str) -> None:
        if self.failed.done():
            raise self.failed.result()
        if self._closing:
            raise StoreError(f"the store {self._where} is closed")
        if swarm not in self.swarms:
            raise StoreError(f"swarm {swarm} is not this engine's: nothing was written")

    async def aclose(self) -> None:
        """Write what is queued, then close the connection. Finishes also when its caller is cancelled."""
        if self._closer is None:
            self._closing = True
            self._closer = asyncio.create_task(self._close(), name="store closing")
        await asyncio.shield(self._closer)

    async def _close(self) -> None:
        try:
            if self._task is not None and self._stopped is None:
                await self._queue.put(None)
                await asyncio.wait({self._task})
        finally:
            await self._db.close()

    async def _run(self) -> None:
        batch: list[_Request] = []
        last = False
        try:
            while not last:
                batch, last = await self._gather()
                if self.failed.done():
                    self._refuse(batch, self.failed.result())
                elif batch:
                    await self._write_or_fail(batch)
        finally:
            # Ended by `aclose` there is nothing left; a writer that was cancelled leaves nobody waiting.
            self._stopped = StoreError(f"the store {self._where} is closed")
            self._refuse(batch, self._stopped)
            self._refuse_queued(self._stopped)

    async def _write_or_fail(self, batch: list[_Request]) -> None:
        try:
            await self._write(batch)
        except Exception as error:
            self._refuse(batch, self._fail(error))
            await self._rollback()

    async def _gather(self) -> tuple[list[_Request], bool]:
        """What waits now, at least one request, and whether the end was among it."""
        batch: list[_Request] = []
        count = 0
        request = await self._queue.get()
        while request is not None:
            batch.append(request)
            count += max(len(request.events), 1)
            if count >= BATCH_EVENTS or self._queue.empty():
                return batch, False
            request = self._queue.get_nowait()
        return batch, True

    async def _write(self, batch: list[_Request]) -> None:
        begun = any(request.op is not None for request in batch)
        if begun:
            await self._patiently(lambda: self._db.begin(lambda db: self._perform(batch, db)))
        else:
            self._perform(batch, None)
        projection = Projection()
        blobs = [blob for request in batch if request.stamped for blob in request.blobs]
        committed: dict[str, tuple[list[e.AnyEvent], list[str]]] = {}
        for request in batch:
            for event, body in request.stamped:
                projection.add(self.swarms[request.swarm], event, body)
                events, bodies = committed.setdefault(request.swarm, ([], []))
                events.append(event)
                bodies.append(body)
        statements = [*kept(blobs), *projection.statements()]
        if begun:
            await self._db.commit(statements, begun=True)
        elif statements:
            await self._patiently(lambda: self._db.commit(statements, begun=False))
        for swarm, (events, _) in committed.items():
            self.swarms[swarm].publish(events)
        for swarm, (events, bodies) in committed.items():
            self._tell(swarm, events, bodies)
        for request in batch:
            if request.last:
                # Between two batches: none is folded into a swarm that went while it was written.
                self.swarms.pop(request.swarm, None)
            request.settle()

    async def _patiently(self, begin: Callable[[], Awaitable[object]]) -> None:
        """Do what begins with BEGIN IMMEDIATE, again while another process is writing."""
        for attempt in range(1, BUSY_TRIES + 1):
            try:
                await begin()
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or attempt == BUSY_TRIES:
                    raise
                log.warning("store %s: another process is writing; attempt %d", self._where, attempt)

    def _perform(self, batch: Sequence[_Request], db: Transaction | None) -> None:
        """Do the operations and stamp all events. With a transaction this runs on its thread, while the
        writer waits: nobody else touches what it reads."""
        heads: dict[str, _Head] = {}
        for request in batch:
            try:
                live = self.swarms.get(request.swarm)
                if live is None:
                    problem = f"swarm {request.swarm} was given up before this was written"
                    raise _Refused(StoreError(problem))
                head = heads.get(request.swarm)
                if head is None:
                    at = max(self._clock.now(), live.ahead.last_at)
                    head = heads[request.swarm] = _Head(live.ahead.seq, at)
                if request.op is None or db is None:
                    request.stamped = self._stamp(request, head, request.events)
                    request.value = [event for event, _ in request.stamped]
                else:
                    self._operate(request, request.op, head, db)
            except _Refused as refused:
                request.error = refused.error

    def _operate(self, request: _Request, op: Op[Any], head: _Head, db: Transaction) -> None:
        """One operation in a savepoint: its failure harms no other."""
        db.execute("SAVEPOINT op")
        try:
            request.value, events = op(db)
            request.stamped = self._stamp(request, head, events)
        except Exception as error:
            fatal = isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError)
            if fatal or not db.open:
                raise
            db.execute("ROLLBACK TO op")
            db.execute("RELEASE op")
            if isinstance(error, _Refused):
                raise
            if isinstance(error, sqlite3.IntegrityError):
                error = StoreError(f"the store refused a write that contradicts what it holds: {error}")
            raise _Refused(error) from None
        db.execute("RELEASE op")

    def _stamp(
        self, request: _Request, head: _Head, events: Sequence[e.Event]
    ) -> list[tuple[e.AnyEvent, str]]:
        """The events with seq, time and swarm, without secrets, and their JSON; moves `head` on."""
        seq = head.seq
        stamped: list[tuple[e.AnyEvent, str]] = []
        for event in events:
            seq += 1
            try:
                clean = redact_struct(event, self._redact)
                whole: Any = replace(clean, seq=seq, at=head.at, swarm=request.swarm)
                stamped.append((whole, e.encode(whole).decode()))
            except (ValueError, OverflowError, TypeError, RecursionError) as error:
                problem = StoreError(f"an event of type {e.type_name(event)} cannot be written: {error}")
                raise _Refused(problem) from error
        head.seq = seq
        return stamped

    def _tell(self, swarm: str, events: list[e.AnyEvent], bodies: list[str]) -> None:
        if self.on_commit is None:
            return
        try:
            self.on_commit(swarm, events, bodies)
        except Exception:
            # The events are on disk: whoever appended them must not be told otherwise.
            log.exception("store: a subscriber failed on events of swarm %s", swarm)

    def _fail(self, error: Exception) -> StoreError:
        if not isinstance(error, sqlite3.Error | OSError):
            log.error("store: the writer failed", exc_info=error)
        problem = StoreError(sentence(error, f"the store {self._where} cannot be written"))
        problem.__cause__ = error
        self.failed.set_result(problem)
        return problem

    def _refuse(self, batch: Sequence[_Request], error: StoreError) -> None:
        for request in batch:
            request.refuse(error)

    def _refuse_queued(self, error: StoreError) -> None:
        while not self._queue.empty():
            request = self._queue.get_nowait()
            if request is not None:
                request.refuse(error)

    async def _rollback(self) -> None:
        try:
            if self._db.in_transaction:
                await self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.warning("store %s: rolling back failed: %s", self._where, error)


class _Refused(Exception):
    """One request failed, alone."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
