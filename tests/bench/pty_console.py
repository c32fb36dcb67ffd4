"""A console on a real pseudo-terminal whose keys are timed. Read by a thread: a terminal that is slow to take
bytes would slow the program down."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence

SIZE = (45, 160)
ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
MARKS = "§¶¤‡¦"
"""Typed into the composer: nothing else that the console paints holds them."""


class PtyConsole:
    """`watchroom ARGS` on a pty of 160x45. Use as a context manager."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str]) -> None:
        self._words = [sys.executable, "-P", "-c", ENTRY, *args]
        self._env = dict(env)
        self._came = threading.Condition()
        self._bytes = bytearray()
        self._over = False

    def __enter__(self) -> PtyConsole:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
            os.execve(self._words[0], self._words, self._env)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        self._thread.join(10)
        os.close(self.fd)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                data = b""
            with self._came:
                self._bytes += data
                self._over = not data
                self._came.notify_all()
            if not data:
                return

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, *texts: str, seconds: float = 20.0) -> float:
        """Wait until all texts have been painted since the last `forget`; the moment."""
        wanted = [text.encode() for text in texts]
        end = time.perf_counter() + seconds
        with self._came:
            while not all(text in self._bytes for text in wanted):
                left = end - time.perf_counter()
                if left <= 0 or self._over:
                    tail = bytes(self._bytes[-2000:]).decode(errors="replace")
                    raise SystemExit(f"the console never painted {texts}: …{tail!r}")
                self._came.wait(left)
        return time.perf_counter()

    def forget(self) -> None:
        with self._came:
            self._bytes.clear()

    def key_to_frame(self, samples: int, pause: float) -> list[float]:
        """Seconds from a typed letter to the frame that shows it. The composer must have the focus."""
        taken = []
        for number in range(samples):
            mark = MARKS[number % len(MARKS)]
            self.forget()
            started = time.perf_counter()
            self.press(mark)
            taken.append(self.until(mark) - started)
            self.press("\x7f")
            time.sleep(pause)
        return taken
