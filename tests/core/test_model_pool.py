"""Which swarms share a model client and its limiter, and what their settings say about it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from core.channel.setup import setup_of
from core.config import ConfigError, Settings, load_settings
from core.engine.models import ModelPool, bounds_of
from core.engine.setup import settings_of
from core.models.limiter import Bounds
from core.models.responses import ResponsesClient
from tests.clock import FakeClock


def settings(tmp_path: Path, *values: str, key: str | None = "sk-one", **options: Any) -> Settings:
    options = {"base_url": "https://models.test/v1", "model": "m", **options}
    environ = {"OPENAI_API_KEY": key} if key else {}
    return load_settings(options=options, values=values, home=tmp_path, cwd=tmp_path, environ=environ)


async def test_one_server_and_one_key_share_a_limiter(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(ModelPool(FakeClock()))

        async def client(**options: Any) -> object:
            return await stack.enter_async_context(pool.client(settings(tmp_path, **options)))

        first = await client()
        assert await client(base_url="https://MODELS.test/v1/") is first
        assert await client(key="sk-two") is not first
        assert await client(key=None) is not first
        assert await client(base_url="https://models.test/v2") is not first
        scripted = await client(base_url="scripted:demo")
        assert await client(base_url="scripted:demo") is not scripted, "each has its own conversations"


async def test_the_newest_settings_are_everybodys(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(ModelPool(FakeClock()))
        await stack.enter_async_context(pool.client(settings(tmp_path)))
        fixed = settings(tmp_path, "models.concurrency=3")
        client = await stack.enter_async_context(pool.client(fixed))
        assert isinstance(client, ResponsesClient)
        ticket = client.limits.ticket("m")
        assert ticket.enter()
        [(server, view)] = pool.limits()
        assert server == "https://models.test/v1"
        assert (view.model, view.limit, view.fixed, view.in_flight) == ("m", 3, True, 1)
        await stack.enter_async_context(pool.client(settings(tmp_path)))
        [(_, view)] = pool.limits()
        assert (view.limit, view.fixed) == (20, False)
        assert [change.reason for change in view.changes] == ["settings"]


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ((), Bounds(2, 20, 1000)),
        (("models.max_concurrency=12",), Bounds(2, 12, 12)),
        (("models.max_concurrency=50",), Bounds(2, 20, 50)),
        (("models.max_concurrency=1",), Bounds.fixed(1)),
        (("models.concurrency=7", "models.max_concurrency=5"), Bounds.fixed(7)),
    ],
)
def test_what_the_settings_allow(tmp_path: Path, values: tuple[str, ...], bounds: Bounds) -> None:
    found = settings(tmp_path, *values)
    assert bounds_of(found) == bounds
    assert bounds_of(settings_of(setup_of(found, {}), settings(tmp_path))) == bounds, "they come with a swarm"


def test_the_embedded_model_is_not_approached_slowly(tmp_path: Path) -> None:
    assert bounds_of(settings(tmp_path, base_url="scripted:demo")) == Bounds(2, 1000, 1000)


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", "true"])
def test_a_limit_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.concurrency") as caught:
        settings(tmp_path, f"models.concurrency={value}")
    assert "\n" not in str(caught.value)


def test_the_limit_from_the_environment(tmp_path: Path) -> None:
    found = load_settings(home=tmp_path, cwd=tmp_path, environ={"WATCHROOM_MODELS_CONCURRENCY": "4"})
    assert found.models.concurrency == 4
