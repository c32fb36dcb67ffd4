"""What the home's engine has answered outlives it, and a copy of its home takes nothing from it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from core.channel import directory, sockets
from core.channel.client import Client, EngineGone
from core.channel.launch import home_engine
from core.channel.setup import setup_of
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.store.readers import Reader
from tests.core.agents.scenarios import scenario, step
from tests.core.channel import homes
from tests.core.crash import check_events
from tests.core.harness import Watched

NOBODY_ANSWERS = scenario({"*": [step(text="never said", fault={"kind": "hang", "times": 0})]})
EVERYBODY_ANSWERS = scenario({"*": [step(text="heard")]})


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = homes.home_at(tmp_path, NOBODY_ANSWERS)
    (settings.cwd / "rows.csv").write_text("name\na\nb\n")
    yield settings
    homes.end_engines(settings.home)


async def events_of(home: Path, swarm: str) -> list[e.AnyEvent]:
    """The journal, read from the store alone."""
    found: list[e.AnyEvent] = []
    async with Reader.open(home) as reader:
        while page := (await reader.events(swarm, after=len(found), limit=5000)).events:
            found += page
    return found


# --- kill -9 ---------------------------------------------------------------------------------------------


class Teller:
    """A client that commands without a pause, and remembers what it was told of each command."""

    def __init__(self, client: Client, settings: Settings, name: str) -> None:
        self.client = client
        self.settings = settings
        self.name = name
        self.threads: dict[str, str] = {}
        """Root by swarm, of swarms that were said to have started."""
        self.jobs: dict[str, str] = {}
        """Job by swarm."""
        self.sent: dict[str, list[str]] = {}
        """Texts that were said to be sent, by swarm."""
        self.stopped: set[str] = set()
        """Swarms whose root was said to be closed."""
        self.replies = 0

    async def tell(self) -> None:
        """Until there is no engine any more."""
        setup = setup_of(self.settings)
        cwd = str(self.settings.cwd)
        try:
            while True:
                job = await self.ask(
                    c.RunJob(input_path="rows.csv", instruction="Do {name}.", cwd=cwd, setup=setup)
                )
                self.jobs[job["swarm"]] = job["job"]
                started = await self.ask(c.StartSwarm(task="go", cwd=cwd, setup=setup))
                swarm, thread = started["swarm"], started["thread"]
                self.threads[swarm], self.sent[swarm] = thread, []
                for number in range(12):
                    text = f"{self.name} says {number}"
                    await self.ask(c.SendInput(swarm=swarm, thread=thread, text=text, author=self.name))
                    self.sent[swarm].append(text)
                if len(self.threads) % 2 == 0:
                    await self.ask(c.Close(swarm=swarm, thread=thread, author=self.name))
                    self.stopped.add(swarm)
        except EngineGone:
            return

    async def ask(self, command: c.AnyCommand) -> dict[str, str]:
        reply = await self.client.send(command)
        assert reply.ok, reply.error
        self.replies += 1
        return reply.value

    async def compare(self, home: Path) -> None:
        """Everything that was answered is in the store."""
        for swarm, job in self.jobs.items():
            async with Reader.open(home) as reader:
                assert (await reader.load_state(swarm)).jobs[job].total == 2
        for swarm, sent in self.sent.items():
            events = await events_of(home, swarm)
            mine = [m for m in events if isinstance(m, e.MailQueued) and m.author == self.name]
            texts = [mail.text for mail in mine]
            assert texts[: len(sent)] == sent, "in the order in which they were sent"
            assert len(texts) <= len(sent) + 1, "at most the one whose reply was on its way"
            closed = [x for x in events if isinstance(x, e.AgentClosed) and x.agent == self.threads[swarm]]
            assert len(closed) == 1 or swarm not in self.stopped


@pytest.mark.parametrize("replies", [1, 30, 90])
async def test_what_was_answered_is_there_after_kill_9_and_is_heard_once(
    settings: Settings, tmp_path: Path, replies: int
) -> None:
    async with asyncio.timeout(50), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(home_engine(settings)) for _ in range(3)]
        tellers = [Teller(client, settings, f"client{n}") for n, client in enumerate(clients)]
        telling = [asyncio.create_task(teller.tell()) for teller in tellers]
        while sum(teller.replies for teller in tellers) < replies:
            await asyncio.sleep(0)
            assert not any(task.done() for task in telling)
        os.kill(clients[0].engine.pid, signal.SIGKILL)
        await asyncio.gather(*telling)
    await asyncio.to_thread(directory.wait_until_gone, settings.home)
    for teller in tellers:
        await teller.compare(settings.home)
    after = homes.home_at(tmp_path, EVERYBODY_ANSWERS)
    async with asyncio.timeout(50), home_engine(after) as client:
        for teller in tellers:
            for swarm, sent in list(teller.sent.items())[-2:]:
                events = await resumed(client, after, swarm)
                heard = [m.text for m in events if isinstance(m, e.UserMessage) and m.author == teller.name]
                if swarm not in teller.stopped:
                    assert heard[: len(sent)] == sent
                assert len(set(heard)) == len(heard)


async def resumed(client: Client, settings: Settings, swarm: str) -> list[e.AnyEvent]:
    """Go on with a swarm until nothing is left to do; its whole journal."""
    reply = await client.send(c.ResumeSwarm(swarm=swarm, setup=setup_of(settings)))
    assert reply.ok, reply.error
    watched = Watched(client, swarm, reply.value["thread"])
    following = asyncio.create_task(watched.follow())
    await watched.until(lambda state: state.quiet() and not state.mail)
    following.cancel()
    await asyncio.wait({following})
    events = await events_of(settings.home, swarm)
    check_events(events, watched.state)
    return events


# --- a copy ----------------------------------------------------------------------------------------------


async def test_a_home_that_was_copied_goes_on_by_itself_and_leaves_the_original_alone(
    settings: Settings, tmp_path: Path
) -> None:
    """As after `scp -r` of the home of an engine at work: records and locks name processes of elsewhere."""
    (tmp_path / "other").mkdir()
    copy = homes.home_at(tmp_path / "other", EVERYBODY_ANSWERS)
    async with asyncio.timeout(50), home_engine(settings) as original:
        reply = await original.send(c.StartSwarm(task="go", cwd=str(settings.cwd), setup=setup_of(settings)))
        here = Watched(original, reply.value["swarm"], reply.value["thread"])
        following = asyncio.create_task(here.follow())
        await here.until(lambda state: any(agent.status == "running" for agent in state.agents.values()))
        shutil.rmtree(copy.home)
        shutil.copytree(settings.home, copy.home)
        (kept,) = directory.living(settings.home)
        try:
            assert directory.living(copy.home) == []
            assert [s["status"] for s in await sessions(copy.home)] == ["interrupted"], "nobody works there"
            async with home_engine(copy) as second:
                assert second.engine.pid != original.engine.pid
                events = await resumed(second, copy, here.swarm)
                assert any(isinstance(event, e.AssistantMessage) for event in events)
                assert [found.pid for found in directory.living(copy.home)] == [second.engine.pid]
            assert directory.living(settings.home) == [kept]
            assert kept.socket in listening()
            assert [s["status"] for s in await sessions(settings.home)] == ["running"]
            assert (await original.send(c.ListSwarms())).value["swarms"][0]["running"] == 1
            assert not any(isinstance(event, e.TurnInterrupted) for event in here.events)
        finally:
            following.cancel()
            await asyncio.wait({following})
            homes.end_engines(copy.home)


def listening() -> list[str]:
    return [str(path) for path in sockets.socket_folders()[0].iterdir()]


async def sessions(home: Path) -> list[dict[str, str]]:
    async with Reader.open(home) as reader:
        found: list[dict[str, str]] = (await reader.sessions())["sessions"]
        return found
