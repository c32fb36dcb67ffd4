"""Execution slots: only a running turn holds one, and it comes back whatever becomes of the turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.agents.startup import StartupError
from core.agents.swarm import Swarm
from core.agents.turn import Turn
from core.domain import events as e
from core.domain.commands import Close, Interrupt, SendInput
from core.models.types import ModelError
from core.store.errors import StoreError
from core.tools.base import Tool
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Stage, outputs
from tests.core.agents.test_tools import spawn, wait


@pytest.fixture
def gate() -> Gate:
    return Gate()


class Inside(Stage):
    swarm: Swarm

    def _tools(self, of: Swarm) -> list[Tool]:
        self.swarm = of
        return super()._tools(of)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Inside:
    return Inside(tmp_path, monkeypatch, [gate])


async def test_an_idle_agent_that_mail_wakes_stands_in_line_when_the_house_is_full(
    stage: Inside, gate: Gate
) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(spawn("b")),
            step(wait("b")),
            step(text="over"),
        ],
        "/root/a": [step(text="one"), step(text="two")],
        "/root/b": [step(call("gate")), step(call("list_agents")), step(text="b")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        await gate.entered.wait()
        woken = watched.at("/root/a")
        assert stage.swarm.slots.used == 1, "an idle agent holds none"
        await watched.client.send(SendInput(swarm=watched.swarm, thread=woken.thread, text="again"))
        state = await watched.until(lambda s: len(s.places()) == 1)
        woken = watched.at("/root/a")
        assert state.places() == {woken.thread: 1}
        assert woken.status == "completed", "it stays what it was until its turn begins"
        assert (woken.wait is not None, woken.turns) == (True, 1)
        assert stage.swarm.slots.used == 1
        gate.open.set()
        await watched.until(lambda s: s.quiet() and s.agents[woken.thread].turns == 2)
        assert watched.at("/root/a").status_message == "two"
        assert watched.at("/root/a").wait is None
        assert stage.swarm.slots.used == 0
    rows = {r["agent_name"]: r for r in json.loads(outputs(watched, "/root/b", "list_agents")[0])["agents"]}
    assert rows["/root/a"]["waiting"] == "slot: 1st in line"
    assert rows["/root/a"]["agent_status"] == {"completed": "one"}


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no", kind="server"),
        StoreError("this event cannot be written"),
        StartupError("docs: no such file"),
        RuntimeError("a mistake of ours"),
        TimeoutError(),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_slot_comes_back_whatever_a_turn_ends_with(
    stage: Inside, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b"), spawn("c")), step(wait("a", "b", "c", mode="all"))],
        "/root/*": [step(text="one")],
    }
    run = Turn.run

    async def broken(self: Turn, cause: str | None) -> Any:
        if self._agent.path == "/root":
            return await run(self, cause)
        begun = e.TurnStarted(agent=self._agent.thread, turn=self.id, cause="mail")
        await self._swarm.append([begun, *self._agent.take_mail()])
        raise error

    monkeypatch.setattr(Turn, "run", broken)
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        state = await watched.quiet()
        # With one slot for three of them: the second began only because the first gave it back.
        assert [watched.at(f"/root/{name}").status for name in "abc"] == ["errored"] * 3
        assert stage.swarm.slots.used == 0
        assert stage.swarm.slots.free == 1
        assert not any(agent.wait for agent in state.agents.values())


@pytest.mark.parametrize("how", ["interrupt", "close"])
async def test_the_slot_of_a_turn_that_is_stopped_goes_to_the_next_in_line(stage: Inside, how: str) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b")), step(wait("b")), step(text="over")],
        "/root/a": [HANGING],
        "/root/b": [step(text="b")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        await watched.until(lambda s: len(s.places()) == 1)
        first = next(a for a in watched.state.agents.values() if a.depth and a.status == "running")
        if first.path == "/root/a":
            kind = Interrupt if how == "interrupt" else Close
            await watched.client.send(kind(swarm=watched.swarm, thread=first.thread))
        await watched.until(lambda s: watched.at("/root/b").status == "completed")
        await watched.quiet()
        assert stage.swarm.slots.used == 0


@pytest.mark.parametrize("how", ["interrupt", "close"])
async def test_who_leaves_the_line_waits_for_nothing_and_holds_nothing(
    stage: Inside, gate: Gate, how: str
) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b")), step(wait("a", "b", mode="all")), step(text="over")],
        "/root/*": [step(call("gate")), step(text="x")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        state = await watched.until(lambda s: len(s.places()) == 1)
        await gate.entered.wait()
        [queued] = state.places()
        kind = Interrupt if how == "interrupt" else Close
        assert (await watched.client.send(kind(swarm=watched.swarm, thread=queued))).ok
        gone = "interrupted" if how == "interrupt" else "shutdown"
        state = await watched.until(lambda s: s.agents[queued].status == gone)
        assert state.agents[queued].wait is None
        assert state.places() == {}
        assert (stage.swarm.slots.used, stage.swarm.slots.waiting) == (1, 0)
        gate.open.set()
        await watched.quiet()
        assert stage.swarm.slots.used == 0


async def test_an_agent_that_was_resumed_holds_no_slot_until_it_has_something_to_do(
    stage: Inside, gate: Gate
) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(call("close_agent", target="a")),
            step(call("resume_agent", target="a")),
            step(call("gate")),
            step(spawn("b")),
            step(wait("b")),
            step(text="over"),
        ],
        "/root/*": [step(text="x")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        await gate.entered.wait()
        assert watched.at("/root/a").status == "idle"
        assert stage.swarm.slots.used == 0
        gate.open.set()
        await watched.quiet()
        assert watched.at("/root/b").status == "completed"
        assert watched.at("/root/a").turns == 1
