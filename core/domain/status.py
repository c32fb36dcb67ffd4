"""Statuses of agents, what an agent waits for, and token usage."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

Status = Literal[
    "pending_init", "running", "idle", "interrupted", "completed", "errored", "shutdown", "not_found"
]
FINAL: frozenset[str] = frozenset({"completed", "errored", "shutdown", "not_found"})
"""Statuses at which a waiter returns. The agent itself ends only by close."""

SETTLED: frozenset[str] = FINAL | {"interrupted"}
"""Statuses of an agent whose last turn has an outcome."""

WaitReason = Literal[
    "slot", "rate_limit", "model", "approval", "budget", "startup", "agents", "job", "mail", "retry"
]
"""`model`: in line for a place at the model's server; `rate_limit`: the server asked to wait."""


class Wait(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why an agent does not run now: `detail` for people ("3rd in line"), `until` when it is known."""

    reason: WaitReason
    detail: str = ""
    until: datetime | None = None
    line: int = 0
    """For `slot`: those with smaller numbers go first. `SwarmState.places` makes places of them, so that a
    line that moves on needs no event for each who stands in it."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one response, or a sum of them. `cached` is part of input, `reasoning` part of output."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    total: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input=self.input + other.input,
            cached=self.cached + other.cached,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
            total=self.total + other.total,
        )


class Spending(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What tokens cost, as far as that is known. Unknown is never 0: see `unpriced`."""

    dollars: float = 0.0
    """Of the responses that have a price."""
    priced: int = 0
    """Responses with a price."""
    unpriced: int = 0
    """Responses whose price or usage nobody told."""
    unmetered: int = 0
    """Tokens that servers may have counted and did not tell, at most."""
    unmetered_dollars: float = 0.0
    """Their price, where it is known."""

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            dollars=self.dollars + other.dollars,
            priced=self.priced + other.priced,
            unpriced=self.unpriced + other.unpriced,
            unmetered=self.unmetered + other.unmetered,
            unmetered_dollars=self.unmetered_dollars + other.unmetered_dollars,
        )

    @property
    def cost(self) -> float | None:
        """In US dollars, at least that much; None if nothing of it is known."""
        return self.dollars if self.priced else None


class Budget(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What may be spent, in tokens and US dollars, by all agents of a swarm together and by each of them.
    None: as much as it takes."""

    tokens: int | None = None
    cost: float | None = None
    per_agent_tokens: int | None = None
    per_agent_cost: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.tokens, self.cost, *self.per_agent))

    @property
    def per_agent(self) -> tuple[int | None, float | None]:
        return self.per_agent_tokens, self.per_agent_cost

    @property
    def money(self) -> bool:
        """Whether every model must have a price."""
        return self.cost is not None or self.per_agent_cost is not None
