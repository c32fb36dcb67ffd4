"""Where engines listen: a short path in a folder that only this user can enter (decision 3)."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from core.channel.client import ClientError
from core.tools.sandbox import PRIVATE

FALLBACK = Path("/tmp")
"""Short and there on every system; TMPDIR is neither (some 50 bytes on macOS)."""
MOST_BYTES = 100
"""A socket's address holds 104 bytes on macOS and 108 on Linux, the final zero included."""


def socket_folders() -> list[Path]:
    """Every folder in which an engine of this user may listen, whether or not it exists."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(runtime, "watchroom")] if os.path.isabs(runtime) else []
    return [*folders, FALLBACK / f"watchroom-{os.getuid()}"]


def socket_name(engine: str) -> str:
    """The file's name; an engine's id is hashed, so that its length and its characters do not matter."""
    return f"{hashlib.blake2b(engine.encode(), digest_size=8).hexdigest()}.sock"


def socket_path(engine: str) -> Path:
    """A path to bind for this engine. Makes the folder (0700). Raises ClientError, one sentence."""
    *runtime, fallback = socket_folders()
    for folder in runtime:
        path = folder / socket_name(engine)
        short = len(os.fsencode(path)) < MOST_BYTES
        if short and _shut(folder.parent) and not _problem(folder.parent) and not _make(folder):
            return path
    if problem := _make(fallback):
        raise ClientError(f"no socket can be opened: {problem}")
    return fallback / socket_name(engine)


def _shut(folder: Path) -> bool:
    """Whether a folder is hidden from commands in every sandbox, also one of an engine that never heard of
    it: who reaches an engine's socket may approve commands there."""
    real = Path(os.path.realpath(folder))
    return any(real.is_relative_to(private) for private in PRIVATE)


def _make(folder: Path) -> str | None:
    """Make the folder, or check the one that is there. Returns what is wrong with it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass  # checked below, as the one just made is: another user may have been first
    except OSError as error:
        return f"the folder {folder} cannot be made: {error.strerror}"
    return _problem(folder)


def _problem(folder: Path) -> str | None:
    """Why a folder is not ours alone, or None. Never follows a link: another user may have laid it."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        return f"the folder {folder} cannot be used: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a real folder; remove it"
    if found.st_uid != os.getuid():
        return f"the folder {folder} belongs to another user (uid {found.st_uid})"
    if (mode := stat.S_IMODE(found.st_mode)) != 0o700:
        return f"the folder {folder} is not closed to others (mode {mode:04o}): chmod 700 it"
    return None
