"""The ledger of a budget against a simple model, and swarms that run into one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.agents.budget import LEAST_OUTPUT, Budgets, BudgetSpent, Need
from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import AgentState, SwarmState
from core.domain.status import Budget, Usage
from core.models.prices import ModelEntry

ENTRY = ModelEntry(input=1.0, output=4.0)
AGENTS = [f"a{n}" for n in range(6)]


class Machine(RuleBasedStateMachine):
    """Agents reserve, settle (for less, for all, or for an unknown amount), are cancelled, and an operator
    changes the limits. The model: spent + held never exceeds a limit that stood when it was held, whoever
    came first is served first, and nobody stands in line while what he wants is free."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.state = SwarmState(swarm="s")
        for name in AGENTS:
            self.state.agents[name] = AgentState(thread=name, path=f"/{name}", nickname=name)
        self.budgets = Budgets(lambda: self.state)
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.needs: dict[str, Need] = {}
        self.line: list[str] = []
        """In line, as the model has it."""
        self.served: list[str] = []
        self.seq = 0

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self._turn()
        self.loop.close()

    def _turn(self) -> None:
        """Let every task go as far as it can."""

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())
        for name, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[name]
                if not task.cancelled() and not isinstance(task.exception(), BudgetSpent):
                    hold = task.result()
                    assert hold is self.budgets.held(name)
                    self._within_its_own(name, hold)
                if name in self.line:
                    if not task.cancelled() and task.exception() is None:
                        # First come, first served: all before it are served or gone as well.
                        before = self.line[: self.line.index(name)]
                        assert not any(other in self.tasks for other in before)
                        self.served.append(name)
                    self.line.remove(name)

    def _within_its_own(self, name: str, hold: Any) -> None:
        tokens, dollars = self._spent(self.state.agents[name])
        budget = self.state.budget
        assert budget.per_agent_tokens is None or tokens + hold.tokens <= budget.per_agent_tokens
        assert budget.per_agent_cost is None or dollars + hold.cost <= budget.per_agent_cost + 1e-9
        assert hold.answer >= self.needs[name].least

    def _commit(self, *events: e.Event) -> None:
        for event in events:
            self.seq += 1
            apply(self.state, event)
        self.budgets.on_commit(events)  # type: ignore[arg-type]
        self._turn()

    def _spent(self, agent: AgentState | None = None) -> tuple[int, float]:
        of: Any = agent or self.state
        counted = of.tokens.total if of.tokens is not None else 0
        return counted + of.spending.unmetered, of.spending.dollars + of.spending.unmetered_dollars

    def _held(self) -> list[Any]:
        return [hold for name in AGENTS if (hold := self.budgets.held(name)) is not None]

    free = property(lambda self: [n for n in AGENTS if n not in self.tasks and not self.budgets.held(n)])

    @initialize(tokens=st.integers(20_000, 80_000) | st.none())
    def begin(self, tokens: int | None) -> None:
        """Mostly so tight that a line comes about."""
        self._commit(e.BudgetSet(budget=Budget(tokens=tokens), by="operator"))

    @precondition(lambda self: self.free)
    @rule(
        pick=st.integers(0, 99),
        given=st.integers(1, 20_000),
        answer=st.sampled_from([1, 600, 1_024, 5_000, 32_768]),
        priced=st.sampled_from([True, True, True, False]),
    )
    def reserve(self, pick: int, given: int, answer: int, priced: bool) -> None:
        name = self.free[pick % len(self.free)]
        entry = ENTRY if priced else ModelEntry()
        least = min(answer, LEAST_OUTPUT)
        need = Need(thread=name, given=given, answer=answer, least=least, model="m", entry=entry)
        self.needs[name] = need

        async def waits() -> None:
            self.line.append(name)
            await asyncio.sleep(0)

        self.tasks[name] = self.loop.create_task(self.budgets.reserve(need, waits))
        self._turn()

    @precondition(lambda self: self._held())
    @rule(pick=st.integers(0, 99), part=st.floats(0, 1), how=st.sampled_from(["told", "unknown", "drop"]))
    def settle(self, pick: int, part: float, how: str) -> None:
        holds = self._held()
        hold = holds[pick % len(holds)]
        if how == "drop":
            self.budgets.drop(hold.thread)
            self._turn()
            return
        hold.sent = True
        done = e.ResponseCompleted(agent=hold.thread, response="r")
        if how == "unknown":
            charged = self.budgets.unsettled(hold.thread, "x")
            assert [event.tokens for event in charged if isinstance(event, e.UsageUnknown)] == [hold.tokens]
            self._commit(done, *charged)
            return
        need = self.needs[hold.thread]
        given, answer = int(need.given * part), int(hold.answer * part)
        usage = Usage(input=given, output=answer, total=given + answer)
        self._commit(
            e.ResponseCompleted(agent=hold.thread, response="r", usage=usage, cost=need.entry.cost(usage))
        )

    @precondition(lambda self: self.tasks)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        name = list(self.tasks)[pick % len(self.tasks)]
        self.tasks[name].cancel()
        self._turn()
        assert self.budgets.held(name) is None
        assert name not in self.tasks

    @rule(
        tokens=st.none() | st.integers(1, 200_000),
        cost=st.none() | st.floats(0.001, 1),
        own=st.none() | st.integers(1, 100_000),
        own_cost=st.none() | st.floats(0.001, 1),
    )
    def set(self, tokens: int | None, cost: float | None, own: int | None, own_cost: float | None) -> None:
        self._commit(
            e.BudgetSet(
                budget=Budget(
                    tokens=self._above(tokens, 0),
                    cost=self._above(cost, 1),
                    per_agent_tokens=own,
                    per_agent_cost=own_cost,
                ),
                by="operator",
            )
        )

    def _above(self, limit: Any, which: int) -> Any:
        """Mostly a raise: what is held already cannot be taken back by lowering a limit."""
        if limit is None:
            return None
        held = sum(hold.tokens if which == 0 else hold.cost or 0.0 for hold in self._held())
        return limit + self._spent()[which] + held

    @invariant()
    def the_cap_is_never_exceeded(self) -> None:
        budget, holds = self.state.budget, self._held()
        tokens, dollars = self._spent()
        if budget.tokens is not None:
            assert tokens + sum(hold.tokens for hold in holds) <= budget.tokens
        if budget.cost is not None:
            assert dollars + sum(hold.cost or 0.0 for hold in holds) <= budget.cost + 1e-9

    @invariant()
    def nobody_waits_while_it_fits(self) -> None:
        """Whoever stands in line has others before him who do not fit yet, or does not fit himself; with
        nothing held nobody stands there at all."""
        if not self._held():
            assert not self.tasks
        if self.tasks:
            first = next(name for name in self.line if name in self.tasks)
            need, budget = self.needs[first], self.state.budget
            tokens, dollars = self._spent()
            holds = self._held()
            fits = True
            if budget.tokens is not None:
                left = budget.tokens - tokens - sum(hold.tokens for hold in holds)
                fits = fits and need.given + need.answer <= left
            if budget.cost is not None:
                most = need.entry.most(need.given, need.answer)
                assert most is not None, "no price: it can never fit, so it cannot wait"
                fits = fits and most < budget.cost - dollars - sum(h.cost or 0.0 for h in holds) - 1e-9
            assert not fits

    @invariant()
    def what_is_held_adds_up(self) -> None:
        holds = self._held()
        assert self.budgets._tokens == sum(hold.tokens for hold in holds)
        assert self.budgets._cost == pytest.approx(sum(hold.cost or 0.0 for hold in holds), abs=1e-9)


TestLedger = Machine.TestCase
TestLedger.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
