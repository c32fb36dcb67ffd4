"""What stays on the terminal after the console is gone: how the swarm stands, and the way back to it."""

from __future__ import annotations

from typing import Literal

from core.domain.state import SwarmState

Fate = Literal["goes on", "stopped", "stopping", "ended", "lost", "closed"]
"""Of the engine, when the console left: it goes on; it was asked to stop and did, or still does; it was gone
already, or the way to it was; it belonged to the console and ended with it."""
SHORT_CHARS = 18
"""Of a swarm's id: its milliseconds and 12 random bits, unique in practice."""


def short_id(swarm: str) -> str:
    """As much of a swarm's id as names it alone."""
    return swarm[:SHORT_CHARS].rstrip("-")


def farewell(state: SwarmState, fate: Fate, attach: str = "watchroom attach") -> str:
    """How the swarm stands, and on a line of its own, so that it can be copied, the command to come back.
    `attach` is the one that comes back to the engine, without the id."""
    over = fate in ("stopped", "ended", "closed")  # without an owner nothing runs (decision 2)
    counts: dict[str, int] = {}
    for agent in state.agents.values():
        # The feed ends before the engine does: what it stopped on its way out is interrupted by now.
        status = "interrupted" if over and (agent.live or agent.wait) else agent.status
        counts[status] = counts.get(status, 0) + 1
    swarm = short_id(state.swarm)
    how = {
        "goes on": "; the engine goes on",
        "lost": "; the connection is lost",
        "stopped": "; the engine was stopped",
        "stopping": "; the engine is still stopping",
        "ended": "; the engine has ended",
        "closed": "",
    }[fate]
    words = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts.items())
    if fate in ("goes on", "lost"):
        back = f"come back with: {attach} {swarm}"
    elif fate == "closed" and not (state.active() or counts.get("interrupted")):
        back = f"look at it with: watchroom session show {swarm}"
    else:
        back = f"go on with: watchroom resume {swarm}"
    return f"swarm {swarm}: {words}{how}\n{back}"
