"""The log of a background engine: one JSON object a line, bounded, without secrets or control characters."""

from __future__ import annotations

import errno
import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from pathlib import Path

from core.channel.client import ClientError
from core.safety.redact import Redactor, storable
from core.safety.text import clean, shorten

NAME = "engine.log"
MOST_BYTES = 1_000_000
OLD_FILES = 2
"""Beside the one being written: three files in all."""
MOST_CHARS = 20_000
"""Of one field: a line must not be the whole log."""


class LogFile(logging.Handler):
    """`<folder>/engine.log`. `redact` takes secrets out; an engine puts its own there, which learns.

    A line that cannot be written (a full disk) is lost and counted: it stops nobody, and goes to no terminal.
    Nothing is buffered, and engines that share the folder may share the file.
    """

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self._path = path
        self._fd = self._open()
        self._lost = 0
        self._torn = False
        """A line was written in part: the next one begins with its end."""
        self.redact = redact
        super().__init__()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                record = copy(record)
                record.msg, record.args = (
                    f"{record.getMessage()} ({self._lost} lines before this are lost)",
                    (),
                )
            self._write(self.format(record).encode("ascii") + b"\n")
            self._lost = 0
        except Exception:  # also a record whose words do not fit its arguments
            self._lost += 1

    def _write(self, line: bytes) -> None:
        self._make_room(len(line))
        data = b"\n" * self._torn + line
        written = os.write(self._fd, data)
        self._torn = 0 < written < len(data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _make_room(self, more: int) -> None:
        """Begin a new file if this one is full, or if another engine has begun one."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self._path, follow_symlinks=False)
            moved = (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)
        except FileNotFoundError:
            moved = True
        if not moved and mine.st_size + more > MOST_BYTES:
            for number in range(OLD_FILES, 0, -1):
                older = self._path.with_name(f"{NAME}.{number}")
                newer = self._path.with_name(f"{NAME}.{number - 1}") if number > 1 else self._path
                if newer.exists():
                    newer.rename(older)
            moved = True
        if moved:
            before, self._fd = self._fd, self._open()
            os.close(before)

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "message": self._text(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self._text("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(line, ensure_ascii=True)

    def _text(self, text: str) -> str:
        return shorten(clean(self.redact(storable(text))), MOST_CHARS)


def make_private(folder: Path) -> None:
    """Make a folder, and whatever is missing above it (a home that begins with its log), for us alone."""
    if not os.path.isdir(folder):
        if folder != folder.parent:
            make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def logging_to(folder: Path) -> Iterator[LogFile]:
    """What is logged goes to `<folder>/engine.log`: our own from INFO on, a library's (the HTTP client has a
    line for each request) from WARNING on. Raises ClientError."""
    try:
        make_private(folder)
        handler = LogFile(folder / NAME, Redactor(os.environ))
    except OSError as error:
        raise ClientError(f"the log {folder / NAME} cannot be written: {error.strerror}") from error
    root, ours = logging.getLogger(), logging.getLogger("watchroom")
    levels = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        root.removeHandler(handler)
        handler.close()
