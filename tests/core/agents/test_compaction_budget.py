"""A budget that runs out at the request for a summary: nothing is lost, and it is made once there is room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import Compact, Interrupt, SendInput, SetBudget
from core.domain.state import SwarmState
from core.domain.status import Usage
from tests.core.agents.scenarios import step
from tests.core.agents.stage import Stage
from tests.core.harness import Watched


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def texts(body: dict[str, Any]) -> list[str]:
    return [item["content"][0]["text"] for item in body["input"] if item["type"] == "message"]


def asks(body: dict[str, Any]) -> bool:
    return texts(body)[-1].startswith("<compaction_request>")


async def send(watched: Watched, text: str) -> None:
    assert (await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text=text))).ok


def waits(state: SwarmState) -> bool:
    wait = state.agents[state.root or ""].wait
    return wait is not None and wait.reason == "budget"


async def limit(watched: Watched, tokens: int) -> None:
    assert (await watched.client.send(SetBudget(swarm=watched.swarm, tokens=tokens))).ok


@asynccontextmanager
async def out_of_budget(stage: Stage, unattended: str) -> AsyncIterator[Watched]:
    """An agent that is to be compacted before its next request, for which nothing is left."""
    agents = {"/root": [step(text="one"), step(text="two"), step(text="three")]}
    async with stage.play(agents, options={"unattended": unattended}) as watched:
        state = await watched.quiet()
        await limit(watched, (state.tokens or Usage()).total + 100)
        await watched.client.send(Compact(swarm=watched.swarm, thread=watched.root))
        await send(watched, "second")
        yield watched


async def test_it_waits_for_the_budget_and_is_made_when_that_is_raised(stage: Stage) -> None:
    async with out_of_budget(stage, "wait") as watched:
        await watched.until(waits)
        assert len(stage.bodies()) == 1
        await limit(watched, 0)
        state = await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 2)
        assert state.agents[watched.root].status_message == "two"
        assert state.agents[watched.root].wait is None
    assert [asks(body) for body in stage.bodies()] == [False, True, False]
    heads = [text.split("\n")[0] for text in texts(stage.bodies()[-1])]
    assert heads == ["go", "<compacted_history>", "second"]
    assert len(watched.of(e.HistoryCompacted)) == 1


async def test_an_interrupt_ends_its_wait_and_leaves_the_history_as_it_was(stage: Stage) -> None:
    async with out_of_budget(stage, "wait") as watched:
        state = await watched.until(waits)
        before = state.tokens
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        state = await watched.until(lambda s: s.agents[watched.root].status == "interrupted")
        assert state.agents[watched.root].wait is None
        assert not watched.of(e.HistoryCompacted)
        assert (state.tokens, state.spending.unmetered) == (before, 0), "nothing was sent, nothing is charged"
        await limit(watched, 0)
        await send(watched, "third")
        await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 3)
    # It was asked for, and is made now: of what was there, without what nobody has answered.
    assert [asks(body) for body in stage.bodies()] == [False, True, False]
    assert texts(stage.bodies()[1])[:-1] == ["go", "one"]
    heads = [text.split("\n")[0] for text in texts(stage.bodies()[2])]
    assert heads == ["go", "<compacted_history>", "second", "<turn_aborted>", "third"]


async def test_where_nobody_attends_the_turn_ends_and_the_next_one_makes_it(stage: Stage) -> None:
    async with out_of_budget(stage, "refuse") as watched:
        state = await watched.until(lambda s: s.agents[watched.root].status == "interrupted")
        assert state.agents[watched.root].spent is not None
        (cut,) = watched.of(e.TurnInterrupted)
        assert cut.by == "budget"
        assert not watched.of(e.HistoryCompacted)
        assert len(stage.bodies()) == 1
        await limit(watched, 0)
        await send(watched, "third")
        state = await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 3)
        assert state.agents[watched.root].status_message == "two"
    assert [asks(body) for body in stage.bodies()] == [False, True, False]
    assert len(watched.of(e.HistoryCompacted)) == 1
