"""Three limits, three errors: each names the setting, its value and what holds it; and slots that are held
from spawn to close."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import Close, ResumeAgent, SendInput
from core.domain.limits import LimitError, Limits
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Stage, outputs
from tests.core.agents.test_comeback import close, followup, open_paths, resume
from tests.core.agents.test_resume import Later
from tests.core.agents.test_tools import errors, spawn, wait
from tests.core.crash import check
from tests.core.harness import Watched

SPAWNED = {"slots": "spawned", "max_threads": 3}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


def refusals(watched: Watched, path: str = "/root", tool: str = "spawn_agent") -> list[str]:
    return [text for text in outputs(watched, path, tool) if "limit reached" in text]


# --- the three -------------------------------------------------------------------------------------------


async def test_depth_names_itself_its_value_and_the_path(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a"))],
        "/root/a": [step(spawn("b")), step(wait("b"))],
        "/root/a/b": [step(spawn("c")), step(text="did it myself")],
    }
    async with stage.play(agents, limits={"max_depth": 2}) as watched:
        await watched.quiet()
    assert errors(watched, "/root/a/b", "spawn_agent") == [
        "limit reached: max_depth = 2; /root/a/b/c would be at depth 3; do it yourself"
    ]
    assert watched.at("/root/a/b").status_message == "did it myself"


async def test_the_total_names_itself_its_value_and_who_is_open(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(spawn("b")), step(spawn("c")), step(close("a"))],
        "/root/*": [step(text="one")],
    }
    agents["/root"] += [step(spawn("c")), step(wait("c"))]
    async with stage.play(agents, limits={"max_agents": 3}) as watched:
        await watched.quiet()
    assert refusals(watched) == [
        "limit reached: max_agents = 3; 3 agents are open: /root, /root/a, /root/b; close some first"
    ]
    assert watched.at("/root/c").status == "completed"


async def test_slots_from_spawn_to_close_name_themselves_and_who_holds_them(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a"), spawn("b")),
            step(wait("a", "b", mode="all")),
            step(spawn("c")),
            step(followup("a")),
            step(wait("a")),
            step(close("a")),
            step(spawn("c")),
            step(wait("c")),
        ],
        "/root/*": [step(text="one"), step(text="two")],
    }
    async with stage.play(agents, limits=SPAWNED) as watched:
        await watched.quiet()
        assert open_paths(watched) == {"/root", "/root/b", "/root/c"}
    # Finished agents hold theirs.
    assert refusals(watched) == [
        "limit reached: max_threads = 3; agents hold them until they are closed: /root (running),"
        " /root/a (completed), /root/b (completed); close some first"
    ]
    # Nothing is left of the refused one: its name is free, and an idle agent can be woken in a full house.
    assert watched.at("/root/c").status == "completed"
    assert watched.at("/root/a").turns == 2
    assert not [x for x in watched.of(e.AgentWaits) if x.wait is not None and x.wait.reason == "slot"]


def test_each_error_carries_its_parts() -> None:
    error = LimitError("max_agents", 7, "all of them")
    assert (error.limit, error.value, error.held_by) == ("max_agents", 7, "all of them")
    assert str(error) == "limit reached: max_agents = 7; all of them"
    assert Limits().slots == "running"


# --- slots = "spawned" -----------------------------------------------------------------------------------


async def test_a_blocked_agent_lends_nothing(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a"))],
        "/root/a": [step(spawn("b")), step(wait("b"))],
        "/root/a/b": [step(spawn("c")), step(text="alone")],
    }
    async with stage.play(agents, limits=SPAWNED) as watched:
        await watched.quiet()
    [refused] = refusals(watched, "/root/a/b")
    assert "/root (running), /root/a (running), /root/a/b (running)" in refused
    assert {a.status for a in watched.state.agents.values()} == {"completed"}


async def test_a_closed_family_gives_its_slots_back_and_takes_them_again(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(close("a")),
            step(spawn("x")),
            step(resume("a")),
            step(close("x")),
            step(resume("a")),
            step(spawn("y")),
            step(text="over"),
        ],
        "/root/a": [step(spawn("b")), step(wait("b")), step(text="ok")],
        "/root/x": [HANGING],
    }
    async with stage.play(agents, limits=SPAWNED) as watched:
        await watched.quiet()
        first, second = outputs(watched, "/root", "resume_agent")
        assert first.startswith(
            "limit reached: max_threads = 3; agents hold them until they are closed, and 2"
        )
        assert "/root/x (" in first
        assert json.loads(second)["resumed"] == ["/root/a", "/root/a/b"]
        [full] = refusals(watched)
        assert "/root/a (idle), /root/a/b (idle)" in full
        b = watched.at("/root/a/b").thread
        for _ in range(2):
            await watched.client.send(Close(swarm=watched.swarm, thread=b))
            reply = await watched.client.send(ResumeAgent(swarm=watched.swarm, thread=b))
            assert reply.value["changed"]
    assert open_paths(watched) == {"/root", "/root/a", "/root/a/b"}


def job() -> dict[str, Any]:
    return call("spawn_agents_on_csv", csv_path="rows.csv", instruction="Do it.", max_concurrency=2)


async def test_a_job_needs_a_free_slot_and_its_workers_take_turns(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a"), spawn("b")),
            step(wait("a", "b", mode="all")),
            step(job()),
            step(close("a")),
            step(job()),
            step(spawn("c")),
            step(text="over"),
        ],
        "/root/*": [step(text="one")],
    }
    (stage.folder / "work").mkdir()
    (stage.folder / "work" / "rows.csv").write_text("n\n" + "1\n" * 4)
    async with stage.play(agents, limits=SPAWNED) as watched:
        await watched.quiet()
    refused, summary = outputs(watched, "/root", "spawn_agents_on_csv")
    assert "limit reached: max_threads = 3; agents hold them until they are closed" in refused
    assert json.loads(summary)["total_items"] == 4
    workers = [a for a in watched.state.agents.values() if a.job is not None]
    assert len(workers) == 4
    assert {worker.status for worker in workers} == {"shutdown"}
    assert not refusals(watched)
    assert watched.at("/root/c").path in open_paths(watched)


async def test_open_agents_hold_their_slots_in_another_engine_too(later: Later) -> None:
    """Also more of them than it would let in."""
    played = {
        "/root": [step(spawn("a"), spawn("b")), step(wait("a", "b", mode="all"))],
        "/root/*": [],
    }
    async with later.first(played, agents=SPAWNED) as (one, swarm, root):
        await one.quiet(swarm)
    fewer = {**SPAWNED, "max_threads": 2}
    goes_on = [step(text="first"), step(spawn("c")), step(close("a")), step(spawn("c")), step(close("b"))]
    played["/root"] += [*goes_on, step(spawn("c")), step(text="over")]
    async with later.second(played, swarm, home="home", agents=fewer) as two:
        await two.send(SendInput(swarm=swarm, thread=root, text="go on"))
        await two.until(swarm, lambda state: state.agents[root].status_message == "over")
        await two.quiet(swarm)
        spawned = [x.status for x in two.of(e.ToolEnded, root)]
        assert spawned == ["error", "ok", "error", "ok", "ok"]
        await check(two.engine, swarm)
