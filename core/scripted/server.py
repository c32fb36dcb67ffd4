"""The scripted model as an HTTP server on this machine: POST /v1/responses, GET /v1/models."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from core.clock import Clock, SystemClock
from core.scripted.answer import Answer, error_answer
from core.scripted.engine import Counters, Player
from core.scripted.scenario import Scenario

MAX_REQUEST_BYTES = 256 * 1024 * 1024
"""Agents send their whole history each time."""


class ScriptedServer:
    """A running server; `serve` makes one. `base_url` ends in /v1."""

    def __init__(self, scenario: Scenario, clock: Clock, *, api_key: str | None, keep: int) -> None:
        self.base_url = ""
        self._player = Player(scenario, clock, keep=keep)
        self._clock = clock
        self._expected = f"Bearer {api_key}".encode() if api_key else None

    @property
    def requests(self) -> Counters:
        return self._player.requests

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        denied = self._denied(request)
        if denied is not None:
            return _plain(denied)
        model = {"id": self._player.scenario.model, "object": "model", "created": 0, "owned_by": "watchroom"}
        return web.json_response({"object": "list", "data": [model]})

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.requests.begin()
        try:
            return await self._play(request, self._denied(request) or self._player.answer(raw))
        finally:
            self.requests.end()

    def _denied(self, request: web.Request) -> Answer | None:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if self._expected is None or hmac.compare_digest(given, self._expected):
            return None
        return error_answer(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _play(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        if answer.delay:
            await self._clock.sleep(answer.delay)
        if answer.end == "done" and len(answer.chunks) == 1 and not answer.chunks[0][0]:
            return _plain(answer)
        if answer.end == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if not answer.chunks:
            await asyncio.Event().wait()  # until the client goes, which cancels this handler
        response = web.StreamResponse(status=answer.status, headers=_headers(answer))
        await response.prepare(request)
        for pause, chunk in answer.chunks:
            if pause:
                await self._clock.sleep(pause)
            await response.write(chunk)
        if answer.end == "hang":
            await asyncio.Event().wait()
        if answer.end == "drop":
            if request.transport is not None:
                request.transport.close()  # flushed, but without the end that chunked coding demands
            return response
        await response.write_eof()
        return response


def _headers(answer: Answer) -> dict[str, str]:
    return {"Content-Type": answer.content_type, "Cache-Control": "no-store", **answer.headers}


def _plain(answer: Answer) -> web.Response:
    body = b"".join(chunk for _, chunk in answer.chunks)
    return web.Response(status=answer.status, headers=_headers(answer), body=body)


@asynccontextmanager
async def serve(
    scenario: Scenario,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    clock: Clock | None = None,
    api_key: str | None = None,
    keep: int = 0,
) -> AsyncIterator[ScriptedServer]:
    """Serve until the block ends; open requests are cancelled then. Port 0 takes a free one. With `api_key`
    other keys get a 401. `keep`: how many requests `requests.log` holds. Raises OSError when the address
    cannot be taken."""
    server = ScriptedServer(scenario, clock or SystemClock(), api_key=api_key, keep=keep)
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        server.base_url = f"http://{name}:{bound[1]}/v1"
        yield server
    finally:
        await runner.cleanup()
