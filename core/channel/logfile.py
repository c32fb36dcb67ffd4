"""The log of a background engine: one JSON object a line, bounded, without secrets or control characters."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
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


class LogFile(RotatingFileHandler):
    """`<folder>/engine.log`. `redact` takes secrets out; an engine puts its own there, which learns."""

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self.redact = redact
        super().__init__(path, maxBytes=MOST_BYTES, backupCount=OLD_FILES, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")

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


@contextmanager
def logging_to(folder: Path) -> Iterator[LogFile]:
    """What is logged goes to `<folder>/engine.log`: our own from INFO on, a library's (the HTTP client has a
    line for each request) from WARNING on. Raises ClientError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
