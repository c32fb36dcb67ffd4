"""The workspace's own words to agents: AGENTS.md in the folder of a swarm and above it, up to the repository.

Whoever can write there can write anything: files are read only where they are (no link leads out of the
repository), only if they are plain text, and only so much of them.
"""

from __future__ import annotations

import codecs
import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

from core.agents.prompts import guide_part
from core.safety.text import clean, clean_line, size_of

log = logging.getLogger("watchroom.engine")
NAME = "AGENTS.md"
MAX_BYTES = 32 * 1024
"""Of all files together; the nearest to the swarm's folder goes first."""


class _Unusable(Exception):
    """Why a file is left out."""


class Guide(NamedTuple):
    text: str
    """What the files say, the outermost first, each in a frame that names it; empty without any."""
    problems: tuple[str, ...]
    """A line for each file that was left out, or cut."""


def read_guide(folder: Path) -> Guide:
    """The AGENTS.md files for a swarm in `folder`, which is resolved. Raises nothing. Reads the disk."""
    top = _repository(folder)
    folders = [folder]
    while folders[-1] != top:
        folders.append(folders[-1].parent)
    parts: list[str] = []
    problems: list[str] = []
    room = MAX_BYTES
    for place in folders:
        path = place / NAME
        if not os.path.lexists(path):
            continue
        shown = clean_line(str(path))
        try:
            text, left = _read(path, top, room)
        except _Unusable as why:
            problems.append(f"{shown} is left out: {why}")
            continue
        room = 0 if left else room - len(text.encode())
        if left:
            problems.append(f"{shown}: {left} of it is left out, the limit is {size_of(MAX_BYTES)}")
            text = f"{text}\n[{left} more is left out]" if text else ""
        if text:
            parts.append(guide_part(str(path), text))
    for problem in problems:
        log.warning("%s", problem)
    return Guide("\n\n".join(reversed(parts)), tuple(problems))


def _repository(folder: Path) -> Path:
    """The folder that holds `.git`, the nearest one; without any, `folder` itself."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place / ".git"):
            return place
    return folder


def _read(path: Path, top: Path, room: int) -> tuple[str, str]:
    """The clean text of a file, `room` bytes at most, and how much of it that is not. Raises _Unusable."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(top):
            raise _Unusable("it is a link that leads out of the repository")
        if any(
            part.startswith(".") and part != ".." for part in Path(os.path.relpath(real, path.parent)).parts
        ):
            # A home folder can be a repository: keys lie in such places.
            raise _Unusable("it is a link to a hidden file or folder")
        # A pipe must not make anybody wait, and a link put there meanwhile must not be followed.
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _Unusable("it is no file")
            raw = _bytes(fd, room)
            more = found.st_size - len(raw)
        finally:
            os.close(fd)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise _Unusable(clean_line(why)) from None
    if b"\0" in raw:
        raise _Unusable("it is no text")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        # A character that the limit cut in two is not the file's fault.
        decoded = raw.decode() if more <= 0 else _cut(raw)
    except UnicodeDecodeError:
        raise _Unusable("it is not UTF-8") from None
    return clean(decoded).strip(), size_of(more) if more > 0 else ""


def _bytes(fd: int, count: int) -> bytes:
    """The first `count` bytes, fewer if there are fewer."""
    read = b""
    while len(read) < count and (more := os.read(fd, count - len(read))):
        read += more
    return read


def _cut(raw: bytes) -> str:
    """As much as are whole characters; raises UnicodeDecodeError if it is not UTF-8 before its end."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if error.start < len(raw) - 3:
            raise
        return raw[: error.start].decode()
