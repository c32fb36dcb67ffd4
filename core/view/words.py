"""What every face calls the same things: why an agent waits, what something cost, how an MCP server is."""

from __future__ import annotations

from datetime import datetime

from core.domain.events import McpServerChanged
from core.domain.state import AgentState, McpServerState
from core.domain.status import Spending, Wait
from core.safety.text import clean_line, ordinal

UNKNOWN = "n/a"
_REASONS = {"rate_limit": "rate limit", "startup": "start-up"}


def waits_for(wait: Wait | None, place: int | None, now: datetime) -> str:
    """Reason and detail of a wait on one line: "model: 12th in line", "rate limit 12s: 429 slow down".

    `place` is the agent's in the line for a slot, from 1. Without a wait: empty."""
    if wait is None:
        return ""
    reason = _REASONS.get(wait.reason, wait.reason)
    if wait.until is not None:
        seconds = max(round((wait.until - now).total_seconds()), 0)
        reason += f" in {_span(seconds)}" if wait.reason == "retry" else f" {_span(seconds)}"
    detail = f"{ordinal(place)} in line" if place is not None else clean_line(wait.detail)
    if wait.reason == "budget":
        detail = detail.removeprefix("limit reached: ").removeprefix("budget.")
    if not detail:
        return reason
    if wait.until is None and wait.reason in detail.split():  # "2 of 3 agents" says it already
        return detail
    return f"{reason}: {detail}"


def outcome(agent: AgentState) -> str:
    """Why an agent failed or was interrupted, on one line; empty for any other."""
    if agent.status not in ("errored", "interrupted"):
        return ""
    said = clean_line(agent.status_message)
    return f"start-up: {said}" if agent.start_failed and not said.startswith("start-up") else said


def _span(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h"


# --- tokens and money ------------------------------------------------------------------------------------


def partly_known(spending: Spending) -> bool:
    """Whether it cost more than `spending.cost` says: for some of it nobody told a price."""
    return bool(spending.priced and (spending.unpriced or spending.unmetered))


def cost(spending: Spending) -> str:
    """What it cost: "$2.10", "$2.10+" if that is not all, "n/a" if nobody knows, empty if it is nothing."""
    known = spending.cost
    if known is None:
        return UNKNOWN if spending.unpriced or spending.unmetered else ""
    return dollars(known) + ("+" if partly_known(spending) else "")


def dollars(amount: float) -> str:
    """US dollars in at most 7 cells; what is not nothing is never shown as nothing."""
    if 0 < amount < 0.005:
        return "<$0.01"
    if amount < 999.995:
        return f"${amount:.2f}"
    if amount < 99_950:
        return f"${amount / 1000:.1f}k"
    if amount < 999_500:
        return f"${amount / 1000:.0f}k"
    return f"${amount / 1_000_000:.1f}M" if amount < 99_950_000 else f"${amount / 1_000_000:.0f}M"


# --- MCP servers -----------------------------------------------------------------------------------------

TROUBLE = ("failed", "ended")


def server(changed: McpServerChanged | McpServerState) -> str:
    """How an MCP server is: "docs ready 12 tools 0.8s", "docs failed: no such file"."""
    line = f"{clean_line(changed.server)} {changed.status}"
    if changed.status == "ready":
        line += f" {changed.tools} {'tool' if changed.tools == 1 else 'tools'}"
    if changed.seconds is not None and changed.status != "ended":
        line += f" {changed.seconds:.1f}s"
    detail = clean_line(changed.detail)
    return f"{line}: {detail}" if detail else line
