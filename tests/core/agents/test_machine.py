"""The control plane as a machine: anything that may happen to a swarm, in any order, also at the same moment,
also with the death of its engine in between, against a model that knows only who there is and who was told
what. The language model is a puppet: each request waits until the machine says what is answered."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.agents import prompts
from core.agents.agent import Agent
from core.agents.compaction import ask_for
from core.agents.history import History, user_item
from core.agents.registry import UnknownAgent
from core.agents.reload import read_history
from core.agents.swarm import Refused, Swarm
from core.domain import events as e
from core.domain.commands import StartSwarm
from core.domain.limits import LimitError
from core.domain.paths import PathError, depth
from core.domain.status import SETTLED
from core.engine.models import ModelPool
from core.models.types import Completed, ModelClient, ModelEvent, ModelRequest
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call
from tests.core.agents.test_races import Answer, assert_paired, items_of
from tests.core.crash import check, home_settings, journal, leave, stand

SLOTS, DEPTH, AGENTS, RESIDENT = 3, 2, 6, 2
LIMITS = {"max_threads": SLOTS, "max_depth": DEPTH, "max_agents": AGENTS, "max_resident": RESIDENT}
NAMES = ("a", "b", "c")
ASKED = user_item(prompts.COMPACT)
IN_VAIN = (Refused, UnknownAgent, PathError, LimitError)
OPS = (
    *("spawn", "spawn", "spawn", "answer", "answer", "answer", "input", "message", "followup"),
    *(
        "wait",
        "wait",
        "tool spawn",
        "interrupt",
        "cascade",
        "close",
        "close",
        "resume",
        "resume",
        "pass",
        "compact",
        "crash",
    ),
)


class Puppet:
    """The model of one engine. `asked` holds the requests without an answer, oldest first, by thread."""

    server = "puppet"

    def __init__(self, lived: Callable[[str], Awaitable[History]]) -> None:
        """`lived`: asked for an agent's history as the journal tells it."""
        self.lived = lived
        self.asked: dict[str, asyncio.Future[Answer]] = {}
        self.root = ""
        self._count = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        thread = request.cache_key
        assert thread not in self.asked, "two requests of one agent at once"
        assert_paired(request.input)
        lived = await self.lived(thread)
        if request.input[-1:] == [ASKED]:
            assert request.input[:-1] == lived.answered, "summarises what it has not been through"
        else:
            assert request.input == lived.items, "sent what it has not been through"
        answer = self.asked[thread] = asyncio.get_running_loop().create_future()
        try:
            assert sum(one != self.root for one in self.asked) <= SLOTS - 1, "more requests than slots"
            said = await answer
        finally:
            del self.asked[thread]
        self._count += 1
        yield Completed(response=f"r{self._count}", items=items_of(said, f"{thread}:{self._count}"))

    def say(self, thread: str, answer: Answer) -> None:
        if not self.asked[thread].done():
            self.asked[thread].set_result(answer)

    async def aclose(self) -> None:
        return None

    @asynccontextmanager
    async def client(self, settings: Any) -> AsyncIterator[ModelClient]:
        yield self


class Told(msgspec.Struct):
    """A message that was sent; `sure`: whoever sent it was told that it is queued."""

    thread: str
    sure: bool = False


class Machine:
    """One swarm through all its engines. The model of it: `born` (thread → path), `closed`, `told`."""

    def __init__(self, folder: Path, slots: str) -> None:
        self.folder = folder
        self.spawned = slots == "spawned"
        self.limits = {**LIMITS, "slots": slots}
        self.clock = FakeClock()
        self.born: dict[str, str] = {}
        self.closed: set[str] = set()
        self.doubtful: set[str] = set()
        """Asked back, and whoever asked has had no answer: an engine may die meanwhile."""
        self.told: dict[str, Told] = {}
        self.going: set[asyncio.Task[Any]] = set()
        self.homes = 0
        self.id = ""

    # --- engines ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[None]:
        found = home_settings(
            self.folder,
            self.folder / f"home{self.homes}",
            "chunk_chars = 200\n",
            sandbox="off",
            agents=self.limits,
        )
        async with stand(found, self.clock) as self.stand:
            self.puppet = Puppet(self.lived)
            hosting = self.stand.engine._hosting
            assert isinstance(hosting.models, ModelPool), "else the puppet would be asked nothing"
            hosting.models = self.puppet  # type: ignore[assignment]
            if self.id:
                reply = await self.stand.resume(self.id)
                assert reply.ok, reply.error
                self.puppet.root = reply.value["thread"]
            else:
                value = await self.stand.send(StartSwarm(task="t0"))
                self.id, self.puppet.root = value["swarm"], value["thread"]
                self.born[value["thread"]] = "/root"
                self.told["t0"] = Told(value["thread"], sure=True)
            yield
            for task in self.going:
                task.cancel()
            await asyncio.gather(*self.going, return_exceptions=True)
            self.going.clear()

    async def lived(self, thread: str) -> History:
        swarm = self.swarm
        history, _ = await read_history(swarm.store, self.id, thread, swarm.state.seq)
        return history

    async def die(self) -> None:
        """Keep the home as the engine's death would leave it now: whatever is on its way is not there."""
        here, self.homes = self.folder / f"home{self.homes}", self.homes + 1
        there = self.folder / f"home{self.homes}"

        def copy(db: Any) -> tuple[None, list[e.Event]]:
            leave(here, there)
            return None, []

        await self.stand.engine.store.transact(self.id, copy)

    @property
    def swarm(self) -> Swarm:
        return self.stand.engine._hosted[self.id].swarm

    # --- what happens -----------------------------------------------------------------------------------

    async def play(self, story: list[tuple[str, int, int, bool]]) -> None:
        chapters: list[list[tuple[str, int, int, bool]]] = [[]]
        for one in story:
            if one[0] == "crash":
                chapters.append([])
            else:
                chapters[-1].append(one)
        for number, chapter in enumerate(chapters):
            async with self.engine():
                if number == 0:
                    await self.rest()
                for op, a, b, calmly in chapter:
                    await self.step(op, a, b, calmly)
                if number < len(chapters) - 1:
                    await self.die()
                    continue
                await self.rest()
                await self.end()
        assert not self.going

    async def step(self, op: str, a: int, b: int, calmly: bool) -> None:
        agents = list(self.swarm.agents.values())
        one, other = agents[a % len(agents)], agents[b % len(agents)]
        asked = list(self.puppet.asked)
        name = NAMES[b % len(NAMES)]
        match op:
            case "spawn":
                self.begin(self.spawn(one, name, calmly))
            case "input" | "message" | "followup":
                self.begin(self.tell(op, one, other))
            case "interrupt" | "cascade":
                self.begin(self.swarm.interrupt(one.thread, by="operator", cascade=op == "cascade"))
            case "compact":
                self.begin(ask_for(self.swarm, one.thread, by="operator"))
            case "close" if one is not self.swarm.root:
                self.begin(self.swarm.close(one.thread, by="operator"))
            case "resume" if self.closed:
                self.begin(self.come_back(sorted(self.closed)[a % len(self.closed)]))
            case "pass":
                await self.clock.advance(20)
            case "answer" if asked:
                self.puppet.say(asked[a % len(asked)], f"said {a}")
            case "tool spawn" if asked:
                self.puppet.say(asked[a % len(asked)], [call("spawn_agent", task_name=name, message="x")])
            case "wait" if asked:
                targets = {} if b % 3 == 0 else {"targets": [other.path]}
                wait = call("wait_agent", timeout_ms=15_000 + b, **targets)
                self.puppet.say(asked[a % len(asked)], [wait])
        if calmly:
            await self.rest()
            self.in_order()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        async def bounded() -> None:
            try:
                await work
            except IN_VAIN:
                return  # it came too late, or against the rules

        self.going.add(asyncio.create_task(bounded()))

    async def spawn(self, parent: Agent, name: str, calmly: bool) -> None:
        """With nothing else going on its end is known before."""
        path = f"{parent.path}/{name}"
        calm = calmly and len(self.going) == 1 and self.swarm.live(parent.thread) is parent
        expected: type[Exception] | None = None
        if path in {agent.path for agent in self.swarm.agents.values()}:
            expected = PathError
        elif depth(path) > DEPTH or len(self.swarm.agents) >= (SLOTS if self.spawned else AGENTS):
            expected = LimitError
        found: type[Exception] | None = None
        try:
            child = await self.swarm.births.spawn(parent, name=name, message=f"first of {len(self.born)}")
            self.born[child.thread] = child.path
        except IN_VAIN as error:
            found = type(error)
        assert not calm or found is expected, (path, found, expected)

    async def come_back(self, thread: str) -> None:
        swarm = self.swarm
        asked = {agent.thread for agent in swarm.comeback.would_resume(thread)}
        self.doubtful |= asked
        found = set(await swarm.comeback.resume(thread, by="operator"))
        assert not found or found == asked
        self.doubtful -= asked
        self.closed -= found

    async def tell(self, op: str, target: Agent, sender: Agent) -> None:
        text = f"t{len(self.told)}"
        told = self.told[text] = Told(target.thread)
        if op == "input":
            await self.swarm.send_input(target.thread, text, by="operator")
        else:
            await self.swarm.send_message(sender, target, text, trigger=op == "followup")
        told.sure = True

    async def rest(self) -> None:
        """Until nothing moves any more: all is written, and everybody waits for an answer, time or mail."""
        store, last, still, rounds = self.stand.engine.store, None, 0, 0
        while still < 2:
            await settle()
            await store.transact(self.id, lambda db: (None, []))
            if rounds < 300 and any(self.between(agent) for agent in self.swarm.agents.values()):
                rounds += 1
                await store.reader.load_state(self.id)  # one that comes back reads its history
                continue
            now = (self.swarm.state.seq, len(self.puppet.asked), sum(not t.done() for t in self.going))
            still = still + 1 if now == last else 0
            last = now
        for task in [task for task in self.going if task.done()]:
            self.going.discard(task)
            task.result()

    def between(self, agent: Agent) -> bool:
        """Runs, and has neither asked nor is it blocked: soon it will be."""
        shown = self.swarm.state.agents[agent.thread]
        runs = shown.status == "running" and shown.wait is None
        return runs and agent.thread not in self.puppet.asked

    # --- what must hold -----------------------------------------------------------------------------------

    def in_order(self) -> None:
        """At rest: who is there, who runs, who waits, and that each is one of these."""
        swarm, state = self.swarm, self.swarm.state
        slots = swarm.slots
        held = [agent for agent in swarm.agents.values() if agent.slot.held]
        assert slots.used == len(held) <= slots.capacity == SLOTS - 1
        assert not slots.waiting or slots.used == slots.capacity, "a free slot, and somebody in line"
        assert len(swarm.agents) == len(swarm.registry) <= AGENTS
        assert set(swarm.agents) == {a.thread for a in state.agents.values() if a.status != "shutdown"}
        self.closed |= {a.thread for a in state.agents.values() if a.status == "shutdown"}
        self.closed -= self.doubtful & set(swarm.agents)
        assert not self.closed & set(swarm.agents), "a closed agent lives"
        resident = [agent for agent in swarm.agents.values() if agent.resident]
        assert len(resident) <= RESIDENT or all(agent.busy for agent in resident), "not evicted"
        assert all(self.born[thread] == state.agents[thread].path for thread in self.born)
        self.born |= {thread: agent.path for thread, agent in state.agents.items()}
        in_line = 0
        for agent in swarm.agents.values():
            shown = state.agents[agent.thread]
            assert shown.depth <= DEPTH
            assert set(agent._mail) == {mail for mail, m in state.mail.items() if m.thread == agent.thread}
            if shown.wait is not None and shown.wait.reason == "slot":
                in_line += 1
                assert agent.busy
            elif shown.status == "running":
                assert agent.busy
                assert shown.turn is not None
                blocked = shown.wait is not None and shown.wait.reason == "agents"
                assert blocked != (agent.thread in self.puppet.asked)
                assert agent is swarm.root or self.spawned or agent.slot.held != blocked
            else:
                assert not agent.busy
                assert shown.wait is None
                assert shown.turn is None
                assert not agent.will_run(), "mail that wakes it, and it sleeps"
                assert self.spawned or not agent.slot.held
                assert shown.status in SETTLED | {"idle"}
        assert slots.waiting == in_line
        if self.spawned:
            assert set(held) == set(swarm.agents.values()) - {swarm.root}

    async def end(self) -> None:
        """Everybody is answered: then all comes to rest, and everything adds up."""
        for _ in range(300):
            await self.rest()
            self.in_order()
            if self.puppet.asked:
                for thread in list(self.puppet.asked):
                    self.puppet.say(thread, "the end")
            elif self.swarm.state.active():
                await self.clock.advance(30)
            else:
                break
        state = self.swarm.state
        assert not state.active(), "it never came to rest"
        kept = len(self.swarm.agents) - 1 if self.spawned else 0
        assert (self.swarm.slots.used, self.swarm.slots.waiting) == (kept, 0)
        events = await journal(self.stand.engine, self.id)
        await check(self.stand.engine, self.id)
        self.mail_adds_up(events)

    def mail_adds_up(self, events: list[e.AnyEvent]) -> None:
        """What was sent is queued once, and read once or waits still; a child's turn tells its parent."""
        state = self.swarm.state
        queued = {m.mail: m for m in events if isinstance(m, e.MailQueued)}
        read = [m.mail for m in events if isinstance(m, e.UserMessage | e.AgentMessage) and m.mail]
        texts = [mail.text for mail in queued.values()]
        for text, told in self.told.items():
            assert texts.count(text) == 1 if told.sure else texts.count(text) <= 1, text
        assert waiting_mail(events) == set(state.mail)
        assert not set(read) & set(state.mail)
        for place, event in enumerate(events):
            agent = state.agents.get(event.agent or "")
            if not isinstance(event, e.TurnCompleted) or agent is None or agent.parent is None:
                continue
            following = events[place + 1] if place + 1 < len(events) else None
            if isinstance(following, e.MailQueued) and following.kind == "FINAL_ANSWER":
                assert (following.agent, following.author) == (agent.parent, agent.path)
                continue
            later = [one for one in events[place + 1 :] if one.agent == agent.thread]
            ends = [one for one in later if isinstance(one, e.AgentClosed | e.TurnStarted)]
            assert ends, "an answer that nobody was told"
            assert isinstance(ends[0], e.AgentClosed), "an answer that nobody was told"


def waiting_mail(events: list[e.AnyEvent]) -> set[str]:
    """Mail that is queued and not read, as simply as it can be said: a close drops what waits, and what comes
    later, until the agent is back."""
    waiting: dict[str, str | None] = {}
    closed: set[str | None] = set()
    for event in events:
        match event:
            case e.MailQueued() if event.agent not in closed:
                assert event.mail not in waiting
                waiting[event.mail] = event.agent
            case e.UserMessage() | e.AgentMessage() if event.mail is not None:
                assert waiting.pop(event.mail) == event.agent, "read by another"
            case e.AgentClosed():
                closed.add(event.agent)
                waiting = {mail: agent for mail, agent in waiting.items() if agent != event.agent}
            case e.AgentResumed():
                closed.discard(event.agent)
    return set(waiting)


STORIES = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 11), st.integers(0, 11), st.booleans()),
    min_size=4,
    max_size=40,
)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


SLOTS_MEAN = st.sampled_from(["running", "running", "spawned"])


async def play(story: list[tuple[str, int, int, bool]], slots: str = "running") -> None:
    with tempfile.TemporaryDirectory() as folder:
        await Machine(Path(folder), slots).play(story)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(STORIES, SLOTS_MEAN)
def test_whatever_happens_to_a_swarm_everything_adds_up(
    story: list[tuple[str, int, int, bool]], slots: str
) -> None:
    asyncio.run(play(story, slots))


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=1500, deadline=None, suppress_health_check=SLOW)
@given(STORIES, SLOTS_MEAN)
def test_whatever_happens_to_a_swarm_everything_adds_up_long(
    story: list[tuple[str, int, int, bool]],
    slots: str,
) -> None:
    asyncio.run(play(story, slots))
