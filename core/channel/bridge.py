"""An engine of another machine through the system's `ssh`: nothing listens but the engine's own socket.

There `watchroom bridge` joins its standard input and output to that socket; here a socket pair is what `ssh`
has as its own. First the bridge says one line, so that what a shell prints before it is passed over, and in
it which swarm it chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from core.channel.client import Client, ClientError, EngineGone
from core.clock import Clock, SystemClock
from core.safety.text import clean_line, shorten

MARKER = b"watchroom-bridge 1 "
MAX_GREETING = 64 * 1024
"""How much a remote shell may print before the marker."""
CHUNK = 64 * 1024
REDIAL_SECONDS = 30.0
END_SECONDS = 2.0
KEPT_STDERR = 4096
_OPTIONS = ("-T", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2")
"""A network that is gone is noticed within a minute."""

Say = Callable[[str], None]


# --- this side -------------------------------------------------------------------------------------------


class Link:
    """A running `ssh` and our end of its standard input and output."""

    def __init__(
        self, host: str, words: Sequence[str], *, batch: bool = False, say: Say | None = None
    ) -> None:
        """Start it. `words` go to `watchroom bridge` there; with `batch` it never asks anything; what it
        prints on standard error goes to `say` until `listen` has returned. Raises ClientError."""
        if not host or host.startswith("-"):
            raise ClientError(f"{clean_line(host)!r} is not the name of a host")
        self.host = host
        self.swarm = ""
        self._say = say
        self._stderr = b""
        ours, theirs = socket.socketpair()
        argv = ["ssh", *_OPTIONS, *(("-o", "BatchMode=yes") if batch else ()), "--", host]
        argv.append(shlex.join(["watchroom", "bridge", *words]))
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE
                )
        except OSError as error:
            ours.close()
            raise ClientError(f"ssh cannot be started: {error.strerror}") from error
        self.socket = ours
        self._drain = threading.Thread(target=self._read_stderr, name="ssh stderr", daemon=True)
        self._drain.start()

    def listen(self) -> None:
        """Wait for the other side's line, as long as it takes (somebody may be typing a password). Raises
        ClientError when there is none; then the link has ended."""
        line = b""
        for _ in range(MAX_GREETING):
            # Byte by byte: what follows the line belongs to the engine's protocol.
            byte = self._receive()
            if not byte:
                break
            if byte != b"\n":
                line += byte
                continue
            if line.startswith(MARKER):
                self.swarm = clean_line(line.removeprefix(MARKER).decode("ascii", "replace")).strip()
                self._say = None
                return
            line = b""
        else:
            self.end()
            raise ClientError(f"{self.host} answers, but not as a Watchroom does")
        raise ClientError(self._why())

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(1)
        except OSError:
            return b""

    def _why(self) -> str:
        """The sentence about an `ssh` that ended before the bridge spoke."""
        told = self._say is not None
        code = self.end()
        if code == 127:
            return f"watchroom was not found on {self.host}: install it there, on the PATH of its shell"
        said = "" if told else self.last_words()
        if code in (1, 2):  # the bridge's own, who was reached and said why
            return f"nothing to attach to on {self.host}" + (f": {said}" if said else "")
        return f"no connection to {self.host}: {said or f'ssh ended with exit code {code}'}"

    def last_words(self) -> str:
        """The last line on standard error, cleaned."""
        lines = [clean_line(line) for line in self._stderr.decode("utf-8", "replace").splitlines()]
        found = next((line for line in reversed(lines) if line.strip()), "")
        return shorten(found.removeprefix("watchroom: ").strip(), 300)

    def end(self) -> int:
        """Hang up; `ssh` ends by that, or is killed after a moment. Returns its exit code."""
        with contextlib.suppress(OSError):  # the other side was first
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._drain.join(END_SECONDS)
        return code

    def kill(self) -> None:
        """End it from another thread than the one that listens, which then sees the end and tidies up."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _read_stderr(self) -> None:
        """Always read, or `ssh` would stand still when the pipe is full."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while chunk := os.read(stream.fileno(), CHUNK):
                self._stderr = (self._stderr + chunk)[-KEPT_STDERR:]
                if (say := self._say) is not None:
                    say(chunk.decode("utf-8", "replace"))


def dial(host: str, words: Sequence[str] = (), *, say: Say | None = None) -> Link:
    """Connect while the terminal is still the user's, so that `ssh` may ask. Blocks. Raises ClientError."""
    link = Link(host, words, say=say)
    link.listen()
    return link


async def redial(host: str, words: Sequence[str] = (), *, clock: Clock | None = None) -> Link:
    """Connect again, without asking anything. Raises ClientError."""
    link = Link(host, words, batch=True)
    try:
        async with (clock or SystemClock()).timeout(REDIAL_SECONDS):
            await asyncio.to_thread(link.listen)
    except TimeoutError:
        link.kill()
        raise ClientError(f"{host} did not answer within {REDIAL_SECONDS:.0f} s") from None
    except asyncio.CancelledError:
        link.kill()
        raise
    return link


@contextlib.asynccontextmanager
async def on_link(link: Link, *, clock: Clock | None = None) -> AsyncIterator[Client]:
    """A client of the engine at the other end; the link ends with it. Raises ClientError."""
    from core.channel.frames import STREAM_BUFFER
    from core.channel.remote import connect_streams

    try:
        link.socket.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=link.socket, limit=STREAM_BUFFER)
        lost = f"the connection to {link.host} has ended"
        async with connect_streams(reader, writer, clock=clock or SystemClock(), lost=lost) as client:
            yield client
    finally:
        await asyncio.to_thread(link.end)


@contextlib.asynccontextmanager
async def connect_ssh(
    host: str, words: Sequence[str] = (), *, clock: Clock | None = None
) -> AsyncIterator[Client]:
    """A client of the engine on `host`, without asking anything on a terminal. Raises ClientError."""
    link = await redial(host, words, clock=clock)
    async with on_link(link, clock=clock) as client:
        yield client


# --- the other side --------------------------------------------------------------------------------------


def pump(path: Path, swarm: str, stdin: int, stdout: int) -> None:
    """Say the marker, then carry bytes between an engine's socket and two file descriptors until either side
    ends. Raises ClientError if the engine cannot be reached."""
    with socket.socket(socket.AF_UNIX) as engine:
        try:
            engine.connect(str(path))
        except OSError as error:
            raise EngineGone(f"the engine cannot be reached: {error.strerror}") from error
        _write(stdout, MARKER + swarm.encode("ascii", "replace") + b"\n")
        # A daemon: it may be waiting for input for ever when the engine ends first.
        threading.Thread(target=_feed, args=(stdin, engine), name="bridge input", daemon=True).start()
        while chunk := _from_engine(engine):
            _write(stdout, chunk)


def _feed(stdin: int, engine: socket.socket) -> None:
    try:
        while chunk := os.read(stdin, CHUNK):
            engine.sendall(chunk)
        engine.shutdown(socket.SHUT_RDWR)  # whoever was here has hung up
    except OSError:
        return  # the engine was first, and the other direction has seen it


def _from_engine(engine: socket.socket) -> bytes:
    try:
        return engine.recv(CHUNK)
    except ConnectionError:
        return b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
