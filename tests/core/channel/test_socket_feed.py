"""Over a socket: snapshot plus feed is the fold of the journal, for clients that come, go, stall and lag."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.channel.remote import RemoteClient, connect
from core.domain import events as e
from core.domain.apply import apply
from core.domain.commands import Batch, Delta, Lagged, Snapshot
from core.domain.state import SwarmState
from core.view.swarm import SwarmView
from tests.core.channel.wire import SWARM, Stage, Staged, staged, until

BACKLOG = 12


class Follower:
    """A client that folds what it gets, and checks that nothing is missing and nothing comes twice."""

    def __init__(self, client: RemoteClient) -> None:
        self.client = client
        self.view = SwarmView()
        self.reads = asyncio.Event()
        self.reads.set()
        self.frozen = False
        self.lagged = False

    async def follow(self) -> None:
        async with self.client.subscribe(SWARM) as feed:
            async for item in feed:
                self.check(item)
                self.view.feed(item)
                await self.reads.wait()

    def check(self, item: object) -> None:
        if self.lagged or not self.view.reset:
            assert isinstance(item, Snapshot), "after a lag, and at first"
        elif isinstance(item, Snapshot):
            raise AssertionError("a snapshot that nobody announced")
        if isinstance(item, Batch):
            seqs = [event.seq for event in item.events]
            assert seqs == list(range(self.view.state.seq + 1, self.view.state.seq + 1 + len(seqs)))
        self.lagged = isinstance(item, Lagged)


class Writer:
    """Agents that write answers, several at once."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.texts: dict[str, str] = {}

    def write(self, agent: int) -> None:
        thread = f"w{agent}"
        so_far = self.texts.get(thread, "")
        text = f"{agent}{'x' * agent}"
        self.texts[thread] = so_far + text
        self.stage.on_delta(SWARM, Delta(thread=thread, response=f"r{thread}", offset=len(so_far), text=text))

    def settle(self, agent: int) -> None:
        if text := self.texts.pop(f"w{agent}", ""):
            self.stage.happen(e.AssistantMessage(agent=f"w{agent}", text=text))


class Play:
    """One run of steps; `n` picks a client or an amount."""

    def __init__(self, place: Staged, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        self.place = place
        self.group = group
        self.stack = stack
        self.writer = Writer(place.stage)
        self.followers: list[tuple[Follower, asyncio.Task[None], AsyncExitStack]] = []

    async def step(self, what: str, n: int) -> None:
        match what:
            case "spawn":
                self.place.stage.spawn(n)
            case "burst":  # more than the sockets between them hold
                for _ in range(n):
                    self.place.stage.happen(e.Notice(agent="t1", text="x" * 100_000))
            case "write":
                self.writer.write(n)
            case "settle":
                self.writer.settle(n)
            case "again":  # a cut stream is repeated from its beginning
                self.writer.texts.pop(f"w{n}", "")
                self.writer.write(n)
            case "join" if len(self.followers) < 4:
                await self.join()
            case "turn":
                for _ in range(n):
                    await asyncio.sleep(0)
            case "catch up":
                await self.catch_up()
            case _ if self.followers:
                await self.touch(what, self.followers[n % len(self.followers)][0], n % len(self.followers))

    async def join(self) -> None:
        own = await self.stack.enter_async_context(AsyncExitStack())
        client = await own.enter_async_context(connect(self.place.socket, backlog=BACKLOG))
        follower = Follower(client)
        self.followers.append((follower, self.group.create_task(follower.follow()), own))

    async def catch_up(self) -> None:
        """Until all that read have what happened so far."""
        for follower, _, _ in self.followers:
            if follower.reads.is_set() and not follower.frozen:
                await until(lambda: follower.view.reset and self.shows_all(follower.view))  # noqa: B023

    def shows_all(self, view: SwarmView) -> bool:
        return view.state.seq == self.place.stage.now.seq and view.streaming == self.writer.texts

    async def touch(self, what: str, follower: Follower, index: int) -> None:
        match what:
            case "leave":
                _, task, own = self.followers.pop(index)
                task.cancel()
                await own.aclose()
            case "stall":
                follower.reads.clear()
            case "go on":
                follower.reads.set()
            case "freeze" if follower.client.connected:
                follower.frozen = True
                follower.client._writer.transport.pause_reading()  # type: ignore[attr-defined]
            case "thaw":
                follower.frozen = False
                follower.client._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def finish(self) -> None:
        self.place.stage.spawn(1)
        journal = self.place.stage.journal
        folded = SwarmState(swarm=SWARM)
        for event in journal:
            apply(folded, event)
        for follower, _, _ in self.followers:
            follower.client._writer.transport.resume_reading()  # type: ignore[attr-defined]
            follower.reads.set()
            await until(lambda: follower.view.state.seq == journal[-1].seq)  # noqa: B023
            assert follower.view.state == folded
            assert follower.view.streaming == self.writer.texts
        for _, task, own in self.followers:
            task.cancel()
            await own.aclose()


NAMES = [
    "spawn",
    "burst",
    "write",
    "settle",
    "again",
    "join",
    "turn",
    "catch up",
    "leave",
    "stall",
    "go on",
    "freeze",
    "thaw",
]
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), min_size=3, max_size=60)


@settings(max_examples=100, deadline=None)
@given(STEPS)
@example([("join", 1), ("turn", 9), ("freeze", 0), *[("burst", 9)] * 9, ("thaw", 0), ("spawn", 1)])
@example([("join", 1), ("turn", 9), ("stall", 0), *[("spawn", 9), ("turn", 9)] * 5, ("go on", 0)])
@example([("write", 1), ("write", 2), ("join", 1), *[("write", 1), ("write", 2)] * 9, ("settle", 2)])
@example([("catch up", 0), ("write", 1), ("turn", 9), ("write", 1), ("turn", 9), ("write", 1)])
@example([("turn", 9), ("stall", 0), ("write", 3), ("turn", 9), ("write", 3), ("again", 3), ("write", 3)])
def test_every_client_ends_with_the_fold_of_the_journal(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        async with (
            staged(backlog=BACKLOG) as place,
            AsyncExitStack() as stack,
            asyncio.TaskGroup() as group,
        ):
            run = Play(place, group, stack)
            await run.join()
            for what, n in steps:
                await run.step(what, n)
            await run.finish()

    asyncio.run(play())
