"""Agents that need something slow before their first turn: what is seen, refused, queued and told meanwhile,
and when it fails. The start is the test's own: it ends when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import core.engine.hosting
from core.agents.agent import AgentSpec
from core.agents.startup import StartupError
from core.domain import commands as c
from core.domain import events as e
from core.domain.state import SwarmState
from core.tools.base import Tool, ToolContext, ToolOutput
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import WAIT, Gate, Stage, Tick, outputs, passes
from tests.core.agents.test_resume import Later
from tests.core.crash import check, journal
from tests.core.harness import Watched

Steps = list[dict[str, Any]]
DOWN = "docs: it did not start; shop: gone"


class Slow:
    """Stands for the servers of a swarm. `slow`: paths whose start waits for the test, all others need
    nothing."""

    def __init__(self, *slow: str, tools: Sequence[Tool] = ()) -> None:
        self.slow = set(slow)
        self.tools = list(tools)
        self.asked: list[str] = []
        """Paths, in the order in which their starts began."""
        self.cancelled: list[str] = []
        self.dropped: list[str] = []
        """Thread ids."""
        self._up: set[str] = set()
        self._starts: dict[str, asyncio.Future[None]] = {}
        self._begun = asyncio.Event()

    def ready(self, spec: AgentSpec) -> Sequence[Tool] | None:
        if spec.path not in self.slow:
            return ()
        return self.tools if spec.thread in self._up else None

    async def start(self, spec: AgentSpec) -> Sequence[Tool]:
        self.asked.append(spec.path)
        future = self._starts[spec.path] = asyncio.get_running_loop().create_future()
        self._begun.set()
        try:
            await future
        except asyncio.CancelledError:
            self.cancelled.append(spec.path)
            raise
        self._up.add(spec.thread)
        return self.tools

    async def begun(self, path: str, times: int = 1) -> None:
        """Wait until a start has begun."""
        async with asyncio.timeout(10):
            while self.asked.count(path) < times:
                self._begun.clear()
                await self._begun.wait()

    def ends(self, path: str, error: Exception | None = None) -> None:
        future = self._starts[path]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def finish(self, path: str, error: Exception | None) -> None:
        """As `ends`, if there is a start to end."""
        if (future := self._starts.get(path)) is not None and not future.done():
            self.ends(path, error)

    def waits_for(self, spec: AgentSpec) -> str:
        return "MCP servers docs, shop"

    def registered(self, thread: str) -> None:
        return None

    def drop(self, thread: str) -> None:
        self._up.discard(thread)
        self.dropped.append(thread)

    async def end(self, thread: str) -> None:
        self.drop(thread)

    # What else the engine asks of a swarm's servers.

    def secrets(self) -> set[str]:
        return set()

    async def aclose(self) -> None:
        return None


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    made = Slow("/root/a")
    monkeypatch.setattr(core.engine.hosting, "SwarmServers", lambda *_, **__: made)
    return made


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


def spawn(name: str = "a", **fields: Any) -> dict[str, Any]:
    return call("spawn_agent", task_name=name, message=fields.pop("message", "x"), **fields)


def wait(*targets: str) -> dict[str, Any]:
    return call("wait_agent", targets=list(targets), timeout_ms=WAIT)


def team(*root: dict[str, Any], a: Steps | None = None, **others: Steps) -> dict[str, Steps]:
    agents = {"/root": list(root), "/root/a": a or [step(text="from a")]}
    return agents | {f"/root/{name}": steps for name, steps in others.items()}


def is_(path: str, status: str) -> Any:
    def found(state: SwarmState) -> bool:
        agent = state.by_path(path)
        return agent is not None and agent.status == status

    return found


async def say(watched: Watched, path: str, text: str = "hello", *, dry_run: bool = False) -> c.Reply:
    thread = watched.at(path).thread
    return await watched.client.send(
        c.SendInput(swarm=watched.swarm, thread=thread, text=text, dry_run=dry_run)
    )


async def resume(watched: Watched, path: str, *, dry_run: bool = False) -> dict[str, Any]:
    thread = watched.at(path).thread
    reply = await watched.client.send(c.ResumeAgent(swarm=watched.swarm, thread=thread, dry_run=dry_run))
    assert reply.ok, reply.error
    return reply.value


def messages(body: dict[str, Any]) -> str:
    return json.dumps(body["input"])


# --- while it starts -------------------------------------------------------------------------------------


async def test_a_child_is_there_before_its_start_up_and_runs_after_it(stage: Stage, slow: Slow) -> None:
    tick = Tick()
    slow.tools.append(tick)
    clock = FakeClock()
    a = [step(call("tick", n=7)), step(text="from a")]
    async with stage.play(
        team(step(spawn()), step(wait("a")), step(text="end"), a=a), clock=clock
    ) as watched:
        await slow.begun("/root/a")
        # spawn_agent has answered long before.
        await watched.until(lambda s: bool(s.agents[watched.root].wait))
        assert json.loads(outputs(watched, "/root", "spawn_agent")[0])["task_name"] == "/root/a"
        shown = watched.at("/root/a")
        assert shown.status == "pending_init"
        assert shown.wait is not None
        assert (shown.wait.reason, shown.wait.detail) == ("startup", "MCP servers docs, shop")
        assert stage.bodies("/root/a") == []
        await passes(clock, 3)
        slow.ends("/root/a")
        await watched.quiet()
    [ready] = watched.of(e.AgentReady, "/root/a")
    assert ready.seconds == 3
    assert tick.ran == [7]
    assert "tick" in [tool["name"] for tool in stage.bodies("/root/a")[0]["tools"]]
    assert "tick" not in [tool["name"] for tool in stage.bodies("/root")[0]["tools"]]
    assert watched.at("/root/a").wait is None


async def test_a_start_up_holds_no_slot(stage: Stage, slow: Slow) -> None:
    """Two slots: one is the root's, and the other is free for b while a starts up."""
    steps = [step(spawn("a"), spawn("b")), step(wait("b")), step(wait("a")), step(text="end")]
    async with stage.play(team(*steps, b=[step(text="from b")]), limits={"max_threads": 2}) as watched:
        await watched.until(is_("/root/b", "completed"))
        assert watched.at("/root/a").status == "pending_init"
        slow.ends("/root/a")
        await watched.quiet()
        assert watched.at("/root/a").status == "completed"


async def test_mail_waits_for_the_start_up_whatever_it_wants(stage: Stage, slow: Slow, gate: Gate) -> None:
    steps = [
        step(spawn(message="the task")),
        step(
            call("send_message", target="a", message="by the way"),
            call("followup_task", target="a", message="and this too"),
        ),
        step(call("gate")),
        step(wait("a")),
        step(text="end"),
    ]
    async with stage.play(team(*steps)) as watched:
        await gate.entered.wait()
        await slow.begun("/root/a")
        assert watched.at("/root/a").mail == 3
        assert watched.at("/root/a").status == "pending_init"
        assert outputs(watched, "/root", "send_message") == [""]
        slow.ends("/root/a")
        gate.open.set()
        await watched.quiet()
        assert watched.at("/root/a").turns == 1
    said = messages(stage.bodies("/root/a")[0])
    assert said.index("the task") < said.index("by the way") < said.index("and this too")


async def test_nothing_is_typed_to_a_sub_agent_that_starts_up(stage: Stage, slow: Slow) -> None:
    async with stage.play(team(step(spawn()), step(wait("a")), step(text="end"))) as watched:
        await slow.begun("/root/a")
        await watched.until(lambda s: (a := s.by_path("/root/a")) is not None and a.wait is not None)
        for dry_run in (False, True):
            reply = await say(watched, "/root/a", dry_run=dry_run)
            assert (reply.ok, reply.code) == (False, "refused")
            assert reply.error == (
                "/root/a is still starting up (waiting for MCP servers docs, shop);"
                " it takes input once it is ready"
            )
        thread = watched.at("/root/a").thread
        refused = await watched.client.send(c.Compact(swarm=watched.swarm, thread=thread))
        assert (refused.ok, refused.error) == (False, reply.error)
        assert watched.at("/root/a").mail == 1
        slow.ends("/root/a")
        await watched.until(lambda s: s.quiet())
        assert (await say(watched, "/root/a")).ok
        await watched.until(lambda s: watched.at("/root/a").turns == 2 and s.quiet())


async def test_what_is_typed_to_the_root_waits_for_its_start_up(stage: Stage, slow: Slow) -> None:
    slow.slow = {"/root"}
    async with stage.play({"/root": [step(text="hello")]}, task="the task") as watched:
        await slow.begun("/root")
        assert (await say(watched, "/root", "and this", dry_run=True)).ok
        assert (await say(watched, "/root", "and this")).ok
        assert stage.log == []
        slow.ends("/root")
        await watched.quiet()
    [body] = stage.bodies()
    assert messages(body).index("the task") < messages(body).index("and this")


# --- when it fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wakes", [True, False])
async def test_a_failed_start_up_is_told_once_and_the_parent_is_woken_if_it_wants_to_be(
    stage: Stage, slow: Slow, wakes: bool
) -> None:
    steps = [step(spawn()), step(text="first"), step(text="second")]
    async with stage.play(team(*steps), limits={"wake_parent": wakes}) as watched:
        await slow.begun("/root/a")
        await watched.until(is_("/root", "completed"))
        slow.ends("/root/a", StartupError(DOWN))
        await watched.until(lambda s: is_("/root/a", "errored")(s) and s.quiet())
        state = watched.state
    assert watched.at("/root/a").status_message == DOWN
    assert watched.at("/root/a").wait is None
    assert [event.error for event in watched.of(e.AgentFailed)] == [DOWN]
    assert watched.of(e.AgentReady, "/root/a") == []
    [told] = [mail for mail in watched.of(e.MailQueued, "/root") if mail.author == "/root/a"]
    assert (told.kind, told.trigger) == ("FINAL_ANSWER", wakes)
    assert f"/root/a could not start: {DOWN}" in told.text
    assert watched.at("/root").turns == (2 if wakes else 1)
    # Its task waits, and keeps nobody waiting.
    assert state.by_path("/root/a").mail == 1  # type: ignore[union-attr]
    assert stage.bodies("/root/a") == []


async def test_whoever_waits_for_it_hears_of_the_failure(stage: Stage, slow: Slow) -> None:
    steps = [step(spawn()), step(wait("a")), step(call("list_agents")), step(text="end")]
    async with stage.play(team(*steps)) as watched:
        await slow.begun("/root/a")
        await watched.until(lambda s: bool(s.agents[watched.root].wait))
        slow.ends("/root/a", StartupError(DOWN))
        await watched.quiet()
    answer = json.loads(outputs(watched, "/root", "wait_agent")[0])
    assert answer == {"status": {"a": {"errored": DOWN}}, "timed_out": False}
    listed = json.loads(outputs(watched, "/root", "list_agents")[0])["agents"]
    assert listed[1]["agent_status"] == {"errored": DOWN}


async def test_one_that_could_not_start_is_deaf_until_it_is_resumed(
    stage: Stage, slow: Slow, gate: Gate
) -> None:
    steps = [
        step(spawn(message="the task")),
        step(wait("a")),
        step(call("followup_task", target="a", message="do this")),
        step(call("send_message", target="a", message="and read this")),
        step(call("gate")),
        step(call("resume_agent", target="a")),
        step(wait("a")),
        step(call("resume_agent", target="a")),
        step(wait("a")),
        step(text="end"),
    ]
    async with stage.play(team(*steps)) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a", StartupError(DOWN))
        await gate.entered.wait()
        queued = f"queued, but /root/a could not start: {DOWN}; resume it to try again"
        told = [event.output for event in watched.of(e.ToolEnded, "/root")][2:4]
        assert told == [queued, queued]
        reply = await say(watched, "/root/a")
        assert (reply.ok, reply.code) == (False, "refused")
        assert reply.error == f"/root/a could not start: {DOWN}; resume it to try again"
        assert (watched.at("/root/a").status, watched.at("/root/a").mail) == ("errored", 3)
        assert await resume(watched, "/root/a", dry_run=True) == {
            "resumed": [watched.at("/root/a").thread],
            "changed": False,
        }
        gate.open.set()
        await slow.begun("/root/a", 2)
        await watched.until(is_("/root/a", "pending_init"))
        slow.ends("/root/a", StartupError("docs: still not"))
        await slow.begun("/root/a", 3)
        slow.ends("/root/a")
        await watched.quiet()
    assert watched.at("/root/a").turns == 1
    said = messages(stage.bodies("/root/a")[0])
    assert said.index("the task") < said.index("do this") < said.index("and read this")
    answers = [json.loads(text)["status"] for text in outputs(watched, "/root", "wait_agent")]
    assert answers == [
        {"a": {"errored": DOWN}},
        {"a": {"errored": "docs: still not"}},
        {"a": {"completed": "from a"}},
    ]
    # One mail for each failure, one for the answer.
    assert len([mail for mail in watched.of(e.MailQueued, "/root") if mail.author == "/root/a"]) == 3
    resumed = [json.loads(text) for text in outputs(watched, "/root", "resume_agent")]
    assert resumed == [{"status": "pending_init", "resumed": ["/root/a"]}] * 2


async def test_two_resumes_at_once_start_it_once(stage: Stage, slow: Slow) -> None:
    async with stage.play(team(step(spawn()), step(wait("a")), step(text="end"))) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a", StartupError(DOWN))
        await watched.until(lambda s: is_("/root/a", "errored")(s) and s.quiet())
        values = await asyncio.gather(*(resume(watched, "/root/a") for _ in range(3)))
        assert sorted(value["changed"] for value in values) == [False, False, True]
        await slow.begun("/root/a", 2)
        assert await resume(watched, "/root/a") == {"resumed": [], "changed": False}
        slow.ends("/root/a")
        await watched.until(lambda s: is_("/root/a", "completed")(s) and s.quiet())
    assert len(watched.of(e.AgentResumed)) == 1
    assert slow.asked == ["/root/a"] * 2


async def test_a_start_up_that_breaks_is_a_failure_of_its_agent_alone(stage: Stage, slow: Slow) -> None:
    async with stage.play(team(step(spawn()), step(wait("a")), step(text="end"))) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a", OSError("no pipes left"))
        await watched.quiet()
    assert watched.at("/root/a").status_message == "internal error: OSError('no pipes left')"
    assert watched.at("/root").status_message == "end"


async def test_a_root_that_cannot_start_ends_the_run_and_can_be_resumed(stage: Stage, slow: Slow) -> None:
    slow.slow = {"/root"}
    async with stage.play({"/root": [step(text="hello")]}, task="the task") as watched:
        await slow.begun("/root")
        slow.ends("/root", StartupError(DOWN))
        state = await watched.quiet()
        assert state.agents[watched.root].status_message == DOWN
        assert not state.active()
        assert "could not start" in (await say(watched, "/root")).error
        assert (await resume(watched, "/root"))["changed"]
        await slow.begun("/root", 2)
        slow.ends("/root")
        await watched.until(is_("/root", "completed"))
    assert "the task" in messages(stage.bodies()[0])


# --- closed or interrupted meanwhile ---------------------------------------------------------------------


async def test_closing_cancels_a_start_up_and_a_late_failure_is_silent(stage: Stage, slow: Slow) -> None:
    steps = [step(spawn()), step(text="first"), step(text="second")]
    async with stage.play(team(*steps)) as watched:
        await slow.begun("/root/a")
        await watched.until(is_("/root", "completed"))
        thread = watched.at("/root/a").thread
        closed = await watched.client.send(c.Close(swarm=watched.swarm, thread=thread))
        assert closed.value["closed"] == [thread]
        await watched.until(is_("/root/a", "shutdown"))
    assert slow.cancelled == ["/root/a"]
    assert thread in slow.dropped
    assert watched.of(e.AgentFailed) == []
    assert watched.of(e.AgentReady, "/root/a") == []
    assert not [mail for mail in watched.of(e.MailQueued, "/root") if mail.author == "/root/a"]
    assert watched.at("/root").turns == 1


async def test_a_failure_in_the_moment_of_the_close_is_silent_too(stage: Stage, slow: Slow) -> None:
    async with stage.play(team(step(spawn()), step(text="first"))) as watched:
        await slow.begun("/root/a")
        await watched.until(is_("/root", "completed"))
        thread = watched.at("/root/a").thread
        slow.ends("/root/a", StartupError(DOWN))
        assert (await watched.client.send(c.Close(swarm=watched.swarm, thread=thread))).ok
        await watched.until(is_("/root/a", "shutdown"))
    failed, told = watched.of(e.AgentFailed), watched.of(e.MailQueued, "/root")
    # Whichever came first: a failure that is recorded is told, one that is not is not.
    assert len(failed) == len([mail for mail in told if mail.author == "/root/a"])


async def test_an_interrupt_ends_the_start_up_and_the_next_turn_begins_with_it(
    stage: Stage, slow: Slow
) -> None:
    async with stage.play(team(step(spawn()), step(text="first"), step(text="second"))) as watched:
        await slow.begun("/root/a")
        await watched.until(is_("/root", "completed"))
        thread = watched.at("/root/a").thread
        stopped = await watched.client.send(c.Interrupt(swarm=watched.swarm, thread=thread))
        assert stopped.value == {"stopped": [thread], "changed": True}
        await watched.until(lambda s: is_("/root/a", "interrupted")(s) and s.quiet())
        assert slow.cancelled == ["/root/a"]
        [told] = [mail for mail in watched.of(e.MailQueued, "/root") if mail.author == "/root/a"]
        assert "was interrupted by operator" in told.text
        assert (await say(watched, "/root/a", "go on")).ok
        await slow.begun("/root/a", 2)
        state = await watched.until(lambda s: bool((w := s.agents[thread].wait) and w.reason == "startup"))
        assert state.agents[thread].status == "running"
        slow.ends("/root/a")
        await watched.until(lambda s: is_("/root/a", "completed")(s) and s.quiet())
    assert "go on" in messages(stage.bodies("/root/a")[0])


async def test_a_swarm_that_ends_does_not_wait_for_start_ups(later: Later, slow: Slow) -> None:
    """What was starting goes on with the next engine, with its task."""
    slow.slow = {"/root/a", "/root/b"}
    played = team(step(spawn("a"), spawn("b")), step(text="first"), b=[step(text="from b")])
    async with later.first(played) as (one, swarm, _):
        await slow.begun("/root/b")
        await one.until(swarm, is_("/root", "completed"))
        slow.ends("/root/b", StartupError(DOWN))
        await one.until(swarm, is_("/root/b", "errored"))
        await one.until(swarm, lambda s: s.agents[s.root or ""].turns == 2 and is_("/root", "completed")(s))
    assert slow.cancelled == ["/root/a"]
    async with later.second(team(step(text="again")), swarm, home="home") as two:
        assert two.at(swarm, "/root/a").status == "pending_init"
        assert two.at(swarm, "/root/b").status == "errored"
        await slow.begun("/root/a", 2)
        slow.ends("/root/a")
        await two.until(swarm, is_("/root/a", "completed"))
        # The one that failed stays as it is, and as deaf.
        failed = two.at(swarm, "/root/b")
        reply = await two.engine.handle(c.SendInput(swarm=swarm, thread=failed.thread, text="hello"))
        assert (reply.ok, reply.code) == (False, "refused")
        assert DOWN in reply.error
        await two.send(c.ResumeAgent(swarm=swarm, thread=failed.thread))
        await slow.begun("/root/b", 2)
        slow.ends("/root/b")
        await two.until(swarm, is_("/root/b", "completed"))


class Dying(Tick):
    """A call at whose end the start-up of an agent fails: whatever ends the swarm ends servers, too."""

    name = "dying"

    def __init__(self, slow: Slow) -> None:
        super().__init__()
        self._slow = slow
        self.entered = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self._slow.ends("/root/a", StartupError(DOWN))
            await settle()
        raise AssertionError


async def test_a_failure_while_the_swarm_ends_is_silent(stage: Stage, later: Later, slow: Slow) -> None:
    stage.tools.append(dying := Dying(slow))
    async with later.first(team(step(spawn()), step(call("dying")))) as (_, swarm, _):
        await slow.begun("/root/a")
        await dying.entered.wait()
    assert slow.cancelled == []
    async with later.second(team(step(text="again")), swarm, home="home") as two:
        assert two.at(swarm, "/root/a").status == "pending_init"
        await slow.begun("/root/a", 2)
        slow.ends("/root/a")
        await two.until(swarm, is_("/root/a", "completed"))
        assert not [ev for ev in await journal(two.engine, swarm) if isinstance(ev, e.AgentFailed)]


async def test_a_root_that_could_not_start_is_tried_again_by_the_next_engine(
    later: Later, slow: Slow
) -> None:
    slow.slow = {"/root"}
    async with later.first({"/root": [step(text="hello")]}) as (one, swarm, _):
        await slow.begun("/root")
        slow.ends("/root", StartupError(DOWN))
        await one.quiet(swarm)
        later.dies()
    async with later.second({"/root": [step(text="hello")]}, swarm) as two:
        await slow.begun("/root", 2)
        slow.ends("/root")
        await two.until(swarm, is_("/root", "completed"))
    assert "go" in messages(later.bodies("/root")[0])


# --- those that come back --------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_an_agent_that_was_flushed_starts_up_with_its_next_turn(
    stage: Stage, slow: Slow, fails: bool
) -> None:
    tick = Tick()
    slow.tools.append(tick)
    names = ["b", "c", "d"]
    steps = [step(spawn()), step(wait("a")), step(*(spawn(name) for name in names))]
    steps += [step(wait(name)) for name in names] + [step(text="end")]
    a = [step(text="one"), step(call("tick", n=3)), step(text="two")]
    others = {name: [step(text="x")] for name in names}
    async with stage.play(
        team(*steps, a=a, **others), limits={"max_resident": 2, "max_threads": 2}
    ) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a")
        await watched.quiet()
        thread = watched.at("/root/a").thread
        assert thread in slow.dropped
        assert (await say(watched, "/root/a", "more")).ok
        await slow.begun("/root/a", 2)
        state = await watched.until(lambda s: bool((w := s.agents[thread].wait) and w.reason == "startup"))
        assert state.agents[thread].status == "running"
        # The one slot beside the root's is lent meanwhile.
        assert (await say(watched, "/root/b", "you too")).ok
        await watched.until(lambda s: watched.at("/root/b").turns == 2 and is_("/root/b", "completed")(s))
        slow.ends("/root/a", StartupError(DOWN) if fails else None)
        await watched.until(
            lambda s: s.agents[thread].turns == 2 and s.agents[thread].wait is None and s.quiet()
        )
    shown = watched.at("/root/a")
    assert (shown.status, shown.status_message) == (("errored", DOWN) if fails else ("completed", "two"))
    assert tick.ran == ([] if fails else [3])
    assert [event.error for event in watched.of(e.TurnFailed)] == ([DOWN] if fails else [])
    assert not shown.start_failed


# --- spawn waits -----------------------------------------------------------------------------------------

SYNC = {"async_subagent_startup": False}


async def test_without_async_start_up_spawn_waits_and_the_agent_is_ready_from_the_start(
    stage: Stage, slow: Slow
) -> None:
    tick = Tick()
    slow.tools.append(tick)
    clock = FakeClock()
    a = [step(call("tick", n=7)), step(text="from a")]
    agents = team(step(spawn(fork_turns="all")), step(wait("a")), step(text="end"), a=a)
    async with stage.play(agents, clock=clock, limits=SYNC) as watched:
        await slow.begun("/root/a")
        assert watched.state.by_path("/root/a") is None
        # Longer than a tool of the swarm may take otherwise.
        await passes(clock, 90)
        slow.ends("/root/a")
        await watched.quiet()
    [ready] = watched.of(e.AgentReady, "/root/a")
    [born] = watched.of(e.AgentSpawned, "/root/a")
    assert ready.seconds == 90
    assert ready.seq == born.seq + 2  # in one transaction, with its task between them
    assert tick.ran == [7]


async def test_without_async_start_up_a_failure_is_the_tools_error_and_leaves_nothing(
    stage: Stage, slow: Slow
) -> None:
    steps = [step(spawn()), step(call("list_agents")), step(spawn()), step(wait("a")), step(text="end")]
    async with stage.play(team(*steps), limits={**SYNC, "max_agents": 2, "slots": "spawned"}) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a", StartupError(DOWN))
        await slow.begun("/root/a", 2)
        slow.ends("/root/a")
        await watched.quiet()
    refused, made = outputs(watched, "/root", "spawn_agent")
    assert refused == f"/root/a could not start: {DOWN}"
    assert next(event.status for event in watched.of(e.ToolEnded, "/root")) == "error"
    assert len(json.loads(outputs(watched, "/root", "list_agents")[0])["agents"]) == 1
    # Its path, its place and its slot are free.
    assert json.loads(made)["task_name"] == "/root/a"
    assert watched.at("/root/a").status == "completed"
    assert [event.path for event in watched.of(e.AgentSpawned)] == ["/root/a"]
    assert watched.of(e.AgentFailed) == []
    # What was its own went with it.
    assert len([thread for thread in slow.dropped if thread not in watched.state.agents]) == 1


async def test_without_async_start_up_whoever_spawns_can_be_stopped(stage: Stage, slow: Slow) -> None:
    async with stage.play(team(step(spawn()), step(text="first")), limits=SYNC) as watched:
        await slow.begun("/root/a")
        reply = await watched.client.send(c.Interrupt(swarm=watched.swarm, thread=watched.root))
        assert reply.value["changed"]
        state = await watched.until(is_("/root", "interrupted"))
    assert slow.cancelled == ["/root/a"]
    assert list(state.agents) == [watched.root]


# --- workers ---------------------------------------------------------------------------------------------


async def test_a_worker_that_cannot_start_fails_its_row_with_the_reason(
    tmp_path: Path, stage: Stage, slow: Slow
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "rows.csv").write_text("id\n1\n")

    class Workers(set[str]):
        def __contains__(self, path: object) -> bool:
            return "job_" in str(path)

    slow.slow = Workers()
    rows = call("spawn_agents_on_csv", csv_path="rows.csv", instruction="do {{id}}")
    async with stage.play({"/root": [step(rows), step(text="end")]}) as watched:
        await watched.until(lambda s: any(agent.job for agent in s.agents.values()))
        [worker] = [agent.path for agent in watched.state.agents.values() if agent.job]
        await slow.begun(worker)
        slow.ends(worker, StartupError(DOWN))
        state = await watched.quiet()
    [job] = state.jobs.values()
    assert (job.failed, job.completed) == (1, 0)
    assert DOWN in job.last_error
    assert watched.at(worker).status == "shutdown"
    # A job hears of its workers by their rows, not by mail.
    assert not [mail for mail in watched.of(e.MailQueued, "/root") if mail.author == worker]


# --- any story -------------------------------------------------------------------------------------------

CHILDREN = [f"/root/{name}" for name in "abcdef"]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_while_agents_start_up_nobody_is_stuck(
    later: Later, slow: Slow, seed: int
) -> None:
    """Starts that end well or badly, among closes, interrupts, resumes and words of the operator."""
    chance = random.Random(seed)
    slow.slow = set(CHILDREN)
    spawns = [spawn(path.removeprefix("/root/")) for path in CHILDREN]
    played = {"/root": [step(*spawns), step(text="over")], "/root/*": [step(text="x")]}
    limits = {"max_threads": 3, "max_resident": 3, "slots": chance.choice(["running", "running", "spawned"])}
    if limits["slots"] == "spawned":
        limits["max_threads"] = 7
    async with later.first(played, agents=limits) as (one, swarm, _):
        hosted = one.engine._swarm(swarm)
        for path in CHILDREN:
            await slow.begun(path)
        doing: set[asyncio.Task[Any]] = set()
        for _ in range(60):
            path = chance.choice(CHILDREN)
            if chance.random() < 0.5:
                # One that came back has a turn already, which would fail: another test looks at that.
                new = one.at(swarm, path).status == "pending_init"
                slow.finish(path, StartupError(DOWN) if new and chance.random() < 0.5 else None)
            else:
                thread = one.at(swarm, path).thread
                command: c.AnyCommand = chance.choice(
                    [
                        c.Close(swarm=swarm, thread=thread),
                        *[c.Interrupt(swarm=swarm, thread=thread)] * 3,
                        *[c.ResumeAgent(swarm=swarm, thread=thread)] * 3,
                        *[c.SendInput(swarm=swarm, thread=thread, text="hello")] * 3,
                    ]
                )
                doing.add(asyncio.create_task(one.engine.handle(command)))
            if chance.random() < 0.5:
                await settle(chance.randrange(30))
        async with asyncio.timeout(20):
            # Every command is answered although starts go on, and every start can be waited for.
            for reply in await asyncio.gather(*doing):
                assert reply.ok or reply.code in ("refused", "not_found"), reply.error
            while True:
                for path in CHILDREN:
                    slow.finish(path, None)
                await settle()
                if one.engine.state(swarm).quiet():
                    break
        state = one.engine.state(swarm)
        assert all(agent.wait is None for agent in state.agents.values())
        if limits["slots"] == "running":
            assert hosted.slots.used == 0
        await check(one.engine, swarm)
        events = await journal(one.engine, swarm)
    told = [ev.author for ev in events if isinstance(ev, e.MailQueued) and "could not start" in ev.text]
    failed = [state.agents[ev.agent or ""].path for ev in events if isinstance(ev, e.AgentFailed)]
    assert sorted(told) == sorted(failed)
    for before, after in itertools.pairwise(events):
        if isinstance(before, e.AgentFailed):
            # In one transaction.
            assert isinstance(after, e.MailQueued)
            assert after.author == state.agents[before.agent or ""].path
