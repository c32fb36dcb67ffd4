"""Looking for processes by a marker in their command line, through /proc; waiting for them by pidfd."""

from __future__ import annotations

import os
import select
from pathlib import Path

DEADLINE_MS = 10_000


def alive(marker: str) -> list[int]:
    """Processes (no zombies) whose argv holds `marker`, this one excepted."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            argv = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in argv:
            found.append(int(folder.name))
    return found


def gone(marker: str) -> bool:
    """Whether all processes with `marker` end within the deadline."""
    for pid in alive(marker):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if not poller.poll(DEADLINE_MS):
                return False
        finally:
            os.close(fd)
    return not alive(marker)


def descriptors() -> set[str]:
    """What this process has open."""
    return {f"{fd}:{_target(fd)}" for fd in os.listdir("/proc/self/fd")}


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
