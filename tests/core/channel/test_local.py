"""The in-process client: an engine that ends in order whatever its face does. The rest is in
`test_conformance`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.agents.swarm import Swarm
from core.channel.client import Client, ClientError
from core.domain.commands import (
    RunJob,
    StartSwarm,
)
from core.store.readers import Reader
from core.view.swarm import SwarmView
from tests.core.agents.scenarios import scenario, step
from tests.core.harness import engine, settings_for

HELLO = scenario({"/root": [step(text="hello"), step(text="hello again")]})
HANG = scenario({"/root": [step(text="never", fault={"kind": "hang", "after_events": 0, "times": 0})]})


async def test_nothing_is_stored_for_a_job_that_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, HELLO)
    (settings.cwd / "rows.csv").write_text("a,a\n1,2\n")
    async with engine(settings) as client:
        reply = await client.send(RunJob(input_path="rows.csv", instruction="x"))
        assert not reply.ok
        assert "rows.csv" in reply.error
    async with Reader.open(settings.home) as reader:
        assert await reader.sessions() == {"sessions": []}
        assert await reader.jobs() == {"jobs": []}


async def test_what_the_face_raises_comes_out_as_it_was_and_turns_are_recorded(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, HANG)

    class FaceError(Exception):
        pass

    started: list[str] = []

    async def face() -> None:
        async with engine(settings) as client:
            reply = await client.send(StartSwarm(task="go"))
            started.append(reply.value["swarm"])
            await until_running(client, started[0])
            raise FaceError

    with pytest.raises(FaceError):
        await face()
    async with Reader.open(settings.home) as reader:
        state = await reader.load_state(started[0])
    assert [agent.status for agent in state.agents.values()] == ["interrupted"]


async def test_a_swarm_that_cannot_begin_does_not_keep_its_engine_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def broken(swarm: Swarm) -> AsyncIterator[None]:
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(Swarm, "serve", broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(10) as scope, engine(settings_for(tmp_path, HANG)) as client:
            await client.send(StartSwarm(task="go"))
    assert caught.group_contains(RuntimeError, match="a bug")
    assert not scope.expired()


async def test_a_cancelled_face_leaves_an_orderly_end(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, HANG)
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def face() -> None:
        async with engine(settings) as client:
            reply = await client.send(StartSwarm(task="go"))
            await until_running(client, reply.value["swarm"])
            started.set_result(reply.value["swarm"])
            await asyncio.Event().wait()

    task = asyncio.create_task(face())
    swarm_id = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with Reader.open(settings.home) as reader:
        state = await reader.load_state(swarm_id)
    assert [agent.status for agent in state.agents.values()] == ["interrupted"]


async def test_an_engine_that_cannot_start_says_why_in_one_sentence(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, HELLO)
    (tmp_path / "home").write_text("a file where the store should be")
    with pytest.raises(ClientError) as caught:
        async with engine(settings):
            pass
    assert "\n" not in str(caught.value)


async def until_running(client: Client, swarm_id: str) -> None:
    view = SwarmView()
    async with client.subscribe(swarm_id) as feed:
        async for item in feed:
            view.feed(item)
            if any(agent.status == "running" for agent in view.state.agents.values()):
                return
