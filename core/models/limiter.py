"""How many requests a server gets at once, and when: one limiter per server, key and model, for all agents.

The limit looks for what the server takes (decision 45). It grows by rounds of clean answers, and only while
it is really used; it is halved when the server says that there were too many, at most once per cool-down,
because one episode makes many refusals. A `Retry-After` holds everybody back and says nothing about the
limit. Requests wait in the order in which they came; a repeated one goes first, for it has waited already.

Nothing in here starts a task or looks again and again: who waits is told, and the wait for a moment in time
is the waiter's own. All of it runs on one event loop; only `Ticket.line` and `Ticket.pause` wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from core.clock import Clock
from core.models.types import ModelError, Queued

COOL_DOWN = 15.0
"""Seconds after a cut without another one, in which good answers prove nothing either."""
LEAST_ROUND = 4
"""Good answers that make a round at least; more where the limit is higher."""
HISTORY = 200
MOST_MODELS = 64
"""Idle limiters are kept up to this number. Agents may name models, so it must not grow for ever."""
LEAST, START, MOST = 2, 20, 1000
RETOLD = timedelta(seconds=1)
"""A moment that moved by less is not worth another word."""
RETOLD_PLACE = timedelta(seconds=5)
"""No place in line is told again sooner, nor before it is half of what was told: each word is an event."""

Reason = Literal["slow start", "growth", "rate limit", "settings", "asked for"]


class Bounds(msgspec.Struct, frozen=True):
    """Which limits are tried, and the first. All three the same: a fixed limit."""

    least: int = LEAST
    start: int = START
    most: int = MOST

    @classmethod
    def fixed(cls, limit: int) -> Bounds:
        return cls(limit, limit, limit)

    @classmethod
    def up_to(cls, most: int, *, start: int = START) -> Bounds:
        return cls(min(LEAST, most), min(start, most), most)

    def clamp(self, limit: int) -> int:
        return min(max(limit, self.least), self.most)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a limit."""

    at: datetime
    before: int
    after: int
    reason: Reason


class LimiterView(msgspec.Struct, frozen=True, kw_only=True):
    """A limiter as it is now. `repeating`: requests that failed and wait to be sent again."""

    model: str
    limit: int
    fixed: bool
    in_flight: int
    waiting: int
    repeating: int
    cooling_until: datetime | None = None
    """No cut and no growth before."""
    held_until: datetime | None = None
    """The server asked that nobody sends anything before."""
    refused: bool = False
    """The server wants no requests at all (quota): one at a time asks whether that is over."""
    changes: tuple[Change, ...] = ()


class Limiter:
    """The limit of one model. `tickets` take places; whoever has one gives it back with `Ticket.leave`."""

    def __init__(self, model: str, clock: Clock, bounds: Bounds) -> None:
        self.model = model
        self.limit = bounds.start
        self.in_flight = 0
        self.changes: deque[Change] = deque(maxlen=HISTORY)
        self._clock = clock
        self._bounds = bounds
        self._repeated: OrderedDict[Ticket, None] = OrderedDict()
        self._fresh: OrderedDict[Ticket, None] = OrderedDict()
        self._paused: set[Ticket] = set()
        self._slow_start = True
        self._clean = 0
        self._peak = 0
        """The most in flight since the round began, looked at when a place is taken: when one is given back
        it would be one short, and a small limit would never grow."""
        self._cooling = float("-inf")
        self._held = float("-inf")
        self._refused = False
        self._gone = 0
        """How many have left the line so far."""
        self._halfway: dict[int, list[Ticket]] = {}
        """Whom to tell when so many have."""

    @property
    def waiting(self) -> int:
        return len(self._repeated) + len(self._fresh)

    def ticket(self) -> Ticket:
        """For one request and all its repetitions."""
        return Ticket(self)

    def idle(self) -> bool:
        """Whether it may be forgotten: nobody uses it and there is nothing to wait for."""
        cooling = self._clock.monotonic() < self._cooling
        return not (self.in_flight or self.waiting or self._paused or self._left() or cooling)

    def view(self) -> LimiterView:
        now, wall = self._clock.monotonic(), self._clock.now()

        def moment(at: float) -> datetime | None:
            return wall + timedelta(seconds=at - now) if at > now else None

        return LimiterView(
            model=self.model,
            limit=self.limit,
            fixed=self._bounds.least == self._bounds.most,
            in_flight=self.in_flight,
            waiting=self.waiting,
            repeating=len(self._paused),
            cooling_until=moment(self._cooling),
            held_until=moment(self._held),
            refused=self._refused,
            changes=tuple(self.changes),
        )

    def configure(self, bounds: Bounds) -> None:
        """Other bounds from now on: whoever started a swarm last decides."""
        if bounds == self._bounds:
            return
        was_fixed = self._bounds.least == self._bounds.most
        self._bounds = bounds
        if was_fixed:
            self._slow_start = True
        self._change(bounds.start if was_fixed else self.limit, "settings")
        self._serve()

    def expect(self, count: int) -> None:
        """Somebody wants `count` at a time: begin there, as long as the server has not said that it takes
        less."""
        if self._slow_start and count > self.limit:
            self._change(count, "asked for")
            self._serve()

    # -- what the answers say

    def _succeeded(self, clean: bool) -> None:
        """A whole answer. Only one at the first attempt, outside a cool-down, says that there is room."""
        self._refused = False
        if clean and self._clock.monotonic() >= self._cooling:
            self._clean += 1
            if self._clean >= max(self.limit, LEAST_ROUND):
                used = self._peak
                self._new_round()
                if used * 5 >= self.limit * 4:
                    self._grow()
        self._serve()

    def _grow(self) -> None:
        if self._slow_start:
            self._change(self.limit * 2, "slow start")
            return
        grown = self.limit + max(1, self.limit // 20)
        self._change(-(-grown // 5) * 5 if grown > 10 else grown, "growth")

    def _rate_limited(self) -> None:
        used = max(self._peak, self.in_flight, START)
        self._slow_start = False
        self._new_round()
        now = self._clock.monotonic()
        if now >= self._cooling:
            self._cooling = now + COOL_DOWN
            self._change(min(self.limit, used) // 2, "rate limit")  # what nobody used was no limit

    def _new_round(self) -> None:
        self._clean = self._peak = 0

    def _change(self, limit: int, reason: Reason) -> None:
        before, self.limit = self.limit, self._bounds.clamp(limit)
        if before != self.limit:
            self.changes.append(Change(at=self._clock.now(), before=before, after=self.limit, reason=reason))

    def hold(self, seconds: float) -> None:
        """Nothing is sent before `seconds` have passed; what is in flight goes on."""
        begins = not self._left()
        self._held = max(self._held, self._clock.monotonic() + seconds)
        if begins:
            for ticket in self._queue():
                ticket._tell()

    def refuse(self, error: ModelError) -> None:
        """The server wants nothing more: whatever waits fails with `error` instead of asking the same. From
        now on one request at a time is sent, until one is answered."""
        self._refused = True
        waiting = [*self._repeated, *self._fresh, *self._paused]
        self._repeated.clear()
        self._fresh.clear()
        for ticket in waiting:
            ticket._fail(error)

    # -- the line

    def _enter(self, ticket: Ticket) -> bool:
        if not (self._repeated or self._fresh) and self._room():
            self._admit(ticket)
            return True
        (self._repeated if ticket.repeated else self._fresh)[ticket] = None
        self._serve()
        return ticket.inside

    def _leave(self, ticket: Ticket) -> None:
        if ticket.inside:
            self.in_flight -= 1
        else:
            line = self._repeated if ticket in self._repeated else self._fresh
            if ticket in line:
                del line[ticket]
                self._move_up()
        self._serve()

    def _room(self) -> bool:
        return not self._left() and self.in_flight < (1 if self._refused else self.limit)

    def _admit(self, ticket: Ticket) -> None:
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        ticket.inside = True

    def _serve(self) -> None:
        """Give places to those who wait longest."""
        while (line := self._repeated or self._fresh) and self._room():
            ticket, _ = line.popitem(last=False)
            self._admit(ticket)
            ticket._tell()
            self._move_up()

    def _move_up(self) -> None:
        self._gone += 1
        for ticket in self._halfway.pop(self._gone, ()):
            ticket._tell()
        if not self.waiting:
            self._halfway.clear()

    def _remind(self, ticket: Ticket, place: int) -> None:
        """Tell it when about half of those ahead are gone."""
        self._halfway.setdefault(self._gone + max(1, place // 2), []).append(ticket)

    def _queue(self) -> Iterator[Ticket]:
        yield from self._repeated
        yield from self._fresh

    def _wait_of(self, ticket: Ticket) -> Queued:
        left = self._left()
        until = self._clock.now() + timedelta(seconds=left) if left else None
        if next(reversed(self._fresh), None) is ticket:
            return Queued(place=self.waiting, until=until)  # it has just come
        place = next(n for n, found in enumerate(self._queue(), 1) if found is ticket)
        return Queued(place=place, until=until)

    def _left(self) -> float:
        """Seconds until the end of a hold."""
        return max(0.0, self._held - self._clock.monotonic())


class Ticket:
    """One request: in line, with a place, or between two attempts. `leave` in every case, as often as you
    like; nothing of it is lost when the task that waits is cancelled."""

    __slots__ = ("_failure", "_future", "_limiter", "inside", "repeated")

    def __init__(self, limiter: Limiter) -> None:
        self.inside = False
        """Holds a place: it may be sent, and counts as in flight."""
        self.repeated = False
        self._limiter = limiter
        self._future: asyncio.Future[None] | None = None
        self._failure: ModelError | None = None

    def enter(self) -> bool:
        """Take a place if nobody waits and there is one; else join the line and wait with `line`."""
        return self._limiter._enter(self)

    async def line(self) -> AsyncGenerator[Queued, None]:
        """What the request waits for, first and whenever it has become something else; ends with a place.
        Raises ModelError when the server wants no more requests."""
        limiter = self._limiter
        told: Queued | None = None
        told_at = limiter._clock.now()
        while True:
            left = limiter._left()  # before the look at the line: what ends after it must still wake us
            limiter._serve()
            self._check()
            if self.inside:
                return
            wait = limiter._wait_of(self)
            if told is None or _differs(told, wait, limiter._clock.now() - told_at):
                told, told_at = wait, limiter._clock.now()
                yield wait
                continue  # much may have happened until the other side came back
            limiter._remind(self, wait.place)
            await self._wait(left or None)

    async def pause(self, seconds: float) -> None:
        """Before the next attempt, which goes to the head of the line. Raises ModelError as `line` does."""
        self.repeated = True
        paused = self._limiter._paused
        paused.add(self)
        try:
            await self._wait(seconds)
        finally:
            paused.discard(self)
        self._check()

    def succeeded(self) -> None:
        """A whole answer has come."""
        self._limiter._succeeded(clean=not self.repeated)

    def rate_limited(self) -> None:
        """The server said that there were too many requests."""
        self._limiter._rate_limited()

    def hold(self, seconds: float) -> None:
        """The server said when to come again."""
        self._limiter.hold(seconds)

    def refuse(self, error: ModelError) -> None:
        """The server wants no more requests for this model."""
        self._limiter.refuse(error)

    def leave(self) -> None:
        """Give the place back, or go out of the line."""
        self._limiter._leave(self)
        self.inside = False

    def _tell(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _fail(self, error: ModelError) -> None:
        self._failure = error
        self._tell()

    def _check(self) -> None:
        if self._failure is not None:
            error, self._failure = self._failure, None
            text = f"{error} (said to another request to the same server)"
            raise ModelError(text, kind=error.kind, status=error.status)

    async def _wait(self, seconds: float | None) -> None:
        """Until there is news, `seconds` at most."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            async with self._limiter._clock.timeout(seconds):
                await self._future
        except TimeoutError:
            return  # the moment has come
        finally:
            self._future = None


class Limiters:
    """Those of one server and key, by model. What is said about the account reaches all of them."""

    def __init__(self, clock: Clock, bounds: Bounds | None = None) -> None:
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._by_model: dict[str, Limiter] = {}
        self._expected = 0

    def ticket(self, model: str) -> Ticket:
        """For one request."""
        found = self._by_model.get(model)
        if found is None:
            if len(self._by_model) >= MOST_MODELS:
                self._by_model = {name: x for name, x in self._by_model.items() if not x.idle()}
            found = self._by_model[model] = Limiter(model, self._clock, self._bounds)
            found.expect(self._expected)
        return found.ticket()

    def configure(self, bounds: Bounds) -> None:
        self._bounds = bounds
        for limiter in self._by_model.values():
            limiter.configure(bounds)

    def expect(self, count: int) -> None:
        """An operator asked for `count` at a time: no need to find out whether anybody wants so many."""
        self._expected = max(self._expected, count)
        for limiter in self._by_model.values():
            limiter.expect(count)

    def refuse(self, error: ModelError) -> None:
        """The account may ask nothing more (its quota is used up)."""
        for limiter in self._by_model.values():
            limiter.refuse(error)

    def views(self) -> list[LimiterView]:
        return [limiter.view() for limiter in self._by_model.values()]


def _differs(told: Queued, now: Queued, since: timedelta) -> bool:
    """Whether it is worth another word, `since` after the last one."""
    if told.until is None and now.until is None:
        return now.place * 2 <= told.place and since >= RETOLD_PLACE
    if told.until is None or now.until is None:
        return True
    return abs(now.until - told.until) >= RETOLD
