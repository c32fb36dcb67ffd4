"""Things that happen at the same moment: closing, interrupting, ending against spawning, mail and waiting."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.agents.agent import AgentSpec
from core.agents.config import SwarmConfig
from core.agents.errors import Refused
from core.agents.registry import UnknownAgent
from core.agents.swarm import Swarm
from core.agents.tools import control_tools
from core.clock import SystemClock
from core.domain import events as e
from core.domain.limits import Limits
from core.domain.state import AgentState, SwarmState
from core.models.types import Completed, ModelEvent, ModelRequest
from core.store.store import Store
from core.tools.base import Tool, ToolArgs, ToolContext, ToolOutput
from tests.clock import settle
from tests.core.agents.scenarios import call

Answer = str | list[dict[str, Any]]
"""What the model says: a text, or calls made by `call`."""


class Model:
    """Answers by agent path from a list; after its end, and where the list holds None, it never answers."""

    server = "test"

    def __init__(self, answers: dict[str, list[Answer | None]]) -> None:
        self.answers = answers
        self.requests: list[tuple[str, list[dict[str, Any]]]] = []
        self.asked: Callable[[], None] = lambda: None
        self.speak = asyncio.Event()
        """Cleared: it listens and says nothing yet."""
        self.speak.set()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        path = request.instructions.split("\n", 1)[0].removeprefix("Agent path: ")
        self.requests.append((path, request.input))
        self.asked()
        await self.speak.wait()
        number = sum(1 for asked, _ in self.requests if asked == path)
        answers = self.answers.get(path, [])
        answer = answers[number - 1] if number <= len(answers) else None
        if answer is None:
            await asyncio.Event().wait()
        assert answer is not None
        yield Completed(response=f"{path}:{number}", items=items_of(answer, f"{path}:{number}"))

    async def aclose(self) -> None:
        return None


def items_of(answer: Answer, prefix: str) -> list[dict[str, Any]]:
    if isinstance(answer, str):
        return [{"type": "message", "content": [{"type": "output_text", "text": answer}]}]
    return [
        {
            "type": "function_call",
            "call_id": one.get("id", f"{prefix}:{index}"),
            "name": one["name"],
            "arguments": json.dumps(one["arguments"]),
        }
        for index, one in enumerate(answer)
    ]


class World:
    """One swarm on a real store and a model that is told what to say; `hold` keeps the disk waiting."""

    def __init__(self, swarm: Swarm, store: Store, model: Model) -> None:
        self.swarm, self.store, self.model = swarm, store, model
        self.events: list[e.AnyEvent] = []
        self._changed = asyncio.Event()
        model.asked = self._changed.set

    @property
    def state(self) -> SwarmState:
        return self.swarm.state

    def committed(self, swarm: str, events: Sequence[e.AnyEvent], bodies: Sequence[str]) -> None:
        self.swarm.on_commit(events)
        self.events += events
        self._changed.set()

    def at(self, path: str) -> AgentState:
        agent = self.state.by_path(path)
        assert agent is not None, path
        return agent

    def is_(self, path: str, status: str) -> bool:
        agent = self.state.by_path(path)
        return agent is not None and agent.status == status

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(10):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            shown = [(a.path, a.status, a.wait and a.wait.reason) for a in self.state.agents.values()]
            raise AssertionError(f"never came to pass; agents: {shown}") from None

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """While inside nothing reaches the disk: what is written waits."""
        entered, go_on, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

        def op(db: Any) -> tuple[None, list[e.Event]]:
            loop.call_soon_threadsafe(entered.set)
            go_on.wait(20)
            return None, []

        waiting = asyncio.create_task(self.store.transact(self.swarm.id, op))
        await entered.wait()
        try:
            yield
        finally:
            go_on.set()
            await waiting


@asynccontextmanager
async def world(
    tmp_path: Path,
    answers: dict[str, list[Answer | None]],
    extra: Sequence[Tool] = (),
    limits: Limits | None = None,
) -> AsyncIterator[World]:
    clock = SystemClock()
    store = await Store.open(tmp_path / "home", clock=clock, redact=lambda text: text)
    limits = limits or Limits(min_wait_ms=1)
    model = Model(answers)

    def tools(spec: AgentSpec) -> list[Tool]:
        return [*extra] if spec.kind == "worker" else [*control_tools(swarm), *extra]

    swarm = Swarm(
        swarm="s",
        store=store,
        model=model,
        config=SwarmConfig(cwd=tmp_path, model="m", limits=limits),
        clock=clock,
        tools=tools,
        publish=lambda delta: None,
    )
    made = World(swarm, store, model)
    store.on_commit = made.committed
    try:
        await store.create("s")
        started = e.SwarmStarted(title="t", cwd=str(tmp_path), model="m", source="exec")
        await store.append("s", [started])
        async with asyncio.timeout(30), swarm.serve():
            yield made
    finally:
        await store.aclose()


class Nothing(ToolArgs):
    pass


class Gate(Tool):
    """A call that runs until the test opens it."""

    name = "gate"
    description = "waits"
    Args = Nothing

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self.entered.set()
        await self.open.wait()
        return ToolOutput(text="open")


class Stubborn(Gate):
    """Takes until the test opens it also to be cancelled."""

    name = "stubborn"

    def __init__(self) -> None:
        super().__init__()
        self.stopping = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopping.set()
            await self.open.wait()
        raise AssertionError("unreachable")


def spawn(name: str) -> dict[str, Any]:
    return call("spawn_agent", task_name=name, message="x")


def wait(*targets: str, ms: int = 600_000) -> dict[str, Any]:
    return call("wait_agent", targets=list(targets), timeout_ms=ms)


# --- closing ---------------------------------------------------------------------------------------------


async def test_nothing_is_spawned_below_an_agent_that_is_being_closed(tmp_path: Path) -> None:
    stubborn = Stubborn()
    answers: dict[str, list[Answer | None]] = {
        "/root": [[spawn("p")]],
        "/root/p": [[spawn("a")], [spawn("late")]],
        "/root/p/a": [[call("stubborn")]],
    }
    async with world(tmp_path, answers, [stubborn]) as w:
        await w.swarm.births.start_root("go")
        await stubborn.entered.wait()
        await w.until(lambda: w.is_("/root/p", "running"))
        parent = w.swarm.agents[w.at("/root/p").thread]
        closing = asyncio.create_task(w.swarm.close(parent.thread, by="operator"))
        await w.until(lambda: not w.is_("/root/p", "running"))
        with pytest.raises(Refused, match="/root/p is being closed"):
            await w.swarm.births.spawn(parent, name="late2", message="x")
        with pytest.raises(Refused, match="is being closed"):
            await w.swarm.send_input(parent.thread, "hello?", by="operator")
        stubborn.open.set()
        await closing
        below = [a for a in w.state.agents.values() if a.path.startswith("/root/p")]
        assert {a.status for a in below} == {"shutdown"}
        # No agent is closed while one below it is open.
        closed = [w.state.agents[ev.agent or ""].path for ev in w.events if isinstance(ev, e.AgentClosed)]
        assert closed.index("/root/p/a") < closed.index("/root/p") == len(closed) - 1


async def test_a_spawn_that_is_on_its_way_to_the_disk_is_closed_with_its_parent(tmp_path: Path) -> None:
    async with world(tmp_path, {"/root": [[spawn("p")]], "/root/p": [[spawn("a")]]}) as w:
        root = await w.swarm.births.start_root(None)
        parent = await w.swarm.births.spawn(root, name="q", message="x")
        async with w.hold():
            spawning = asyncio.create_task(w.swarm.births.spawn(parent, name="a", message="x"))
            await settle()
            closing = asyncio.create_task(w.swarm.close(parent.thread, by="operator"))
            await settle()
            spawning.cancel()
        closed = await closing
        assert [w.state.agents[thread].path for thread in closed] == ["/root/q/a", "/root/q"]
        assert w.at("/root/q/a").status == "shutdown"
        assert list(w.swarm.agents) == [root.thread]


async def test_a_close_whose_caller_is_stopped_still_frees_path_and_place(tmp_path: Path) -> None:
    stubborn = Stubborn()
    async with world(tmp_path, {"/root/a": [[call("stubborn")]]}, [stubborn]) as w:
        root = await w.swarm.births.start_root(None)
        child = await w.swarm.births.spawn(root, name="a", message="x")
        await stubborn.entered.wait()
        closing = asyncio.create_task(w.swarm.close(child.thread, by="operator"))
        await settle()
        closing.cancel()
        await asyncio.wait({closing})
        stubborn.open.set()
        await w.until(lambda: w.is_("/root/a", "shutdown"))
        assert len(w.swarm.registry) == 1
        assert (await w.swarm.births.spawn(root, name="a", message="again")).path == "/root/a"


async def test_two_closes_at_once_leave_a_new_agent_of_the_same_path_alone(tmp_path: Path) -> None:
    stubborn = Stubborn()
    answers: dict[str, list[Answer | None]] = {"/root/p/b": [[call("stubborn")]]}
    async with world(tmp_path, answers, [stubborn]) as w:
        root = await w.swarm.births.start_root(None)
        parent = await w.swarm.births.spawn(root, name="p", message="x")
        first = await w.swarm.births.spawn(root, name="a", message="x")
        await w.swarm.births.spawn(parent, name="b", message="x")
        await stubborn.entered.wait()
        one = asyncio.create_task(w.swarm.close(root.thread, by="operator"))
        two = asyncio.create_task(w.swarm.close(first.thread, by="operator"))
        await two
        assert w.is_("/root/a", "shutdown")
        stubborn.open.set()
        await one
        assert w.swarm.agents == {}
        assert len(w.swarm.registry) == 0


async def test_two_agents_that_close_each_other_both_end(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {
        "/root": [[spawn("a"), spawn("b")], [wait("a", "b")], "over"],
        "/root/a": [[call("close_agent", target="/root/b")]],
        "/root/b": [[call("close_agent", target="/root/a")]],
    }
    async with world(tmp_path, answers) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root/a", "shutdown") or w.is_("/root/b", "shutdown"))
        await w.until(lambda: w.is_("/root", "completed"))
        assert w.swarm.slots.used == sum(a.slot.held for a in w.swarm.agents.values())


# --- interrupting ----------------------------------------------------------------------------------------


async def test_an_interrupt_reaches_an_agent_that_is_just_being_born(tmp_path: Path) -> None:
    async with world(tmp_path, {"/root/a": ["never asked"]}) as w:
        root = await w.swarm.births.start_root(None)
        async with w.hold():
            spawning = asyncio.create_task(w.swarm.births.spawn(root, name="a", message="x"))
            await settle()
            stopping = asyncio.create_task(w.swarm.interrupt(root.thread, by="operator", cascade=True))
            await settle()
        child = await spawning
        assert await stopping == [child.thread]
        assert w.at("/root/a").status == "interrupted"
        assert w.model.requests == []
        # It is stopped, not deaf.
        await w.swarm.send_input(child.thread, "go on", by="operator")
        await w.until(lambda: w.is_("/root/a", "completed"))


async def test_an_interrupt_while_a_turn_is_being_recorded_stops_the_one_that_follows(tmp_path: Path) -> None:
    async with world(tmp_path, {"/root": ["first", "second"]}) as w:
        w.model.speak.clear()
        root = await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "running"))
        async with w.hold():
            more = asyncio.create_task(w.swarm.append([mail_for(root.thread)]))
            w.model.speak.set()
            await settle()  # the answer is there and waits for the disk
            stopping = asyncio.create_task(w.swarm.interrupt(root.thread, by="operator"))
            await settle()
        await more
        assert await stopping == [root.thread]
        assert w.at("/root").status == "interrupted"
        assert len(w.model.requests) == 1


def mail_for(thread: str) -> e.MailQueued:
    return e.MailQueued(agent=thread, mail="m", author="/root/x", kind="NEW_TASK", text="x", trigger=True)


async def test_an_interrupt_of_an_agent_in_line_for_a_slot_is_an_interrupt(tmp_path: Path) -> None:
    async with world(tmp_path, {}, limits=Limits(max_threads=2)) as w:
        root = await w.swarm.births.start_root(None)
        first = await w.swarm.births.spawn(root, name="a", message="x")
        await w.until(lambda: w.is_("/root/a", "running"))
        second = await w.swarm.births.spawn(root, name="b", message="x")
        await w.until(lambda: (got := w.at("/root/b").wait) is not None and got.reason == "slot")
        stopped = await asyncio.gather(
            w.swarm.interrupt(first.thread, by="operator"), w.swarm.interrupt(second.thread, by="operator")
        )
        assert stopped == [[first.thread], [second.thread]]
        assert [w.at(p).status for p in ("/root/a", "/root/b")] == ["interrupted"] * 2
        assert w.at("/root/b").wait is None
        assert (w.swarm.slots.used, w.swarm.slots.waiting) == (0, 0)


# --- ending ----------------------------------------------------------------------------------------------


async def test_an_ending_swarm_starts_no_turn_that_nobody_would_record(tmp_path: Path) -> None:
    gate = Stubborn()
    answers: dict[str, list[Answer | None]] = {
        "/root": [[spawn("a")], "idle"],
        "/root/a": [[call("stubborn")]],
    }
    async with world(tmp_path, answers, [gate]) as w:
        root = await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "completed"))
        await gate.entered.wait()

        async def late() -> None:
            # The child is still stopping when the swarm is ending: mail for the idle root comes in.
            await gate.stopping.wait()
            await w.swarm.append([mail_for(root.thread)])
            gate.open.set()

        task = asyncio.create_task(late())
    await task
    states = w.events
    started = [ev for ev in states if isinstance(ev, e.TurnStarted)]
    ended = [ev for ev in states if isinstance(ev, e.TurnCompleted | e.TurnInterrupted)]
    assert sorted(ev.turn for ev in started) == sorted(ev.turn for ev in ended)


# --- calls beside each other -----------------------------------------------------------------------------


async def test_a_wait_beside_the_spawn_in_one_response_waits(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {
        "/root": [[spawn("a"), wait("a")], "over"],
        "/root/a": ["the answer"],
    }
    async with world(tmp_path, answers) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "completed"))
        outputs = [i["output"] for i in w.model.requests[-1][1] if i["type"] == "function_call_output"]
    assert {"status": {"a": {"completed": "the answer"}}, "timed_out": False} in map(json.loads, outputs)


async def test_a_slot_is_not_lent_while_a_call_beside_the_blocked_one_runs(tmp_path: Path) -> None:
    gate = Gate()
    answers: dict[str, list[Answer | None]] = {"/root/a": [[wait("/root"), call("gate")]]}
    async with world(tmp_path, answers, [gate]) as w:
        root = await w.swarm.births.start_root(None)
        agent = await w.swarm.births.spawn(root, name="a", message="x")
        await w.until(lambda: (got := w.at("/root/a").wait) is not None and got.reason == "agents")
        await gate.entered.wait()
        assert agent.slot.held
        gate.open.set()
        await w.until(lambda: len(w.state.calls) == 1)
        assert not agent.slot.held
        assert w.swarm.slots.used == 0


async def test_an_agent_whose_wait_timed_out_waits_no_longer(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {"/root": [[spawn("a")], [wait("a", ms=5)], None]}
    async with world(tmp_path, answers) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: sum(p == "/root" for p, _ in w.model.requests) == 3)
        assert any(isinstance(ev, e.AgentWaits) and ev.wait is not None for ev in w.events)
        assert w.at("/root").status == "running"
        assert w.at("/root").wait is None


async def test_a_call_id_with_control_characters_is_clean_from_the_start(tmp_path: Path) -> None:
    dirty = {**call("list_agents"), "id": "c\x1b[31m1\n\u202e"}
    async with world(tmp_path, {"/root": [[dirty, dirty], "over"]}) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "completed"))
    assert [ev.call for ev in w.events if isinstance(ev, e.ToolCalled)] == ["c1", "c1-2"]
    pairs = [i["call_id"] for i in w.model.requests[-1][1] if "call_id" in i]
    assert pairs == ["c1", "c1-2", "c1", "c1-2"] or pairs == ["c1", "c1-2", "c1-2", "c1"]


# --- workers ---------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_closed_workers(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {f"/root/job_{i}": ["done"] for i in range(30)}
    async with world(tmp_path, answers, limits=Limits(max_threads=3)) as w:
        root = await w.swarm.births.start_root(None)
        async with asyncio.TaskGroup() as group:
            for i in range(30):
                group.create_task(worker(w, root.thread, i))
        assert list(w.swarm.agents) == [root.thread]
        assert (root.children, w.swarm._tasks and len(w.swarm._tasks), w.swarm._watchers) == ({}, 1, {})
        assert (w.swarm.slots.used, w.swarm.slots.waiting, len(w.swarm.registry)) == (0, 0, 1)


async def worker(w: World, owner: str, number: int) -> AgentState:
    return await w.swarm.births.run_worker(
        owner=owner,
        thread=f"w{number}",
        name=f"job_{number}",
        task="t",
        message="m",
        tools=[],
        job="j" * 8,
        item=str(number),
    )


async def test_a_worker_whose_job_is_cancelled_at_birth_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path, {}) as w:
        root = await w.swarm.births.start_root(None)
        async with w.hold():
            task = asyncio.create_task(worker(w, root.thread, 1))
            await settle()
            task.cancel()
            await settle()
        await asyncio.wait({task})
        assert task.cancelled()
        assert w.at("/root/job_1").status == "shutdown"
        assert list(w.swarm.agents) == [root.thread]
        assert w.swarm.slots.used == 0


# --- everything at once ----------------------------------------------------------------------------------

KIDS = ("a", "b", "c")


def storm_answers(luck: random.Random, path: str = "/root", depth: int = 0) -> dict[str, list[Answer | None]]:
    """What agents three levels deep do: spawn, wait, close, task each other, mostly in vain."""

    def kid() -> str:
        return luck.choice(KIDS)

    def step() -> Answer:
        return luck.choice(
            [
                [spawn(kid()), spawn(kid())],
                [spawn("a"), wait("a", ms=5)],
                [call("close_agent", target=kid()), call("send_message", target=kid(), message="x")],
                [call("followup_task", target=f"/root/{kid()}", message="m"), call("list_agents")],
            ]
        )

    answers: dict[str, list[Answer | None]] = {path: [step(), step(), step(), *["end"] * 20]}
    if depth < 3:
        for name in KIDS:
            answers |= storm_answers(luck, f"{path}/{name}", depth + 1)
    return answers


@pytest.mark.parametrize("seed", range(12))
async def test_after_a_storm_everything_adds_up(tmp_path: Path, seed: int) -> None:
    luck = random.Random(seed)
    limits = Limits(max_threads=luck.choice([2, 3, 17]), min_wait_ms=1, max_depth=3)
    async with world(tmp_path, storm_answers(luck), limits=limits) as w:
        swarm = w.swarm
        root = await swarm.births.start_root("go")
        commands: list[asyncio.Task[Any]] = []
        for _ in range(40):
            await settle(luck.randrange(1, 60))
            one = luck.choice(list(swarm.agents.values()))
            kind = luck.choice(["interrupt", "cascade", "input", "close", "give up"])
            if kind in ("interrupt", "cascade"):
                work: Any = swarm.interrupt(one.thread, by="operator", cascade=kind == "cascade")
            elif kind == "close" and one is not root:
                work = swarm.close(one.thread, by="operator")
            elif kind == "give up" and commands:
                luck.choice(commands).cancel()
                continue
            else:
                work = swarm.send_input(one.thread, "hi", by="operator")
            commands.append(asyncio.create_task(work))
        replies = await asyncio.gather(*commands, return_exceptions=True)
        expected = (asyncio.CancelledError, Refused, UnknownAgent)
        assert [r for r in replies if isinstance(r, BaseException) and not isinstance(r, expected)] == []
        await w.until(w.state.quiet)
        await settle()
        assert w.state.quiet()
        assert (swarm.slots.used, swarm.slots.waiting) == (0, 0)
        assert {a.thread for a in w.state.agents.values() if a.status != "shutdown"} == set(swarm.agents)
        assert len(swarm.registry) == len(swarm.agents)
        assert all(a.spec.parent in swarm.agents for a in swarm.agents.values() if a is not root)
        assert not w.state.calls
        for _, items in w.model.requests:
            assert_paired(items)


def assert_paired(items: list[dict[str, Any]]) -> None:
    """What strict servers ask of a history: every call has one output, after it."""
    waiting: set[str] = set()
    for item in items:
        if item["type"] == "function_call":
            assert item["call_id"] not in waiting
            waiting.add(item["call_id"])
        elif item["type"] == "function_call_output":
            waiting.remove(item["call_id"])
        elif item.get("role") == "user":
            assert not waiting
    assert not waiting
