"""Server-sent events from bytes, as the HTML standard parses them (9.2.6), with a cap on one event."""

from __future__ import annotations

import msgspec

MAX_EVENT_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class SseEvent(msgspec.Struct, frozen=True):
    """`event` is its name ("" if none was given); `data` its lines joined by newlines, still UTF-8 bytes."""

    event: str
    data: bytes


class SseError(Exception):
    """An event larger than the cap."""


class SseParser:
    """Feed it bytes in any portions; it gives the events that they complete.

    Lines end with LF, CR or CRLF; a portion may end anywhere, inside a CRLF or a character too. An event that
    is not ended by an empty line is not an event. `id` and `retry` mean nothing to a client that posts.
    """

    def __init__(self, max_event: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event
        self._started = False
        self._head = b""
        self._skip_lf = False
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._name = b""
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Raises SseError when an event exceeds the cap; the parser is then of no further use."""
        if not self._started:
            chunk = self._start(chunk)
        chunk = self._unify(chunk)
        if not chunk:
            return []
        if b"\n" not in chunk:
            self._hold(chunk)
            return []
        if self._partial:
            chunk = b"".join((*self._partial, chunk))
            self._partial.clear()
            self._partial_size = 0
        *lines, rest = chunk.split(b"\n")
        events: list[SseEvent] = []
        for line in lines:
            if line:
                self._line(line)
            elif self._data:
                events.append(SseEvent(self._name.decode("utf-8", "replace"), b"\n".join(self._data)))
                self._name, self._data_size = b"", 0
                self._data.clear()
            else:
                self._name = b""
        if rest:
            self._hold(rest)
        return events

    def _start(self, chunk: bytes) -> bytes:
        """Drop a byte order mark, which may come in pieces."""
        self._head += chunk
        if len(self._head) < len(_BOM) and _BOM.startswith(self._head):
            return b""
        self._started = True
        return self._head.removeprefix(_BOM)

    def _unify(self, chunk: bytes) -> bytes:
        """Make every line end an LF. A CR ends its line at once; an LF right after it, even in the next
        chunk, is part of the same end."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _hold(self, part: bytes) -> None:
        self._partial.append(part)
        self._partial_size += len(part)
        self._check()

    def _line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
            self._check()
        elif field == b"event":
            self._name = value

    def _check(self) -> None:
        if self._data_size + self._partial_size > self._max:
            raise SseError(f"an event of the stream is larger than {self._max} bytes")
