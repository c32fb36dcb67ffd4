"""The hub behind an AF_UNIX socket: many clients, none of which can slow the engine or another one.

Each client has one task that reads and one that writes. Only the writing task waits for a client that reads
slowly: what the feed has for it meanwhile is bounded in its reader, and so is everything else it may ask for.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from core.channel import messages as m
from core.channel.client import ClientError
from core.channel.frames import (
    MAX_HELLO,
    MAX_TO_CLIENT,
    MAX_TO_SERVER,
    FrameError,
    pack,
    read_prompt_frame,
)
from core.channel.hub import Hub
from core.channel.outbox import Outbox
from core.channel.peer import peer_uid
from core.clock import Clock
from core.domain.commands import AnyCommand, EngineInfo, Reply, ResumeSwarm, RunJob, StartSwarm, StopEngine
from core.safety.text import clean_line

log = logging.getLogger("watchroom.channel")
MAX_CLIENTS = 64
BACKLOG = 512
"""Connections that the system holds while the loop is busy. One beyond it would look made and not be."""
MAX_REQUESTS = 64
"""Commands and pages of one client that are not answered yet."""
MAX_FEEDS = 64
HANDSHAKE_SECONDS = 5.0
FRAME_SECONDS = 30.0
STALLED_SECONDS = 3600.0
"""A client that takes nothing for so long is dropped: a console that was stopped with ctrl+z may come back
within it."""
CLOSING_SECONDS = 2.0
REFUSING_SECONDS = 1.0
_OWN_ONLY = (StartSwarm, RunJob, ResumeSwarm, StopEngine)


class Server:
    """Made by `listening`, which owns all its tasks."""

    def __init__(
        self, hub: Hub, info: EngineInfo, clock: Clock, starts: bool, group: asyncio.TaskGroup
    ) -> None:
        self._hub = hub
        self._info = info
        self._clock = clock
        self._starts = starts
        self._group = group
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._closing = False
        self._refusing = 0

    @property
    def clients(self) -> int:
        """Connections that there are now, also those that have not introduced themselves yet."""
        return len(self._connections)

    @classmethod
    @asynccontextmanager
    async def listening(
        cls, hub: Hub, path: Path, *, info: EngineInfo, clock: Clock, starts: bool
    ) -> AsyncIterator[Server]:
        """A server on a socket at `path`, 0600. `starts` False: clients may watch and steer what runs, and
        can neither start something new nor end the engine. On leaving, clients get what they were promised,
        every connection is closed, and the socket's file is removed. Raises ClientError, one sentence."""
        listener, inode = bind(path)
        raised: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                server = cls(hub, info, clock, starts, group)
                accepting = await asyncio.start_unix_server(server._accept, sock=listener, backlog=BACKLOG)
                try:
                    yield server
                except BaseException as error:
                    raised = error  # the body's own matter: no group around it
                accepting.close()
                server._close()
        finally:
            listener.close()
            _remove(path, inode)
        if raised is not None:
            raise raised

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        # The folder and the file keep others out already; a system that does not tell is trusted with that.
        if peer_uid(sock) not in (None, os.geteuid()):
            log.warning("a process of another user was refused")
            writer.transport.abort()
        elif self._closing or len(self._connections) >= MAX_CLIENTS:
            self._turn_away(reader, writer)
        else:
            connection = Connection(
                self._hub, reader, writer, info=self._info, clock=self._clock, starts=self._starts
            )
            task = self._group.create_task(_serve(connection))
            self._connections[connection] = task
            task.add_done_callback(lambda _: self._gone(connection))
            self._hub.changed()

    def _gone(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._hub.changed()

    def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say why, if there is time for it."""
        if self._closing or self._refusing >= MAX_CLIENTS:
            writer.transport.abort()
            return

        async def say() -> None:
            self._refusing += 1
            try:
                message = f"this engine serves {MAX_CLIENTS} clients already; close one of them"
                writer.write(pack(m.encode(m.Refused(message=message)), MAX_TO_CLIENT))
                # What it is saying is read first: closing over unread bytes would take the sentence with it.
                async with self._clock.timeout(REFUSING_SECONDS):
                    await reader.read(MAX_HELLO)
                writer.close()
            except (TimeoutError, OSError):
                writer.transport.abort()
            finally:
                self._refusing -= 1

        self._group.create_task(say())

    def _close(self) -> None:
        self._closing = True
        for connection in self._connections:
            connection.finish()


class Connection:
    """One client."""

    def __init__(
        self,
        hub: Hub,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        info: EngineInfo,
        clock: Clock,
        starts: bool,
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._writer = writer
        self._info = info
        self._clock = clock
        self._starts = starts
        self._out = Outbox(hub, clock)
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._paging = asyncio.Lock()
        self._finished = asyncio.Event()

    def finish(self) -> None:
        """End in order: what is ready is still sent."""
        self._finished.set()

    async def serve(self) -> None:
        """Until the client hangs up, breaks the rules, or `finish`."""
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(self._receive(group))
            sending = group.create_task(self._send())
            finished = group.create_task(self._finished.wait())
            try:
                await asyncio.wait((receiving, sending, finished), return_when=asyncio.FIRST_COMPLETED)
                receiving.cancel()
                # Who hung up gets nothing more; who broke the rules or is sent away is told why.
                if self._reader.at_eof() or not await self._sent(sending):
                    self._writer.transport.abort()
            finally:
                for task in (receiving, sending, finished, *self._requests.values()):
                    task.cancel()
                self._out.close()
                self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _sent(self, sending: asyncio.Task[None]) -> bool:
        """Whether everything that is ready went out in time."""
        try:
            async with self._clock.timeout(CLOSING_SECONDS):
                if self._finished.is_set() and self._requests:
                    await asyncio.wait(set(self._requests.values()))
                self._out.end()
                await asyncio.wait((sending,))
                if sending.cancelled() or sending.exception() is not None:
                    return False
                self._writer.transport.set_write_buffer_limits(high=0)
                await self._writer.drain()
        except (TimeoutError, OSError):
            return False
        return True

    # --- out ---------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Write what is ready, replies first, and wait for the client to take it. Nobody else waits."""
        try:
            while (body := await self._out.next()) is not None:
                try:
                    self._writer.write(pack(body, MAX_TO_CLIENT))
                except FrameError as error:
                    log.error("a client is dropped: %s", error)
                    sentence = f"the engine closed the connection: {error}"
                    self._writer.write(pack(m.encode(m.Refused(message=sentence)), MAX_HELLO))
                    return
                async with self._clock.timeout(STALLED_SECONDS):
                    await self._writer.drain()
                await self._clock.sleep(0)  # the engine's turn
        except (TimeoutError, OSError):
            self._writer.transport.abort()

    # --- in ----------------------------------------------------------------------------------------------

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        try:
            if not await self._handshake():
                return
            while True:
                frame = await read_prompt_frame(self._reader, MAX_TO_SERVER, self._clock, FRAME_SECONDS)
                if frame is None:
                    return
                self._take(m.decode_to_server(frame), group)
                # A client that asks and does not read is not heard until it has read.
                await self._out.room()
                await self._clock.sleep(0)
        except FrameError as error:
            self._refuse(f"the engine closed the connection: {error}")
        except (*m.UNREADABLE, _RulesError) as error:
            log.warning("a client sent what cannot be read: %s", clean_line(str(error)))
            self._refuse("the engine closed the connection: it cannot read what this client sent")
        except OSError:
            return

    async def _handshake(self) -> bool:
        try:
            async with self._clock.timeout(HANDSHAKE_SECONDS):
                frame = await read_prompt_frame(self._reader, MAX_HELLO, self._clock, HANDSHAKE_SECONDS)
        except TimeoutError:
            raise FrameError("nothing was said in time") from None
        if frame is None:
            return False
        hello = m.decode_hello(frame)
        if (wrong := m.mismatch(hello.protocol, hello.version)) is not None:
            self._refuse(wrong)
            return False
        self._out.put(m.encode(m.Welcome(protocol=m.PROTOCOL, engine=self._info)))
        return True

    def _refuse(self, message: str) -> None:
        self._out.put(m.encode(m.Refused(message=message)))

    def _take(self, message: m.ToServer, group: asyncio.TaskGroup) -> None:
        match message:
            case m.Ask():
                self._request(message.id, lambda: self._command(message), group)
            case m.AskPage():
                self._request(message.id, lambda: self._page(message), group)
            case m.Subscribe():
                self._subscribe(message)
            case m.Unsubscribe():
                self._out.unsubscribe(message.id)

    def _request(
        self, id: int, work: Callable[[], Coroutine[Any, Any, bytes]], group: asyncio.TaskGroup
    ) -> None:
        if id in self._requests:
            raise _RulesError("an id was used twice")
        if len(self._requests) + self._out.waiting >= MAX_REQUESTS:
            sentence = f"the engine is busy with {MAX_REQUESTS} requests of this client"
            self._out.put(m.encode(m.Failed(id=id, message=sentence, code="busy")))
            return
        task = self._requests[id] = group.create_task(self._answer(work()))
        task.add_done_callback(lambda _: self._requests.pop(id, None))

    async def _answer(self, work: Coroutine[Any, Any, bytes]) -> None:
        self._out.put(await work)

    async def _command(self, ask: m.Ask) -> bytes:
        return m.encode(m.Answer(id=ask.id, reply=await self._reply(ask.command)))

    async def _reply(self, command: AnyCommand) -> Reply:
        if not self._starts and isinstance(command, _OWN_ONLY):
            owner = {"exec": "watchroom exec", "job": "watchroom job run", "demo": "watchroom demo"}
            name = owner.get(self._info.kind, self._info.kind)
            return Reply(
                ok=False,
                code="refused",
                error=f"this engine belongs to `{name}` (pid {self._info.pid}) and ends with it:"
                " it starts nothing else and is stopped there",
            )
        try:
            return await self._hub.send(command)
        except ClientError as error:
            return Reply(ok=False, code="closed", error=str(error))

    async def _page(self, ask: m.AskPage) -> bytes:
        try:
            # One after the other, and none while the client does not read: pages are large.
            async with self._paging:
                await self._out.room()
                return m.encode(m.PageAnswer(id=ask.id, page=await self._hub.page(ask.request)))
        except ClientError as error:
            return m.encode(m.Failed(id=ask.id, message=str(error)))

    def _subscribe(self, message: m.Subscribe) -> None:
        if self._out.subscribed(message.id):
            raise _RulesError("an id was used twice")
        if self._out.feeds >= MAX_FEEDS:
            sentence = f"this client follows {MAX_FEEDS} swarms already"
            self._out.put(m.encode(m.Failed(id=message.id, message=sentence, code="busy")))
            return
        try:
            self._out.subscribe(message.id, message.swarm)
        except ClientError as error:
            self._out.put(m.encode(m.Failed(id=message.id, message=str(error))))


async def _serve(connection: Connection) -> None:
    try:
        await connection.serve()
    except Exception:
        # One client's trouble is nobody else's.
        log.exception("a connection failed")


class _RulesError(Exception):
    """A message that can be read and makes no sense."""


def bind(path: Path) -> tuple[socket.socket, int]:
    """A socket bound to `path` and its file's inode; a file that nobody listens behind is replaced. Nobody
    can connect before it listens, and then it is 0600. Raises ClientError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if _answers(path):
                raise ClientError(f"another engine listens at {path}") from None
            path.unlink()
            listener.bind(str(path))
        path.chmod(0o600)
        listener.setblocking(False)
        return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ClientError(f"the engine's socket {path} cannot be opened: {reason}") from error
    except BaseException:
        listener.close()
        raise


def _remove(path: Path, inode: int) -> None:
    with suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except ConnectionRefusedError:
            return False
    return True
