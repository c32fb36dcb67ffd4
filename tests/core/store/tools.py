"""What the store's tests share."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from core.clock import Clock
from core.domain import events as e
from core.domain.ids import uuid7
from core.store.connection import FILE_NAME
from core.store.store import Store
from tests.clock import FakeClock


def plain(text: str) -> str:
    return text


@asynccontextmanager
async def opened(
    home: Path, *, clock: Clock | None = None, redact: Callable[[str], str] = plain
) -> AsyncIterator[Store]:
    store = await Store.open(home, clock=clock or FakeClock(), redact=redact)
    try:
        yield store
    finally:
        await store.aclose()


async def new_swarm(store: Store, *, agents: int = 1) -> tuple[str, list[str]]:
    """A swarm with a root and children; (swarm, threads)."""
    swarm, threads = uuid7(), [uuid7() for _ in range(agents)]
    await store.create(swarm)
    events: list[e.Event] = [e.SwarmStarted(title="a swarm", cwd="/work", model="m", source="exec")]
    for number, thread in enumerate(threads):
        path = "/root" if number == 0 else f"/root/a{number}"
        parent = None if number == 0 else threads[0]
        events.append(
            e.AgentSpawned(
                agent=thread, path=path, nickname=f"n{number}", parent=parent, depth=int(number > 0)
            )
        )
        events.append(e.AgentReady(agent=thread))
    await store.append(swarm, events)
    return swarm, threads


def query(home: Path, sql: str, *args: Any) -> list[tuple[Any, ...]]:
    """Ask the file directly, past the store."""
    connection = sqlite3.connect(home / FILE_NAME)
    try:
        return connection.execute(sql, args).fetchall()
    finally:
        connection.close()
