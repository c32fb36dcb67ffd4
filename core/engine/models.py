"""The model clients of an engine: opened when a swarm first needs one, shared, closed after the last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from core.clock import Clock
from core.config import Settings
from core.models.http import Http, make_http
from core.models.responses import ResponsesClient
from core.models.types import ModelClient
from core.scripted.scenario import load_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport


class _Opened:
    def __init__(self, client: ModelClient, http: Http) -> None:
        self.client = client
        self.http = http
        self.users = 0


class ModelPool:
    """One client per server and key, for as long as a swarm uses it. A scripted model remembers its
    conversations, so each swarm has its own. Left after its users, it closes what they did not."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened: dict[Hashable, _Opened] = {}

    def __len__(self) -> int:
        return len(self._opened)

    async def __aenter__(self) -> ModelPool:
        return self

    async def __aexit__(self, *exc: object) -> None:
        while self._opened:
            _, opened = self._opened.popitem()
            await opened.http.aclose()

    @asynccontextmanager
    async def client(self, settings: Settings) -> AsyncIterator[ModelClient]:
        """The client that the settings ask for. Raises ScenarioError or ModelError."""
        key: Hashable = (settings.base_url, _api_key(settings)) if settings.scripted is None else object()
        opened = self._opened.get(key)
        if opened is None:
            opened = self._opened[key] = _Opened(*make_model(settings, self._clock))
        opened.users += 1
        try:
            yield opened.client
        finally:
            opened.users -= 1
            if not opened.users and self._opened.pop(key, None) is not None:
                await opened.http.aclose()


def make_model(settings: Settings, clock: Clock) -> tuple[ModelClient, Http]:
    """The model client that the settings ask for, a server or the embedded scripted model, and what has to
    be closed after it."""
    scenario = settings.scripted
    if scenario is not None:
        http = make_http(ScriptedTransport(load_scenario(scenario), clock))
        return ResponsesClient(BASE_URL, None, http, clock=clock, label=f"scripted:{scenario}"), http
    http = make_http()
    return ResponsesClient(settings.base_url, _api_key(settings), http, clock=clock), http


def _api_key(settings: Settings) -> str | None:
    return settings.api_key.get_secret_value() if settings.api_key is not None else None
