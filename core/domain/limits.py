"""The capacity limits of a swarm and the error they raise, which names limit, value and holder."""

from __future__ import annotations

from typing import Literal

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Capacity and wait bounds of one swarm; the defaults are those of the `[agents]` settings."""

    max_threads: int = 17
    """Execution slots: running turns, the root's included."""
    slots: Literal["running", "spawned"] = "running"
    """running: a turn holds a slot, a full house queues; spawned: an agent does, from its spawn to its close,
    and a full house refuses (decision 17)."""
    max_depth: int = 4
    max_agents: int = 1000
    """Open agents, the root included."""
    max_turns: int = 500
    """Turns of one agent that mail alone began since the operator last wrote to anybody in the swarm."""
    max_resident: int = 256
    """Agents with their history in memory; those with something to do may be more."""
    min_wait_ms: int = 10_000
    default_wait_ms: int = 30_000
    max_wait_ms: int = 3_600_000
    wake_parent: bool = True


class LimitError(Exception):
    """A spawn that a limit refused: the setting's name, its value, and who fills it."""

    def __init__(self, limit: str, value: int, held_by: str) -> None:
        super().__init__(f"limit reached: {limit} = {value}; {held_by}")
        self.limit = limit
        self.value = value
        self.held_by = held_by
