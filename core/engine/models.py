"""The model clients of an engine: opened when a swarm first needs one, shared, closed with the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from core.clock import Clock
from core.config import Settings
from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import ModelClient
from core.scripted.scenario import load_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport


class ModelPool:
    """One client per server and key. A scripted model remembers its conversations, so each swarm has its
    own. Entered for as long as its clients are used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stack = AsyncExitStack()
        self._clients: dict[tuple[str, str | None], ModelClient] = {}

    async def __aenter__(self) -> ModelPool:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._clients.clear()
        await self._stack.aclose()

    async def client(self, settings: Settings) -> ModelClient:
        """The client that the settings ask for. Raises ScenarioError or ModelError."""
        if settings.scripted is not None:
            return await self._stack.enter_async_context(open_model(settings, self._clock))
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        found = self._clients.get((settings.base_url, key))
        if found is None:
            found = await self._stack.enter_async_context(open_model(settings, self._clock))
            self._clients[settings.base_url, key] = found
        return found


@asynccontextmanager
async def open_model(settings: Settings, clock: Clock) -> AsyncIterator[ModelClient]:
    """The model client that the settings ask for: a server, or the embedded scripted model."""
    scenario = settings.scripted
    if scenario is not None:
        http = make_http(ScriptedTransport(load_scenario(scenario), clock))
        client = ResponsesClient(BASE_URL, None, http, clock=clock, label=f"scripted:{scenario}")
    else:
        http = make_http()
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        client = ResponsesClient(settings.base_url, key, http, clock=clock)
    try:
        yield client
    finally:
        await http.aclose()
