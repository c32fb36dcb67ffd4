"""Standard output and standard error of headless runs: written without ever holding up the engine's loop."""

from __future__ import annotations

import asyncio
import os
import re
import sys

from core.safety.text import clean

CHUNK = 4096
"""PIPE_BUF: what a pipe that is ready takes without blocking."""
_ESCAPE = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def escape_json(line: str) -> str:
    """A line of JSON, losslessly without the characters that a terminal may obey (C1, bidi, tags)."""
    return _ESCAPE.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _utf16(found[0])), line)


def _utf16(char: str) -> tuple[int, ...]:
    code = ord(char)
    if code < 0x10000:
        return (code,)
    code -= 0x10000
    return (0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF))


class Out:
    """One stream. `write` waits for a slow reader without blocking the loop; the stream stays as it is for
    the processes that share it (no O_NONBLOCK). Raises BrokenPipeError when the reader has gone."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tty = os.isatty(fd)
        self._pollable: bool | None = None
        self._lock = asyncio.Lock()

    @classmethod
    def stdout(cls) -> Out:
        sys.stdout.flush()
        return cls(sys.stdout.fileno())

    @classmethod
    def stderr(cls) -> Out:
        sys.stderr.flush()
        return cls(sys.stderr.fileno())

    async def line(self, text: str) -> None:
        """One line (or more) of text for people, cleaned once more at this exit."""
        await self.write(clean(text) + "\n")

    async def write(self, text: str) -> None:
        """`text` as it is, in UTF-8."""
        data = memoryview(text.encode("utf-8", "replace"))
        async with self._lock:
            while data:
                await self._ready()
                data = data[os.write(self.fd, data[:CHUNK]) :]

    async def _ready(self) -> None:
        if self._pollable is False:
            return
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_writer(self.fd, _settle, ready)
        except PermissionError:  # a regular file is always ready, and epoll refuses it
            self._pollable = False
            return
        try:
            await ready
        finally:
            loop.remove_writer(self.fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
