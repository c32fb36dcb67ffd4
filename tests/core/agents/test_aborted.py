"""Calls that are cut say how long they really ran; lists of agents say what each waits for and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.agents.tools import LIST_CHARS
from core.domain import events as e
from core.domain.commands import GetTranscript, Interrupt, SendInput
from core.view.transcript import Transcript
from tests.clock import FakeClock
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Stage, outputs
from tests.core.agents.test_tools import answered, spawn, wait


class Second(Gate):
    name = "second"


class Late(Gate):
    """Runs alone: after the gate."""

    name = "late"
    parallel = False


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def second() -> Second:
    return Second()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, second: Second) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate, second, Late()])


async def test_an_aborted_call_is_as_long_as_it_ran(stage: Stage, gate: Gate, second: Second) -> None:
    clock = FakeClock()
    agents = {
        "/root": [step(call("gate")), step(call("second"), call("late")), step(text="over")],
    }
    async with stage.play(agents, clock=clock) as watched:
        await gate.entered.wait()
        await clock.advance(3)
        gate.open.set()
        await second.entered.wait()
        await clock.advance(7.25)
        reply = await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        assert reply.ok, reply.error
        await watched.until(lambda s: s.agents[watched.root].status == "interrupted")
        ended = watched.of(e.ToolEnded)
        assert [(end.status, end.seconds) for end in ended] == [
            ("ok", 3.0),
            ("aborted", 7.25),
            ("aborted", 0.0),
        ]
        # The turn was longer.
        [cut] = watched.of(e.TurnInterrupted)
        assert cut.seconds == 10.25
        texts = [result.text for result in watched.of(e.ToolResult)]
        assert texts == [
            "open",
            "aborted after 7.2 s: interrupted by operator",
            "aborted before it began: interrupted by operator",
        ]
        # Shown so, and told to the model so.
        page = await watched.client.page(GetTranscript(swarm=watched.swarm, thread=watched.root))
        transcript = Transcript(watched.root)
        transcript.prepend(page)
        rows = [row.call for row in transcript.rows if row.call is not None]
        assert [row.seconds for row in rows] == [3.0, 7.25, None]
        await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="go on"))
        await watched.until(lambda s: s.agents[watched.root].status == "completed")
    told = [item["output"] for item in stage.bodies()[-1]["input"] if "output" in item]
    assert told == texts


async def test_a_list_says_what_each_agent_waits_for_and_used(stage: Stage, gate: Gate) -> None:
    agents = {
        "/root": [
            step(spawn("a"), spawn("b")),
            step(call("gate")),
            step(call("list_agents")),
            step(text="listed"),
        ],
        "/root/a": [step(spawn("c")), step(wait("c")), step(text="a")],
        "/root/a/c": [HANGING],
        "/root/b": [step(spawn("d"), spawn("e")), step(text="x" * 1000)],
        "/root/b/*": [HANGING],
    }
    # Two for the sub-agents: a lends its own to c while it waits for it.
    async with stage.play(agents, limits={"max_threads": 3, "max_resident": 256}) as watched:

        def settled(state: Any) -> bool:
            waits = [agent.wait.reason for agent in state.agents.values() if agent.wait is not None]
            return sorted(waits) == ["agents", "slot"] and len(state.agents) == 6

        await watched.until(settled)
        [queued] = [a for a in watched.state.agents.values() if a.wait and a.wait.reason == "slot"]
        gate.open.set()
        await watched.until(lambda s: answered(watched, "listed"))
    rows = {
        row["agent_name"]: row for row in json.loads(outputs(watched, "/root", "list_agents")[0])["agents"]
    }
    assert rows["/root/a"]["waiting"] == f"agents: {watched.at('/root/a/c').nickname}"
    assert rows[queued.path]["waiting"] == "slot: 1st in line"
    assert rows[queued.path]["tokens"] is None
    assert rows["/root/a"]["tokens"] > 0
    assert rows["/root/b"]["agent_status"] == {"completed": "x" * 299 + "…"}
    assert {path for path, row in rows.items() if "waiting" in row} == {"/root/a", queued.path}


async def test_a_long_list_is_cut_between_agents_and_says_so(stage: Stage) -> None:
    names = [f"a{n:03}" for n in range(160)]
    agents = {
        "/root": [
            step(*(spawn(name, message="y" * 500) for name in names)),
            step(wait(*names, mode="all")),
            step(call("list_agents"), call("list_agents", path_prefix="a159")),
            step(text="over"),
        ],
        "/root/*": [step(text="z" * 100)],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    everything, one = map(json.loads, outputs(watched, "/root", "list_agents"))
    listed = len(everything["agents"])
    assert everything["left_out"] == f"{161 - listed} more agents; path_prefix lists those below one path"
    assert LIST_CHARS - 600 < len(json.dumps(everything["agents"], separators=(",", ":"))) < LIST_CHARS + 200
    assert [row["agent_name"] for row in one["agents"]] == ["/root/a159"]
    assert "left_out" not in one
