"""The control plane on the scripted model: spawning, talking, waiting, stopping, limits."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from core.config import Settings
from core.domain import events as e
from core.domain.commands import Close, Decide, Interrupt, SendInput
from core.domain.state import SwarmState
from core.store.readers import Reader
from tests.core.agents.scenarios import call, scenario, step
from tests.core.harness import Watched, engine, settings_for, swarm

WAIT = 600_000


def with_agents(settings: Settings, **fields: int) -> Settings:
    return settings.model_copy(update={"agents": settings.agents.model_copy(update=fields)})


def runs(state: SwarmState, path: str) -> bool:
    agent = state.by_path(path)
    return agent is not None and agent.status == "running"


def outputs(watched: Watched, path: str, name: str) -> list[str]:
    """What the model was given for the calls of one tool, in order."""
    names = {c.call: c.name for c in watched.of(e.ToolCalled, path)}
    last: dict[str, str] = {}
    found = []
    for event in watched.events:
        if event.agent != watched.at(path).thread:
            continue
        if isinstance(event, e.ToolResult):
            last[event.call] = event.text
        if isinstance(event, e.ToolEnded) and names.get(event.call) == name:
            found.append(event.output if event.output is not None else last.get(event.call, ""))
    return found


async def test_a_root_spawns_waits_and_answers(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="one")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text="all done"),
            ],
            "/root/a": [step(text="answer of a")],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        state = await watched.quiet()
    assert watched.at("/root").status == "completed"
    assert watched.at("/root").status_message == "all done"
    child = watched.at("/root/a")
    assert (child.status, child.status_message, child.depth) == ("completed", "answer of a", 1)
    assert child.parent == watched.root
    assert state.tokens is not None
    [waited] = outputs(watched, "/root", "wait_agent")
    assert json.loads(waited) == {"status": {"a": {"completed": "answer of a"}}, "timed_out": False}
    results = watched.of(e.ToolResult, "/root")
    assert [(r.source, r.status, r.about) for r in results] == [
        ("spawn", "spawned", child.thread),
        ("wait_output", "completed", child.thread),
    ]


async def test_a_child_that_ends_wakes_its_idle_parent_with_its_answer(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="one")),
                step(text="I do not wait"),
                step(text="now I know"),
            ],
            "/root/a": [step(text="the answer", latency_ms=50)],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.quiet()
    assert [t.message for t in watched.of(e.TurnCompleted, "/root")] == ["I do not wait", "now I know"]
    [mail] = watched.of(e.AgentMessage, "/root")
    assert (mail.kind, mail.author, mail.text) == ("FINAL_ANSWER", "/root/a", "the answer")


async def test_an_answer_and_the_parents_mail_are_one_transaction(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [step(call("spawn_agent", task_name="a", message="one")), step(text="ok")],
            "/root/a": [step(text="the answer")],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.quiet()
    [done] = watched.of(e.TurnCompleted, "/root/a")
    [mail] = [m for m in watched.of(e.MailQueued, "/root") if m.kind == "FINAL_ANSWER"]
    assert mail.seq == done.seq + 1
    assert mail.at == done.at


@pytest.mark.parametrize("limit", [2, 3, 17])
async def test_limit_2_and_four_agents_in_a_chain_each_waiting_for_the_next(
    tmp_path: Path, limit: int
) -> None:
    def link(name: str) -> list[dict[str, object]]:
        return [
            step(call("spawn_agent", task_name=name, message="go on")),
            step(call("wait_agent", targets=[name], timeout_ms=WAIT)),
            step(text="end of chain"),
        ]

    text = scenario(
        {
            "/root": link("a"),
            "/root/a": link("b"),
            "/root/a/b": link("c"),
            "/root/a/b/c": link("d"),
            "/root/a/b/c/d": [step(text="last")],
        }
    )
    settings = settings_for(tmp_path, text).model_copy()
    settings = settings.model_copy(
        update={"agents": settings.agents.model_copy(update={"max_threads": limit})}
    )
    async with engine(settings) as client, swarm(client) as watched:
        state = await watched.quiet()
    assert [a.status for a in state.agents.values()] == ["completed"] * 5


async def test_a_full_house_queues_in_order_and_says_so(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    text = scenario(
        {
            "/root": [
                step(*(call("spawn_agent", task_name=n, message="x") for n in names)),
                step(call("wait_agent", targets=names, mode="all", timeout_ms=WAIT)),
            ],
            "/root/*": [step(text="hi", latency_ms=30)],
        }
    )
    settings = with_agents(settings_for(tmp_path, text), max_threads=2)
    async with engine(settings) as client, swarm(client) as watched:
        state = await watched.quiet()
    waits = [w for w in watched.of(e.AgentWaits) if w.wait is not None and w.wait.reason == "slot"]
    assert len(waits) == 3
    running: set[str | None] = set()
    most = 0
    for event in watched.events:
        if event.agent == watched.root:
            continue
        if isinstance(event, e.TurnStarted):
            running.add(event.agent)
        elif isinstance(event, e.TurnCompleted):
            running.discard(event.agent)
        most = max(most, len(running))
    assert most == 1
    assert all(a.status == "completed" for a in state.agents.values())


async def test_limits_and_wrong_names_are_answers_to_the_model(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(
                    call("spawn_agent", task_name="Bad Name", message="x"),
                    call("spawn_agent", task_name="ok", message="x"),
                    call("spawn_agent", task_name="ok2", message="  "),
                    call("spawn_agent", task_name="r", message="x", agent_type="nobody"),
                    call("send_message", target="nowhere", message="x"),
                    call("wait_agent", targets=["nowhere"]),
                    call("close_agent", target="/root"),
                    call("wait_agent", timeout_ms=99_999_999),
                    call("no_such_tool"),
                ),
                step(call("spawn_agent", task_name="ok", message="again")),
            ],
            "/root/ok": [step(call("spawn_agent", task_name="deep", message="x")), step(text="no")],
        }
    )
    settings = with_agents(settings_for(tmp_path, text), max_depth=1)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    spawned = outputs(watched, "/root", "spawn_agent")
    everything = "\n".join(
        [*spawned, *outputs(watched, "/root", "send_message"), *outputs(watched, "/root", "wait_agent")]
    )
    assert "may hold only a-z, 0-9 and _" in everything
    assert "must not be blank" in everything
    assert "no role 'nobody'; the roles are: default" in everything
    assert "no open agent has the path /root/nowhere; open agents: /root" in everything
    assert "may be at most 3600000" in everything
    assert "/root/ok is taken" in spawned[-1]
    assert "only be stopped by the operator" in outputs(watched, "/root", "close_agent")[0]
    assert "there is no tool 'no_such_tool'" in outputs(watched, "/root", "no_such_tool")[0]
    assert "max_depth = 1" in outputs(watched, "/root/ok", "spawn_agent")[0]
    assert watched.at("/root").status == "completed"
    assert len(watched.state.agents) == 2


async def test_messages_and_tasks_between_agents(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="first")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(
                    call("send_message", target="a", message="for your information"),
                    call("followup_task", target="/root/a", message="second"),
                ),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(call("list_agents")),
            ],
            "/root/a": [
                step(text="first answer"),
                step(call("followup_task", target="/root", message="no")),
                step(text="second answer"),
            ],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.quiet()
    told = [(m.kind, m.text) for m in watched.of(e.AgentMessage, "/root/a")]
    assert told == [("NEW_TASK", "first"), ("MESSAGE", "for your information"), ("NEW_TASK", "second")]
    assert "the root takes no tasks" in outputs(watched, "/root/a", "followup_task")[0]
    first, second = (json.loads(o)["status"]["a"] for o in outputs(watched, "/root", "wait_agent"))
    assert (first, second) == ({"completed": "first answer"}, {"completed": "second answer"})
    [listed] = outputs(watched, "/root", "list_agents")
    rows = json.loads(listed)["agents"]
    assert [row["agent_name"] for row in rows] == ["/root", "/root/a"]
    assert rows[0]["agent_status"] == "running"


HANGING = step(text="never", fault={"kind": "hang", "after_events": 0, "times": 0})


async def test_an_interrupt_stops_one_turn_and_tells_the_parent(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text="I see"),
            ],
            "/root/a": [HANGING],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.until(
            lambda s: any(a.path == "/root/a" and a.status == "running" for a in s.agents.values())
        )
        child = watched.at("/root/a")
        reply = await client.send(Interrupt(swarm=watched.swarm, thread=child.thread))
        assert reply.value == {"stopped": [child.thread], "changed": True}
        again = await client.send(Interrupt(swarm=watched.swarm, thread=child.thread))
        assert again.value == {"stopped": [], "changed": False}
        await watched.quiet()
    assert watched.at("/root/a").status == "interrupted"
    assert watched.at("/root/a").status_message == "by operator"
    assert json.loads(outputs(watched, "/root", "wait_agent")[0])["status"] == {"a": "interrupted"}
    told = [m.text for m in watched.of(e.AgentMessage, "/root")]
    assert told == [text for text in told if "was interrupted by operator" in text] != []


async def test_an_interrupted_call_ends_its_processes_and_is_recorded_as_aborted(tmp_path: Path) -> None:
    marker = f"31{id(tmp_path)}"
    text = scenario({"/root": [step(call("exec_command", cmd=f"sleep {marker} & sleep {marker}"))]})
    settings = settings_for(tmp_path, text, approval_policy="never", sandbox="off")
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(lambda s: bool(s.calls))
        await asyncio.to_thread(_until_running, marker)
        await client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        await watched.quiet()
        assert not _running(marker)
        [result] = watched.of(e.ToolResult)
        assert (result.status, result.index) == ("aborted", 0)
        assert [ended.status for ended in watched.of(e.ToolEnded)] == ["aborted"]
        assert not watched.state.calls
        # The history is whole: the strict server takes the next turn.
        await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="go on"))
        await watched.until(lambda s: s.quiet() and watched.at("/root").turns == 2)
    assert watched.at("/root").status == "completed", watched.at("/root").status_message


def _running(marker: str) -> bool:
    """Whether any process has `marker` as an argument of its own."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            return True
    return False


def _until_running(marker: str) -> None:
    deadline = time.monotonic() + 20
    while not _running(marker):
        assert time.monotonic() < deadline, "the command never started"


async def test_a_cascade_stops_everything_below_and_wakes_nobody(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            ],
            "/root/a": [
                step(call("spawn_agent", task_name="b", message="x")),
                step(call("wait_agent", targets=["b"], timeout_ms=WAIT)),
            ],
            "/root/a/b": [HANGING],
        }
    )

    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.until(lambda s: runs(s, "/root/a/b"))
        reply = await client.send(Interrupt(swarm=watched.swarm, thread=watched.root, cascade=True))
        assert len(reply.value["stopped"]) == 3
        state = await watched.quiet()
        assert [a.status for a in state.agents.values()] == ["interrupted"] * 3
        # The operator's own words start the root again.
        await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="what now?"))
        await watched.until(lambda s: s.quiet() and watched.at("/root").turns == 2)
    assert watched.at("/root").status == "completed"


async def test_close_ends_an_agent_with_all_below_and_frees_its_path(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=10_000)),
                step(call("close_agent", target="a")),
                step(call("spawn_agent", task_name="a", message="x")),
            ],
            "/root/a": [step(call("spawn_agent", task_name="b", message="x")), step(text="made one")],
            "/root/a/b": [HANGING],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.until(lambda s: len(s.agents) == 5)
        closed = [a for a in watched.state.agents.values() if a.status == "shutdown"]
        assert sorted(a.path for a in closed) == ["/root/a", "/root/a/b"]
        newest = watched.at("/root/a")
        assert newest.status != "shutdown"
        reply = await client.send(Close(swarm=watched.swarm, thread=newest.thread))
        assert len(reply.value["closed"]) == 2
        gone = await client.send(SendInput(swarm=watched.swarm, thread=newest.thread, text="hello?"))
        assert (gone.ok, gone.code) == (False, "not_found")
        assert "is closed" in gone.error


async def test_the_first_decision_wins_and_a_late_one_is_told(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("exec_command", cmd="touch made")),
                step(text="it was made"),
            ]
        }
    )
    settings = settings_for(tmp_path, text, sandbox="off")
    async with engine(settings) as client, swarm(client) as watched:
        state = await watched.until(lambda s: bool(s.approvals))
        [approval] = state.approvals.values()
        assert approval.command == "touch made"
        assert approval.cwd == str(tmp_path / "work")
        assert watched.at("/root").wait is not None
        ask = Decide(swarm=watched.swarm, approval=approval.approval, approve=True)
        late = Decide(swarm=watched.swarm, approval=approval.approval, approve=False, author="script")
        first, second = await asyncio.gather(client.send(ask), client.send(late))
        assert first.ok
        assert (second.ok, second.code) == (False, "decided")
        assert "approved by operator" in second.error
        await watched.quiet()
        unknown = await client.send(Decide(swarm=watched.swarm, approval="x", approve=True))
        assert unknown.code == "not_found"
    assert (tmp_path / "work" / "made").exists()


async def test_a_denied_command_does_not_run_and_the_model_reads_why(tmp_path: Path) -> None:
    text = scenario({"/root": [step(call("exec_command", cmd="touch made")), step(text="so be it")]})
    async with engine(settings_for(tmp_path, text, sandbox="off")) as client, swarm(client) as watched:
        state = await watched.until(lambda s: bool(s.approvals))
        await client.send(Decide(swarm=watched.swarm, approval=next(iter(state.approvals)), approve=False))
        await watched.quiet()
    assert not (tmp_path / "work" / "made").exists()
    assert [ended.status for ended in watched.of(e.ToolEnded)] == ["refused"]
    assert "denied by the operator" in outputs(watched, "/root", "exec_command")[0]


async def test_an_unattended_swarm_refuses_at_once(tmp_path: Path) -> None:
    text = scenario({"/root": [step(call("exec_command", cmd="touch made")), step(text="so be it")]})
    settings = settings_for(tmp_path, text, sandbox="off")
    async with engine(settings) as client, swarm(client, unattended="refuse") as watched:
        await watched.quiet()
    assert not (tmp_path / "work" / "made").exists()
    [decided] = watched.of(e.ApprovalDecided)
    assert (decided.decision, decided.by) == ("denied", "unattended")


async def test_an_interrupt_withdraws_a_pending_approval(tmp_path: Path) -> None:
    text = scenario({"/root": [step(call("exec_command", cmd="touch made"))]})
    async with engine(settings_for(tmp_path, text, sandbox="off")) as client, swarm(client) as watched:
        state = await watched.until(lambda s: bool(s.approvals))
        [approval] = state.approvals
        await client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        state = await watched.quiet()
        assert not state.approvals
        late = await client.send(Decide(swarm=watched.swarm, approval=approval, approve=True))
        assert "withdrawn" in late.error
    assert not (tmp_path / "work" / "made").exists()


async def test_what_the_operator_types_joins_the_running_turn(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text="I heard you"),
            ],
            "/root/a": [HANGING],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.until(lambda s: any(w.name == "wait_agent" for w in s.calls.values()))
        await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="stop waiting"))
        await watched.until(lambda s: watched.at("/root").status == "completed")
        assert len(watched.of(e.TurnStarted, "/root")) == 1
        assert [m.text for m in watched.of(e.UserMessage, "/root")] == ["go", "stop waiting"]


async def test_a_model_that_fails_fails_the_turn_with_the_servers_words(tmp_path: Path) -> None:
    fault = {"kind": "unauthorized", "times": 0, "message": "Incorrect key."}
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text="noted"),
            ],
            "/root/a": [step(text="never", fault=fault)],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, swarm(client) as watched:
        await watched.quiet()
    child = watched.at("/root/a")
    assert child.status == "errored"
    assert "401" in child.status_message
    assert "Incorrect key." in child.status_message
    assert watched.at("/root").status == "completed"


async def test_leaving_the_engine_interrupts_and_records_every_turn(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            ],
            "/root/a": [HANGING],
        }
    )
    settings = settings_for(tmp_path, text)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(
            lambda s: len(s.agents) == 2 and all(a.status == "running" for a in s.agents.values())
        )
    async with Reader.open(settings.home) as reader:
        events = (await reader.events(watched.swarm)).events
    stopped = [event for event in events if isinstance(event, e.TurnInterrupted)]
    assert {event.agent for event in stopped} == {watched.root, watched.at("/root/a").thread}
    assert {event.by for event in stopped} == {"engine"}
    assert [event.status for event in events if isinstance(event, e.ToolEnded)] == ["ok", "aborted"]


async def test_a_fork_sees_its_parents_messages(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x", fork_turns="all")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            ],
        }
    )
    text += """
[[agents]]
path = "/root/a"
[[agents.steps]]
when = { input = "the secret word is plover" }
text = "I know it"
[[agents.steps]]
text = "I do not"
"""
    async with (
        engine(settings_for(tmp_path, text)) as client,
        swarm(client, "the secret word is plover") as watched,
    ):
        await watched.quiet()
    [spawned] = [s for s in watched.of(e.AgentSpawned) if s.path == "/root/a"]
    assert spawned.fork == "all"
