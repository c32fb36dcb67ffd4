"""What users of other multi-agent systems complain of most, in their order; here it does not happen."""

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import Close, Compact, Decide, Interrupt
from core.domain.state import SwarmState
from core.domain.status import Usage
from tests.clock import FakeClock
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, WAIT, Gate, Stage, outputs, passes
from tests.core.agents.test_compaction import texts
from tests.core.agents.test_races import Stubborn
from tests.core.agents.test_resume import Later, running, waiting
from tests.core.crash import check
from tests.core.tools.mcp.fakes import SCRIPT
from tests.core.tools.processes import alive, gone


def spawn(name: str, **fields: Any) -> dict[str, Any]:
    return call("spawn_agent", task_name=name, message=fields.pop("message", "x"), **fields)


def wait(*targets: str, **fields: Any) -> dict[str, Any]:
    return call("wait_agent", targets=list(targets), **{"timeout_ms": WAIT, **fields})


def status(state: SwarmState, path: str) -> str:
    agent = state.by_path(path)
    return agent.status if agent is not None else ""


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stubborn() -> Stubborn:
    return Stubborn()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, stubborn: Stubborn) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate, stubborn])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


# --- 1: capacity -------------------------------------------------------------------------------------------


async def test_complaint_1_agent_limit_reached_although_all_agents_have_finished(stage: Stage) -> None:
    waves = [[f"a{wave}{n}" for n in range(5)] for wave in range(4)]
    steps = []
    for names in waves:
        steps += [step(*(spawn(name) for name in names)), step(wait(*names, mode="all"))]
    steps += [step(call("followup_task", target="a00", message="again")), step(wait("a00")), step(text="end")]
    agents = {"/root": steps, "/root/*": [step(text="one"), step(text="two")]}
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        state = await watched.quiet()
    ended = [event.status for event in watched.of(e.ToolEnded, "/root")]
    assert ended == ["ok"] * len(ended)
    assert len(state.agents) == 21
    assert {agent.status for agent in state.agents.values()} == {"completed"}
    assert watched.at("/root/a00").status_message == "two"


async def test_complaint_1_there_is_no_way_to_make_room(stage: Stage) -> None:
    """Where a total does refuse, it says which, and closing an agent makes room at once."""
    steps = [
        step(spawn("a"), spawn("b")),
        step(wait("a", "b", mode="all")),
        step(spawn("c")),
        step(call("close_agent", target="a")),
        step(spawn("c")),
        step(wait("c")),
        step(text="end"),
    ]
    async with stage.play({"/root": steps, "/root/*": [step(text="x")]}, limits={"max_agents": 3}) as watched:
        await watched.quiet()
    refused, made = outputs(watched, "/root", "spawn_agent")[-2:]
    assert (
        refused
        == "limit reached: max_agents = 3; 3 agents are open: /root, /root/a, /root/b; close some first"
    )
    assert json.loads(made)["task_name"] == "/root/c"
    assert watched.at("/root/c").status == "completed"


# --- 2: the parent -----------------------------------------------------------------------------------------


async def test_complaint_2_the_parent_is_not_woken_or_a_result_is_lost(stage: Stage) -> None:
    """One child answers at once, one fails, one is stopped, one has an empty answer, one is tasked anew."""
    agents = {
        "/root": [
            step(*(spawn(name) for name in ("quick", "fails", "stopped", "mute", "twice"))),
            step(call("followup_task", target="twice", message="and this")),
            *[step(text="I do not wait")] * 8,
        ],
        "/root/quick": [step(text="here")],
        "/root/fails": [step(text="", fault={"kind": "unauthorized", "times": 0})],
        "/root/stopped": [HANGING],
        "/root/mute": [step(text="")],
        "/root/twice": [step(text="first"), step(text="second")],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda s: status(s, "/root/stopped") == "running")
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.at("/root/stopped").thread))
        state = await watched.quiet()
    told: dict[str, list[str]] = {}
    for mail in watched.of(e.AgentMessage, "/root"):
        told.setdefault(mail.author.removeprefix("/root/"), []).append(mail.text)
    turns = {a.path.removeprefix("/root/"): a.turns for a in state.agents.values() if a.path != "/root"}
    assert {name: len(texts) for name, texts in told.items()} == turns
    assert told["quick"] == ["here"]
    assert told["mute"] == [""]
    assert "failed" in told["fails"][0]
    assert "was interrupted by operator" in told["stopped"][0]
    assert told["twice"][-1] in ("first", "second")
    assert not state.mail
    # All of it is in the last request: the model has read it.
    last = [item["content"][0]["text"] for item in stage.bodies()[-1]["input"] if item["type"] == "message"]
    assert sum("Message Type: FINAL_ANSWER" in text for text in last) == sum(turns.values())


async def test_complaint_2_after_a_compaction_it_no_longer_knows_its_children(
    stage: Stage, gate: Gate
) -> None:
    """The history in which it spawned them is gone; it waits for them, writes to them and hears them."""
    agents = {
        "/root": [
            step(spawn("a", message="count the hats"), spawn("b", message="count the shoes")),
            step(call("gate")),
            step(call("send_message", target="a", message="and the gloves")),
            step(wait("a", "b", mode="all")),
            step(call("followup_task", target="b", message="again")),
            step(wait("b")),
            step(text="all is counted"),
        ],
        "/root/a": [step(call("wait_agent", timeout_ms=WAIT)), step(text="three hats")],
        "/root/b": [step(text="two shoes"), step(text="still two")],
    }
    async with stage.play(agents, task="count") as watched:
        await watched.until(lambda s: gate.entered.is_set() and waiting("/root/a", "agents")(s))
        await watched.until(lambda s: status(s, "/root/b") == "completed")
        reply = await watched.client.send(Compact(swarm=watched.swarm, thread=watched.root))
        assert reply.value == {"changed": True}
        gate.open.set()
        await watched.quiet()
    assert watched.at("/root").status_message == "all is counted"
    assert len(watched.of(e.HistoryCompacted, "/root")) == 1
    first = next(body for body in stage.bodies() if "<compacted_history>" in str(body["input"]))
    assert not any(item["type"] == "function_call" for item in first["input"])
    (summary,) = [text for text in texts(first) if text.startswith("<compacted_history>")]
    a, b = watched.at("/root/a"), watched.at("/root/b")
    assert f"- /root/a ({a.nickname}), running: count the hats" in summary
    assert f"- /root/b ({b.nickname}), completed: count the shoes" in summary
    # What b answered before is a message: it stays.
    assert any("Sender: /root/b" in text and text.endswith("two shoes") for text in texts(first))
    assert "and the gloves" in texts(stage.bodies("/root/a")[-1])[-1]
    both, again = (json.loads(text)["status"] for text in outputs(watched, "/root", "wait_agent"))
    assert both == {"a": {"completed": "three hats"}, "b": {"completed": "two shoes"}}
    assert again == {"b": {"completed": "still two"}}


# --- 3: deadlines ------------------------------------------------------------------------------------------


async def test_complaint_3_a_wait_is_stuck_for_hours_whatever_its_deadline(stage: Stage) -> None:
    clock = FakeClock()
    agents = {"/root": [step(spawn("a")), step(wait("a", timeout_ms=60_000)), step(text="without a")]}
    async with stage.play({**agents, "/root/a": [HANGING]}, clock=clock) as watched:
        await watched.until(lambda s: waiting("/root", "agents")(s) and status(s, "/root/a") == "running")
        await passes(clock, 60)
        await watched.until(lambda s: status(s, "/root") == "completed")
        assert json.loads(outputs(watched, "/root", "wait_agent")[0]) == {"status": {}, "timed_out": True}


@pytest.mark.parametrize("tool", ["close_agent", "interrupt_agent"])
async def test_complaint_3_an_agent_that_does_not_stop_holds_up_whoever_stops_it(
    stage: Stage, gate: Gate, stubborn: Stubborn, tool: str
) -> None:
    clock = FakeClock()
    agents = {
        "/root": [step(spawn("a"), call("gate")), step(call(tool, target="a")), step(text="without a")],
        "/root/a": [step(call("stubborn"))],
    }
    gate.open.set()
    async with stage.play(agents, clock=clock) as watched:
        await stubborn.stopping.wait()
        await passes(clock, 60)
        await watched.until(lambda s: status(s, "/root") == "completed")
        assert outputs(watched, "/root", tool) == [f"{tool} timed out after 60 s"]
        stubborn.open.set()
        # What was asked for happens all the same.
        end = {"close_agent": "shutdown"}.get(tool, "interrupted")
        await watched.until(lambda s: status(s, "/root/a") == end and s.quiet())


# --- 4 and 5: what it costs and what it does ---------------------------------------------------------------


async def test_complaint_4_nobody_knows_what_each_agent_costs(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a", model="small")), step(wait("a")), step(text="end")],
        "/root/a": [step(spawn("b")), step(wait("b")), step(text="x")],
        "/root/a/b": [step(text="y")],
    }
    async with stage.play(agents) as watched:
        state = await watched.quiet()
    spent = {path: watched.at(path).tokens or Usage() for path in ("/root", "/root/a", "/root/a/b")}
    assert all(usage.input > 0 and usage.output > 0 for usage in spent.values())
    assert sum(spent.values(), Usage()) == state.tokens
    assert [watched.at(path).model for path in spent] == ["scripted", "small", "small"]
    for path, usage in spent.items():
        told = [event.usage for event in watched.of(e.ResponseCompleted, path)]
        assert sum((one for one in told if one), Usage()) == usage


async def test_complaint_4_the_cost_multiplies_and_nothing_holds_it(stage: Stage) -> None:
    """A tree of agents that would go on for ever ends at the cap, with what each of them cost in dollars."""
    busy = [step(call("list_agents"))] * 200
    agents = {
        "/root": [step(*(spawn(f"a{n}") for n in range(8))), *busy],
        "/root/*": [step(spawn("below")), *busy],
        "/root/*/*": busy,
    }
    prices = {"scripted": {"input": 1.0, "cached_input": 0.1, "output": 4.0, "max_output": 1000}}
    options = {"budget": {"cost": 0.5}, "catalog": prices, "unattended": "refuse"}
    async with stage.play(agents, options=options) as watched:
        state = await watched.quiet()
        reasons = {agent.spent_all and agent.spent for agent in state.agents.values()}
        assert all(str(reason).startswith("limit reached: budget.cost = $0.5000; $0.") for reason in reasons)
    paid = state.spending.dollars + state.spending.unmetered_dollars
    assert 0.4 < paid <= 0.5
    subtrees = state.subtrees()
    assert subtrees[watched.root][1].dollars == pytest.approx(state.spending.dollars)
    assert len([tokens for tokens, _ in subtrees.values() if tokens]) > 5
    assert all((spending.cost is None) == (tokens is None) for tokens, spending in subtrees.values())


async def test_complaint_5_nobody_sees_what_each_agent_does_or_waits_for(stage: Stage, gate: Gate) -> None:
    agents = {
        "/root": [
            step(spawn("done", message="count the files")),
            step(wait("done")),
            step(spawn("works"), spawn("asks"), spawn("queues")),
            step(wait("works", "asks", "queues", mode="all")),
        ],
        "/root/done": [step(text="there are three")],
        "/root/works": [step(call("gate", n=7))],
        "/root/asks": [step(call("exec_command", cmd="touch x"))],
        "/root/queues": [step(text="x")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:

        def all_shown(state: SwarmState) -> bool:
            shown = [agent.wait.reason for agent in state.agents.values() if agent.wait is not None]
            return gate.entered.is_set() and sorted(shown) == ["agents", "slot", "slot"]

        await watched.until(all_shown)
        works, done, root = (watched.at(path) for path in ("/root/works", "/root/done", "/root"))
        assert (works.status, works.activity) == ("running", "gate 7")
        assert (done.task, done.status, done.status_message) == (
            "count the files",
            "completed",
            "there are three",
        )
        names = [watched.at(f"/root/{name}").nickname for name in ("works", "asks", "queues")]
        assert root.wait is not None
        assert root.wait.detail == ", ".join(names)
        gate.open.set()
        state = await watched.until(lambda s: bool(s.approvals))
        asks = watched.at("/root/asks")
        assert asks.asks == 1
        await watched.until(waiting("/root/asks", "approval"))
        [approval] = state.approvals.values()
        await watched.client.send(Decide(swarm=watched.swarm, approval=approval.approval, approve=False))
        await watched.quiet()


# --- 6: polling --------------------------------------------------------------------------------------------


async def test_complaint_6_waiting_is_polling_and_burns_tokens(stage: Stage, gate: Gate) -> None:
    """Nine minutes of waiting are one request before and one after; the shortest wait is ten seconds."""
    clock = FakeClock()
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a", timeout_ms=1)),
            step(wait("a", timeout_ms=3_600_000)),
            step(text="end"),
        ],
        "/root/a": [step(call("gate")), step(text="x")],
    }
    async with stage.play(agents, clock=clock) as watched:
        await gate.entered.wait()
        await watched.until(waiting("/root", "agents"))
        await passes(clock, 9.9)
        assert len(stage.bodies()) == 2
        await passes(clock, 0.2)
        await watched.until(lambda s: len(watched.of(e.ToolCalled, "/root")) == 3)
        await watched.until(waiting("/root", "agents"))
        seen = len(watched.events)
        for _ in range(9):
            await passes(clock, 60)
        assert len(stage.bodies()) == 3
        assert watched.events[seen:] == []
        gate.open.set()
        await watched.quiet()
        assert len(stage.bodies()) == 4
    first, second = (json.loads(text) for text in outputs(watched, "/root", "wait_agent"))
    assert first == {"status": {}, "timed_out": True}
    assert second == {"status": {"a": {"completed": "x"}}, "timed_out": False}


# --- 7: overrides ------------------------------------------------------------------------------------------


async def test_complaint_7_the_model_and_role_that_were_asked_for_are_ignored(stage: Stage) -> None:
    """Each request of its life says so: of the first turn, after a call, and of a later task."""
    role = {
        "description": "d",
        "instructions": "You audit.",
        "model": "role-model",
        "reasoning_effort": "low",
        "tools": ["list_agents"],
    }
    agents = {
        "/root": [
            step(spawn("role", agent_type="auditor"), spawn("own", agent_type="auditor", model="mine")),
            step(wait("role", "own", mode="all")),
            step(*(call("followup_task", target=name, message="more") for name in ("role", "own"))),
            step(wait("role", "own", mode="all")),
            step(text="end"),
        ],
        "/root/*": [step(call("list_agents")), step(text="one"), step(text="two")],
    }
    limits = {"roles": {"auditor": role}, "default_subagent_model": "default-model"}
    async with stage.play(agents, limits=limits) as watched:
        await watched.quiet()
    for name, model in (("role", "role-model"), ("own", "mine")):
        bodies = stage.bodies(f"/root/{name}")
        assert len(bodies) == 3
        assert {body["model"] for body in bodies} == {model}
        assert {body["reasoning"]["effort"] for body in bodies} == {"low"}
        assert all("You audit." in body["instructions"] for body in bodies)
        assert all([tool["name"] for tool in body["tools"]] == ["list_agents"] for body in bodies)
        shown = watched.at(f"/root/{name}")
        assert (shown.model, shown.role) == (model, "auditor")


# --- 8: what is left over ----------------------------------------------------------------------------------


SLEEP = f"61{os.getpid()}"


def held() -> tuple[int, int]:
    """Threads and file handles of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles in /proc")
async def test_complaint_8_each_sub_agent_leaves_processes_threads_or_handles_behind(
    stage: Stage, gate: Gate
) -> None:
    names = [f"a{n}" for n in range(12)]
    command = call("exec_command", cmd=f"sleep {SLEEP} & echo started")
    agents = {
        "/root": [
            step(spawn("first")),
            step(wait("first")),
            step(call("gate")),
            step(*(spawn(name) for name in names)),
            step(wait(*names, mode="all")),
            step(text="end"),
        ],
        "/root/*": [step(command), step(text="x")],
    }
    async with stage.play(agents, options={"approval_policy": "never"}) as watched:
        await gate.entered.wait()
        before = held()
        gate.open.set()
        await watched.quiet()
        after = held()
        assert all("started" in outputs(watched, f"/root/{name}", "exec_command")[0] for name in names)
        assert not sleepers()
    assert after[0] <= before[0] + 4, "threads grow with agents"
    assert after[1] <= before[1] + 4, "handles grow with agents"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles in /proc")
async def test_complaint_8_each_sub_agent_starts_mcp_servers_and_leaves_them_behind(
    stage: Stage, gate: Gate
) -> None:
    """Twelve agents share one process; of those that have their own none is left when they are closed."""
    marker = f"mcp-{uuid.uuid4().hex}"
    shared, own = [f"a{n}" for n in range(12)], [f"o{n}" for n in range(3)]
    docs = call("docs__echo", text="hello")
    agents = {
        "/root": [
            step(spawn("first")),
            step(wait("first")),
            step(call("gate")),
            step(*(spawn(name) for name in shared), *(spawn(name, agent_type="loner") for name in own)),
            step(wait(*shared, *own, mode="all")),
            step(call("close_agent", target=own[0])),
            step(call("close_agent", target=own[1])),
            step(text="end"),
        ],
        "/root/*": [step(docs), step(text="x")],
    }
    server = {"command": sys.executable, "args": ["-I", "-S", str(SCRIPT), "good", marker]}
    limits = {"roles": {"loner": {"mcp": "own"}}}
    async with stage.play(agents, limits=limits, options={"mcp": {"docs": server}}) as watched:
        await gate.entered.wait()
        assert len(alive(marker)) == 1
        before = held()
        gate.open.set()
        await watched.quiet()
        assert all(outputs(watched, f"/root/{name}", "docs__echo") for name in (*shared, *own))
        # The shared one, and that of the one that is still open.
        assert len(alive(marker)) == 2
        await watched.client.send(Close(swarm=watched.swarm, thread=watched.at(f"/root/{own[2]}").thread))
        assert len(alive(marker)) == 1
        after = held()
    assert gone(marker)
    assert after[0] <= before[0] + 4, "threads grow with agents"
    assert after[1] <= before[1] + 4, "handles grow with agents"


def sleepers() -> list[str]:
    """Processes with the words of the test's own command, whoever their parent is by now."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", SLEEP.encode()]:
            found.append(file.parent.name)
    return found


# --- 9: coming back ----------------------------------------------------------------------------------------


async def test_complaint_9_after_a_resume_the_tree_is_gone(later: Later) -> None:
    first = {
        "/root": [step(spawn("a", message="do a")), HANGING],
        "/root/a": [step(spawn("b", message="do b")), step(wait("b")), HANGING],
        "/root/a/b": [step(text="b is done")],
    }
    async with later.first(first) as (one, swarm, _):
        await one.until(swarm, lambda s: running("/root/a")(s) and status(s, "/root/a/b") == "completed")
        known = {a.thread: (a.path, a.nickname, a.parent) for a in one.engine.state(swarm).agents.values()}
        later.dies()
    again = {
        "/root": [
            first["/root"][0],
            step(call("list_agents")),
            step(call("followup_task", target="a/b", message="and now?")),
            step(wait("a/b")),
            step(text="end"),
        ],
        "/root/a/b": [step(text="b is done"), step(text="b again")],
    }
    async with later.second(again, swarm) as two:
        await two.quiet(swarm)
        state = two.engine.state(swarm)
        assert {a.thread: (a.path, a.nickname, a.parent) for a in state.agents.values()} == known
        assert two.at(swarm, "/root/a/b").status_message == "b again"
        texts = [i["content"][0]["text"] for i in later.bodies("/root/a/b")[0]["input"]]
        assert [text.splitlines()[-1] for text in texts] == ["do b", "b is done", "and now?"]
        await check(two.engine, swarm)


# --- 10: approvals -----------------------------------------------------------------------------------------


async def test_complaint_10_the_approval_that_a_child_waits_for_is_hidden(stage: Stage) -> None:
    """It is among the swarm's own, says who asks and for what, and is answered there."""
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(text="end")],
        "/root/a": [step(spawn("b")), step(wait("b")), step(text="x")],
        "/root/a/b": [step(call("exec_command", cmd="touch made")), step(text="y")],
    }
    async with stage.play(agents) as watched:
        state = await watched.until(lambda s: waiting("/root/a/b", "approval")(s) and bool(s.approvals))
        [approval] = state.approvals.values()
        assert (approval.thread, approval.command) == (watched.at("/root/a/b").thread, "touch made")
        # Nobody takes those above it for stuck.
        for path in ("/root", "/root/a"):
            assert waiting(path, "agents")(state)
        reply = await watched.client.send(
            Decide(swarm=watched.swarm, approval=approval.approval, approve=True)
        )
        assert reply.ok
        await watched.quiet()
    assert watched.at("/root").status == "completed"
    assert (stage.folder / "work" / "made").exists()
