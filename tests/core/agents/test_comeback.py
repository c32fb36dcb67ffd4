"""Closed agents that come back: who, as what, and when not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import core.engine.hosting
from core.agents.swarm import Swarm
from core.domain import events as e
from core.domain.apply import apply
from core.domain.commands import Close, ResumeAgent, SendInput
from core.domain.state import SwarmState
from core.store.errors import StoreError
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Stage, outputs
from tests.core.agents.test_resume import Later
from tests.core.agents.test_tools import errors, results, spawn, wait
from tests.core.crash import check, journal
from tests.core.harness import Watched

Steps = list[dict[str, Any]]


def close(target: str) -> dict[str, Any]:
    return call("close_agent", target=target)


def resume(target: str) -> dict[str, Any]:
    return call("resume_agent", target=target)


def followup(target: str, message: str = "again") -> dict[str, Any]:
    return call("followup_task", target=target, message=message)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


def said(body: dict[str, Any]) -> list[str]:
    """The last line of every message of a request."""
    return [
        item["content"][0]["text"].splitlines()[-1] for item in body["input"] if item.get("type") == "message"
    ]


def open_paths(watched: Watched) -> set[str]:
    return {a.path for a in watched.state.agents.values() if a.status != "shutdown"}


async def test_it_comes_back_as_it_was_with_those_closed_together_with_it(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a", agent_type="brief", model="other")),
            step(wait("a")),
            step(close("a/b")),
            step(close("a")),
            step(resume("a")),
            step(call("list_agents")),
            step(followup("a")),
            step(wait("a")),
            step(text="over"),
        ],
        "/root/a": [
            step(spawn("b"), spawn("c")),
            step(wait("b", "c", mode="all")),
            step(text="first answer"),
            step(text="second answer"),
        ],
        "/root/a/c": [step(spawn("d")), step(wait("d")), step(text="c is done")],
    }
    roles = {"roles": {"brief": {"instructions": "Be brief."}}}
    async with stage.play(agents, limits=roles) as watched:
        await watched.quiet()
        before = [x for x in watched.of(e.AgentSpawned) if x.path == "/root/a"]
    assert open_paths(watched) == {"/root", "/root/a", "/root/a/c", "/root/a/c/d"}
    a = watched.at("/root/a")
    assert [(a.thread, a.nickname, a.role, a.model)] == [
        (x.agent, x.nickname, "brief", "other") for x in before
    ]
    assert (a.status, a.status_message, a.turns) == ("completed", "second answer", 2)
    assert [watched.at(f"/root/a/{name}").status for name in ("c", "c/d")] == ["idle", "idle"]
    assert watched.at("/root/a/b").status == "shutdown"  # closed by itself before
    answer = json.loads(outputs(watched, "/root", "resume_agent")[0])
    assert answer == {"status": "idle", "resumed": ["/root/a", "/root/a/c", "/root/a/c/d"]}
    assert results(watched, "/root", "resume_agent") == [
        ("resume_agent", "idle", path) for path in ("/root/a", "/root/a/c", "/root/a/c/d")
    ]
    listed = {row["agent_name"] for row in json.loads(outputs(watched, "/root", "list_agents")[0])["agents"]}
    assert listed == open_paths(watched)
    last = stage.bodies("/root/a")[-1]
    assert said(last)[0] == "x"
    assert said(last)[-2:] == ["first answer", "again"]
    assert "Be brief." in last["instructions"]
    assert last["model"] == "other"
    kinds = [item["type"] for item in last["input"]]
    assert kinds.count("function_call") == kinds.count("function_call_output") == 3


async def test_of_an_open_agent_it_tells_the_status_and_changes_nothing(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(resume("a"), resume("/root")), step(text="over")],
        "/root/a": [step(resume("/root/a"), resume("/root")), step(text="fine")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    running = {"status": "running", "resumed": []}
    assert [json.loads(text) for text in outputs(watched, "/root/a", "resume_agent")] == [running, running]
    done = {"status": {"completed": "fine"}, "resumed": []}
    assert [json.loads(text) for text in outputs(watched, "/root", "resume_agent")] == [done, running]
    assert not watched.of(e.AgentResumed)


async def test_what_cannot_come_back_is_refused_in_one_sentence(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a"), spawn("z")),
            step(wait("a", "z", mode="all")),
            step(close("a"), close("z")),
            step(spawn("z")),
            step(resume("a/b")),
            step(resume("z/nobody")),
            step(resume("Not A Path")),
            step(text="over"),
        ],
        "/root/a": [step(spawn("b")), step(wait("b")), step(text="ok")],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda state: state.quiet())
        old = next(a.thread for a in watched.state.agents.values() if a.path == "/root/z")
        reply = await watched.client.send(ResumeAgent(swarm=watched.swarm, thread=old))
        assert not reply.ok
        assert reply.error == "the agent path /root/z belongs to another agent now; close that one first"
        gone = await watched.client.send(ResumeAgent(swarm=watched.swarm, thread="nobody"))
        assert (gone.code, gone.error) == ("not_found", "there is no agent nobody")
    told = errors(watched, "/root", "resume_agent")
    assert told[0] == "/root/a, for which /root/a/b works, is closed; resume that one"
    assert "no open agent has the path /root/z/nobody" in told[1]
    assert "may hold only a-z" in told[2]
    assert not watched.of(e.AgentResumed)


async def test_totals_refuse_a_family_as_a_whole(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(close("a")),
            step(spawn("x"), spawn("y")),
            step(resume("a")),
            step(close("x")),
            step(resume("a")),
            step(text="over"),
        ],
        "/root/a": [step(spawn("b")), step(wait("b")), step(text="ok")],
    }
    async with stage.play(agents, limits={"max_agents": 4}) as watched:
        await watched.quiet()
    first, second = outputs(watched, "/root", "resume_agent")
    assert first == (
        "limit reached: max_agents = 4; 3 agents are open, and 2 would come: /root, /root/x, /root/y;"
        " close some first"
    )
    assert json.loads(second)["resumed"] == ["/root/a", "/root/a/b"]
    assert open_paths(watched) == {"/root", "/root/a", "/root/a/b", "/root/y"}


async def test_two_resumes_at_once_give_one_live_agent(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(close("a")), step(text="closed")],
        "/root/a": [step(text="one"), step(text="two")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        command = ResumeAgent(swarm=watched.swarm, thread=watched.at("/root/a").thread)
        replies = await asyncio.gather(*(watched.client.send(command) for _ in range(3)))
        assert sorted(reply.value["changed"] for reply in replies) == [False, False, True]
        words = SendInput(swarm=watched.swarm, thread=command.thread, text="go on")
        assert (await watched.client.send(words)).ok
        await watched.until(lambda state: state.agents[command.thread].status == "completed")
    assert len(watched.of(e.AgentResumed)) == 1
    assert [turn.message for turn in watched.of(e.TurnCompleted, "/root/a")] == ["one", "two"]
    assert said(stage.bodies("/root/a")[-1]) == ["x", "one", "go on"]


async def test_mail_that_a_close_dropped_stays_dropped_and_later_mail_is_read_once(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(call("send_message", target="a", message="never read")),
            step(close("a")),
            step(resume("a")),
            step(call("send_message", target="a", message="read later")),
            step(followup("a", "now")),
            step(wait("a")),
            step(text="over"),
        ],
        "/root/a": [],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        assert not watched.state.mail
    assert said(stage.bodies("/root/a")[-1]) == ["x", "done", "read later", "now"]


async def test_a_turn_that_a_close_cut_is_not_gone_on_with(stage: Stage, gate: Gate) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(call("gate")),
            step(close("a")),
            step(resume("a")),
            step(text="over"),
        ],
        "/root/a": [HANGING],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda state: any(a.path == "/root/a" and a.turn for a in state.agents.values()))
        gate.open.set()
        await watched.quiet()
        assert not watched.state.active()
    a = watched.at("/root/a")
    assert (a.status, a.turns, a.wait) == ("idle", 1, None)


async def test_it_can_be_closed_and_resumed_again_and_again(stage: Stage) -> None:
    again = [step(close("a")), step(resume("a")), step(followup("a")), step(wait("a"))]
    agents = {"/root": [step(spawn("a")), step(wait("a")), *again * 3], "/root/a": []}
    async with stage.play(agents) as watched:
        await watched.quiet()
    assert watched.at("/root/a").turns == 4
    assert len(watched.of(e.AgentResumed)) == 3
    assert len(watched.of(e.AgentSpawned, "/root/a")) == 1
    assert said(stage.bodies("/root/a")[-1]) == ["x", *["done", "again"] * 3]


async def test_a_worker_of_a_job_does_not_come_back(stage: Stage) -> None:
    job = call("spawn_agents_on_csv", csv_path="rows.csv", instruction="Do it.")
    agents = {"/root": [step(job), step(text="over")]}
    (stage.folder / "work").mkdir()
    (stage.folder / "work" / "rows.csv").write_text("n\n1\n")
    async with stage.play(agents) as watched:
        await watched.quiet()
        worker = next(a for a in watched.state.agents.values() if a.job is not None)
        assert worker.status == "shutdown"
        reply = await watched.client.send(ResumeAgent(swarm=watched.swarm, thread=worker.thread))
        assert reply.code == "refused"
        assert reply.error == (
            f"{worker.path} was the worker of a job; its row is over, and it does not come back"
        )


async def test_an_operator_closes_and_resumes_the_root(stage: Stage) -> None:
    agents = {"/root": [step(spawn("a")), step(wait("a")), step(text="first"), step(text="second")]}
    async with stage.play(agents) as watched:
        await watched.quiet()
        closed = await watched.client.send(Close(swarm=watched.swarm, thread=watched.root))
        assert len(closed.value["closed"]) == 2
        command = ResumeAgent(swarm=watched.swarm, thread=watched.root, dry_run=True)
        threads = [watched.root, watched.at("/root/a").thread]
        assert (await watched.client.send(command)).value == {"resumed": threads, "changed": False}
        assert not open_paths(watched)
        reply = await watched.client.send(ResumeAgent(swarm=watched.swarm, thread=watched.root))
        assert reply.value == {"resumed": threads, "changed": True}
        assert (
            await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="more"))
        ).ok
        await watched.until(lambda state: state.agents[watched.root].status_message == "second")
    assert [resumed.by for resumed in watched.of(e.AgentResumed)] == ["operator"] * 2
    assert said(stage.bodies("/root")[-1])[-2:] == ["first", "more"]


async def test_a_resume_that_cannot_be_recorded_leaves_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarms: list[Swarm] = []
    control = stage._tools
    monkeypatch.setattr(core.engine.hosting, "control_tools", lambda of: swarms.append(of) or control(of))
    agents = {"/root": [step(spawn("a")), step(wait("a")), step(close("a"))], "/root/a": []}
    async with stage.play(agents, limits={"slots": "spawned", "max_threads": 2}) as watched:
        await watched.quiet()
        live = swarms[0]
        append = live.append

        async def broken(events: Sequence[e.Event]) -> Sequence[e.AnyEvent]:
            if any(isinstance(event, e.AgentResumed) for event in events):
                await asyncio.sleep(0)
                raise StoreError("the disk is full")
            return await append(events)

        monkeypatch.setattr(live, "append", broken)
        command = ResumeAgent(swarm=watched.swarm, thread=watched.at("/root/a").thread)
        replies = await asyncio.gather(watched.client.send(command), watched.client.send(command))
        assert [reply.error for reply in replies] == ["the disk is full"] * 2
        assert live.slots.used == 0
        assert list(live.agents) == [watched.root]
        monkeypatch.setattr(live, "append", append)
        assert (await watched.client.send(command)).value["changed"]
        assert live.slots.used == 1


async def test_a_close_and_a_resume_at_once(stage: Stage) -> None:
    agents = {"/root": [step(spawn("a")), step(wait("a"))], "/root/a": []}
    async with stage.play(agents) as watched:
        await watched.quiet()
        thread = watched.at("/root/a").thread
        shut = Close(swarm=watched.swarm, thread=thread)
        back = ResumeAgent(swarm=watched.swarm, thread=thread)
        closed, refused = await asyncio.gather(watched.client.send(shut), watched.client.send(back))
        assert closed.value["closed"] == [thread]
        assert refused.error == "/root/a is still being closed; wait until it is shutdown"
        # The other way round: what comes back is below what closes.
        everything = Close(swarm=watched.swarm, thread=watched.root)
        resumed, closed = await asyncio.gather(watched.client.send(back), watched.client.send(everything))
        assert resumed.value["changed"]
        assert closed.value["closed"] == [thread, watched.root]
        assert not open_paths(watched)


async def test_another_engine_knows_who_was_closed_together_with_whom(later: Later) -> None:
    played = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(close("a/b")),
            step(close("a")),
            step(text="first"),
        ],
        "/root/a": [step(spawn("b"), spawn("c")), step(wait("b", "c", mode="all")), step(text="ok")],
        "/root/a/c": [],
    }
    async with later.first(played) as (one, swarm, _root):
        await one.quiet(swarm)
    goes_on = {
        "/root": [
            *played["/root"],
            step(resume("a")),
            step(followup("a/c")),
            step(wait("a/c")),
            step(text="second"),
        ],
        "/root/a/c": [],
    }
    async with later.second(goes_on, swarm, home="home") as two:
        root = two.engine.state(swarm).root
        assert root is not None
        await two.send(SendInput(swarm=swarm, thread=root, text="bring a back"))
        await two.until(swarm, lambda state: state.agents[root].status_message == "second")
        await two.quiet(swarm)
        statuses = {agent.path: agent.status for agent in two.engine.state(swarm).agents.values()}
        assert statuses == {
            "/root": "completed",
            "/root/a": "completed",  # woken by the answer of its child
            "/root/a/b": "shutdown",
            "/root/a/c": "completed",
        }
        await check(two.engine, swarm)
        resumed = [x.by for x in await journal(two.engine, swarm) if isinstance(x, e.AgentResumed)]
        assert resumed == ["/root"] * 2
    assert said(later.bodies("/root/a/c")[-1]) == ["x", "done", "again"]


def test_closed_together_is_a_matter_of_the_same_close() -> None:
    def agent(thread: str, parent: str | None, **fields: Any) -> e.AgentSpawned:
        path = {"r": "/root", "a": "/root/a"}.get(thread, f"/root/a/{thread}")
        return e.AgentSpawned(agent=thread, path=path, nickname=thread, parent=parent, **fields)

    state = SwarmState(swarm="s")
    story: list[e.Event] = [
        agent("r", None),
        agent("a", "r"),
        agent("b", "a"),
        agent("c", "a"),
        agent("w", "a", job="j", item="i"),
        e.AgentClosed(agent="b"),
        *(e.AgentClosed(agent=thread, top="a") for thread in ("w", "c")),
        e.AgentClosed(agent="a"),
    ]
    for event in story:
        apply(state, event)
    assert [known.thread for known in state.closed_together("a")] == ["a", "c"]
    assert [known.thread for known in state.closed_together("b")] == ["b"]
    apply(state, e.AgentResumed(agent="a"))
    assert (state.agents["a"].status, state.agents["a"].closed_with) == ("idle", None)
    before = state.copy()
    apply(state, e.AgentResumed(agent="a"))
    assert state.agents == before.agents
