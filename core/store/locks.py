"""Who owns a swarm: an exclusive `flock` held for the owner's life (decision 1).

What an owner writes about itself (process, engine, kind) is for messages and for finding it; whether it lives
is only ever asked of the lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

import msgspec

from core.store.errors import Owned, StoreError, sentence

TRIES = 20
TRY_SECONDS = 0.002
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
MOST_BYTES = 200
VERB = "job verb"
"""The kind of an owner that only writes, and runs nothing: it is gone in a moment."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner says of itself; "" where it says nothing."""

    pid: int
    engine: str = ""
    """Id of the engine, as in its record."""
    kind: str = ""
    """"background", "exec", …"""

    @property
    def text(self) -> str:
        return f"process {self.pid}" + (f", {self.kind}" if self.kind else "")


class SwarmLock:
    """Held from `acquire` to `release`, or to the end of the process, however that comes."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    @classmethod
    def acquire(cls, home: Path, swarm: str, owner: Owner | None = None) -> SwarmLock:
        """Blocks for some milliseconds at most. Raises StoreError that names the owner."""
        owner = owner or Owner(pid=os.getpid())
        path = _path(home, swarm)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            for _ in range(TRIES):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    if take(fd, path):
                        os.ftruncate(fd, 0)
                        os.write(fd, f"{owner.pid}\n{owner.engine}\n{owner.kind}\n".encode())
                        return cls(fd, path)
                except BaseException:
                    os.close(fd)  # or the swarm would be owned by nobody who serves it
                    raise
                os.close(fd)
                # A reader that only looks holds the lock for an instant.
                time.sleep(TRY_SECONDS)
        except OSError as error:
            raise StoreError(sentence(error, f"the lock of swarm {swarm} cannot be taken")) from error
        found = owner_of(home, swarm)
        raise Owned(f"swarm {swarm} belongs to another engine ({found.text if found else 'process unknown'})")

    def release(self) -> None:
        """Give the swarm up. The file goes while it is still locked, so that nobody else's is removed."""
        if self._fd >= 0:
            try:
                self._path.unlink(missing_ok=True)
            finally:
                os.close(self._fd)
                self._fd = -1


def owner_alive(home: Path, swarm: str) -> bool:
    """Whether some process owns the swarm now."""
    try:
        return held(_path(home, swarm))
    except OSError as error:
        raise StoreError(sentence(error, f"the lock of swarm {swarm} cannot be read")) from error


def owned_swarms(home: Path) -> set[str]:
    """The swarms of this home that some process owns now."""
    try:
        names = [entry.name.removesuffix(".lock") for entry in os.scandir(home / "locks")]
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise StoreError(sentence(error, f"the locks of {home} cannot be read")) from error
    return {name for name in names if _NAME.match(name) and owner_alive(home, name)}


def owner_pid(home: Path, swarm: str) -> int | None:
    """The process that wrote itself down as the owner; None if it cannot be read."""
    owner = owner_of(home, swarm)
    return owner.pid if owner is not None else None


def owner_of(home: Path, swarm: str) -> Owner | None:
    """What the owner, alive or not, wrote about itself; None if it cannot be read."""
    try:
        with open(_path(home, swarm), encoding="ascii") as file:
            pid, engine, kind, *_ = [*file.read(MOST_BYTES).splitlines(), "", "", ""]
        return Owner(pid=int(pid), engine=engine, kind=kind)
    except (OSError, ValueError):
        return None


# --- flock -----------------------------------------------------------------------------------------------


def held(path: Path) -> bool:
    """Whether some process holds the lock of a file. Raises OSError; a missing file is held by nobody."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def take(fd: int, path: Path) -> bool:
    """Lock the open file if nobody else has; False also if it is no longer the one at `path`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # The owner before may have removed the file between our open and our lock.
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _path(home: Path, swarm: str) -> Path:
    if not _NAME.match(swarm):
        raise StoreError(f"{swarm!r} is not the id of a swarm")
    return home / "locks" / f"{swarm}.lock"
