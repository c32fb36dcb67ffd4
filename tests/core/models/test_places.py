"""Requests and the limiter together: every attempt has a place for as long as it lasts, and what the server
says to one request reaches those that wait."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest

from core.models.http import make_http
from core.models.limiter import Bounds, Limiters, LimiterView
from core.models.responses import ResponsesClient
from core.models.types import (
    Completed,
    ModelError,
    ModelEvent,
    Queued,
    Retrying,
    Sending,
    TextDelta,
)
from core.scripted.scenario import parse_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport
from tests.clock import FakeClock, settle
from tests.core.models.fake import (
    REQUEST,
    WHOLE,
    Pieces,
    Server,
    client,
    delta,
    final,
    refusal,
    sse,
    stream,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def one_at_a_time(clock: FakeClock) -> Limiters:
    return Limiters(clock, Bounds.fixed(1))


def view(model: ResponsesClient) -> LimiterView:
    [found] = model.limits.views()
    return found


def counts(model: ResponsesClient) -> tuple[int, int, int]:
    found = view(model)
    return found.in_flight, found.waiting, found.repeating


class Asked:
    """A request in a task of its own, and what came of it."""

    def __init__(self, model: ResponsesClient, name: str = "m") -> None:
        self.events: list[ModelEvent] = []
        self.task = asyncio.ensure_future(self._run(model, msgspec.structs.replace(REQUEST, model=name)))

    async def _run(self, model: ResponsesClient, request: Any) -> None:
        async for event in model.stream(request):
            self.events.append(event)

    async def error(self) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.task
        return caught.value

    @property
    def answered(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Completed)


async def ask(model: ResponsesClient, number: int, name: str = "m") -> list[Asked]:
    asked = [Asked(model, name) for _ in range(number)]
    await settle()
    return asked


class Late(Server):
    """Takes a second for each answer, so that others come meanwhile."""

    def __init__(self, clock: FakeClock, *answers: Any) -> None:
        super().__init__(*answers)
        self.clock = clock

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.clock.sleep(1)
        return await super().handle_async_request(request)


class Crowd(httpx.AsyncBaseTransport):
    """A server that answers in `seconds`, `capacity` requests at once, and refuses the others."""

    def __init__(self, clock: FakeClock, capacity: int, status: int = 429, **headers: str) -> None:
        self.clock = clock
        self.capacity = capacity
        self.refused = refusal(status, {"error": {"message": "too many"}}, **headers)
        self.refusals: list[float] = []
        self.total = self.now = self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.total += 1
        if self.now >= self.capacity:
            self.refusals.append(self.clock.monotonic())
            return httpx.Response(self.refused.status_code, headers=self.refused.headers, content=b"{}")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.clock.sleep(2)
        finally:
            self.now -= 1
        return stream(WHOLE)


# -- places


async def test_a_request_waits_in_line_and_says_so(clock: FakeClock) -> None:
    held = Pieces(sse(delta("x")), None)
    first = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=held)
    server = Server(first, lambda _: stream(WHOLE))
    model = client(server, clock, limits=one_at_a_time(clock))
    a, b, c = await ask(model, 3)
    assert len(server.requests) == 1, "a place comes before the connection"
    assert (b.events, c.events) == ([Queued(place=1)], [Queued(place=2)])
    a.task.cancel()
    await asyncio.gather(b.task, c.task)
    assert b.events[1] == c.events[1] == Sending()
    assert b.answered
    assert c.answered
    assert counts(model) == (0, 0, 0)


async def test_without_a_wait_nothing_is_said(clock: FakeClock) -> None:
    [asked] = await ask(client(Server(stream(WHOLE)), clock), 1)
    assert [type(event) for event in asked.events] == [TextDelta, TextDelta, Completed]


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: stream(WHOLE),
        lambda _: stream(sse(delta("x"), final("failed", error={"code": "invalid_prompt", "message": "no"}))),
        lambda _: stream(sse(delta("x"))),
        lambda _: stream(sse(delta("x")), httpx.ReadError("gone")),
        lambda _: stream(b"data: {nonsense\n\n"),
        lambda _: stream(b"<html>", kind="text/html"),
        lambda _: stream(sse(delta("x")), None),
        lambda _: refusal(400),
        lambda _: refusal(400, {"error": {"message": "unknown parameter: include"}}),
        lambda _: refusal(429),
        lambda _: refusal(429, retry_after="3600"),
        lambda _: refusal(429, {"error": {"code": "insufficient_quota"}}),
        lambda _: refusal(503, retry_after="20"),
    ],
)
@pytest.mark.parametrize("leave", ["end", "cancel", "close"])
async def test_a_place_comes_back_however_a_request_ends(answer: Any, leave: str, clock: FakeClock) -> None:
    model = client(Server(answer), clock, limits=one_at_a_time(clock), idle_timeout=50.0)
    if leave == "close":
        events = model.stream(REQUEST)
        with suppress(ModelError):  # it may fail before there is anything to close
            await asyncio.wait_for(anext(events), 1)
        await events.aclose()
    else:
        [asked] = await ask(model, 1)
        if leave == "cancel":
            asked.task.cancel()
        while not asked.task.done():
            await settle()
            await clock.advance(30)
        await asyncio.gather(asked.task, return_exceptions=True)
    assert counts(model) == (0, 0, 0)


async def test_the_place_is_free_when_the_answer_is_there(clock: FakeClock) -> None:
    """Whoever takes its time with an answer must not keep others from the model."""
    model = client(Server(lambda _: stream(WHOLE)), clock, limits=one_at_a_time(clock))
    async with aclosing(model.stream(REQUEST)) as events:
        async for event in events:
            assert view(model).in_flight == (0 if isinstance(event, Completed) else 1)


async def test_who_leaves_the_line_is_gone(clock: FakeClock) -> None:
    model = client(Server(stream(sse(delta("x")), None)), clock, limits=one_at_a_time(clock))
    asked = await ask(model, 3)
    for one in asked[1:]:
        one.task.cancel()
    await settle()
    assert counts(model) == (1, 0, 0)
    asked[0].task.cancel()
    await settle()
    assert counts(model) == (0, 0, 0)


async def test_between_two_attempts_the_place_is_free(clock: FakeClock) -> None:
    server = Server(refusal(500), lambda _: stream(WHOLE))
    model = client(server, clock, limits=one_at_a_time(clock))
    a, b = await ask(model, 2)
    assert isinstance(a.events[0], Retrying)
    assert b.answered
    assert counts(model) == (0, 0, 1)
    await clock.advance(0.5)
    assert a.answered


async def test_models_do_not_wait_for_each_other(clock: FakeClock) -> None:
    model = client(Server(lambda _: stream(sse(delta("x")), None)), clock, limits=one_at_a_time(clock))
    asked = [*await ask(model, 1), *await ask(model, 1, "other")]
    assert [[type(event) for event in one.events] for one in asked] == [[TextDelta], [TextDelta]]
    for one in asked:
        one.task.cancel()


# -- rate limits


async def test_retry_after_holds_back_those_that_wait_and_those_that_come(clock: FakeClock) -> None:
    server = Late(clock, refusal(429, retry_after="7"), lambda _: stream(WHOLE))
    model = client(server, clock, limits=one_at_a_time(clock))
    a, b = await ask(model, 2)
    await clock.advance(1)
    [c] = await ask(model, 1)
    until = clock.now() + timedelta(seconds=7)
    assert isinstance(a.events[0], Retrying)
    assert b.events == [Queued(place=1), Queued(place=1, until=until)]
    assert c.events == [Queued(place=2, until=until)]
    await clock.advance(6.9)
    assert len(server.requests) == 1
    assert counts(model) == (0, 2, 1)
    await clock.advance(0.1)
    assert counts(model) == (1, 2, 0)
    await clock.advance(3)
    assert [one.answered for one in (a, b, c)] == [True, True, True]


async def test_an_overloaded_server_holds_everybody_back_too_but_is_no_rate_limit(clock: FakeClock) -> None:
    server = Server(refusal(503, retry_after="7"), lambda _: stream(WHOLE))
    model = client(server, clock)
    [a] = await ask(model, 1)
    [b] = await ask(model, 1)
    assert isinstance(b.events[0], Queued)
    await clock.advance(7)
    assert a.answered
    assert b.answered
    assert view(model).changes == ()


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (lambda _: refusal(429), True),
        (lambda _: refusal(529), True),
        (lambda _: refusal(429, retry_after="5"), True),
        (lambda _: refusal(429, x_should_retry="false"), True),
        (lambda _: stream(sse(final("failed", error={"code": "rate_limit_exceeded"}))), True),
        (lambda _: stream(sse({"type": "error", "error": {"type": "overloaded_error"}})), True),
        (lambda _: refusal(500), False),
        (lambda _: refusal(503, retry_after="5"), False),
        (lambda _: refusal(401), False),
        (lambda _: stream(sse(delta("x"))), False),
        (lambda _: refusal(429, {"error": {"code": "insufficient_quota"}}), False),
    ],
)
async def test_only_rate_limits_cut_the_limit(answer: Any, cut: bool, clock: FakeClock) -> None:
    model = client(Server(answer), clock)
    [asked] = await ask(model, 1)
    assert [change.reason for change in view(model).changes] == (["rate limit"] if cut else [])
    asked.task.cancel()
    await asyncio.gather(asked.task, return_exceptions=True)


async def test_rate_limits_are_waited_for_longer_than_failures(clock: FakeClock) -> None:
    server = Server(lambda _: refusal(429, {"error": {"message": "slow down"}}, retry_after="1"))
    [asked] = await ask(client(server, clock), 1)
    while not asked.task.done():
        await clock.advance(1)
    error = await asked.error()
    assert str(error).endswith("HTTP 429: slow down (after 11 attempts)")
    assert (error.kind, error.status) == ("rate_limit", 429)
    delays = [event.delay for event in asked.events if isinstance(event, Retrying)]
    assert delays == [1, 1, 2, 4, 8, 16, 30, 30, 30, 30], (
        "no shorter than the server asks, and longer each time"
    )


async def test_failures_and_rate_limits_are_counted_apart(clock: FakeClock) -> None:
    answers = [refusal(429), refusal(429), refusal(500), refusal(429), refusal(429), refusal(429)]
    server = Server(*answers, lambda _: stream(WHOLE))
    [asked] = await ask(client(server, clock, retries=1), 1)
    await clock.advance(60)
    assert asked.answered
    assert [e.delay for e in asked.events if isinstance(e, Retrying)] == [0.5, 1, 0.5, 2, 4, 8]


# -- quota


PAY = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota."}}


async def test_a_used_up_quota_is_asked_once_and_told_to_all(clock: FakeClock) -> None:
    server = Late(clock, refusal(500, retry_after="20"), refusal(500, retry_after="20"), refusal(429, PAY))
    model = client(server, clock, limits=one_at_a_time(clock))
    pausing = [*await ask(model, 1), *await ask(model, 1, "other")]
    await clock.advance(1)
    asked = [*await ask(model, 50), *pausing]
    assert [found.repeating for found in model.limits.views()] == [1, 1]
    await clock.advance(1)
    errors = [await one.error() for one in asked]
    assert len(server.requests) == 3
    assert {error.kind for error in errors} == {"quota"}
    assert str(errors[0]).endswith("HTTP 429: You exceeded your current quota.")
    assert {str(error) for error in errors[1:]} == {
        f"{errors[0]} (said to another request to the same server)"
    }
    await settle()
    assert clock.sleeping == 0


async def test_after_the_quota_is_paid_for_the_next_request_is_answered(clock: FakeClock) -> None:
    server = Server(refusal(402), lambda _: stream(WHOLE))
    model = client(server, clock)
    [asked] = await ask(model, 1)
    assert (await asked.error()).kind == "quota"
    assert view(model).refused
    asked_again = await ask(model, 3)
    await asyncio.gather(*(one.task for one in asked_again))
    assert not view(model).refused


async def test_with_a_used_up_quota_one_request_at_a_time_finds_out(clock: FakeClock) -> None:
    server = Late(clock, lambda _: refusal(429, PAY))
    model = client(server, clock)
    for _ in range(3):
        asked = await ask(model, 100)
        await clock.advance(1)
        for one in asked:
            assert (await one.error()).kind == "quota"
    assert len(server.requests) == 20 + 1 + 1


async def test_a_wait_that_is_too_long_is_told_to_all_of_that_model(clock: FakeClock) -> None:
    server = Late(clock, refusal(429, retry_after="3600"), stream(sse(delta("x")), None))
    model = client(server, clock, limits=one_at_a_time(clock))
    [first, second] = await ask(model, 2)
    [other] = await ask(model, 1, "other")
    await clock.advance(1)
    for error in (await first.error(), await second.error()):
        assert error.kind == "rate_limit"
        assert "asks to wait until 2026-01-01 01:00:01 UTC" in str(error)
    assert [type(event) for event in other.events] == [TextDelta]
    other.task.cancel()
    await asyncio.gather(other.task, return_exceptions=True)


# -- storms


async def finish(asked: list[Asked], clock: FakeClock, longest: float) -> None:
    begin = clock.monotonic()
    while not all(one.task.done() for one in asked):
        assert clock.monotonic() - begin < longest, "the storm does not end"
        await clock.advance(0.25)
    for one in asked:
        one.task.result()


@pytest.mark.parametrize("status", [429, 529])
@pytest.mark.parametrize("capacity", [3, 12])
async def test_a_crowd_finds_what_the_server_takes_and_nobody_is_lost(
    capacity: int, status: int, clock: FakeClock
) -> None:
    server = Crowd(clock, capacity, status)
    model = client(server, clock)
    asked = await ask(model, 100)
    await finish(asked, clock, 2.5 * 100 / capacity * 2 + 60)
    assert all(one.answered for one in asked)
    assert counts(model) == (0, 0, 0)
    cuts = [change for change in view(model).changes if change.reason == "rate limit"]
    assert cuts[0].before == 20
    assert all((two.at - one.at).total_seconds() >= 15 for one, two in pairwise(cuts))
    late = [at for at in server.refusals if at > 60]
    assert len(late) < (server.total - len(server.refusals)) / 2, "it goes on asking for what it does not get"


async def test_a_crowd_that_the_server_likes_is_served_at_once(clock: FakeClock) -> None:
    server = Crowd(clock, 1000)
    model = client(server, clock)
    asked = await ask(model, 300)
    await finish(asked, clock, 14)
    assert server.most > 100
    assert server.refusals == []


async def test_the_scripted_servers_storm(clock: FakeClock) -> None:
    scenario = parse_scenario(
        """
latency_ms = 1000
[[fault]]
kind = "rate_limit"
every = 3
times = 0
retry_after = 4
[[agents]]
closing = "done"
"""
    )
    transport = ScriptedTransport(scenario, clock)
    model = ResponsesClient(BASE_URL, None, make_http(transport), clock=clock, label="scripted:storm")
    asked = await ask(model, 60)
    await finish(asked, clock, 240)
    assert all(one.answered for one in asked)
    assert transport.requests.in_flight == 0
    assert transport.requests.max_in_flight <= 20
    assert counts(model) == (0, 0, 0)
