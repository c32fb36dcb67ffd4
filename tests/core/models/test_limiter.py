"""The limiter by itself: how its limit moves, who goes first, and that no place is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from core.models.limiter import (
    COOL_DOWN,
    HISTORY,
    MOST_MODELS,
    Bounds,
    Limiter,
    Limiters,
    LimiterView,
    Ticket,
)
from core.models.types import ModelError, Queued
from tests.clock import FakeClock, settle

QUOTA = ModelError("https://models.test/v1 answered HTTP 429: pay", kind="quota", status=429)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def limiter(clock: FakeClock, limit: int = 20, *, least: int = 2, most: int = 1000) -> Limiter:
    return Limiter("m", clock, Bounds(least, limit, most))


def fill(of: Limiter, number: int) -> list[Ticket]:
    tickets = [of.ticket() for _ in range(number)]
    for ticket in tickets:
        assert ticket.enter()
    return tickets


def clean_round(of: Limiter, width: int, answers: int | None = None) -> None:
    """`answers` good ones (None: as many as make a round), never more than `width` at once."""
    for _ in range(-(-(answers or max(of.limit, 4)) // width)):
        for ticket in fill(of, width):
            ticket.succeeded()
            ticket.leave()


class Waiter:
    """A request that waits in a task of its own. `told`: what it was told that it waits for."""

    def __init__(self, of: Limiter, *, repeated: bool = False) -> None:
        self.ticket = of.ticket()
        self.ticket.repeated = repeated
        self.told: list[Queued] = []
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            if not self.ticket.enter():
                async for wait in self.ticket.line():
                    self.told.append(wait)
        except BaseException:
            self.ticket.leave()
            raise


@asynccontextmanager
async def waiters(of: Limiter, number: int) -> AsyncIterator[list[Waiter]]:
    found = [Waiter(of) for _ in range(number)]
    await settle()
    try:
        yield found
    finally:
        for waiter in found:
            waiter.task.cancel()
        await asyncio.gather(*(waiter.task for waiter in found), return_exceptions=True)


# -- the limit


def test_slow_start_doubles_per_round_until_the_first_rate_limit(clock: FakeClock) -> None:
    of = limiter(clock)
    clean_round(of, 20)
    clean_round(of, 40)
    tickets = fill(of, 80)
    tickets[0].rate_limited()
    assert [(c.before, c.after, c.reason) for c in of.changes] == [
        (20, 40, "slow start"),
        (40, 80, "slow start"),
        (80, 40, "rate limit"),
    ]
    assert of.in_flight == 80, "shrinking stops nobody"


async def test_after_a_cut_it_grows_by_five_per_cent_up_to_a_multiple_of_five(clock: FakeClock) -> None:
    of = limiter(clock, 8)
    fill(of, 8)[0].rate_limited()
    of.in_flight = 0
    await clock.advance(COOL_DOWN)
    grown = []
    for _ in range(12):
        clean_round(of, of.limit)
        grown.append(of.limit)
    assert grown == [5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 35, 40]
    of.limit = 100
    clean_round(of, 100)
    assert of.limit == 105
    assert {c.reason for c in of.changes} == {"rate limit", "growth"}


def test_a_small_limit_grows_too(clock: FakeClock) -> None:
    """The peak is seen when a place is taken: at the end of an answer it is one short."""
    of = limiter(clock, 4)
    clean_round(of, 4)
    assert of.limit == 8


@pytest.mark.parametrize(("width", "limit"), [(16, 40), (15, 20)])
def test_it_grows_only_where_four_fifths_were_used(clock: FakeClock, width: int, limit: int) -> None:
    of = limiter(clock, 20)
    clean_round(of, width, 20)
    assert of.limit == limit


def test_what_was_used_in_an_earlier_round_does_not_count(clock: FakeClock) -> None:
    of = limiter(clock, 20, most=20)
    clean_round(of, 20)
    of.configure(Bounds(2, 20, 100))
    clean_round(of, 5)
    assert of.limit == 20


def test_only_first_attempts_prove_anything(clock: FakeClock) -> None:
    of = limiter(clock, 4)
    for _ in range(10):
        tickets = fill(of, 4)
        for ticket in tickets:
            ticket.repeated = True
            ticket.succeeded()
            ticket.leave()
    assert of.limit == 4


async def test_one_cut_per_cool_down_in_which_good_answers_are_dropped(clock: FakeClock) -> None:
    of = limiter(clock, 20)
    for ticket in fill(of, 20):
        ticket.rate_limited()
        ticket.leave()
    assert of.limit == 10
    await clock.advance(COOL_DOWN - 0.1)
    clean_round(of, 10)
    [ticket] = fill(of, 1)
    ticket.rate_limited()
    ticket.leave()
    assert of.limit == 10
    await clock.advance(0.1)
    clean_round(of, 9, 9)
    assert of.limit == 10, "what came in the cool-down does not count, nor what came before another refusal"
    [ticket] = fill(of, 1)
    ticket.succeeded()
    ticket.leave()
    assert of.limit == 15
    fill(of, 1)[0].rate_limited()
    assert of.limit == 7
    assert len(of.changes) == 3


def test_a_refusal_in_the_cool_down_begins_the_round_again(clock: FakeClock) -> None:
    of = limiter(clock, 10)
    clean_round(of, 9, 9)
    first, second = fill(of, 2)
    first.rate_limited()
    second.rate_limited()
    assert of._clean == 0
    assert of.limit == 5


def test_a_limit_that_nobody_used_is_cut_to_what_was(clock: FakeClock) -> None:
    of = limiter(clock, 1000)
    fill(of, 60)[0].rate_limited()
    assert of.limit == 30
    few = limiter(clock, 20)
    fill(few, 1)[0].rate_limited()
    assert few.limit == 10, "one request that was refused says little"


async def test_the_limit_stays_in_its_bounds(clock: FakeClock) -> None:
    of = limiter(clock, 4, least=3, most=6)
    clean_round(of, 4)
    assert of.limit == 6
    for _ in range(3):
        fill(of, 1)[0].rate_limited()
        await clock.advance(COOL_DOWN)
    assert of.limit == 3


async def test_a_fixed_limit_is_neither_cut_nor_raised(clock: FakeClock) -> None:
    of = Limiter("m", clock, Bounds.fixed(4))
    clean_round(of, 4)
    clean_round(of, 4)
    [ticket] = fill(of, 1)
    ticket.rate_limited()
    ticket.leave()
    assert of.limit == 4
    assert of.view().fixed
    async with waiters(of, 6):
        assert (of.in_flight, of.waiting) == (4, 2)


async def test_the_history_is_bounded_and_keeps_the_newest(clock: FakeClock) -> None:
    of = limiter(clock, 4, most=6)
    for _ in range(HISTORY):
        fill(of, 1)[0].rate_limited()
        of.in_flight = 0
        await clock.advance(COOL_DOWN)
        while of.limit < 6:
            clean_round(of, of.limit)
    assert len(of.changes) == HISTORY
    assert (of.changes[-1].reason, of.changes[-1].after) == ("growth", 6)


def test_bounds_of_settings() -> None:
    assert Bounds.up_to(1000) == Bounds(2, 20, 1000)
    assert Bounds.up_to(1) == Bounds(1, 1, 1)
    assert Bounds.up_to(5) == Bounds(2, 5, 5)


async def test_other_bounds_while_it_runs(clock: FakeClock) -> None:
    of = Limiter("m", clock, Bounds.fixed(2))
    async with waiters(of, 6):
        assert of.in_flight == 2
        of.configure(Bounds.up_to(4))
        await settle()
        assert (of.limit, of.in_flight, of.waiting) == (4, 4, 2)
        of.configure(Bounds.fixed(1))
        assert (of.limit, of.in_flight) == (1, 4)
        assert [c.reason for c in of.changes] == ["settings", "settings"]


# -- the line


async def test_first_come_first_served_and_repeated_ones_before_them(clock: FakeClock) -> None:
    of = limiter(clock, 2)
    inside = fill(of, 2)
    async with waiters(of, 3) as fresh:
        late = [Waiter(of, repeated=True), Waiter(of, repeated=True)]
        await settle()
        order = [*late, *fresh]
        holders = [*inside, *(waiter.ticket for waiter in order)]
        for holder, waiter in zip(holders, order, strict=False):
            assert not waiter.ticket.inside
            holder.leave()
            await settle()
            assert waiter.ticket.inside
        assert [w.told for w in fresh] == [[Queued(place=1)], [Queued(place=2)], [Queued(place=3)]]
        assert [w.told for w in late] == [[Queued(place=1)], [Queued(place=2)]]


async def test_nobody_overtakes_the_line(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    async with waiters(of, 1) as [first]:
        inside.leave()
        late = of.ticket()
        assert not late.enter(), "the place was given to who waits before that task could run"
        await settle()
        assert first.ticket.inside
        late.leave()


async def test_who_is_cancelled_loses_nothing(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    async with waiters(of, 3) as [first, second, third]:
        second.task.cancel()
        await settle()
        assert of.waiting == 2
        inside.leave()
        first.task.cancel()  # it has the place already, but did not run since
        assert of.in_flight == 1
        await settle()
        assert third.ticket.inside
        assert (of.in_flight, of.waiting) == (1, 0)


async def test_a_long_line_is_told_again_as_it_gets_shorter(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    async with waiters(of, 12) as found:
        inside.leave()
        for waiter in found[:11]:
            await settle()
            assert waiter.ticket.inside
            await clock.advance(2)
            waiter.ticket.leave()
        await settle()
        assert [wait.place for wait in found[11].told] == [12, 6, 3], "then the next word would come too soon"
        assert [wait.place for wait in found[5].told] == [6, 2]
        assert of._halfway == {}


async def test_those_who_give_up_shorten_the_line_too(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    fill(of, 1)
    async with waiters(of, 8) as found:
        await clock.advance(5)
        for waiter in found[1:5]:
            waiter.task.cancel()
        await settle()
        assert [wait.place for wait in found[7].told] == [8, 4]
        for waiter in found:
            waiter.task.cancel()
        await settle()
        assert of._halfway == {}, "a line that is gone is remembered by nobody"


async def test_a_limit_that_is_no_longer_fixed_is_found_from_the_start(clock: FakeClock) -> None:
    of = Limiter("m", clock, Bounds.fixed(50))
    for ticket in fill(of, 50):
        ticket.rate_limited()
        ticket.leave()
    await clock.advance(COOL_DOWN)
    of.configure(Bounds.up_to(1000))
    clean_round(of, 20)
    assert [(c.after, c.reason) for c in of.changes] == [(20, "settings"), (40, "slow start")]


async def test_a_fast_line_is_not_told_again(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    async with waiters(of, 30) as found:
        inside.leave()
        for waiter in found[:29]:
            await settle()
            await clock.advance(0.1)
            waiter.ticket.leave()
        await settle()
        assert [len(waiter.told) for waiter in found] == [1] * 30


async def test_what_happens_while_somebody_is_told_is_not_missed(clock: FakeClock) -> None:
    """Telling means writing to the store: the place may come, or the end of all hope, before it is done."""
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    first, second, third = of.ticket(), of.ticket(), of.ticket()
    lines = []
    for number, ticket in enumerate((first, second, third), 1):
        assert not ticket.enter()
        lines.append(ticket.line())
        assert await anext(lines[-1]) == Queued(place=number)
    async with asyncio.timeout(5):
        inside.leave()
        with pytest.raises(StopAsyncIteration):
            await anext(lines[0])
        first.hold(5)
        assert (await anext(lines[1])).until == clock.now() + timedelta(seconds=5)
        first.refuse(QUOTA)
        for line in lines[1:]:
            with pytest.raises(ModelError):
                await anext(line)
    for ticket in (first, second, third):
        ticket.leave()
    assert (of.in_flight, of.waiting) == (0, 0)


def test_leaving_twice_gives_back_one_place(clock: FakeClock) -> None:
    of = limiter(clock, 2)
    first, _ = fill(of, 2)
    first.leave()
    first.leave()
    of.ticket().leave()
    assert of.in_flight == 1


# -- held back


async def test_retry_after_holds_everybody_back_and_cuts_nothing(clock: FakeClock) -> None:
    of = limiter(clock, 4)
    [inside] = fill(of, 1)
    inside.hold(7)
    assert of.limit == 4
    until = clock.now() + timedelta(seconds=7)
    async with waiters(of, 5) as found:
        assert of.in_flight == 1, "what is in flight goes on"
        assert [w.told for w in found] == [[Queued(place=n, until=until)] for n in range(1, 6)]
        assert of.view().held_until == until
        await clock.advance(6.9)
        assert of.in_flight == 1
        await clock.advance(0.1)
        assert (of.in_flight, of.waiting) == (4, 2)
        assert [w.told[1:] for w in found] == [[], [], [], [Queued(place=1)], [Queued(place=2)]]
        assert of.view().held_until is None


async def test_those_in_line_hear_of_a_hold_and_a_longer_one_counts(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    [inside] = fill(of, 1)
    async with waiters(of, 1) as [waiter]:
        begin = clock.now()
        inside.hold(5)
        inside.hold(3)
        inside.leave()
        await settle()
        assert [wait.until for wait in waiter.told] == [None, begin + timedelta(seconds=5)]
        of.hold(5.5)
        of.hold(8)
        await clock.advance(5)
        assert [wait.until for wait in waiter.told][2:] == [begin + timedelta(seconds=8)]
        assert not waiter.ticket.inside
        await clock.advance(3)
        assert waiter.ticket.inside


async def test_nobody_overtakes_at_the_end_of_a_hold(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    of.hold(5)
    late = of.ticket()

    async def come_first() -> bool:
        await clock.sleep(5)
        return late.enter()

    newcomer = asyncio.ensure_future(come_first())
    await settle()
    async with waiters(of, 1) as [waiter]:
        await clock.advance(5)
        assert await newcomer is False
        assert waiter.ticket.inside
        late.leave()


async def test_a_hold_that_nobody_waited_for_is_over_by_itself(clock: FakeClock) -> None:
    of = limiter(clock, 1)
    of.hold(5)
    await clock.advance(5)
    assert of.view().held_until is None
    assert of.idle() is True
    of.hold(1)
    assert not of.idle()
    assert not of.ticket().enter()


# -- refused


async def test_a_used_up_quota_ends_all_waiting_and_then_one_asks_at_a_time(clock: FakeClock) -> None:
    limits = Limiters(clock, Bounds.fixed(2))
    here, there = limits.ticket("m")._limiter, limits.ticket("other")._limiter
    inside = fill(here, 2)
    async with waiters(here, 2) as mine, waiters(there, 3) as others:
        pause = asyncio.ensure_future(there.ticket().pause(30))
        await settle()
        limits.refuse(QUOTA)
        await settle()
        for task in (mine[0].task, mine[1].task, others[2].task, pause):
            with pytest.raises(ModelError, match=r"HTTP 429: pay \(said to another request") as caught:
                await task
            assert (caught.value.kind, caught.value.status) == ("quota", 429)
        assert others[0].ticket.inside
        for ticket in inside:
            ticket.leave()
        async with waiters(here, 3) as [probe, second, third]:
            assert (here.in_flight, here.waiting, here.view().refused) == (1, 2, True)
            probe.ticket.leave()  # it came to nothing; the next one asks
            await settle()
            assert second.ticket.inside
            assert not third.ticket.inside
            second.ticket.succeeded()
            await settle()
            assert third.ticket.inside
            assert not here.view().refused
    assert clock.sleeping == 0


# -- all of them


async def test_the_view_tells_everything(clock: FakeClock) -> None:
    of = limiter(clock, 2)
    async with waiters(of, 3) as found:
        pause = asyncio.ensure_future(of.ticket().pause(3))
        await settle()
        found[0].ticket.rate_limited()
        assert of.view() == LimiterView(
            model="m",
            limit=2,
            fixed=False,
            in_flight=2,
            waiting=1,
            repeating=1,
            cooling_until=clock.now() + timedelta(seconds=COOL_DOWN),
        )
        await clock.advance(3)
        await pause
        assert of.view().repeating == 0


async def test_models_have_limits_of_their_own_and_idle_ones_are_forgotten(clock: FakeClock) -> None:
    limits = Limiters(clock)
    busy = limits.ticket("busy")
    busy.enter()
    cut = limits.ticket("cut")
    cut.enter()
    cut.rate_limited()
    cut.leave()
    for number in range(10 * MOST_MODELS):
        ticket = limits.ticket(f"m{number}")
        ticket.enter()
        ticket.leave()
    views = {view.model: view for view in limits.views()}
    assert len(views) <= MOST_MODELS
    assert (views["cut"].limit, views["busy"].limit) == (10, 20)
    again = limits.ticket("busy")
    again.enter()
    assert {view.model: view.in_flight for view in limits.views()}["busy"] == 2
    limits.configure(Bounds.fixed(3))
    assert {view.limit for view in limits.views()} == {3}


async def test_a_limiter_begins_where_somebody_asked_for_so_many(clock: FakeClock) -> None:
    limiters = Limiters(clock)
    limiters.ticket("known")
    limiters.expect(64)
    limiters.expect(30)
    limiters.ticket("new")
    assert {view.model: view.limit for view in limiters.views()} == {"known": 64, "new": 64}
    assert [(change.after, change.reason) for change in limiters.views()[0].changes] == [(64, "asked for")]


async def test_whoever_waits_goes_at_once_when_more_are_asked_for(clock: FakeClock) -> None:
    of = limiter(clock, 2)
    fill(of, 2)
    waiters = [Waiter(of) for _ in range(3)]
    await settle()
    assert of.waiting == 3
    of.expect(4)
    await settle()
    assert (of.in_flight, of.waiting) == (4, 1)
    for waiter in waiters:
        waiter.task.cancel()


async def test_what_is_asked_for_changes_nothing_where_the_server_has_spoken(clock: FakeClock) -> None:
    of = limiter(clock, 40)
    (ticket,) = fill(of, 1)
    ticket.rate_limited()
    of.expect(64)
    assert of.limit == 10
    fixed = Limiter("m", clock, Bounds.fixed(8))
    fixed.expect(64)
    assert fixed.limit == 8
    bounded = limiter(clock, 20, most=32)
    bounded.expect(64)
    assert bounded.limit == 32
