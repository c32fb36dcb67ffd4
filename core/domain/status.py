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
