"""The line of those who wait for room in a budget: who is served, when, and what is left of who goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from core.agents.budget import Budgets, BudgetSpent, Hold, Need
from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import AgentState, SwarmState
from core.domain.status import Budget, Usage
from core.models.prices import ModelEntry
from tests.clock import settle

ENTRY = ModelEntry(input=1.0, output=4.0)


class Ledger:
    """A budget whose agents are asked for by name: `a` to `z`."""

    def __init__(self, **limits: Any) -> None:
        self.state = SwarmState(swarm="s", budget=Budget(**limits))
        self.budgets = Budgets(lambda: self.state)
        self.told: list[str] = []
        """Who was told that there is a line."""
        self.tasks: dict[str, asyncio.Task[Hold]] = {}
        self.tells = asyncio.Event()
        """Until then nobody who stands in line is through with saying so."""
        self.tells.set()

    async def asks(self, name: str, given: int, answer: int = 1000, least: int | None = None) -> None:
        """A request of an agent; returns when it got room, was refused, or stands in line."""
        self.state.agents.setdefault(name, AgentState(thread=name, path=f"/{name}", nickname=name))
        need = Need(
            thread=name,
            given=given,
            answer=answer,
            least=answer if least is None else least,
            model="m",
            entry=ENTRY,
        )

        async def told() -> None:
            self.told.append(name)
            await self.tells.wait()

        self.tasks[name] = asyncio.create_task(self.budgets.reserve(need, told))
        await settle()

    async def commit(self, *events: e.Event) -> None:
        for event in events:
            apply(self.state, event)
        self.budgets.on_commit(events)  # type: ignore[arg-type]
        await settle()

    async def answers(self, name: str, tokens: int) -> None:
        """The server answered, and said what it counted."""
        usage = Usage(input=tokens, total=tokens)
        await self.commit(e.ResponseCompleted(agent=name, response="r", usage=usage, cost=tokens / 1e6))

    async def cancels(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()

    @property
    def holds(self) -> dict[str, int]:
        """Tokens by name, of those who have room."""
        found = {name: self.budgets.held(name) for name in self.tasks}
        return {name: hold.tokens for name, hold in found.items() if hold is not None}

    @property
    def line(self) -> list[str]:
        return [name for name, task in self.tasks.items() if not task.done()]

    def refusal(self, name: str) -> str:
        error = self.tasks[name].exception()
        assert isinstance(error, BudgetSpent)
        return str(error)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """A budget of 20,000 tokens, of which `first` has 18,000."""
    made = Ledger(tokens=20_000)
    await made.asks("first", 17_000)
    assert made.holds == {"first": 18_000}
    yield made
    for task in made.tasks.values():
        task.cancel()
    await asyncio.wait(made.tasks.values())


async def test_first_come_first_served(ledger: Ledger) -> None:
    for name in "abc":
        await ledger.asks(name, 4_000)
    assert (ledger.line, ledger.told) == (["a", "b", "c"], ["a", "b", "c"])
    # So much is left that two of them fit: the two who came first.
    await ledger.answers("first", 9_000)
    assert ledger.holds == {"a": 5_000, "b": 5_000}
    assert ledger.line == ["c"]


async def test_who_fits_does_not_overtake_who_came_before(ledger: Ledger) -> None:
    await ledger.asks("big", 9_000)
    await ledger.asks("small", 100)
    assert ledger.line == ["big", "small"], "there is room for the small one, and one stands before it"
    assert ledger.told == ["big", "small"]
    await ledger.answers("first", 5_000)
    assert ledger.holds == {"big": 10_000, "small": 1_100}


async def test_who_is_in_line_is_not_passed_over_when_something_comes_free(ledger: Ledger) -> None:
    await ledger.asks("second", 500)
    await ledger.asks("big", 9_000)
    await ledger.asks("small", 100)
    await ledger.answers("second", 100)
    assert ledger.holds == {"first": 18_000}
    assert ledger.line == ["big", "small"]


async def test_whoever_gives_up_in_line_makes_room_for_those_behind(ledger: Ledger) -> None:
    await ledger.asks("big", 9_000)
    await ledger.asks("small", 100)
    await ledger.cancels("big")
    assert ledger.holds == {"first": 18_000, "small": 1_100}
    assert ledger.line == []


async def test_whoever_gives_up_in_the_middle_of_the_line_gets_nothing(ledger: Ledger) -> None:
    for name in ("big", "gone", "small"):
        await ledger.asks(name, 4_000)
    await ledger.cancels("gone")
    await ledger.answers("first", 1_000)
    assert ledger.holds == {"big": 5_000, "small": 5_000}


async def test_whoever_gives_up_while_he_says_that_he_waits_gets_nothing(ledger: Ledger) -> None:
    ledger.tells.clear()
    await ledger.asks("gone", 9_000)
    await ledger.cancels("gone")
    ledger.tells.set()
    await ledger.asks("next", 9_000)
    await ledger.answers("first", 1_000)
    assert ledger.holds == {"next": 10_000}


async def test_room_that_came_before_he_was_through_with_saying_so_is_given_back(ledger: Ledger) -> None:
    ledger.tells.clear()
    await ledger.asks("gone", 9_000)
    await ledger.answers("first", 1_000)
    assert ledger.holds == {"gone": 10_000}
    await ledger.cancels("gone")
    assert ledger.holds == {}


async def test_room_that_came_in_the_moment_of_a_cancel_goes_to_the_next(ledger: Ledger) -> None:
    await ledger.asks("a", 9_000)
    await ledger.asks("b", 9_000)
    # Served and cancelled before it can go on: its room must not stay taken for ever.
    usage = Usage(input=5_000, total=5_000)
    done = e.ResponseCompleted(agent="first", response="r", usage=usage)
    apply(ledger.state, done)
    ledger.budgets.on_commit([done])
    assert ledger.budgets.held("a") is not None
    await ledger.cancels("a")
    assert ledger.tasks["a"].cancelled()
    assert ledger.holds == {"b": 10_000}


async def test_one_that_will_never_fit_is_told_so_and_blocks_nobody(ledger: Ledger) -> None:
    await ledger.asks("big", 9_000)
    await ledger.asks("small", 100)
    await ledger.answers("first", 15_000)
    assert ledger.refusal("big") == (
        "limit reached: budget.tokens = 20,000; 15,000 are spent, and its next request needs at least 10,000"
    )
    assert ledger.holds == {"small": 1_100}


async def test_nobody_takes_what_is_left_while_others_hold_more(ledger: Ledger) -> None:
    """A shorter answer is for when nothing more can come free."""
    await ledger.asks("a", 500, answer=10_000, least=1_024)
    assert ledger.line == ["a"]
    await ledger.answers("first", 18_000)
    hold = ledger.budgets.held("a")
    assert hold is not None
    assert (hold.tokens, hold.answer) == (2_000, 1_500)


async def test_a_raise_serves_the_line(ledger: Ledger) -> None:
    for name in "ab":
        await ledger.asks(name, 4_000)
    await ledger.commit(e.BudgetSet(budget=Budget(tokens=23_000), by="operator"))
    assert ledger.holds == {"first": 18_000, "a": 5_000}
    await ledger.commit(e.BudgetSet(budget=Budget(), by="operator"))
    assert ledger.line == []


async def test_a_lower_limit_tells_those_in_line_that_it_is_spent(ledger: Ledger) -> None:
    await ledger.asks("a", 4_000)
    await ledger.commit(e.BudgetSet(budget=Budget(tokens=4_000), by="operator"))
    assert "budget.tokens = 4,000" in ledger.refusal("a")


async def test_a_request_that_was_not_sent_gives_everything_back(ledger: Ledger) -> None:
    await ledger.asks("a", 4_000)
    ledger.budgets.drop("first")
    await settle()
    assert ledger.holds == {"a": 5_000}
    assert ledger.budgets.unsettled("a", "cut") == []
    assert ledger.holds == {}


async def test_a_request_that_was_sent_is_charged_as_a_whole_if_nobody_tells(ledger: Ledger) -> None:
    hold = ledger.budgets.held("first")
    assert hold is not None
    hold.sent = True
    charged = ledger.budgets.unsettled("first", "cut")
    (event,) = charged
    assert isinstance(event, e.UsageUnknown)
    assert (event.tokens, event.reason) == (18_000, "cut")
    assert event.cost == pytest.approx((17_000 + 4_000) / 1e6)
    assert ledger.holds == {"first": 18_000}, "until it is recorded"
    await ledger.commit(*charged)
    assert ledger.holds == {}
    await ledger.asks("a", 1_100)
    assert "18,000 are spent" in ledger.refusal("a")
    assert ledger.budgets.unsettled("first", "cut") == [], "once"


async def test_money_is_held_too() -> None:
    ledger = Ledger(cost=0.01)
    await ledger.asks("a", 4_000)
    assert ledger.holds == {"a": 5_000}
    await ledger.asks("b", 1_000)
    assert ledger.line == ["b"], "the first may cost 0.008 of 0.01, the second 0.005"
    await ledger.answers("a", 5_000)
    assert ledger.holds == {"b": 2_000}
    await ledger.answers("b", 4_000)
    await ledger.asks("c", 1_000)
    assert ledger.refusal("c") == (
        "limit reached: budget.cost = $0.0100; $0.0090 is spent, and its next request needs at least $0.0050"
    )


async def test_without_a_budget_nobody_waits() -> None:
    ledger = Ledger()
    for name in "abc":
        await ledger.asks(name, 10**9)
    assert sorted(ledger.holds) == ["a", "b", "c"]
