"""The line on the terminal after the console is gone: how the swarm stands, and the command to come back."""

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
    """One line. `attach` is the command that comes back to the engine, without the id."""
    over = fate in ("stopped", "ended", "closed")  # without an owner nothing runs (decision 2)
    counts: dict[str, int] = {}
    for agent in state.agents.values():
        # The feed ends before the engine does: what it stopped on its way out is interrupted by now.
        status = "interrupted" if over and (agent.live or agent.wait) else agent.status
        counts[status] = counts.get(status, 0) + 1
    words = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts.items())
    going_on = state.active() or counts.get("interrupted")
    swarm = short_id(state.swarm)
    resume = f"watchroom resume {swarm}"
    if fate == "goes on":
        after = f"the engine goes on; come back with: {attach} {swarm}"
    elif fate == "lost":
        after = f"the connection is lost; come back with: {attach} {swarm}"
    elif fate == "stopped":
        after = f"the engine was stopped; go on with: {resume}"
    elif fate == "stopping":
        after = f"the engine is still stopping; go on with: {resume}"
    elif fate == "ended":
        after = f"the engine has ended; go on with: {resume}"
    else:
        after = resume if going_on else f"watchroom session show {swarm}"
    return f"swarm {swarm}: {words}; {after}"
