"""What agents may spend: before a request is sent, the most that it can use is set aside (decision 26).

What is spent is read from the swarm's state, so a restart goes on with it. Beside it stand the holds of the
requests under way: one per agent, from before the request until its usage is recorded. Spent and held
together never exceed a limit, as far as servers do what they are told and count no more than a token a byte.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from core.agents.history import MARK
from core.domain import events as e
from core.domain.state import SwarmState
from core.domain.status import Budget, Spending, Usage
from core.models.prices import ModelEntry, unpriced

MOST_OUTPUT = 32_768
"""Tokens of one answer at most, while a budget is kept."""
LEAST_OUTPUT = 1_024
"""With less than this left for its answer a request is not sent."""
IMAGE_TOKENS = 20_000
HELD = "in line: other requests hold what is left of it"


class BudgetSpent(Exception):
    """A request that does not fit, whatever becomes of the others. The sentence names limit, value, what is
    spent and what is needed."""

    def __init__(self, sentence: str, change: asyncio.Event, *, shared: bool) -> None:
        super().__init__(sentence)
        self.change = change
        """Set once the budget has changed since."""
        self.shared = shared
        """Whether it is the swarm's own limit: then no other agent can do more about it."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a request can use at most."""

    thread: str
    given: int
    """Tokens of its input."""
    answer: int
    """Tokens of its answer, if there is room for so many."""
    least: int
    """It is not worth sending for less."""
    model: str
    entry: ModelEntry


class Hold(msgspec.Struct, kw_only=True):
    """What is set aside for one request. `answer`: the tokens that its answer may have."""

    thread: str
    tokens: int
    cost: float | None
    answer: int
    sent: bool = False
    """Whether a server may be counting it."""


class _Limit(msgspec.Struct, frozen=True):
    """One limit as it is for one request: amounts are tokens, or dollars."""

    name: str
    total: float
    spent: float
    held: float
    given: float
    rate: float
    """Per token of the answer."""
    money: bool
    shared: bool

    def answer(self, left: float) -> int:
        """How many tokens of an answer fit into `left` beside the input; less than 0: not even that."""
        rest = left - self.given
        if rest < 0:
            return -1
        if self.rate == 0:
            return MOST_OUTPUT
        most = int(min(rest / self.rate, MOST_OUTPUT))
        return most if most * self.rate <= rest else most - 1

    def spent_text(self, need: Need, who: str) -> str:
        amount = _dollars if self.money else _count
        least = self.given + need.least * self.rate
        spent = f"{amount(self.spent)} {'is' if self.money else 'are'} spent"
        if not self.shared:
            spent = f"{who} has spent {amount(self.spent)}"
        return (
            f"limit reached: budget.{self.name} = {amount(self.total)}; {spent}, and its next request"
            f" needs at least {amount(least)}"
        )


def _count(amount: float) -> str:
    return f"{int(amount):,}"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 100 else f"${amount:.4f}"


class _Waiter(msgspec.Struct, frozen=True):
    need: Need
    future: asyncio.Future[Hold]


class Budgets:
    """The holds of one swarm, and the line of those who wait for others to settle theirs: first come, first
    served."""

    def __init__(self, state: Callable[[], SwarmState]) -> None:
        self._state = state
        self._holds: dict[str, Hold] = {}
        """By thread."""
        self._tokens = 0
        self._cost = 0.0
        """The sums of the holds."""
        self._line: deque[_Waiter] = deque()
        self._change = asyncio.Event()
        self.changing = asyncio.Lock()
        """Held while an operator changes the budget: of two at once none undoes what the other did."""

    @property
    def budget(self) -> Budget:
        return self._state().budget

    def held(self, thread: str) -> Hold | None:
        return self._holds.get(thread)

    async def reserve(self, need: Need, waits: Callable[[], Awaitable[object]]) -> Hold:
        """Set aside what a request can use, in line behind those who came before; `waits` is called once if
        there is a line. The hold stays until the request's usage is recorded, or until `unsettled` or `drop`.
        Raises BudgetSpent. Cancelling leaves nothing."""
        hold = self._judge(need)
        if hold is not None and not self._line:
            return self._take(hold)
        future: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(need, future)
        self._line.append(waiter)
        try:
            await waits()
            return await future
        except BaseException:
            if not future.done():
                future.cancel()
            elif not future.cancelled() and future.exception() is None:
                self._release(need.thread)
            self._serve()
            raise

    def drop(self, thread: str) -> None:
        """The agent's request was not sent, or was refused: nothing of it is counted."""
        if self._release(thread):
            self._serve()

    def unsettled(self, thread: str, reason: str) -> list[e.Event]:
        """The events that charge a request of which nobody told what it used. They settle it once recorded;
        one that was never sent is dropped."""
        hold = self._holds.get(thread)
        if hold is None:
            return []
        if not hold.sent:
            self.drop(thread)
            return []
        return [e.UsageUnknown(agent=thread, tokens=hold.tokens, cost=hold.cost, reason=reason)]

    def on_commit(self, events: Iterable[e.AnyEvent]) -> None:
        """Committed and folded: what was held for a request is now spent, or the budget is another."""
        moved = False
        for event in events:
            if isinstance(event, e.ResponseCompleted | e.UsageUnknown):
                moved = self._release(event.agent or "") or moved
            elif isinstance(event, e.BudgetSet):
                self._change.set()
                self._change = asyncio.Event()
                moved = True
        if moved:
            self._serve()

    # --- inside ------------------------------------------------------------------------------------------

    def _take(self, hold: Hold) -> Hold:
        self._holds[hold.thread] = hold
        self._tokens += hold.tokens
        self._cost += hold.cost or 0.0
        return hold

    def _release(self, thread: str) -> bool:
        hold = self._holds.pop(thread, None)
        if hold is None:
            return False
        self._tokens -= hold.tokens
        # Sums of fractions drift: with nothing held it is nothing.
        self._cost = self._cost - (hold.cost or 0.0) if self._holds else 0.0
        return True

    def _serve(self) -> None:
        """The first in line, while it fits. One that never will is told so, and blocks nobody."""
        while self._line:
            waiter = self._line[0]
            if not waiter.future.done():
                try:
                    hold = self._judge(waiter.need)
                except BudgetSpent as spent:
                    waiter.future.set_exception(spent)
                else:
                    if hold is None:
                        return
                    waiter.future.set_result(self._take(hold))
            self._line.popleft()

    def _judge(self, need: Need) -> Hold | None:
        """What can be set aside for `need` now; None: nothing before others have settled. Raises
        BudgetSpent."""
        wanted = room = need.answer
        for limit in self._limits(need):
            best = limit.answer(limit.total - limit.spent)
            if best < need.least:
                who = self._state().agents[need.thread].path
                raise BudgetSpent(limit.spent_text(need, who), self._change, shared=limit.shared)
            if limit.shared:
                room = min(room, limit.answer(limit.total - limit.spent - limit.held))
            else:
                wanted = min(wanted, best)
        if room < wanted and self._holds:
            return None
        answer = min(wanted, room)
        cost = need.entry.most(need.given, answer)
        return Hold(thread=need.thread, tokens=need.given + answer, cost=cost, answer=answer)

    def _limits(self, need: Need) -> Iterator[_Limit]:
        state = self._state()
        budget = state.budget
        if not budget:
            return
        agent = state.agents[need.thread]
        spent, own = _spent(state.tokens, state.spending), _spent(agent.tokens, agent.spending)
        if budget.tokens is not None:
            yield _Limit("tokens", budget.tokens, spent[0], self._tokens, need.given, 1, False, True)
        if budget.per_agent_tokens is not None:
            yield _Limit("per_agent_tokens", budget.per_agent_tokens, own[0], 0, need.given, 1, False, False)
        if not budget.money:
            return
        given, one = need.entry.most(need.given, 0), need.entry.most(0, 1)
        if given is None or one is None:
            raise BudgetSpent(no_price([need.model]), self._change, shared=False)
        if budget.cost is not None:
            yield _Limit("cost", budget.cost, spent[1], self._cost, given, one, True, True)
        if budget.per_agent_cost is not None:
            yield _Limit("per_agent_cost", budget.per_agent_cost, own[1], 0, given, one, True, False)


def _spent(tokens: Usage | None, spending: Spending) -> tuple[int, float]:
    """Tokens and dollars, those that nobody told included."""
    counted = tokens.total if tokens is not None else 0
    return counted + spending.unmetered, spending.dollars + spending.unmetered_dollars


# --- prices ----------------------------------------------------------------------------------------------


def no_price(models: Sequence[str]) -> str:
    """One sentence: money cannot be counted for `models`."""
    which = ", ".join(models)
    have = "have no price" if len(models) > 1 else "has no price"
    return (
        f"a budget in money is set and {which} {have}: set input and output in dollars per million tokens"
        f' under [catalog."{models[0]}"], or for all others under [catalog."*"]'
    )


def unpriced_sentence(budget: Budget, catalog: Mapping[str, ModelEntry], models: Iterable[str]) -> str | None:
    """Why `budget` cannot be kept with these models; None if it can. A price is never guessed."""
    missing = unpriced(catalog, models) if budget.money else []
    return no_price(missing) if missing else None


# --- bounds ----------------------------------------------------------------------------------------------


class Meter:
    """How many tokens the next request of an agent can have as input: what the server counted last time, and
    a token for every byte that came since."""

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._items = 0
        self._last: dict[str, Any] | None = None
        self._beside = 0
        self._tools: Sequence[dict[str, Any]] = ()
        self._tools_size = _bytes(())

    def bound(
        self, instructions: str, tools: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]]
    ) -> int:
        beside = self._size_beside(instructions, tools)
        known = self._items
        if self._usage is None or len(items) < known or not known or items[known - 1] is not self._last:
            return beside + sum(map(size_of, items))
        said = 0
        came = iter(items[known:])
        rest = 0
        for item in came:
            if not _of_the_model(item):
                rest = size_of(item) + sum(map(size_of, came))
                break
            said += size_of(item)
        # What it said comes back as input; some of it as text, some as thoughts that only the server counts.
        said = max(said, self._usage.output)
        return self._usage.input + said + rest + max(beside - self._beside, 0)

    def counted(
        self,
        instructions: str,
        tools: Sequence[dict[str, Any]],
        items: Sequence[dict[str, Any]],
        usage: Usage | None,
    ) -> None:
        """The server answered a request; `usage` None: it did not say what it counted."""
        self._usage = usage
        self._items = len(items)
        self._last = items[-1] if items else None
        self._beside = self._size_beside(instructions, tools)

    def _size_beside(self, instructions: str, tools: Sequence[dict[str, Any]]) -> int:
        """An agent's tools are the same list from request to request: they are measured once."""
        if tools is not self._tools:
            self._tools, self._tools_size = tools, _bytes(tools)
        return len(instructions.encode("utf-8", "replace")) + self._tools_size


def _of_the_model(item: dict[str, Any]) -> bool:
    return item.get("type") in ("function_call", "reasoning") or item.get("role") == "assistant"


def size_of(item: dict[str, Any]) -> int:
    """A bound of the tokens of one history item: its bytes, and so many for each picture in it."""
    images = 0
    for key in ("content", "output"):
        parts = item.get(key)
        if isinstance(parts, list):
            kept = [part for part in parts if not (isinstance(part, dict) and _is_image(part))]
            if len(kept) < len(parts):
                images += len(parts) - len(kept)
                item = {**item, key: kept}
    return _bytes(item) + images * IMAGE_TOKENS


def _is_image(part: dict[str, Any]) -> bool:
    return part.get("type") in (MARK, "input_image")


def _bytes(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except UnicodeEncodeError:  # half a surrogate pair
        return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
