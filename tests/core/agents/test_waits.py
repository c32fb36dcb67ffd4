"""What an agent waits for is shown while it lasts, goes when it ends, and is the same in every list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from core.agents.swarm import Swarm
from core.domain import events as e
from core.domain.commands import Compact, SendInput, SetBudget
from core.domain.state import SwarmState
from core.domain.status import Usage
from core.models.types import Completed, ModelError, ModelEvent, ModelRequest, Retrying, Sending
from core.tools.base import Tool
from tests.clock import settle
from tests.core.agents.scenarios import step
from tests.core.agents.stage import Stage
from tests.core.harness import Watched


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
        stage.swarm.model = Played([cut, again, Sending(), says("two")])
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
