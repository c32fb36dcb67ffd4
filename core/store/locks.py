"""Who owns a swarm: an exclusive `flock` held for the owner's life (decision 1); the pid is for messages."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

from core.store.errors import StoreError, sentence

TRIES = 20
TRY_SECONDS = 0.002
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")


class SwarmLock:
    """Held from `acquire` to `release`, or to the end of the process, however that comes."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    @classmethod
    def acquire(cls, home: Path, swarm: str) -> SwarmLock:
        """Blocks for some milliseconds at most. Raises StoreError that names the owner."""
        path = _path(home, swarm)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            for _ in range(TRIES):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                if _take(fd, path):
                    os.ftruncate(fd, 0)
                    os.write(fd, f"{os.getpid()}\n".encode())
                    return cls(fd, path)
                os.close(fd)
                # A reader that only looks holds the lock for an instant.
                time.sleep(TRY_SECONDS)
        except OSError as error:
            raise StoreError(sentence(error, f"the lock of swarm {swarm} cannot be taken")) from error
        raise StoreError(
            f"swarm {swarm} belongs to another engine (process {owner_pid(home, swarm) or 'unknown'})"
        )

    def release(self) -> None:
        """Give the swarm up. The file goes while it is still locked, so that nobody else's is removed."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def owner_alive(home: Path, swarm: str) -> bool:
    """Whether some process owns the swarm now."""
    try:
        fd = os.open(_path(home, swarm), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(sentence(error, f"the lock of swarm {swarm} cannot be read")) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


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
    """What the owner wrote about itself; None if it cannot be read."""
    try:
        return int(_path(home, swarm).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _take(fd: int, path: Path) -> bool:
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
