"""A server as a process: lines in, lines out, in bounded memory and linear time; ended with its whole group.

The mcp package's own stdio transport puts every chunk and all before it together anew, and knows no longest
line: ten megabytes cost seconds of the loop, and a hostile server the machine's memory. This one reads each
byte once. It speaks bytes; what they mean is `client`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from core.clock import Clock
from core.safety.text import clean_line, shorten
from core.tools.mcp.errors import McpError
from core.tools.process import CHUNK, Capture, Guard, Pipe, StartError, reap, signal_group, spawn, why

MAX_LINE = 8 * 1024 * 1024
"""Bytes of one message. A longer one is not kept."""
MAX_SKIPPED = 128 * 1024 * 1024
"""Bytes of one line that are read to find its end; after that the server is ended."""
STDERR_LIMIT = 8_192
FLOOD_BYTES = 32 * 1024 * 1024
"""Bytes of error output within a second that are too many."""
CLOSE_SECONDS = 1.0
"""For a server to end by itself once its input is closed."""
TERM_SECONDS = 1.0
"""From SIGTERM to SIGKILL."""
EDGE = 512
"""How much of a skipped line's beginning and end is looked at for the id of what it answered."""

# The newline that opens the gate is the first line of the server's own input: `read` takes not a byte more.
GATE = ("/bin/sh", "-c", 'read -r _ || exit 125; exec "$@"', "watchroom-mcp")

_ID_FIRST = re.compile(rb'^\s*\{(?:\s*"jsonrpc"\s*:\s*"2\.0"\s*,)?\s*"id"\s*:\s*(\d{1,15})\s*,')
_ID_LAST = re.compile(rb'"id"\s*:\s*(\d{1,15})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


class Oversized(msgspec.Struct, frozen=True):
    """A line that was longer than MAX_LINE and is gone. `answered`: the request that it was the response to,
    as far as its beginning or end tells."""

    size: int
    answered: int | None


class LineReader:
    """Lines of a byte stream. Every byte is searched once; what is kept is bounded."""

    def __init__(self, limit: int = MAX_LINE, skip: int = MAX_SKIPPED) -> None:
        self._limit = limit
        self._skip = skip
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """The lines that `data` completes, without their newlines. Raises McpError when one has no end."""
        lines: list[bytes | Oversized] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            lines.append(self._take())
            start = end + 1
        self._add(data[start:])
        return lines

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            if data:
                self._parts.append(data)
            return
        if self._parts or not self._head:
            kept = b"".join(self._parts) + data
            self._parts.clear()
            self._head, self._tail = kept[:EDGE], kept[-EDGE:]
        else:
            self._tail = (self._tail + data[-EDGE:])[-EDGE:]
        if self._size > self._skip:
            raise McpError(f"it sent more than {self._skip // 1_000_000} MB without the end of a message")

    def _take(self) -> bytes | Oversized:
        line: bytes | Oversized
        if self._size > self._limit:
            found = _ID_FIRST.search(self._head) or _ID_LAST.search(self._tail)
            line = Oversized(self._size, int(found[1]) if found else None)
        else:
            line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._head = self._tail = b""
        return line


class _Words(Capture):
    """What it writes to stderr. A process that writes without end is killed: reading takes the loop's time,
    and not reading would stop a server that means well."""

    def __init__(self, clock: Clock, group: int) -> None:
        super().__init__(STDERR_LIMIT)
        self._clock = clock
        self._group = group
        self._since = clock.monotonic()
        self._before = 0
        self.flooded = False

    def feed(self, data: bytes) -> None:
        super().feed(data)
        now = self._clock.monotonic()
        if now - self._since >= 1.0:
            self._since, self._before = now, self.total
        if self.total - self._before > FLOOD_BYTES and not self.flooded:
            self.flooded = True
            signal_group(self._group, signal.SIGKILL)


class ServerProcess:
    """A running server. `start` it, then `aclose` it, whatever happened in between."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        guard: Guard,
        stdin: int,
        stdout: int,
        stderr: int,
        clock: Clock,
    ) -> None:
        self._process = process
        self._guard = guard
        self._clock = clock
        self._stdin: int | None = stdin
        self._stdout = stdout
        self._said = _Words(clock, process.pid)
        self._stderr = Pipe(stderr, self._said)
        self._loop = asyncio.get_running_loop()
        os.set_blocking(stdin, False)
        os.set_blocking(stdout, False)

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], clock: Clock
    ) -> ServerProcess:
        """Start `argv` under a guard. Raises McpError in a sentence."""
        command = find_command(argv[0], cwd, env)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            their_in, our_in = os.pipe()
            our_out, their_out = os.pipe()
            our_err, their_err = os.pipe()
            for fd in (their_in, their_out, their_err):
                theirs.callback(os.close, fd)
            for fd in (our_in, our_out, our_err):
                ours.callback(os.close, fd)
            try:
                process = await spawn(
                    [*GATE, command, *argv[1:]],
                    cwd=cwd,
                    env=env,
                    stdin=their_in,
                    stdout=their_out,
                    stderr=their_err,
                )
                # Nothing is awaited until it has an owner. Without a guard the gate closes with our end.
                guard = Guard(process.pid)
            except StartError as error:
                raise McpError(str(error)) from None
            ours.pop_all()
            server = cls(process, guard, our_in, our_out, our_err, clock)
        try:
            os.write(our_in, b"\n")
        except OSError as error:
            await server.aclose(kindly=False)
            raise McpError(f"cannot start {shorten(clean_line(command), 200)}: {why(error)}") from None
        return server

    async def read(self) -> bytes:
        """Some bytes that it wrote; b"" at the end."""
        while True:
            try:
                return os.read(self._stdout, CHUNK)
            except BlockingIOError:
                future = self._loop.create_future()
                self._loop.add_reader(self._stdout, _wake, future)
                try:
                    await future
                finally:
                    self._loop.remove_reader(self._stdout)

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError when it does not listen any more. One writer at a time."""
        rest = memoryview(data)
        while rest:
            if self._stdin is None:
                raise BrokenPipeError
            fd = self._stdin
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                future = self._loop.create_future()
                self._loop.add_writer(fd, _wake, future)
                try:
                    await future
                finally:
                    self._loop.remove_writer(fd)

    async def exited(self) -> str:
        """Wait for its end; how it was, with its last words: `it ended with exit code 3 ("no such file")`."""
        await self._process.wait()
        if self._said.flooded:
            return f"it flooded us with more than {FLOOD_BYTES // 1_000_000} MB of error output a second"
        return f"it ended {self._how()}{self.last_words()}"

    def _how(self) -> str:
        code = self._process.returncode
        if code is None:
            return "its output"
        if code >= 0:
            return f"with exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"

    def last_words(self) -> str:
        """The last line that it wrote to stderr, in brackets; empty if there is none."""
        lines = [line for line in self._said.result()[0].splitlines() if line.strip()]
        return f' ("{shorten(clean_line(lines[-1]), 200)}")' if lines else ""

    async def aclose(self, *, kindly: bool = True) -> None:
        """Close its input and give it a moment (if `kindly`), then end what is left of its group. Whoever
        cancels meanwhile shortens the graces, not the end."""
        process = self._process
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None
        try:
            if kindly:
                await self._within(CLOSE_SECONDS)
            if signal_group(process.pid, signal.SIGTERM):
                await self._within(TERM_SECONDS)
        finally:
            signal_group(process.pid, signal.SIGKILL)
            try:
                await reap(process, self._clock)
            finally:
                self._stderr.close()
                os.close(self._stdout)
                self._guard.close()

    async def _within(self, seconds: float) -> None:
        """Wait for its end. Its output is thrown away: a server that is stuck in a write could not end."""
        try:
            async with self._clock.timeout(seconds):
                while await self.read():
                    await self._clock.sleep(0)
                await self._process.wait()
        except TimeoutError:
            return


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def find_command(command: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Where the program is: a bare name on the server's PATH, a path from its folder. Raises McpError."""
    shown = shorten(clean_line(command), 200)
    if not cwd.is_dir():
        raise McpError(f"its folder {shorten(clean_line(str(cwd)), 200)} is not a folder")
    if "/" not in command:
        found = shutil.which(command, path=env.get("PATH", ""))
        if found is None:
            raise McpError(f"its command {shown} is not on the PATH")
        return found
    path = cwd / command
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise McpError(f"its command {shown} is not a program that can be run")
    return str(path)
