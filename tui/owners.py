"""Which living engine owns a swarm, as the verbs say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def owner(home: Path, swarm: str) -> dict[str, Any] | None:
    """{"pid", "kind"} of the owner, either of them None if it is not known; None for a swarm without one."""
    from core.store.locks import owner_alive, owner_of

    if not owner_alive(home, swarm):
        return None
    found = owner_of(home, swarm)
    return {"pid": found.pid if found else None, "kind": found.kind or None if found else None}


def owner_text(found: dict[str, Any] | None) -> str | None:
    """`engine 4711`, for a table."""
    if found is None:
        return None
    return f"{found['kind'] or 'engine'} {found['pid'] or '?'}"
