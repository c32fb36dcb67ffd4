"""The model clients of an engine: opened when a swarm first needs one, shared, closed after the last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from core.clock import Clock
from core.config import Settings
from core.models.address import parse_address
from core.models.http import Http, make_http
from core.models.limiter import Bounds, LimiterView
from core.models.responses import ResponsesClient
from core.models.types import ModelClient
from core.scripted.scenario import load_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport


class _Opened:
    def __init__(self, client: ResponsesClient, http: Http) -> None:
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

    def limits(self) -> list[tuple[str, LimiterView]]:
        """How many requests go where at the moment: servers, and what is known of each model there."""
        opened = self._opened.values()
        return [(found.client.server, view) for found in opened for view in found.client.limits.views()]

    @asynccontextmanager
    async def client(self, settings: Settings) -> AsyncIterator[ModelClient]:
        """The client that the settings ask for. Raises ScenarioError or ModelError.

        Its limiter is shared too: the limits of whoever came last are everybody's."""
        key = _server_and_account(settings)
        opened = self._opened.get(key)
        if opened is None:
            opened = self._opened[key] = _Opened(*make_model(settings, self._clock))
        opened.client.limits.configure(bounds_of(settings))
        opened.users += 1
        try:
            yield opened.client
        finally:
            opened.users -= 1
            if not opened.users and self._opened.pop(key, None) is not None:
                await opened.http.aclose()


def bounds_of(settings: Settings) -> Bounds:
    """What the limiter may try. The embedded model takes everything until its scenario says otherwise."""
    models = settings.models
    if models.concurrency is not None:
        return Bounds.fixed(models.concurrency)
    if settings.scripted is not None:
        return Bounds.up_to(models.max_concurrency, start=models.max_concurrency)
    return Bounds.up_to(models.max_concurrency)


def make_model(settings: Settings, clock: Clock) -> tuple[ResponsesClient, Http]:
    """The model client that the settings ask for, a server or the embedded scripted model, and what has to
    be closed after it."""
    scenario = settings.scripted
    if scenario is not None:
        http = make_http(ScriptedTransport(load_scenario(scenario), clock))
        return ResponsesClient(BASE_URL, None, http, clock=clock, label=f"scripted:{scenario}"), http
    http = make_http()
    return ResponsesClient(settings.base_url, _api_key(settings), http, clock=clock), http


def _server_and_account(settings: Settings) -> Hashable:
    """What a client is shared by: however the address is written, one server and one key are one account."""
    if settings.scripted is not None:
        return object()
    address = parse_address(settings.base_url, _api_key(settings))
    return address.url, address.authorization


def _api_key(settings: Settings) -> str | None:
    return settings.api_key.get_secret_value() if settings.api_key is not None else None
