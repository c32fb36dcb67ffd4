"""A real terminal for tests: a process on a pty, its bytes kept, its screen drawn by pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[2]


class Terminal:
    """`with Terminal([...]) as terminal:` runs a Python module on a pty of the given size."""

    def __init__(self, arguments: list[str], *, width: int = 160, height: int = 45, **env: str) -> None:
        self.arguments = arguments
        self.size = (height, width)
        self.env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **env}
        for name in {"NO_COLOR", "COLUMNS", "LINES"} - set(
            env
        ):  # what a test runner may set is not the terminal's
            self.env.pop(name, None)
        self.raw = b""
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.status: int | None = None

    def __enter__(self) -> Terminal:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, *self.arguments], self.env)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", *self.size, 0, 0))
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def read(self, seconds: float) -> bytes:
        """What comes within `seconds`, at most until the first pause; empty if nothing does."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # EIO: the other end is closed
            return b""
        self.raw += data
        self._stream.feed(data)
        return data

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def until(self, found: Callable[[str], bool] | str, seconds: float = 20.0) -> str:
        """Read until the screen holds a text (or a condition is true of it)."""
        wanted = (lambda text: found in text) if isinstance(found, str) else found
        deadline = time.monotonic() + seconds
        while not wanted(self.text()):
            left = deadline - time.monotonic()
            assert left > 0, f"not on the screen: {found}\n{self.text()}"
            self.read(min(left, 1.0))
        return self.text()

    def quiet(self, pause: float = 0.25) -> None:
        """Read until nothing comes for `pause` seconds."""
        while self.read(pause):
            pass

    def keys(self, keys: str) -> None:
        os.write(self.fd, keys.encode())
        self.quiet(0.2 if keys.endswith("\x1b") else 0.1)  # a lone escape is one after a pause only

    def wait(self, seconds: float = 20.0) -> int:
        """Read until the process ends; its exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return self.status
        raise AssertionError(f"still running\n{self.text()}")
