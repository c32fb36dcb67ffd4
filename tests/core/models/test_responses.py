from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from core.domain.status import Usage
from core.models.types import Completed, ModelError, ModelRequest, Retrying, Sending, TextDelta
from core.safety.text import is_clean
from tests.clock import FakeClock, settle
from tests.core.models.fake import (
    REQUEST,
    WHOLE,
    Pieces,
    Server,
    client,
    collect,
    delta,
    done,
    final,
    message,
    refusal,
    sse,
    stream,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def failure(server: Server, clock: FakeClock, **options: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await collect(client(server, clock, **options), clock)
    text = str(caught.value)
    assert "\n" not in text
    assert is_clean(text)
    assert "models.test" in text
    assert "sk-secret" not in text
    return caught.value


# -- what is sent, what is understood


async def test_the_request_as_it_is_sent(clock: FakeClock) -> None:
    server = Server(stream(WHOLE))
    tool = {"type": "function", "name": "t", "description": "", "parameters": {}, "strict": False}
    request = msgspec.structs.replace(REQUEST, tools=[tool], max_output_tokens=9, reasoning_effort="low")
    await collect(client(server, clock), clock, request)
    sent = server.requests[0]
    assert str(sent.url) == "https://models.test/v1/responses"
    assert sent.headers["authorization"] == "Bearer sk-secret"
    assert server.bodies[0] == {
        "model": "m",
        "instructions": "be brief",
        "input": REQUEST.input,
        "stream": True,
        "store": False,
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread-1",
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
    }


async def test_no_key_no_header(clock: FakeClock) -> None:
    server = Server(stream(WHOLE))
    await collect(client(server, clock, api_key=None), clock)
    assert "authorization" not in server.requests[0].headers


async def test_text_that_is_not_unicode_is_still_sent(clock: FakeClock) -> None:
    server = Server(stream(WHOLE))
    await collect(client(server, clock), clock, ModelRequest(model="m", instructions="\ud800", input=[]))
    assert server.bodies[0]["instructions"] == "?"


async def test_deltas_then_the_whole_response(clock: FakeClock) -> None:
    events = await collect(client(Server(stream(WHOLE)), clock), clock)
    assert events == [
        TextDelta(text="hel"),
        TextDelta(text="lo"),
        Completed(
            response="r1",
            items=[message("hello")],
            model="m-1",
            usage=Usage(input=3, output=2, total=5),
            attempts=1,
        ),
    ]


async def test_any_portions_of_bytes(clock: FakeClock) -> None:
    portions = [WHOLE[i : i + 1] for i in range(len(WHOLE))]
    events = await collect(client(Server(stream(*portions)), clock), clock)
    assert len(events) == 3


async def test_items_in_the_servers_order_and_unknown_events_ignored(clock: FakeClock) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "x", "arguments": '{"a": 1'}
    body = sse(
        {"type": "response.queued", "response": 7},
        done(call, 1),
        {"type": "response.output_text.delta.v2", "delta": {"not": "text"}},
        done(message("first"), 0),
        final(),
    )
    events = await collect(client(Server(stream(body)), clock), clock)
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert completed.items == [message("first"), call]
    assert completed.usage is None


async def test_items_only_in_the_final_response(clock: FakeClock) -> None:
    events = await collect(client(Server(stream(sse(final(output=[message("x")])))), clock), clock)
    assert events == [Completed(response="r1", items=[message("x")], model="m-1")]


async def test_an_incomplete_response_says_why(clock: FakeClock) -> None:
    body = sse(final("incomplete", output=[message("x")], incomplete_details={"reason": "max_output_tokens"}))
    events = await collect(client(Server(stream(body)), clock), clock)
    assert isinstance(events[-1], Completed)
    assert events[-1].incomplete == "max_output_tokens"


async def test_bytes_after_the_terminal_event_are_not_waited_for(clock: FakeClock) -> None:
    body = Pieces(WHOLE, None)
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    assert len(await collect(client(Server(answer), clock), clock)) == 3
    assert body.closed


# -- repeated


async def test_a_cut_stream_is_repeated_as_a_whole(clock: FakeClock) -> None:
    server = Server(stream(sse(delta("hel"), done(message("hel")))), stream(WHOLE))
    events = await collect(client(server, clock), clock)
    assert events[:4] == [
        TextDelta(text="hel"),
        TextDelta(text="", reset=True),
        Retrying(
            attempt=2,
            delay=0.5,
            reason="https://models.test/v1 broke the protocol: "
            "the stream ended before the response was complete",
            metered=True,
        ),
        Sending(),
    ]
    assert isinstance(events[-1], Completed)
    assert events[-1].attempts == 2
    assert events[-1].items == [message("hello")]
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    "broken",
    [
        lambda: stream(sse(delta("x")), httpx.ReadError("gone")),
        lambda: stream(b"data: {nonsense\n\n"),
        lambda: stream(sse(delta("x")) + b"data: [DONE]\n\n"),
        lambda: stream(sse(final("failed", error={"code": "server_error", "message": "oops"}))),
        lambda: stream(sse({"type": "error", "code": "server_error", "message": "oops", "param": None})),
        lambda: stream(sse({"error": {"message": "upstream overloaded", "code": 502}})),
        lambda: refusal(500),
        lambda: refusal(408),
        lambda: refusal(409),
        lambda: refusal(400, x_should_retry="true"),
        lambda: httpx.ConnectTimeout("slow"),
        lambda: httpx.RemoteProtocolError("half an answer"),
    ],
)
async def test_what_is_worth_repeating(broken: object, clock: FakeClock) -> None:
    assert callable(broken)
    events = await collect(client(Server(broken(), stream(WHOLE)), clock), clock)
    assert isinstance(events[-1], Completed)
    assert events[-1].attempts == 2
    assert [event.rate_limited for event in events if isinstance(event, Retrying)] == [False]


async def test_delays_double_and_end(clock: FakeClock) -> None:
    server = Server(*[refusal(503, {"error": {"message": "busy"}}) for _ in range(4)], refusal(503))
    model = client(server, clock)
    seen = []

    async def run() -> None:
        async for event in model.stream(REQUEST):
            if isinstance(event, Retrying):
                seen.append(event)

    task = asyncio.ensure_future(run())
    for delay in (0.5, 1.0, 2.0, 4.0):
        await settle()
        assert clock.sleeping == 1
        await clock.advance(delay - 0.25)
        assert len(server.requests) == len(seen)
        await clock.advance(0.25)
    with pytest.raises(ModelError, match=r"HTTP 503: no message \(after 5 attempts\)") as caught:
        await task
    assert caught.value.kind == "server"
    assert caught.value.status == 503
    assert [event.delay for event in seen] == [0.5, 1.0, 2.0, 4.0]
    assert clock.sleeping == 0


async def test_a_hint_is_obeyed(clock: FakeClock) -> None:
    limited = refusal(429, {"error": {"message": "slow down"}}, retry_after="7")
    events = await collect(client(Server(limited, stream(WHOLE)), clock), clock)
    assert events[0] == Retrying(
        attempt=2,
        delay=7.0,
        reason="https://models.test/v1 answered HTTP 429: slow down",
        rate_limited=True,
    )
    assert clock.monotonic() >= 7


async def test_a_long_hint_is_final_and_tells_until_when(clock: FakeClock) -> None:
    server = Server(refusal(429, {"error": {"message": "enough"}}, retry_after="3600"))
    error = await failure(server, clock)
    assert error.kind == "rate_limit"
    assert "2026-01-01 01:00:00 UTC" in str(error)
    assert len(server.requests) == 1
    error = await failure(Server(refusal(429, retry_after="1e300")), clock)
    assert error.kind == "rate_limit"


async def test_rate_limit_within_the_stream(clock: FakeClock) -> None:
    limited = stream(sse(final("failed", error={"code": "rate_limit_exceeded", "message": "later"})))
    events = await collect(client(Server(limited, stream(WHOLE)), clock), clock)
    assert isinstance(events[0], Retrying)
    assert events[0].rate_limited


# -- final


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(401, {"error": {"message": "bad key sk-secret"}}), "auth", "HTTP 401: bad key [key]"),
        (refusal(403), "auth", "HTTP 403"),
        (refusal(400, {"error": {"message": "no"}}), "bad_request", "HTTP 400: no"),
        (refusal(422), "bad_request", "HTTP 422"),
        (refusal(413), "bad_request", "HTTP 413"),
        (refusal(402), "quota", "HTTP 402"),
        (refusal(429, {"error": {"code": "insufficient_quota", "message": "pay"}}), "quota", "pay"),
        (refusal(400, {"error": {"code": "context_length_exceeded"}}), "context", "context_length_exceeded"),
        (refusal(400, {"error": {"code": "content_policy_violation"}}), "policy", "HTTP 400"),
        (refusal(500, x_should_retry="false"), "server", "HTTP 500"),
        (
            refusal(404, {"error": {"message": "The model 'm' does not exist"}}),
            "not_found",
            "'m' does not exist",
        ),
        (refusal(404, {"detail": "Not Found"}), "not_found", "check --base-url"),
        (refusal(405), "not_found", "check --base-url"),
        (
            refusal(302, location="https://elsewhere.test/login"),
            "protocol",
            "elsewhere.test/login, which is not followed",
        ),
        (stream(b"<html>hi</html>", kind="text/html; charset=utf-8"), "protocol", "check --base-url"),
        (stream(b'{"object": "list"}', kind="application/json"), "protocol", "check --base-url"),
        (stream(b"hello", kind="text/plain"), "protocol", "check --base-url"),
        (stream(sse(final("failed", error={"code": "invalid_prompt", "message": "no"}))), "policy", "no"),
        (stream(sse(done({"type": "function_call"}), final())), "protocol", "no call_id"),
        (httpx.UnsupportedProtocol("what"), "network", "did not answer in HTTP"),
    ],
)
async def test_what_is_final(
    answer: httpx.Response | Exception, kind: str, words: str, clock: FakeClock
) -> None:
    server = Server(answer)
    error = await failure(server, clock)
    assert error.kind == kind
    assert words in str(error)
    assert len(server.requests) == 1
    if isinstance(answer, httpx.Response) and answer.status_code != 200 and kind != "protocol":
        assert error.status == answer.status_code


async def test_a_missing_key_is_said(clock: FakeClock) -> None:
    error = await failure(Server(refusal(401)), clock, api_key=None)
    assert "no API key was sent" in str(error)


async def test_a_huge_hostile_body_is_one_short_clean_line(clock: FakeClock) -> None:
    portions = [b"\x1b]0;owned\x07 sk-secret \xff\r\n" * 1000 for _ in range(100)]
    error = await failure(Server(stream(*portions, None, status=400, kind="text/plain")), clock)
    assert len(str(error)) < 900
    assert "owned" not in str(error)


async def test_a_key_taken_apart_by_control_bytes_is_hidden_too(clock: FakeClock) -> None:
    error = await failure(Server(refusal(400, {"error": {"message": "your key sk-\x07secret"}})), clock)
    assert "[key]" in str(error)


async def test_an_event_without_end_is_not_gathered_for_ever(clock: FakeClock) -> None:
    portions = [b"data: " + b"x" * 1024 * 1024] * 20
    error = await failure(Server(stream(*portions)), clock)
    assert "larger than" in str(error)
    assert error.kind == "protocol"


# -- include


async def test_include_is_dropped_once_and_for_good(clock: FakeClock) -> None:
    refused = refusal(400, {"error": {"message": "Unknown parameter: 'include'", "param": "include"}})
    server = Server(refused, lambda _: stream(WHOLE))
    model = client(server, clock)
    events = await collect(model, clock)
    assert not [event for event in events if isinstance(event, Retrying)]
    await collect(model, clock)
    assert ["include" in body for body in server.bodies] == [True, False, False]


async def test_include_is_not_dropped_for_another_complaint(clock: FakeClock) -> None:
    message_ = "The encrypted content gAAA could not be verified."
    server = Server(refusal(400, {"error": {"message": message_, "code": "invalid_encrypted_content"}}))
    assert message_ in str(await failure(server, clock))
    assert len(server.requests) == 1


async def test_a_server_that_always_complains_about_include_gets_two_requests(clock: FakeClock) -> None:
    server = Server(lambda _: refusal(400, {"error": {"message": "include is wrong"}}))
    await failure(server, clock)
    assert len(server.requests) == 2


# -- silence and cancellation


async def test_silence_is_a_failure(clock: FakeClock) -> None:
    silent = Pieces(sse(delta("x")), None)
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=silent)
    server = Server(answer, stream(WHOLE))
    events = await collect(client(server, clock, idle_timeout=30), clock)
    assert isinstance(events[2], Retrying)
    assert "sent nothing for too long" in events[2].reason
    assert silent.closed
    assert 30 <= clock.monotonic() < 35


async def test_keep_alives_alone_do_not_last_for_ever(clock: FakeClock) -> None:
    class Pings(Pieces):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            while True:
                await clock.sleep(10)
                yield b": ping\n\n"

    def pinging(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pings())

    error = await failure(Server(pinging), clock, idle_timeout=30, progress_timeout=100, retries=0)
    assert "sent nothing for too long" in str(error)
    assert 100 <= clock.monotonic() < 115


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_leaving_closes_the_connection_and_leaves_no_task(how: str, clock: FakeClock) -> None:
    body = Pieces(sse(delta("x")), None)
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    model = client(Server(answer), clock)
    before = asyncio.all_tasks()
    if how == "close":
        events = model.stream(REQUEST)
        assert await anext(events) == TextDelta(text="x")
        await events.aclose()
    else:

        async def run() -> None:
            async for _ in model.stream(REQUEST):
                pass

        task = asyncio.ensure_future(run())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert body.closed
    await settle()  # the fake clock ends its cancelled sleepers
    assert asyncio.all_tasks() == before
