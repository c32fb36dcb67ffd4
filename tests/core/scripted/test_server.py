"""The loopback server, with the official client as the judge of its wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent

from core.scripted.scenario import Scenario, parse_scenario
from core.scripted.server import ScriptedServer, serve
from tests.clock import settle

SCENARIO = """
model = "scripted-test"
chunk_chars = 4
[[agents]]
closing = "over"
[[agents.steps]]
reasoning = "Two commands, side by side."
text = "Let me see: ü😀."
[[agents.steps.calls]]
name = "exec_command"
arguments = { cmd = "ls -la", deep = { list = [1, 2.5, true] } }
[[agents.steps.calls]]
name = "exec_command"
arguments = { cmd = "pwd" }
[[agents.steps]]
text = "It says {last_output}."
"""
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "exec_command",
    "description": "",
    "strict": False,
    "parameters": {"type": "object", "properties": {}},
}
KNOWN = {
    get_args(member.model_fields["type"].annotation)[0]
    for member in get_args(get_args(ResponseStreamEvent)[0])
}


@pytest.fixture
def scenario() -> Scenario:
    return parse_scenario(SCENARIO)


@pytest.fixture
async def server(scenario: Scenario) -> AsyncIterator[ScriptedServer]:
    async with serve(scenario, api_key="sk-test", keep=10) as running:
        yield running


@pytest.fixture
async def oracle(server: ScriptedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


def options(given: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "instructions": "Agent path: /root",
        "input": given,
        "tools": [TOOL],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }


async def test_the_official_client_streams_text_reasoning_and_calls(oracle: openai.AsyncOpenAI) -> None:
    history: list[Any] = [{"role": "user", "content": "go"}]
    events = [event async for event in await oracle.responses.create(**options(history), stream=True)]
    assert len(KNOWN) > 40
    assert {event.type for event in events} <= KNOWN
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type, events[-1].type] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    final = events[-1].response
    assert final.output_text == "Let me see: ü😀."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [event.item for event in events if event.type == "response.output_item.done"] == final.output
    for kind, field in (
        ("response.output_text", "text"),
        ("response.function_call_arguments", "arguments"),
        ("response.reasoning_summary_text", "text"),
    ):
        pieces: dict[int, str] = {}
        for event in events:
            if event.type == f"{kind}.delta":
                pieces[event.output_index] = pieces.get(event.output_index, "") + event.delta
            elif event.type == f"{kind}.done":
                assert pieces.pop(event.output_index) == getattr(event, field)
        assert pieces == {}
    for event in events:  # every field is of the type that the client's own models say
        type(event).model_validate(event.model_dump(), strict=False)
    history += [item.model_dump(exclude_none=True) for item in final.output]
    history += [
        {"type": "function_call_output", "call_id": item.call_id, "output": name}
        for item, name in zip(final.output[2:], ("a", "b"), strict=True)
    ]
    second = await oracle.responses.create(**options(history))
    assert second.output_text == "It says a\nb."
    assert second.usage is not None
    assert second.usage.total_tokens == second.usage.input_tokens + second.usage.output_tokens
    assert 0 < second.usage.input_tokens_details.cached_tokens < second.usage.input_tokens


async def test_the_clients_own_stream_helper_accumulates(oracle: openai.AsyncOpenAI) -> None:
    async with oracle.responses.stream(**options("go")) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert final.output_text == "Let me see: ü😀."


async def test_without_stream_it_is_one_object(oracle: openai.AsyncOpenAI) -> None:
    response = await oracle.responses.create(**options("go"))
    assert response.status == "completed"
    assert response.output_text == "Let me see: ü😀."
    assert response.model_dump()["object"] == "response"


async def test_models(oracle: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in oracle.models.list()] == ["scripted-test"]


async def test_errors_are_those_that_the_client_knows(
    oracle: openai.AsyncOpenAI, server: ScriptedServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="store = false") as bad:
        await oracle.responses.create(model="m", input="go")
    assert bad.value.param == "store"
    with pytest.raises(openai.BadRequestError, match="send the whole input"):
        await oracle.responses.create(**options("go"), previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="listed twice"):
        await oracle.responses.create(**{**options("go"), "tools": [TOOL, TOOL]})
    with pytest.raises(openai.AuthenticationError) as denied:
        await oracle.with_options(api_key="sk-wrong").responses.create(**options("go"))
    assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        await oracle.with_options(api_key="sk-wrong").models.list()
    assert [entry.status for entry in server.requests.log] == [400, 400, 400]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"model": 1}', b'{"model": "m", "store": false, "input": [7]}'],
)
async def test_no_body_breaks_it(server: ScriptedServer, body: bytes) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": "Bearer sk-test"}
        answer = await client.post(f"{server.base_url}/responses", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_what_is_in_flight_is_counted() -> None:
    waiting = parse_scenario('fault = [{ kind = "hang", path = "*", after_events = 0 }]\n[[agents]]')
    async with serve(waiting) as server, httpx.AsyncClient(trust_env=False) as client:
        body = {"model": "m", "store": False, "input": "go"}
        requests = [
            asyncio.ensure_future(
                client.post(f"{server.base_url}/responses", json={**body, "prompt_cache_key": str(n)})
            )
            for n in range(5)
        ]
        async with asyncio.timeout(10):
            while server.requests.in_flight < 5:
                await settle(1)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
            while server.requests.in_flight:
                await settle(1)
        assert server.requests.max_in_flight == server.requests.total == 5


async def test_leaving_the_block_ends_open_requests() -> None:
    waiting = parse_scenario('fault = [{ kind = "hang", path = "*" }]\n[[agents]]')
    async with httpx.AsyncClient(trust_env=False) as client:
        async with serve(waiting) as server:
            body = {"model": "m", "store": False, "input": "go", "stream": True}
            request = asyncio.ensure_future(client.post(f"{server.base_url}/responses", json=body))
            async with asyncio.timeout(10):
                while not server.requests.in_flight:
                    await settle(1)
        with pytest.raises(httpx.HTTPError):
            await request
        assert server.requests.in_flight == 0


async def test_the_log_is_bounded_and_off_unless_asked_for(scenario: Scenario) -> None:
    async with serve(scenario, keep=2) as server, httpx.AsyncClient(trust_env=False) as client:
        for _ in range(4):
            await client.post(f"{server.base_url}/responses", content=b"{}")
        assert [entry.number for entry in server.requests.log] == [3, 4]
    async with serve(scenario) as server, httpx.AsyncClient(trust_env=False) as client:
        await client.post(f"{server.base_url}/responses", content=b"{}")
        assert not server.requests.log
        assert server.requests.total == 1


async def test_a_port_that_is_taken(server: ScriptedServer, scenario: Scenario) -> None:
    port = int(server.base_url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(OSError, match="in use"):
        async with serve(scenario, port=port):
            pass
