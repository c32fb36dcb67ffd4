"""What a budget has left, as a face shows it, and the amounts that an operator types for a new limit."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

from core.domain.commands import SetBudget
from core.domain.state import AgentState, SwarmState

Kind = Literal["tokens", "cost", "per_agent_tokens", "per_agent_cost"]
MAX_TOKENS = 10**15
MAX_DOLLARS = 1e9


class Limit(NamedTuple):
    """One limit of a budget: how much of it is used, by the swarm or by its agent that used most."""

    kind: Kind
    used: float
    limit: float
    needed: float = 0
    """What the request of an agent that it stops needs at least."""

    @property
    def share(self) -> float:
        """1.0: all of it. Of a limit of nothing, all is used."""
        return self.used / self.limit if self.limit else 1.0

    @property
    def money(self) -> bool:
        return self.kind.endswith("cost")

    @property
    def per_agent(self) -> bool:
        return self.kind.startswith("per_agent")

    def amount(self, value: float) -> str:
        """A value of this limit in full: "1,000,000", "$5.00", "$0.0174"."""
        if self.money:
            return f"${value:.4f}" if 0 < value < 0.1 else f"${value:,.2f}"
        return f"{math.floor(value):,}"

    def words(self) -> str:
        """ "1,000,000 of 1,000,000 tokens used", "$5.00 of $5.00 used by one agent"."""
        unit = "" if self.money else " tokens"
        who = " by one agent" if self.per_agent else ""
        return f"{self.amount(self.used)} of {self.amount(self.limit)}{unit} used{who}"

    def proposal(self) -> str:
        """Half as much again as the limit, or as what is used, and enough for the request that waits; as an
        operator types it."""
        value = max(self.limit * 1.5, self.used * 1.5, self.used + self.needed)
        return typed(value, money=self.money)


def typed(value: float, *, money: bool) -> str:
    """An amount as an operator types it, never less than `value`: "1.5M", "90k", "$7.50"."""
    if money:
        return f"${math.ceil(round(value * 100, 6)) / 100:.2f}"
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit:
            number = f"{math.ceil(round(value / unit * 100, 6)) / 100:.2f}".rstrip("0").rstrip(".")
            return number + letter
    return str(math.ceil(value))


def limits(state: SwarmState) -> list[Limit]:
    """The limits that are set, the swarm's before those of each agent."""
    budget = state.budget
    found: list[Limit] = []
    if budget.tokens is not None:
        found.append(Limit("tokens", _tokens(state), budget.tokens))
    if budget.cost is not None:
        found.append(Limit("cost", _dollars(state), budget.cost))
    agents = state.agents.values()
    if budget.per_agent_tokens is not None:
        most = max(map(_tokens, agents), default=0)
        found.append(Limit("per_agent_tokens", most, budget.per_agent_tokens))
    if budget.per_agent_cost is not None:
        top = max(map(_dollars, agents), default=0.0)
        found.append(Limit("per_agent_cost", top, budget.per_agent_cost))
    return found


def binding(state: SwarmState) -> Limit | None:
    """The limit that stops an agent, as its wait names it; while none is stopped, the one that is used most,
    of equals the swarm's. None without a budget."""
    found = limits(state)
    for agent in waiting(state):
        said = agent.wait.detail if agent.wait is not None else ""
        named, needs = _NAMED.search(said), _NEEDS.search(said)
        for limit in found:
            if named is not None and limit.kind == named[1]:
                used = limit.used
                if limit.per_agent:  # not of the agent that used most, but of the one that is stopped
                    used = _dollars(agent) if limit.money else _tokens(agent)
                return limit._replace(
                    used=used, needed=float(needs[1].replace(",", "")) if needs is not None else 0
                )
    return max(found, key=lambda limit: limit.share, default=None)


def stopped(agent: AgentState) -> bool:
    """Whether it goes on only when a limit is raised. One that stands in line, until the requests of others
    are settled, goes on by itself."""
    wait = agent.wait
    return wait is not None and wait.reason == "budget" and not wait.detail.startswith("in line")


def waiting(state: SwarmState) -> list[AgentState]:
    """The agents that a limit stops, in spawn order."""
    return [agent for agent in state.agents.values() if stopped(agent)]


def _tokens(of: SwarmState | AgentState) -> int:
    """What a budget counts as spent: what servers counted, and at most what they may have (decision 26)."""
    return (of.tokens.total if of.tokens is not None else 0) + of.spending.unmetered


def _dollars(of: SwarmState | AgentState) -> float:
    return of.spending.dollars + of.spending.unmetered_dollars


_NAMED = re.compile(r"\bbudget\.(\w+)")
_NEEDS = re.compile(r"\bneeds at least \$?([\d,]+(?:\.\d+)?)", re.ASCII)
_TYPED = re.compile(
    r"(?P<agent>(?:per[ _-]?)?agent\s+)?(?P<money>\$\s*)?"
    r"(?P<number>(?:\d{1,3}(?:[,_ ]\d{3})+|\d+)(?:\.\d+)?|\.\d+)\s*"
    r"(?P<unit>[km])?\s*(?P<word>tok|tokens?|dollars?|usd)?",
    re.IGNORECASE | re.ASCII,
)
HOW = "type 1.5M, 200k or 750,000 for tokens, $5.00 for money, “agent” before it for each agent"


class Wanted(NamedTuple):
    """A limit that an operator typed; 0 takes it away."""

    kind: Kind
    value: float

    def command(self, swarm: str) -> SetBudget:
        fields: dict[str, Any] = {self.kind: self.value}
        return SetBudget(swarm=swarm, **fields)

    def told(self) -> str:
        """What was set, for the line that says so."""
        who = "each agent's " if self.kind.startswith("per_agent") else ""
        money = self.kind.endswith("cost")
        if not self.value:
            return f"budget: no limit of {who}{'cost' if money else 'tokens'}"
        shown = f"${self.value:,.2f}" if money else f"{int(self.value):,} tokens"
        return f"budget: {who or 'the '}limit is {shown} now"


def parse(text: str, binds: Limit | None) -> Wanted:
    """The limit that an operator typed. A bare number is of the kind of `binds`, tokens without one. Raises
    ValueError with one sentence."""
    match = _TYPED.fullmatch(text.strip())
    if match is None:
        raise ValueError(HOW)
    number = float(re.sub(r"[,_ ]", "", match["number"]))
    number *= {"k": 1_000, "m": 1_000_000}.get((match["unit"] or "").lower(), 1)
    word = (match["word"] or "").lower()
    if match["money"] and word.startswith("tok"):
        raise ValueError(HOW)
    said = bool(match["money"] or word)
    money = bool(match["money"] or word[:1] in ("d", "u")) if said else binds is not None and binds.money
    agent = bool(match["agent"]) or (binds is not None and binds.per_agent and money == binds.money)
    if number > (MAX_DOLLARS if money else MAX_TOKENS):
        most = f"${MAX_DOLLARS:,.0f}" if money else f"{MAX_TOKENS:,} tokens"
        raise ValueError(f"a budget is at most {most}")
    if money:
        return Wanted("per_agent_cost" if agent else "cost", number)
    whole = round(number)
    if abs(number - whole) > 1e-6:
        raise ValueError("there are no parts of a token: " + HOW)
    return Wanted("per_agent_tokens" if agent else "tokens", whole)
