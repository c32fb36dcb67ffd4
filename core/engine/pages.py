"""Pages that are made of the live state."""

from __future__ import annotations

from core.domain import commands as c
from core.domain.state import SwarmState

MAX_AGENTS_PAGE = 5000


def agents_page(state: SwarmState, request: c.GetAgents) -> c.AgentsPage:
    """Agents in spawn order, filtered and cut; the counts are of all."""
    counts: dict[str, int] = {}
    for agent in state.agents.values():
        counts[agent.status] = counts.get(agent.status, 0) + 1
    fitting = [
        agent
        for agent in state.agents.values()
        if agent.order >= request.start and (not request.status or agent.status in request.status)
    ]
    limit = max(1, min(request.limit, MAX_AGENTS_PAGE))
    return c.AgentsPage(
        agents=tuple(fitting[:limit]), counts=counts, truncated=len(fitting) > limit, seq=state.seq
    )
