"""The engines of a home: one file each in `<home>/engines`, alive for as long as its `flock` is held.

The lock decides, never the pid: a home that was copied, or a process number that was given out again, names
nobody by accident.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import socket
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from core.channel.client import ClientError
from core.channel.sockets import socket_folders, socket_name
from core.domain.commands import EngineInfo
from core.store.locks import held, take
from core.store.locks import owner_of as lock_owner

LOCK_NAME = "engine.lock"
MOST_BYTES = 10_000
TRIES = 20
_PROBE_SECONDS = 1.0
_NO_RECORD = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO)
"""Gone, a link, of another user, a socket: no engine of ours wrote that."""


class EngineRecord(EngineInfo, frozen=True, kw_only=True):
    """What an engine tells about itself to whoever has the home."""

    socket: str
    """Path of the socket that it listens on."""
    started_at: datetime
    host: str
    """Name of the machine: where homes are shared, the pid means nothing on another one."""

    @property
    def here(self) -> bool:
        return self.host == host_name()


def host_name() -> str:
    return platform.node()


class Announcement:
    """A record that is visible and locked. `close` takes it back; so does the end of the process."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def close(self) -> None:
        """The file goes while it is still locked, so that nobody else's is removed."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def announce(home: Path, record: EngineRecord) -> Announcement:
    """Make an engine known. Raises ClientError, one sentence."""
    path = home / "engines" / f"{record.engine}.json"
    draft = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        for _ in range(TRIES):
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if take(fd, draft):
                break
            os.close(fd)  # a sweep saw it in the instant before it was locked, and removes it
            draft.unlink(missing_ok=True)
        else:
            raise ClientError(f"the engine cannot be announced: {draft} cannot be locked")
        try:
            os.write(fd, msgspec.json.encode(record))
            os.rename(draft, path)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise ClientError(f"the engine cannot be announced in {path.parent}: {error.strerror}") from error
    return Announcement(fd, path)


def living(home: Path) -> list[EngineRecord]:
    """The engines that live, the newest first. Reads only. Raises ClientError."""
    found = []
    for path in _files(home, ".json"):
        with _looking(home):
            record = _read(path)
            # Read first: what is locked afterwards was whole when it was read.
            if record is not None and held(path):
                found.append(record)
    return sorted(found, key=lambda record: record.started_at, reverse=True)


def background(home: Path) -> EngineRecord | None:
    """The home's own engine, if it lives."""
    return next((record for record in living(home) if record.kind == "background"), None)


def owner_of(home: Path, swarm: str) -> EngineRecord | None:
    """The living engine that owns the swarm, if it is known: its lock holds pid and engine id."""
    owner = lock_owner(home, swarm)
    if owner is None or not owner.engine:
        return None
    if not held(home / "locks" / f"{swarm}.lock"):
        return None
    return next((record for record in living(home) if record.engine == owner.engine), None)


def sweep(home: Path) -> None:
    """Remove the records of engines that are dead, and their sockets. Raises ClientError."""
    for path in [*_files(home, ".json"), *_files(home, ".new")]:
        # What another user left in this home is not ours to judge, and hinders nobody.
        with _looking(home), contextlib.suppress(FileNotFoundError, PermissionError):
            _sweep(path)


def _sweep(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if take(fd, path):
            remove_socket(path.stem)
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def remove_socket(engine: str) -> None:
    """Remove the socket file of a dead engine: only where an engine of that id would have put it, and only
    if nobody answers there. The home may be a copy, and the engine of the original may live."""
    for folder in socket_folders():
        path = folder / socket_name(engine)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.lstat(path)
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid() and _refuses(path):
                path.unlink()


def _refuses(path: Path) -> bool:
    """Whether nobody listens on a socket. Silence and a full queue are signs of life."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _files(home: Path, suffix: str) -> list[Path]:
    with _looking(home):
        folder = home / "engines"
        if folder.is_dir():
            return sorted(path for path in folder.iterdir() if path.suffix == suffix)
    return []


def _read(path: Path) -> EngineRecord | None:
    """A record, or None for a file that is gone or holds something else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NO_RECORD:
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    with open(fd, "rb") as file:
        try:
            record = msgspec.json.decode(file.read(MOST_BYTES), type=EngineRecord)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    return record if record.engine == path.stem else None


@contextlib.contextmanager
def _looking(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClientError(f"the engines of {home} cannot be looked at: {error.strerror}") from error


# --- one background engine per home ----------------------------------------------------------------------


class Claim:
    """The right to be the home's background engine: `engine.lock`, held until `close`."""

    def __init__(self, home: Path, lock: int, starting: int) -> None:
        self._home = home
        self._lock = lock
        self._starting = starting

    def started(self) -> None:
        """Whoever else wants to start one may look now: it will find this one."""
        if self._starting >= 0:
            os.close(self._starting)
            self._starting = -1

    def close(self) -> None:
        """The file goes while it is still locked: who waits for the end of this engine, and who waits to be
        the next one, do not wait for each other."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):  # of no use to anybody, and no harm
                (self._home / LOCK_NAME).unlink()
            os.close(self._lock)
            self._lock = -1
        self.started()


def claim(home: Path) -> Claim | EngineRecord:
    """Become the home's background engine, or learn which one is. BLOCKS while another one starts or ends:
    call it before there is a loop, or in a thread. The home must exist. Raises ClientError."""
    try:
        starting = _open(home / "engine.starting")
        try:
            fcntl.flock(starting, fcntl.LOCK_EX)
            lock = _lock(home)
        except BaseException:
            os.close(starting)
            raise
    except OSError as error:
        raise ClientError(f"no engine can be started in {home}: {error.strerror}") from error
    if isinstance(lock, EngineRecord):
        os.close(starting)
        return lock
    return Claim(home, lock, starting)


def _lock(home: Path) -> int | EngineRecord:
    """`engine.lock`, open and ours, or the record of who has it."""
    path = home / LOCK_NAME
    while True:
        lock = _open(path)
        try:
            if take(lock, path):
                return lock
            if (record := background(home)) is None:
                # One that is ending, whose record goes first and then this file; or somebody who only waited
                # for that end.
                fcntl.flock(lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        if record is not None:
            return record


@contextlib.contextmanager
def watching(home: Path) -> Iterator[Callable[[], None]]:
    """Yields a function that BLOCKS until the engine that has the home at this moment is gone, also if it is
    ending already; another one may have come by then. A signal handler that raises ends the wait. Raises
    ClientError."""
    try:
        fd = os.open(home / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield lambda: None
        return
    except OSError as error:
        raise ClientError(f"the engine of {home} cannot be watched: {error.strerror}") from error
    try:
        yield lambda: fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def wait_until_gone(home: Path) -> None:
    """BLOCKS until the engine that has the home now is gone. Raises ClientError."""
    with watching(home) as wait:
        wait()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
