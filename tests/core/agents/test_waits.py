"""What an agent waits for is shown while it lasts, goes when it ends, and is the same in every list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from core.agents.swarm import Swarm
from core.domain import events as e
from core.domain.commands import Compact, SendInput, SetBudget
from core.domain.state import SwarmState
from core.domain.status import Usage
from core.models.types import Completed, ModelError, ModelEvent, ModelRequest, Retrying, Sending
from core.tools.base import Tool, ToolContext, ToolOutput
from tests.clock import settle
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Number, Stage
from tests.core.agents.test_startup import Slow, slow
from tests.core.agents.test_tools import spawn, wait
from tests.core.harness import Watched

__all__ = ["slow"]


class Inside(Stage):
    """A stage whose model can be exchanged."""

    swarm: Swarm

    def _tools(self, of: Swarm) -> list[Tool]:
        self.swarm = of
        return super()._tools(of)


Act = ModelEvent | ModelError | asyncio.Event


class Played:
    """A model that does for each request what it was given: events to tell, errors to raise, events of the
    test to wait for."""

    server = "played"

    def __init__(self, *requests: list[Act]) -> None:
        self.requests = list(requests)
        self.asked: list[ModelRequest] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.asked.append(request)
        for act in self.requests.pop(0):
            if isinstance(act, asyncio.Event):
                await act.wait()
            elif isinstance(act, ModelError):
                raise act
            else:
                yield act

    async def aclose(self) -> None:
        return None


def says(text: str, tokens: int = 12) -> Completed:
    item = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return Completed(response=text, items=[item], usage=Usage(input=tokens - 2, output=2, total=tokens))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(tmp_path, monkeypatch)


def root_waits(reason: str | None) -> Callable[[SwarmState], bool]:
    def so(state: SwarmState) -> bool:
        wait = state.agents[state.root or ""].wait
        return (wait.reason if wait is not None else None) == reason

    return so


async def say(watched: Watched, text: str) -> None:
    assert (await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text=text))).ok


async def test_a_retry_is_still_shown_after_a_wait_for_the_budget_in_it(stage: Inside) -> None:
    """The answer was cut, so it is charged; what the next attempt may use does not fit any more. Once there
    is room the agent still waits until it may ask again."""
    options = {"unattended": "wait", "budget": {"tokens": 60_000}}
    async with stage.play({"/root": [step(text="one")]}, options=options) as watched:
        await watched.quiet()
        again = asyncio.Event()
        cut = Retrying(attempt=2, delay=30, reason="cut", metered=True)
        works = asyncio.Event()
        stage.swarm.model = Played([cut, again, Sending(), works, says("two")])
        await say(watched, "go on")
        state = await watched.until(root_waits("budget"))
        assert state.spending.unmetered > 30_000
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=0))
        state = await watched.until(root_waits("retry"))
        wait = state.agents[watched.root].wait
        assert wait is not None
        assert wait.until is not None
        assert wait.detail == "cut"
        again.set()
        state = await watched.until(root_waits(None))
        assert state.agents[watched.root].status == "running"
        works.set()
        state = await watched.quiet()
        assert state.agents[watched.root].status_message == "two"
        assert state.agents[watched.root].wait is None


async def test_a_wait_ends_with_the_request_that_waited(stage: Inside) -> None:
    """The summary could not be had; the turn goes on with another request, which waits for nothing."""
    async with stage.play({"/root": [step(text="one")]}) as watched:
        await watched.quiet()
        await watched.client.send(Compact(swarm=watched.swarm, thread=watched.root))
        answers = asyncio.Event()
        refused = ModelError("played is used up", kind="quota")
        limited = Retrying(attempt=2, delay=30, reason="slow down", rate_limited=True)
        stage.swarm.model = model = Played([limited, refused], [answers, says("two")])
        await say(watched, "go on")
        await watched.until(lambda s: any(n.level == "warning" for n in watched.of(e.Notice)))
        await watched.until(root_waits(None), seconds=5)
        await settle()
        assert len(model.asked) == 2
        assert root_waits(None)(watched.state)
        answers.set()
        await watched.quiet()


# --- within calls ----------------------------------------------------------------------------------------


class Asks(Tool):
    """Is blocked until `yes`, and then works until `done`."""

    name = "asks"
    description = "asks"
    Args = Number

    def __init__(self) -> None:
        self.yes = asyncio.Event()
        self.done = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        async with ctx.blocked("approval", "rm x"):
            await self.yes.wait()
        await self.done.wait()
        return ToolOutput(text="done")


async def test_a_call_that_was_let_go_on_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Asks()
    stage = Stage(tmp_path, monkeypatch, [asks])
    async with stage.play({"/root": [step(call("asks")), step(text="over")]}) as watched:
        await watched.until(root_waits("approval"))
        asks.yes.set()
        state = await watched.until(root_waits(None))
        assert len(state.calls) == 1, "and the call is at work"
        asks.done.set()
        await watched.quiet()


async def test_after_a_late_start_up_an_agent_waits_for_nothing(stage: Inside, slow: Slow) -> None:
    """One that was flushed starts up with its next turn; then its request takes its time."""
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(spawn("b")),
            step(wait("b")),
            step(call("followup_task", target="a", message="again")),
            step(wait("a")),
        ],
        "/root/a": [step(text="one"), HANGING],
        "/root/b": [step(text="b")],
    }
    async with stage.play(agents, limits={"max_resident": 1}) as watched:
        await slow.begun("/root/a")
        slow.ends("/root/a")
        await slow.begun("/root/a", 2)
        state = await watched.until(lambda s: s.agents[watched.at("/root/a").thread].wait is not None)
        agent = state.agents[watched.at("/root/a").thread]
        assert (agent.status, agent.turns) == ("running", 2)
        assert agent.wait is not None
        assert (agent.wait.reason, agent.wait.detail) == ("startup", "MCP servers docs, shop")
        slow.ends("/root/a")
        state = await watched.until(lambda s: s.agents[agent.thread].wait is None)
        assert state.agents[agent.thread].status == "running"
        assert len(stage.bodies("/root/a")) <= 2


# --- slots while it waits --------------------------------------------------------------------------------


async def test_who_waits_for_the_budget_lends_its_slot_and_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    stage = Stage(tmp_path, monkeypatch, [gate])
    agents = {
        "/root": [step(spawn("big"), spawn("small")), step(wait("big", "small", mode="all"))],
        "/root/big": [step(call("list_agents"), text="x" * 60_000), step(text="big")],
        "/root/small": [step(call("gate")), step(text="small")],
    }
    options = {"unattended": "wait", "budget": {"per_agent_tokens": 40_000}}
    async with stage.play(agents, limits={"max_threads": 2}, options=options) as watched:

        def waits(path: str) -> str | None:
            agent = watched.state.by_path(path)
            return agent.wait.reason if agent is not None and agent.wait is not None else None

        await watched.until(lambda s: waits("/root/big") == "budget")
        # Another one has the slot meanwhile.
        async with asyncio.timeout(10):
            await gate.entered.wait()
        await watched.client.send(SetBudget(swarm=watched.swarm, per_agent_tokens=0))
        await watched.until(lambda s: waits("/root/big") == "slot")
        gate.open.set()
        await watched.quiet()
        assert [watched.at(f"/root/{name}").status for name in ("big", "small")] == ["completed"] * 2
