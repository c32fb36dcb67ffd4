"""`core.channel.client.Client` over a byte stream: an AF_UNIX socket, or the pipes of a bridge.

One task reads the stream for as long as the connection lives and never waits for anybody: a subscriber that
does not keep up loses its backlog, and its feed begins again at the engine once it reads on.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from core.channel import messages as m
from core.channel.client import ClientError, EngineBusy, EngineGone
from core.channel.feed import BACKLOG, BACKLOG_BYTES
from core.channel.frames import (
    MAX_HELLO,
    MAX_TO_CLIENT,
    MAX_TO_SERVER,
    STREAM_BUFFER,
    FrameError,
    pack,
    read_frame,
)
from core.channel.peer import peer_uid
from core.clock import Clock, SystemClock
from core.domain.commands import AnyCommand, Batch, EngineInfo, FeedItem, Lagged, Page, PageRequest, Reply
from core.safety.redact import redact_struct, storable
from core.safety.text import clean_line, shorten
from core.version import VERSION

HANDSHAKE_SECONDS = 5.0
REPLY_SECONDS = 30.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dialer = Callable[[Path], Awaitable[Streams]]
T = TypeVar("T")


class RemoteClient:
    """Made by `connect` or `connect_streams`. Several tasks of one loop may use it."""

    outlives = True

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        engine: EngineInfo,
        *,
        clock: Clock,
        lost: str,
        backlog: int = BACKLOG,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self._reader = reader
        self._writer = writer
        self._lost = lost
        self._backlog = backlog
        self._backlog_bytes = backlog_bytes
        self._over: ClientError | None = None
        """Why there is no connection any more."""
        self._last_id = 0
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._pages: dict[int, asyncio.Future[Page]] = {}
        self._feeds: dict[int, Subscription] = {}
        self._receiving = asyncio.create_task(self._receive(), name="engine connection")

    async def send(self, command: AnyCommand) -> Reply:
        id = self._new_id()
        try:
            message = m.encode(m.Ask(id=id, command=command))
        except UnicodeEncodeError:
            # Bytes of a command line, a path or an environment that are no text: as the store would have it.
            message = m.encode(m.Ask(id=id, command=redact_struct(command, storable)))
        return await self._asked(id, message, self._answers)

    async def page(self, request: PageRequest) -> Page:
        id = self._new_id()
        return await self._asked(id, m.encode(m.AskPage(id=id, request=request)), self._pages)

    @asynccontextmanager
    async def subscribe(self, swarm: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        subscription = Subscription(self, swarm, self._backlog, self._backlog_bytes)
        try:
            await subscription.begin()
            yield subscription
        finally:
            subscription.forget()

    async def aclose(self) -> None:
        """Hang up. The engine goes on."""
        self._hang_up(ClientError("this client is closed"))
        self._receiving.cancel()
        await asyncio.wait({self._receiving})
        with suppress(OSError):
            await self._writer.wait_closed()
        if not self._receiving.cancelled() and (error := self._receiving.exception()) is not None:
            raise error

    # --- asking ------------------------------------------------------------------------------------------

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _asked(self, id: int, message: bytes, waiting: dict[int, asyncio.Future[T]]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting[id] = future
        try:
            async with self.clock.timeout(REPLY_SECONDS):
                self.post(message)
                with suppress(OSError):
                    await self._writer.drain()
                return await future
        except TimeoutError:
            raise self.busy() from None
        finally:
            del waiting[id]
            if future.done() and not future.cancelled():
                future.exception()  # it is known here

    def busy(self) -> EngineBusy:
        return EngineBusy(
            f"the engine (pid {self.engine.pid}) is busy: it lives and did not answer"
            f" within {REPLY_SECONDS:g} seconds; it may still do what was asked"
        )

    def post(self, message: bytes) -> None:
        """Send without waiting. Raises ClientError if there is no connection, or the message is too large."""
        if self._over is not None:
            raise self._why()
        try:
            self._writer.write(pack(message, MAX_TO_SERVER))
        except FrameError as error:
            raise ClientError(f"this cannot be sent to the engine: {error}") from error

    def _why(self) -> ClientError:
        """Why there is no connection; an error of its own for everybody who is told."""
        assert self._over is not None
        return type(self._over)(str(self._over))

    # --- subscriptions -----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._over is None

    def begin_feed(self, subscription: Subscription, swarm: str) -> int:
        """Ask for a feed from a snapshot on; the id of its items. Raises ClientError."""
        id = self._new_id()
        self.post(m.encode(m.Subscribe(id=id, swarm=swarm)))
        self._feeds[id] = subscription
        return id

    def end_feed(self, id: int) -> None:
        if self._feeds.pop(id, None) is not None and self.connected:
            self.post(m.encode(m.Unsubscribe(id=id)))

    # --- hearing -----------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        over: ClientError = EngineGone(self._lost)
        try:
            while (frame := await read_frame(self._reader, MAX_TO_CLIENT)) is not None:
                message = m.decode_to_client(frame)
                if isinstance(message, m.Refused):
                    over = EngineGone(_said(message.message))
                    break
                self._take(message, len(frame))
                await self.clock.sleep(0)  # whoever reads the feed
        except OSError:
            pass  # a connection that broke is one that ended
        except (FrameError, *m.UNREADABLE) as error:
            over = ClientError(f"what the engine sent cannot be read: {clean_line(str(error))}")
        finally:
            self._hang_up(over)

    def _take(self, message: m.ToClient, size: int) -> None:
        match message:
            case m.Item():
                if (feed := self._feeds.get(message.id)) is not None:
                    feed.push(message.item, size)
            case m.Answer():
                _settle(self._answers.get(message.id), message.reply)
            case m.PageAnswer():
                _settle(self._pages.get(message.id), message.page)
            case m.Failed():
                self._failed(message)
            case m.End():
                if (feed := self._feeds.pop(message.id, None)) is not None:
                    feed.end(None)

    def _failed(self, message: m.Failed) -> None:
        sentence = _said(message.message)
        error = EngineBusy(sentence) if message.code == "busy" else ClientError(sentence)
        if message.id in self._answers:
            _settle(self._answers[message.id], Reply(ok=False, error=sentence, code=message.code))
        elif (page := self._pages.get(message.id)) is not None and not page.done():
            page.set_exception(error)
        elif (feed := self._feeds.pop(message.id, None)) is not None:
            feed.end(error)

    def _hang_up(self, over: ClientError) -> None:
        """Nothing more is sent or heard; everybody who waits is told. Only the first reason counts."""
        if self._over is not None:
            return
        self._over = over
        self._writer.close()
        waiting: list[asyncio.Future[Any]] = [*self._answers.values(), *self._pages.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(self._why())
        for feed in list(self._feeds.values()):
            feed.end(None)
        self._feeds.clear()


class Subscription:
    """One feed as its reader sees it. Items that nobody takes are bounded; the engine is asked again."""

    def __init__(self, client: RemoteClient, swarm: str, backlog: int, backlog_bytes: int) -> None:
        self._client = client
        self._swarm = swarm
        self._backlog = backlog
        self._backlog_bytes = backlog_bytes
        self._id = 0
        self._queue: deque[tuple[FeedItem, int, int]] = deque()
        """Items, how many events each counts for, and their size."""
        self._count = 0
        self._bytes = 0
        self._wake = asyncio.Event()
        self._begun = False
        self._fresh = True
        """What its reader gets next is a snapshot, and it knows."""
        self._lagged = False
        self._ended = False
        self._error: ClientError | None = None

    async def begin(self) -> None:
        """Ask for the feed and wait for its first item. Raises ClientError."""
        self._ask()
        try:
            async with self._client.clock.timeout(REPLY_SECONDS):
                while not (self._queue or self._ended or self._lagged):
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            raise self._client.busy() from None
        if self._error is not None:
            raise self._error

    def _ask(self) -> None:
        self._id = self._client.begin_feed(self, self._swarm)
        self._begun = True

    def forget(self) -> None:
        """The reader has left."""
        self._client.end_feed(self._id)
        self._queue.clear()

    def push(self, item: FeedItem, size: int) -> None:
        count = len(item.events) if isinstance(item, Batch) else 1
        full = self._count + count > self._backlog or self._bytes + size > self._backlog_bytes
        if full and self._queue:
            self._client.end_feed(self._id)
            self._queue.clear()
            self._count = self._bytes = 0
            self._lagged, self._begun = True, False
        else:
            self._queue.append((item, count, size))
            self._count += count
            self._bytes += size
        self._wake.set()

    def end(self, error: ClientError | None) -> None:
        self._ended = True
        self._error = error
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> FeedItem:
        while True:
            if self._lagged:
                self._lagged = False
                if not self._fresh:
                    self._fresh = True
                    return Lagged()
            if self._queue:
                item, count, size = self._queue.popleft()
                self._count -= count
                self._bytes -= size
                self._fresh = isinstance(item, Lagged)
                return item
            if self._ended or not self._client.connected:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if not self._begun:
                self._ask()
            self._wake.clear()
            await self._wake.wait()


@asynccontextmanager
async def connect(
    socket: Path, *, clock: Clock | None = None, dialer: Dialer | None = None, backlog: int = BACKLOG
) -> AsyncIterator[RemoteClient]:
    """A client of the engine that listens at `socket`. Raises EngineGone if nothing listens there,
    EngineBusy if it does not answer in time, ClientError if it is of another version or another user."""
    clock = clock or SystemClock()
    try:
        async with clock.timeout(HANDSHAKE_SECONDS):
            reader, writer = await (dialer or _dial)(socket)
    except TimeoutError:
        raise EngineBusy(f"the engine at {socket} is busy: it takes no connection") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise EngineGone(f"no engine listens at {socket}") from None
    except OSError as error:
        raise ClientError(f"the engine at {socket} cannot be reached: {error.strerror or error}") from error
    sock = writer.get_extra_info("socket")
    if sock is not None and peer_uid(sock) not in (None, os.geteuid()):
        writer.transport.abort()
        raise ClientError(f"what listens at {socket} belongs to another user; nothing was sent to it")
    async with connect_streams(reader, writer, clock=clock, lost="", backlog=backlog) as client:
        yield client


async def _dial(socket: Path) -> Streams:
    return await asyncio.open_unix_connection(str(socket), limit=STREAM_BUFFER)


@asynccontextmanager
async def connect_streams(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    clock: Clock,
    lost: str,
    backlog: int = BACKLOG,
) -> AsyncIterator[RemoteClient]:
    """A client on streams that lead to an engine; it owns `writer`. `lost`: the sentence for a connection
    that ends (empty: that the engine has ended). `backlog`: events kept for a subscriber that does not read.
    Raises as `connect` does."""
    try:
        info = await _handshake(reader, writer, clock, lost)
    except BaseException:
        writer.transport.abort()
        raise
    lost = lost or f"the engine (pid {info.pid}) has ended"
    client = RemoteClient(reader, writer, info, clock=clock, lost=lost, backlog=backlog)
    try:
        yield client
    finally:
        await client.aclose()


async def _handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: Clock, lost: str
) -> EngineInfo:
    gone = EngineGone(lost or "the engine ended the connection before it said anything")
    try:
        async with clock.timeout(HANDSHAKE_SECONDS):
            writer.write(pack(m.encode(m.Hello(protocol=m.PROTOCOL, version=VERSION)), MAX_HELLO))
            await writer.drain()
            frame = await read_frame(reader, MAX_HELLO)
    except TimeoutError:
        seconds = f"{HANDSHAKE_SECONDS:g} seconds"
        raise EngineBusy(f"the engine is busy: it did not say who it is within {seconds}") from None
    except FrameError as error:
        raise ClientError("what answers there is not an engine of Watchroom") from error
    except OSError as error:
        raise gone from error
    if frame is None:
        raise gone
    try:
        answer = m.decode_welcome(frame)
    except m.UNREADABLE as error:
        raise ClientError("what answers there is not an engine of Watchroom") from error
    if isinstance(answer, m.Refused):
        raise ClientError(_said(answer.message))
    engine: EngineInfo = answer.engine
    return engine


def _settle(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _said(message: str) -> str:
    """A sentence of the other side, fit to be shown."""
    return shorten(clean_line(message), 400)
