"""The scripted model in process: an httpx transport, so that the real client runs against it unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from core.clock import Clock
from core.scripted.answer import Answer, error_answer
from core.scripted.engine import Counters, Player
from core.scripted.scenario import Scenario

BASE_URL = "http://scripted.invalid/v1"
"""What to give the client as its server; nothing is ever looked up."""


class ScriptedTransport(httpx.AsyncBaseTransport):
    """Give it to `make_http`. `keep`: how many requests `requests.log` holds. Delays run on `clock`."""

    def __init__(self, scenario: Scenario, clock: Clock, *, keep: int = 0) -> None:
        self._player = Player(scenario, clock, keep=keep)
        self._clock = clock

    @property
    def requests(self) -> Counters:
        return self._player.requests

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raw = await request.aread()
        self.requests.begin()
        try:
            answer = self._answer(request, raw)
            if answer.delay:
                await self._clock.sleep(answer.delay)
            if answer.end == "reset":
                raise httpx.ReadError("connection reset", request=request)
            if answer.end == "hang" and not answer.chunks:
                await asyncio.Event().wait()
        except BaseException:
            self.requests.end()
            raise
        return httpx.Response(
            answer.status,
            headers={"Content-Type": answer.content_type, **answer.headers},
            stream=_Body(answer, self._clock, self.requests),
            request=request,
        )

    def _answer(self, request: httpx.Request, raw: bytes) -> Answer:
        if request.url.path != "/v1/responses" or request.method != "POST":
            return error_answer(404, f"Unknown address: {request.method} {request.url.path}")
        return self._player.answer(raw)


class _Body(httpx.AsyncByteStream):
    """A plan's chunks as a response body. The request counts as in flight until it is closed."""

    def __init__(self, answer: Answer, clock: Clock, requests: Counters) -> None:
        self._answer = answer
        self._clock = clock
        self._requests = requests
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for pause, chunk in self._answer.chunks:
            if pause:
                await self._clock.sleep(pause)
            yield chunk
        if self._answer.end == "hang":
            await asyncio.Event().wait()
        if self._answer.end == "drop":
            raise httpx.ReadError("connection dropped")

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._requests.end()
