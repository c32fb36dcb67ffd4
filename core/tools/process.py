"""One command, from start to reaped: output in bounded memory, an end that leaves nothing behind.

The command leads its own session and process group. Whatever of that group outlives the leader is ended with
it. What leaves the group on purpose (a daemon that calls setsid) is out of reach here; the sandbox's pid
namespace ends those too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from core.clock import Clock

log = logging.getLogger("watchroom.tools")

CHUNK = 65_536
DRAIN_SECONDS = 0.5
"""How long output may still come after the leader has exited, from children that hold the pipe."""
GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL."""
REAP_SECONDS = 10.0
"""After SIGKILL: longer than this only a process stuck in the kernel takes."""
LAST_READS = 64


class StartError(Exception):
    """The command could not be started. One sentence."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended. `code` is its exit code, negative for a signal."""

    code: int
    output: str
    """stdout and stderr as they came, decoded with replacement; the middle may be left out."""
    total: int
    """Bytes it wrote."""
    left_out: int
    """Bytes of these that `output` does not hold."""
    seconds: float
    timed_out: bool = False
    leftovers: bool = False
    """Children were still running when the command itself had ended; they were ended too."""


class Capture:
    """The first and the last bytes of a stream, at most `limit` in all; the middle is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit // 2
        self._tail_limit = limit - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-self._tail_limit :] if self._tail_limit else b""
        if len(self._tail) > 2 * self._tail_limit + CHUNK:
            del self._tail[: -self._tail_limit]

    def result(self) -> tuple[str, int]:
        """The text, cut at character boundaries, and how many bytes are missing from its middle."""
        tail = self._tail[-self._tail_limit :] if self._tail_limit else bytearray()
        missing = self.total - len(self._head) - len(tail)
        if missing == 0:
            return (self._head + tail).decode(errors="replace"), 0
        head = self._head[: _boundary(self._head)]
        start = _continuation(tail)
        missing += len(self._head) - len(head) + start
        left = f"\n… {missing} bytes left out …\n"
        return head.decode(errors="replace") + left + tail[start:].decode(errors="replace"), missing


def _boundary(data: bytearray) -> int:
    """Where to cut `data` so that no UTF-8 sequence is cut in two."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def _continuation(data: bytearray) -> int:
    """How many bytes at the start belong to a character that began before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count


class Pipe:
    """The read end of a command's output, fed into a Capture from the loop. Owns the descriptor."""

    def __init__(self, fd: int, capture: Capture) -> None:
        self._fd = fd
        self._capture = capture
        self._loop = asyncio.get_running_loop()
        self.eof = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> bool:
        """Read once, so that a flood shares the loop; whether there may be more."""
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._capture.feed(data)
            return True
        self._loop.remove_reader(self._fd)
        self.eof.set()
        return False

    def close(self) -> None:
        """Take what is already there (bounded: a process out of reach may still write) and let go."""
        for _ in range(LAST_READS):
            if self.eof.is_set() or not self._readable():
                break
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


class Guard:
    """Ends a process group when this process dies, however it dies (kill -9 included).

    A shell that waits on a pipe only we can write to. A parent-death signal would reach the leader alone and
    exists on Linux only; this reaches the group, and works on macOS. Raises StartError.
    """

    # `kill -9 -- -N` is not understood by every sh, this form is.
    WATCH = ("/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "watchroom-guard")

    def __init__(self, group: int) -> None:
        try:
            self._process = subprocess.Popen(
                [*self.WATCH, str(group)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"cannot guard the command: {why(error)}") from None

    def close(self) -> None:
        # Killed before its pipe closes, else it would do its work now. The wait is for SIGKILL: no time.
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class _Gate:
    """Holds a command until its guard stands, so that there is no moment without one: if we die before, the
    gate closes on it."""

    ARGV = ("/bin/sh", "-c", 'read -r _ || exit 125; exec "$@" </dev/null', "watchroom-gate")

    def __init__(self) -> None:
        self.gate, self._opener = os.pipe()
        self._guard: Guard | None = None

    def open(self, group: int) -> None:
        """Guard the group, then let the command begin. Raises StartError."""
        self._guard = Guard(group)
        try:
            os.write(self._opener, b"\n")
        except OSError as error:
            raise StartError(f"cannot guard the command: {why(error)}") from None

    def close(self) -> None:
        os.close(self.gate)
        os.close(self._opener)
        if self._guard is not None:
            self._guard.close()


async def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    clock: Clock,
    timeout: float | None,
    limit: int,
    guard: bool = True,
) -> Finished:
    """Run `argv` to its end and return how it ended; stdin is empty, stdout and stderr are one stream.

    After `timeout` seconds, or when cancelled, the whole group gets SIGTERM and, GRACE_SECONDS later, SIGKILL
    (a second cancellation shortens the grace). `limit` bounds the kept output in bytes. `guard=False` is for
    commands that die with this process by other means (bwrap --die-with-parent). Raises StartError.
    """
    started = clock.monotonic()
    capture = Capture(limit)
    timed_out = leftovers = False
    with contextlib.ExitStack() as owned:
        gate: _Gate | None = None
        stdin = subprocess.DEVNULL
        if guard:
            gate = _Gate()
            owned.callback(gate.close)
            argv, stdin = [*_Gate.ARGV, *argv], gate.gate
        process, pipe = await _start(argv, cwd, env, capture, stdin)
        owned.callback(pipe.close)
        try:
            if gate is not None:
                gate.open(process.pid)
            async with clock.timeout(timeout):
                await process.wait()
            leftovers = not await _drained(pipe, clock) or signal_group(process.pid, 0)
        except TimeoutError:
            timed_out = True
        finally:
            await _end(process, pipe, clock)
    output, left_out = capture.result()
    return Finished(
        code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        output=output,
        total=capture.total,
        left_out=left_out,
        seconds=clock.monotonic() - started,
        timed_out=timed_out,
        leftovers=leftovers,
    )


async def _start(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], capture: Capture, stdin: int
) -> tuple[asyncio.subprocess.Process, Pipe]:
    # A pipe of our own: asyncio's would make wait() wait for whoever else holds it (some versions).
    read, write = os.pipe()
    try:
        process = await spawn(argv, cwd=cwd, env=env, stdin=stdin, stdout=write, stderr=subprocess.STDOUT)
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return process, Pipe(read, capture)


async def spawn(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> asyncio.subprocess.Process:
    """Start a process that leads its own session. Cancelled meanwhile, it leaves none. Raises StartError."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The fork may have happened: let the start finish, then undo it.
        await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None:
            signal_group(starting.result().pid, signal.SIGKILL)
            await starting.result().wait()
        raise
    except (OSError, ValueError) as error:
        raise StartError(f"cannot start {argv[0]}: {why(error)}") from None


def why(error: Exception) -> str:
    """An error in words: what the system calls it, else its text."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


async def _drained(pipe: Pipe, clock: Clock) -> bool:
    """Whether the output ended within DRAIN_SECONDS of the leader's exit."""
    try:
        async with clock.timeout(DRAIN_SECONDS):
            await pipe.eof.wait()
    except TimeoutError:
        return False
    return True


async def _end(process: asyncio.subprocess.Process, pipe: Pipe, clock: Clock) -> None:
    """End what is left of the group, and reap the leader. Does nothing after an ordinary end."""
    if process.returncode is not None and pipe.eof.is_set() and not signal_group(process.pid, 0):
        return
    try:
        signal_group(process.pid, signal.SIGTERM)
        async with clock.timeout(GRACE_SECONDS):
            await process.wait()
            await pipe.eof.wait()
    except TimeoutError:
        log.debug("process group %d did not end within its grace", process.pid)
    finally:
        signal_group(process.pid, signal.SIGKILL)
        await reap(process, clock)


async def reap(process: asyncio.subprocess.Process, clock: Clock) -> None:
    """Wait for a leader that was killed, whoever cancels meanwhile; the cancellation is passed on after."""
    waiting = asyncio.ensure_future(process.wait())
    limit = asyncio.ensure_future(clock.sleep(REAP_SECONDS))
    cancelled: asyncio.CancelledError | None = None
    while not (waiting.done() or limit.done()):
        try:
            await asyncio.wait({waiting, limit}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = error
    if not waiting.done():
        log.warning("process %d does not end after SIGKILL", process.pid)
    waiting.cancel()
    limit.cancel()
    if cancelled is not None:
        raise cancelled


def signal_group(group: int, number: int) -> bool:
    """Signal a process group (0 only asks); whether it exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # A member that changed its user; on macOS also a group of zombies.
        return number != 0
    return True
