"""A server in process that answers as a test says, and the client in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec

from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import ModelEvent, ModelRequest
from tests.clock import FakeClock, settle

Handler = Callable[[httpx.Request], httpx.Response]
REQUEST = ModelRequest(
    model="m",
    instructions="be brief",
    input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    cache_key="thread-1",
)


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


def message(text: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": "m1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


def done(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def final(status: str = "completed", **fields: Any) -> dict[str, Any]:
    response = {"id": "r1", "model": "m-1", "output": [], "status": status, **fields}
    return {"type": f"response.{status}", "response": response}


WHOLE = sse(
    delta("hel"), delta("lo"), done(message("hello")), final(usage={"input_tokens": 3, "output_tokens": 2})
)


class Pieces(httpx.AsyncByteStream):
    """A body in portions; an exception among them is raised, None waits for ever. `closed` tells."""

    def __init__(self, *portions: bytes | Exception | None) -> None:
        self.portions = portions
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for portion in self.portions:
            if portion is None:
                await asyncio.Event().wait()
            elif isinstance(portion, Exception):
                raise portion
            else:
                yield portion

    async def aclose(self) -> None:
        self.closed = True


def stream(
    *portions: bytes | Exception | None, status: int = 200, kind: str = "text/event-stream"
) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": kind}, stream=Pieces(*portions))


def refusal(status: int, body: Any = None, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers={"content-type": "application/json", **named}, content=content)


class Server(httpx.AsyncBaseTransport):
    """Answers in turn; the last answer is for every further request. Responses, exceptions, or functions."""

    def __init__(self, *answers: httpx.Response | Exception | Handler) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(request.content) for request in self.requests]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)


def client(server: httpx.AsyncBaseTransport, clock: FakeClock, **options: Any) -> ResponsesClient:
    options = {"base_url": "https://models.test/v1", "api_key": "sk-secret", "spread": lambda: 0.0, **options}
    return ResponsesClient(http=make_http(server), clock=clock, **options)


async def collect(
    model: ResponsesClient, clock: FakeClock, request: ModelRequest = REQUEST, *, step: float = 1.0
) -> list[ModelEvent]:
    """All events; time moves on while the client waits."""
    events: list[ModelEvent] = []

    async def run() -> None:
        async for event in model.stream(request):
            events.append(event)

    task = asyncio.ensure_future(run())
    while not task.done():
        await settle(5)
        if not task.done() and clock.sleeping:
            await clock.advance(step)
    await task
    return events
