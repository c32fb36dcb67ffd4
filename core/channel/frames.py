"""Frames on a byte stream: four bytes with the length, big-endian, then that many bytes of JSON.

The length is checked before anything is read, so a header that promises 4 GB costs four bytes.
"""

from __future__ import annotations

import asyncio

from core.clock import Clock

HEADER = 4
MAX_HELLO = 64 * 1024
MAX_TO_SERVER = 16 * 1024 * 1024
MAX_TO_CLIENT = 256 * 1024 * 1024
STREAM_BUFFER = 1024 * 1024
"""What a stream reader holds before it stops taking from the socket, unless one frame needs more."""


class FrameError(Exception):
    """The other side does not keep to the frames; one sentence."""


def pack(body: bytes, limit: int) -> bytes:
    """`body` as a frame. Raises FrameError if it is longer than `limit` bytes."""
    if len(body) > limit:
        raise FrameError(f"a message of {len(body)} bytes is too large; {limit} are allowed")
    return len(body).to_bytes(HEADER, "big") + body


async def read_frame(reader: asyncio.StreamReader, limit: int) -> bytes | None:
    """The next frame's body; None at the end of the stream. Raises FrameError, OSError."""
    try:
        size = _size(await reader.readexactly(HEADER), limit)
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return None


async def read_prompt_frame(
    reader: asyncio.StreamReader, limit: int, clock: Clock, seconds: float
) -> bytes | None:
    """`read_frame` for a peer that is not trusted: it may be silent for as long as it likes, but a frame that
    it began must be whole within `seconds`. Raises FrameError, OSError."""
    first = await reader.read(1)
    if not first:
        return None
    try:
        async with clock.timeout(seconds):
            size = _size(first + await reader.readexactly(HEADER - 1), limit)
            return await reader.readexactly(size)
    except TimeoutError:
        raise FrameError(f"a message was not whole within {seconds:g} s") from None
    except asyncio.IncompleteReadError:
        return None


def _size(header: bytes, limit: int) -> int:
    size = int.from_bytes(header, "big")
    if size > limit:
        raise FrameError(f"a message of {size} bytes is announced; {limit} are allowed")
    return size
