"""An engine that lives for days keeps in memory what is at work or followed, and no more."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import ClientError
from core.channel.hub import Hub
from core.channel.local import LocalClient
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.engine.engine import Engine
from core.store.locks import owner_alive
from tests.clock import FakeClock
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import HANGING
from tests.core.harness import Watched, settings_for

ANSWERS: dict[str, Any] = {"/root": [step(text="one"), step(text="two"), step(text="three")]}


class Desk:
    """An engine on a clock of the test's own, and a client of it."""

    def __init__(self, engine: Engine, clock: FakeClock) -> None:
        self.engine = engine
        self.clock = clock
        self.client = LocalClient(Hub(engine))
        self.idle = engine.settings.engine.idle_seconds

    async def send(self, command: c.AnyCommand) -> dict[str, Any]:
        reply = await self.client.send(command)
        assert reply.ok, reply.error
        return reply.value

    async def start(self, task: str | None = "go") -> tuple[str, str]:
        value = await self.send(c.StartSwarm(task=task))
        swarm, root = value["swarm"], value["thread"]
        async with self.following(swarm, root) as watched:
            await watched.until(lambda s: s.agents[root].status != "pending_init")
        return swarm, root

    @asynccontextmanager
    async def following(self, swarm: str, root: str) -> AsyncIterator[Watched]:
        watched = Watched(self.client, swarm, root)
        task = asyncio.create_task(watched.follow())
        try:
            yield watched
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def ended(self, swarm: str, root: str) -> None:
        async with self.following(swarm, root) as watched:
            await watched.quiet()

    async def pass_idle_time(self) -> None:
        """Long enough for a swarm to go; real waits are for the store's thread."""
        for _ in range(2):
            await self.clock.advance(self.idle)
            async with asyncio.timeout(5), self.engine._moving:
                pass


@asynccontextmanager
async def desk(settings: Settings) -> AsyncIterator[Desk]:
    clock = FakeClock()
    async with asyncio.timeout(50), Engine.running(settings, clock) as engine:
        found = Desk(engine, clock)
        try:
            yield found
        finally:
            await found.client.aclose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, scenario(ANSWERS), sandbox="off")


async def test_a_quiet_swarm_that_nobody_follows_goes_and_comes_back(settings: Settings) -> None:
    async with desk(settings) as here:
        swarm, root = await here.start()
        await here.ended(swarm, root)
        before = here.engine.state(swarm).copy()
        await here.pass_idle_time()
        assert not here.engine.runs(swarm)
        assert not owner_alive(settings.home, swarm)
        assert await here.send(c.ListSwarms()) == {"swarms": []}
        reply = await here.client.send(c.SendInput(swarm=swarm, thread=root, text="more"))
        assert (reply.ok, reply.code) == (False, "not_found")
        with pytest.raises(ClientError, match="runs no swarm"):
            async with here.client.subscribe(swarm):
                pass
        stored = await here.engine.store.reader.load_state(swarm)
        assert stored == before, "giving a swarm up records nothing"

        assert (await here.send(c.ResumeSwarm(swarm=swarm)))["changed"] is True
        async with here.following(swarm, root) as watched:
            await here.send(c.SendInput(swarm=swarm, thread=root, text="more"))
            await watched.until(lambda s: s.agents[root].turns == 2 and s.quiet())
            assert [said.text for said in watched.of(e.AssistantMessage)] == ["two"]


async def test_what_works_is_followed_or_was_just_used_stays(tmp_path: Path) -> None:
    played = {"/root": [step(call("spawn_agent", task_name="a", message="look")), step(text="ended")]}
    played["/root/a"] = [HANGING]
    settings = settings_for(tmp_path, scenario(played), sandbox="off")
    async with desk(settings) as here:
        working, root = await here.start()
        async with here.following(working, root) as watched:
            await watched.until(lambda s: s.agents[root].status == "completed")
        followed, other = await here.start(None)
        used, third = await here.start(None)
        async with here.following(followed, other):
            for _ in range(4):
                await here.clock.advance(here.idle * 0.75)
                await here.send(c.SendInput(swarm=used, thread=third, text="?", dry_run=True))
            assert all(map(here.engine.runs, (working, followed, used)))
        # Whoever leaves has the whole time to come back.
        await here.clock.advance(here.idle * 0.75)
        assert here.engine.runs(followed)
        await here.pass_idle_time()
        assert here.engine.runs(working)
        assert not here.engine.runs(followed)
        assert not here.engine.runs(used)


async def test_nothing_of_it_is_left_in_memory(settings: Settings) -> None:
    async with desk(settings) as here:
        kept: list[weakref.ref[Any]] = []
        for _ in range(3):
            swarm, root = await here.start()
            await here.ended(swarm, root)
            hosted = here.engine._hosted[swarm]
            found = (hosted.swarm, hosted.jobs, hosted.swarm.root, hosted.swarm.model, hosted.swarm.state)
            kept += [weakref.ref(part) for part in found[:4]]
            del hosted, found
        assert len(here.engine._hosting.models) == 3
        await here.pass_idle_time()
        gc.collect()
        assert [ref() for ref in kept] == [None] * len(kept)
        assert len(here.engine._hosting.models) == 0
        assert not here.engine.store._writer.swarms


async def test_a_resume_waits_for_the_swarm_to_go(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(settings) as here:
        swarm, root = await here.start()
        await here.ended(swarm, root)
        leaving, go = asyncio.Event(), asyncio.Event()
        release = here.engine.store.release

        async def slowly(of: str) -> None:
            leaving.set()
            await go.wait()
            await release(of)

        monkeypatch.setattr(here.engine.store, "release", slowly)
        passing = asyncio.create_task(here.clock.advance(2 * here.idle))
        await leaving.wait()
        resumed = asyncio.create_task(here.client.send(c.ResumeSwarm(swarm=swarm)))
        await passing
        assert not resumed.done()
        go.set()
        reply = await resumed
        assert (reply.ok, reply.value.get("changed")) == (True, True)


async def test_an_engine_may_end_while_a_swarm_goes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(settings) as here:
        swarm, root = await here.start()
        await here.ended(swarm, root)
        leaving = asyncio.Event()

        async def never(of: str) -> None:
            leaving.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(here.engine.store, "release", never)
        await asyncio.gather(here.clock.advance(2 * here.idle), leaving.wait())
    assert not owner_alive(settings.home, swarm)


async def test_clients_of_one_server_share_one_connection_until_the_last_is_gone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, scenario({"/root": []}), sandbox="off")
    server = settings.model_copy(update={"base_url": "http://127.0.0.1:9/v1", "model": "m"})
    async with desk(server) as here:
        first, second = await here.start(None), await here.start(None)
        assert len(here.engine._hosting.models) == 1
        async with here.following(*first):
            await here.pass_idle_time()
            assert (here.engine.runs(first[0]), here.engine.runs(second[0])) == (True, False)
            assert len(here.engine._hosting.models) == 1
        await here.pass_idle_time()
        assert len(here.engine._hosting.models) == 0


async def test_a_swarm_that_cannot_be_resumed_leaves_no_client_behind(settings: Settings) -> None:
    async with desk(settings) as one, desk(settings) as two:
        swarm, _ = await one.start()
        reply = await two.client.send(c.ResumeSwarm(swarm=swarm))
        assert (reply.ok, reply.code) == (False, "owned")
        assert len(two.engine._hosting.models) == 0
