"""How many agents have their history in memory: the least recently used idle ones give theirs up.

Everything else of an agent stays: its identity, its mail, its place in the tree. It reads its history from
the store again with its next turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.agents.agent import Agent


class Residency:
    """At most `limit` histories, but for those of agents that have something to do: more than that many may
    run or be in line, and each keeps its own until it is idle."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._resident: set[str] = set()
        self._idle: dict[str, Agent] = {}
        """Residents whose last turn is over, least recently used first; some may have been woken since."""

    def __len__(self) -> int:
        return len(self._resident)

    def entered(self, agent: Agent) -> None:
        """It has its history now, made or read for a turn."""
        self._resident.add(agent.thread)
        self._trim()

    def idle(self, agent: Agent) -> None:
        """Its turn is over."""
        self._idle.pop(agent.thread, None)
        if agent.resident:
            self._idle[agent.thread] = agent
        self._trim()

    def gone(self, agent: Agent) -> None:
        self._resident.discard(agent.thread)
        self._idle.pop(agent.thread, None)

    def _trim(self) -> None:
        while len(self._resident) > self.limit and self._idle:
            agent = self._idle.pop(next(iter(self._idle)))
            if agent.evictable:  # else the end of its next turn brings it here again
                agent.evict()
                self._resident.discard(agent.thread)
