"""Every fault, in process and over HTTP, as the real client meets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from core.clock import SystemClock
from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import Completed, ModelError, ModelEvent, ModelRequest, Retrying, TextDelta
from core.scripted.scenario import parse_scenario
from core.scripted.server import serve
from core.scripted.transport import BASE_URL, ScriptedTransport
from tests.clock import FakeClock, settle
from tests.core.models.fake import collect
from tests.core.scripted.talk import Talk, calls_of, text_of, user

REQUEST = ModelRequest(model="m", instructions="Agent path: /root", input=[user("go")], cache_key="k")


def scenario(fault: str) -> str:
    return f"""
[[agents]]
[[agents.steps]]
text = "some words in several pieces, so that there are deltas"
calls = [{{ name = "t", arguments = {{ long = "argument that can be cut" }} }}]
fault = {{ {fault} }}
"""


@pytest.fixture(params=["in process", "over http"])
def over_http(request: pytest.FixtureRequest) -> bool:
    return request.param == "over http"


async def play(fault: str, over_http: bool, *, retries: int = 4) -> list[ModelEvent]:
    """All events; the client's waits take no time."""
    clock = FakeClock()
    parsed = parse_scenario(scenario(fault))
    if not over_http:
        http = make_http(ScriptedTransport(parsed, SystemClock()))
        client = ResponsesClient(BASE_URL, None, http, clock=clock, retries=retries, spread=lambda: 0.0)
        return await collect(client, clock, REQUEST)
    async with serve(parsed) as server:
        http = make_http()
        try:
            client = ResponsesClient(server.base_url, None, http, clock=clock, retries=retries)
            return [event async for event in quick(client, clock)]
        finally:
            await http.aclose()


async def quick(client: ResponsesClient, clock: FakeClock) -> AsyncIterator[ModelEvent]:
    """Real I/O, but the client's own waits are skipped when it announces them."""
    async for event in client.stream(REQUEST):
        yield event
        if isinstance(event, Retrying):
            asyncio.get_running_loop().call_soon(lambda d=event.delay: asyncio.ensure_future(skip(clock, d)))


async def skip(clock: FakeClock, delay: float) -> None:
    await settle()
    await clock.advance(delay)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('kind = "rate_limit", retry_after = 3', "HTTP 429"),
        ('kind = "server_error"', "HTTP 500"),
        ('kind = "cut"', "dropped the connection"),
        ('kind = "cut", after_bytes = 700', "dropped the connection"),
        ('kind = "cut", after_events = 1000', "dropped the connection"),
        ('kind = "eof"', "before the response was complete"),
        ('kind = "eof", after_bytes = 700', "before the response was complete"),
        ('kind = "malformed_event"', "cannot be read"),
        ('kind = "failed"', "reported a failure"),
        ('kind = "reset"', "dropped the connection"),
    ],
)
async def test_faults_that_pass(fault: str, words: str, over_http: bool) -> None:
    events = await play(fault, over_http)
    retries = [event for event in events if isinstance(event, Retrying)]
    assert len(retries) == 1
    assert words in retries[0].reason
    assert retries[0].rate_limited == ("429" in words)
    if "retry_after" in fault:
        assert retries[0].delay == 3.0
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert completed.attempts == 2
    last_reset = max((i for i, e in enumerate(events) if isinstance(e, TextDelta) and e.reset), default=-1)
    shown = "".join(e.text for e in events[last_reset + 1 :] if isinstance(e, TextDelta))
    assert shown == text_of(completed.items)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ('kind = "quota"', "quota"),
        ('kind = "unauthorized"', "auth"),
        ('kind = "html"', "protocol"),
        ('kind = "context"', "context"),
        ('kind = "rate_limit", retry_after = 600', "rate_limit"),
        ('kind = "server_error", times = 0', "server"),
    ],
)
async def test_faults_that_end_it(fault: str, kind: str, over_http: bool) -> None:
    with pytest.raises(ModelError) as caught:
        await play(fault, over_http, retries=1)
    assert caught.value.kind == kind


async def test_arguments_cut_in_half_come_through_as_they_are(over_http: bool) -> None:
    completed = (await play('kind = "malformed_arguments"', over_http))[-1]
    assert isinstance(completed, Completed)
    arguments = calls_of(completed.items)[0]["arguments"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)
    assert '{"long":"argument that can be cut"}'.startswith(arguments)


async def test_an_incomplete_response(over_http: bool) -> None:
    completed = (await play('kind = "incomplete"', over_http))[-1]
    assert isinstance(completed, Completed)
    assert completed.incomplete == "max_output_tokens"


@pytest.mark.parametrize("after", [0, 5])
async def test_a_hang_ends_with_the_client(after: int, over_http: bool) -> None:
    parsed = parse_scenario(scenario(f'kind = "hang", after_events = {after}'))
    clock = FakeClock()
    async with serve(parsed) as server:
        transport = ScriptedTransport(parsed, SystemClock())
        counters = server.requests if over_http else transport.requests
        http = make_http() if over_http else make_http(transport)
        base_url = server.base_url if over_http else BASE_URL
        client = ResponsesClient(base_url, None, http, clock=clock, idle_timeout=60)
        seen: list[ModelEvent] = []

        async def run() -> None:
            async for event in client.stream(REQUEST):
                seen.append(event)

        task = asyncio.ensure_future(run())
        async with asyncio.timeout(5):
            while not counters.in_flight or (after and not seen):
                await settle(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while counters.in_flight:
                await settle(1)
        assert bool(seen) == bool(after)
        await http.aclose()


async def test_a_hang_is_ended_by_the_idle_time_out() -> None:
    talk = Talk(scenario('kind = "hang", after_events = 4'), clock=FakeClock())
    assert isinstance(talk.clock, FakeClock)
    talk.history = [user("go")]
    events = await collect(talk.client, talk.clock, talk.request(), step=50)
    assert "sent nothing for too long" in next(e.reason for e in events if isinstance(e, Retrying))
    assert isinstance(events[-1], Completed)


async def test_drip_and_latency_run_on_the_clock() -> None:
    text = scenario('kind = "drip", delay_ms = 1000') + "latency_ms = 7000\n"
    talk = Talk(text, clock=FakeClock())
    assert isinstance(talk.clock, FakeClock)
    talk.history = [user("go")]
    events = await collect(talk.client, talk.clock, talk.request())
    said = "some words in several pieces, so that there are deltas"
    assert [event.text for event in events if isinstance(event, TextDelta)] == list(said)
    assert talk.clock.monotonic() > 7 + len(said)


async def test_pauses_between_pieces() -> None:
    talk = Talk("chunk_ms = 100\nchunk_chars = 5\n[[agents]]\nclosing = 'abcdefghij'", clock=FakeClock())
    assert isinstance(talk.clock, FakeClock)
    talk.history = [user("go")]
    events = await collect(talk.client, talk.clock, talk.request(), step=0.05)
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["abcde", "fghij"]
    assert talk.clock.monotonic() == pytest.approx(1.1, abs=0.1)  # eleven events


async def test_faults_are_counted_for_each_agent_and_step() -> None:
    text = scenario('kind = "server_error", times = 2')
    for path in ("/root", "/root/kid"):
        talk = Talk(text, path=path, clock=FakeClock())
        assert isinstance(talk.clock, FakeClock)
        talk.history = [user("go")]
        events = await collect(talk.client, talk.clock, talk.request())
        told = [type(event) for event in events if isinstance(event, Retrying | TextDelta)]
        assert told[:3] == [Retrying, Retrying, TextDelta]


@pytest.mark.parametrize(
    ("aim", "faulty"),
    [
        ("request = 2", [2]),
        ("every = 3, times = 0", [3, 6]),
        ('path = "/root/k*", times = 0', [4, 5, 6]),
        ('path = "/root", every = 2, times = 0', [2]),
    ],
)
async def test_faults_by_request(aim: str, faulty: list[int]) -> None:
    text = f'fault = [{{ kind = "unauthorized", {aim} }}]\n[[agents]]\n'
    root = Talk(text)
    kid = Talk(root.scenario, path="/root/kid")
    kid.client = root.client
    for talk in [root] * 3 + [kid] * 3:
        try:
            await talk.ask("go")
        except ModelError:
            assert talk.history.pop()["role"] == "user"
    assert [entry.number for entry in root.transport.requests.log if entry.fault] == faulty
    assert [entry.agent for entry in root.transport.requests.log] == ["/root"] * 3 + ["/root/kid"] * 3
