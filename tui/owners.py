"""Which living engine owns a swarm, as the verbs say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def owner(home: Path, swarm: str) -> dict[str, Any] | None:
    """{"pid", "kind"} of the owner, either of them None if it is not known; None for a swarm without one."""
    from core.store.locks import owner_alive, owner_pid

    if not owner_alive(home, swarm):
        return None
    from core.channel.directory import owner_of

    record = owner_of(home, swarm)
    if record is None:
        return {"pid": owner_pid(home, swarm), "kind": None}
    return {"pid": record.pid, "kind": record.kind}


def owner_text(found: dict[str, Any] | None) -> str | None:
    """`engine 4711`, for a table."""
    if found is None:
        return None
    return f"{found['kind'] or 'engine'} {found['pid'] or '?'}"
