"""The limiter against a simple model: requests come, are answered, refused, held back, cancelled, in any
order.

Every request is a task of its own, as in the engine; the machine decides what the server says to each.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.models.limiter import COOL_DOWN, Bounds, Limiters
from core.models.types import ModelError
from tests.clock import FakeClock, settle

Verdict = Literal["answered", "rate limited", "failed", "dropped", "quota"]
BOUNDS = st.sampled_from([Bounds(2, 4, 40), Bounds(1, 1, 3), Bounds.fixed(3), Bounds(2, 8, 8)])


class Request:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.state = "new"
        """line, inside, pause, over, quota"""
        self.repeated = False
        self.verdict: asyncio.Future[tuple[Verdict, float]]
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        ticket = self.world.limits.ticket("m")
        try:
            while True:
                self.state = "line"
                self.world.line.append(self)
                try:
                    if not ticket.enter():
                        async with contextlib.aclosing(ticket.line()) as waits:
                            async for _ in waits:
                                await asyncio.sleep(0)  # whoever is told may take its time
                    self.state = "inside"
                    self.world.admitted.append(self)
                    self.verdict = asyncio.get_running_loop().create_future()
                    verdict, seconds = await self.verdict
                    if verdict == "answered":
                        ticket.succeeded()
                        break
                    if verdict == "dropped":
                        break
                    if verdict == "quota":
                        self.world.quota = True
                        self.world.limits.refuse(ModelError("no quota", kind="quota"))
                        break
                    if verdict == "rate limited":
                        ticket.rate_limited()
                        if seconds > 5:
                            ticket.hold(seconds)
                finally:
                    with contextlib.suppress(ValueError):
                        self.world.line.remove(self)
                    ticket.leave()
                self.state, self.repeated = "pause", True
                await ticket.pause(seconds)
        except ModelError:
            assert self.world.quota, "nobody said so"
            self.state = "quota"
            return
        finally:
            ticket.leave()
        self.state = "over"


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.limits = Limiters(self.clock, Bounds(2, 4, 40))
        self.limiter = self.limits.ticket("m")._limiter
        self.requests: list[Request] = []
        self.line: list[Request] = []
        """In the order in which they came; whoever is inside stays in here until it leaves."""
        self.admitted: list[Request] = []
        self.flown = 0
        self.quota = False

    def among(self, state: str) -> list[Request]:
        return [request for request in self.requests if request.state == state]

    def step(self, seconds: float = 0.0) -> None:
        """Let things happen, and look at who was let in meanwhile."""
        held = self.limiter._left()
        self.runner.run(self.clock.advance(seconds) if seconds else settle())
        assert not (self.admitted and held > seconds), "sent although the server asked to wait"
        self.admitted.clear()
        for request in self.requests:
            if request.task.done() and not request.task.cancelled():
                assert request.task.exception() is None
        self.requests = [request for request in self.requests if not request.task.done()]

    @rule(number=st.integers(1, 6))
    def come(self, number: int) -> None:
        async def begin() -> None:
            for _ in range(number):
                self.requests.append(Request(self, self.flown))
                self.flown += 1

        self.runner.run(begin())
        waiting = self.limiter.waiting
        self.step()
        assert self.limiter.waiting >= waiting, "nobody who waited was passed over or forgotten"

    @precondition(lambda self: self.among("inside"))
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["answered", "answered", "rate limited", "failed", "dropped", "quota"]),
        seconds=st.floats(0.5, 12),
        number=st.integers(1, 8),
    )
    def say(self, data: st.DataObject, verdict: Verdict, seconds: float, number: int) -> None:
        for request in data.draw(st.permutations(self.among("inside")))[:number]:
            self.runner.get_loop().call_soon(request.verdict.set_result, (verdict, seconds))
        ahead = [request.number for request in self.among("line") if not request.repeated]
        self.step()
        left = [request.number for request in self.among("line") if not request.repeated]
        assert left == ahead[len(ahead) - len(left) :], "first come, first served"

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), number=st.integers(1, 4))
    def cancel(self, data: st.DataObject, number: int) -> None:
        for request in data.draw(st.permutations(self.requests))[:number]:
            request.task.cancel()
        self.step()

    @precondition(lambda self: len(self.among("inside")) >= 1 and self.among("line"))
    @rule(data=st.data())
    def answer_and_cancel_at_once(self, data: st.DataObject) -> None:
        """The one that is let in is cancelled before it can run."""
        request = data.draw(st.sampled_from(self.among("inside")))
        loop = self.runner.get_loop()
        loop.call_soon(request.verdict.set_result, ("answered", 0.0))
        first = next((r for r in self.among("line") if r.repeated), self.among("line")[0])

        async def soon() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.task.cancel()

        self.runner.run(soon())
        self.step()

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 12.0, COOL_DOWN]))
    def wait(self, seconds: float) -> None:
        self.step(seconds)

    @rule(bounds=BOUNDS)
    def configure(self, bounds: Bounds) -> None:
        self.runner.get_loop().call_soon(self.limits.configure, bounds)
        self.step()
        assert bounds.least <= self.limiter.limit <= bounds.most

    @invariant()
    def nothing_is_lost(self) -> None:
        view = self.limiter.view()
        assert view.in_flight == len(self.among("inside"))
        assert view.waiting == len(self.among("line"))
        assert view.repeating == len(self.among("pause"))

    @invariant()
    def there_is_a_reason_to_wait(self) -> None:
        """Nobody starves: who waits waits for a moment to come, or for somebody inside."""
        view = self.limiter.view()
        room = view.in_flight < (1 if view.refused else view.limit)
        assert not view.waiting or view.held_until is not None or not room

    @invariant()
    def the_limit_holds(self) -> None:
        """More in flight than the limit only from before it shrank: none of them was let in since."""
        view = self.limiter.view()
        before = getattr(self, "before", 0)
        assert view.in_flight <= max(view.limit, before)
        self.before = view.in_flight

    @invariant()
    def one_cut_per_cool_down(self) -> None:
        cuts = [change for change in self.limiter.changes if change.reason == "rate limit"]
        for one, other in itertools.pairwise(cuts):
            assert (other.at - one.at).total_seconds() >= COOL_DOWN - 1e-3
        for change in self.limiter.changes:
            assert change.reason == "settings" or (change.after < change.before) == (
                change.reason == "rate limit"
            )

    def teardown(self) -> None:
        """From any state on, if the server answers, everybody is answered."""
        for _ in range(200):
            if not self.requests:
                break
            for request in self.among("inside"):
                self.runner.get_loop().call_soon(request.verdict.set_result, ("answered", 0.0))
            self.step(12.0)
            self.nothing_is_lost()
        assert not self.requests
        assert (self.limiter.in_flight, self.limiter.waiting, self.clock.sleeping) == (0, 0, 0)
        self.runner.close()


World.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLimiter = World.TestCase
