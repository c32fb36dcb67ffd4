"""Agents across swarms, for verbs: who there is, and which one somebody means by a word."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from core.domain.state import AgentState, SwarmState
from core.store import shapes
from core.store.errors import NotFound
from core.store.locks import owner_pid
from core.store.readers import Reader


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that a word means."""

    swarm: str
    thread: str
    path: str
    nickname: str


async def roster(reader: Reader, ref: str | None, status: str | None = None) -> dict[str, Any]:
    """`agent list --json` without "engine": agents of the swarm `ref`, or of every swarm with a living owner;
    those with `status` only, if it is given. Parents before children. Raises NotFound, StoreError."""
    swarms = await reader.live_swarms() if ref is None else [await reader.find_swarm(ref)]
    agents: list[dict[str, Any]] = []
    for swarm in swarms:
        state = await reader.load_state(swarm)
        places = state.places()
        for entry in shapes.tree(state, reader.now())["agents"]:
            agent = state.agents[entry["thread"]]
            if status is None or agent.status == status:
                counts = {"asks": agent.asks, "calls": agent.calls, "failed_calls": agent.failed_calls}
                place = places.get(agent.thread)
                agents.append({**entry, "place_in_line": place, "swarm": swarm, **counts})
    return {"agents": agents}


async def find_agents(reader: Reader, ref: str, swarm: str | None = None) -> list[Found]:
    """Who `ref` may mean among the swarms with a living owner, or in `swarm` (an id or a unique prefix, live
    or not): a thread id, a path or a nickname, and only if nobody has that, the beginning of a thread id.

    A whole thread id is found in a swarm without an owner too. Raises NotFound when there is nobody."""
    ref = ref.strip()
    if not ref:
        raise NotFound("give the id, the path or the nickname of an agent")
    swarms = [await reader.find_swarm(swarm)] if swarm is not None else await reader.live_swarms()
    found: list[Found] = []
    for candidate in swarms:
        found += await _in_swarm(reader, candidate, ref)
    exact = [agent for agent in found if ref in (agent.path, agent.nickname) or ref.lower() == agent.thread]
    if found:
        return exact or found
    where = "in that swarm" if swarm is not None else "in a swarm that runs"
    if swarm is None:
        try:
            dead, thread = await reader.find_thread(ref)
        except NotFound:
            raise NotFound(f"there is no agent {ref!r} {where}") from None
        return [agent for agent in await _in_swarm(reader, dead, thread) if agent.thread == thread]
    raise NotFound(f"there is no agent {ref!r} {where}")


async def _in_swarm(reader: Reader, swarm: str, ref: str) -> list[Found]:
    low = ref.lower()
    rows = await reader.all(
        "SELECT swarm, thread, path, nickname FROM agents WHERE swarm = ?"
        " AND (path = ? OR nickname = ? OR substr(thread, 1, ?) = ?"
        ' OR (parent IS NULL AND substr(swarm, 1, ?) = ?)) ORDER BY "order"',
        (swarm, ref, ref, len(low), low, len(low), low),
    )
    return [Found(swarm=row[0], thread=row[1], path=row[2], nickname=row[3]) for row in rows]


def running_below(state: SwarmState, thread: str) -> Sequence[AgentState]:
    """Agents under `thread` that run or are about to."""
    below = {thread}
    found = []
    for agent in state.agents.values():  # in spawn order: parents come first
        if agent.parent in below:
            below.add(agent.thread)
            if agent.live:
                found.append(agent)
    return found


class Owned(msgspec.Struct, frozen=True, kw_only=True):
    """A swarm with a living owner. `busy`: something in it still happens; `pid` as the owner wrote it."""

    swarm: str
    pid: int | None
    busy: bool


async def owned(reader: Reader, home: Path) -> list[Owned]:
    """Swarms with a living owner, newest first. Raises StoreError."""
    found = []
    for swarm in await reader.live_swarms():
        busy = await reader.all(
            "SELECT 1 FROM agents WHERE swarm = ? AND status IN ('pending_init', 'running')"
            " UNION ALL SELECT 1 FROM agent_jobs WHERE swarm = ?"
            " AND status NOT IN ('completed', 'failed', 'cancelled') LIMIT 1",
            (swarm, swarm),
        )
        pid = await asyncio.to_thread(owner_pid, home, swarm)
        found.append(Owned(swarm=swarm, pid=pid, busy=bool(busy)))
    return found
