"""What models and operators get wrong: each is answered in a clear sentence, and never stops the swarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.agents.bounds import MESSAGE_CHARS
from core.domain import events as e
from core.domain.commands import SendInput, StartSwarm
from core.domain.limits import Limits
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import Stage, outputs
from tests.core.agents.test_races import Answer, World, world
from tests.core.harness import Watched, engine, settings_for

UUID = "01a1f9af-c37c-7ac0-b73b-480fcedbca01"
WRONG: dict[str, list[dict[str, Any]]] = {
    "spawn_agent": [
        {},
        {"task_name": "a"},
        {"message": "x"},
        {"task_name": 7, "message": "x"},
        {"task_name": "a", "message": ""},
        {"task_name": "a", "message": " \n\t "},
        {"task_name": "a", "message": ["x"]},
        {"task_name": "a", "message": "x", "fork_context": True},
        {"task_name": "", "message": "x"},
        {"task_name": "root", "message": "x"},
        {"task_name": "a/b", "message": "x"},
        {"task_name": "..", "message": "x"},
        {"task_name": "a\u0000b", "message": "x"},
        {"task_name": "a" * 65, "message": "x"},
        {"task_name": "a", "message": "x", "model": "m" * 201},
        {"task_name": "a", "message": "x", "model": " "},
        {"task_name": "a", "message": "x", "model": "\u001b[31mred"},
        {"task_name": "a", "message": "x", "reasoning_effort": "e" * 201},
        {"task_name": "a", "message": "x", "reasoning_effort": "high\nlow"},
        {"task_name": "a", "message": "x", "agent_type": "r" * 201},
        {"task_name": "a", "message": "x", "fork_turns": "9" * 10},
        {"task_name": "a", "message": "x", "fork_turns": "9" * 5000},
    ],
    "send_message": [
        {},
        {"target": "/root/kid"},
        {"message": "x"},
        {"target": "/root/kid", "message": ""},
        {"target": "/root/kid", "message": "  "},
        {"target": False, "message": "x"},
        {"target": "/root/kid", "message": "x", "urgent": True},
    ],
    "followup_task": [
        {},
        {"target": "/root/kid", "message": ""},
        {"target": "/root/kid", "message": "\n"},
        {"target": ["/root/kid"], "message": "x"},
    ],
    "wait_agent": [
        {"targets": []},
        {"targets": "/root/kid"},
        {"targets": [1]},
        {"targets": ["/root/kid"], "mode": "some"},
        {"timeout_ms": 0},
        {"timeout_ms": -5},
        {"timeout_ms": "soon"},
        {"timeout_ms": 10**12},
        {"target": "/root/kid"},
    ],
    "list_agents": [{"path_prefix": 3}, {"path_prefix": "//"}, {"path_prefix": "../x"}, {"all": True}],
    "interrupt_agent": [{}, {"target": 3}, {"target": "/root/kid", "cascade": True}],
    "close_agent": [{}, {"target": {}}, {"target": "/root/kid", "force": True}],
    "resume_agent": [{}, {"target": 3}, {"target": "/root/kid", "deep": True}],
    "spawn_agents_on_csv": [{}, {"csv_path": 3}, {"csv_path": "none.csv", "instruction": "x"}, {"rows": []}],
    "run_agent_job": [{}, {"job_id": 3}, {"job_id": "none"}, {"job_id": ""}, {"job_id": "x", "force": True}],
    "get_agent_job_status": [{}, {"job_id": []}, {"job_id": "none"}, {"job": "none"}],
    "wait_agent_job": [{}, {"job_id": "none"}, {"job_id": "x", "timeout_ms": 0}, {"job_id": "x", "a": 1}],
    "export_agent_job_csv": [{}, {"job_id": "none"}, {"job_id": "x", "output_csv_path": 3}, {"path": "x"}],
    "exec_command": [{}, {"cmd": 3}, {"cmd": "ls", "sudo": True}],
}
NOBODY = (
    "nobody",
    "/root/nobody",
    "/root/kid/nobody",
    UUID,
    "",
    " ",
    "/",
    "/root/",
    "..",
    "Kid",
    "/other/kid",
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def failed(watched: Watched, path: str = "/root") -> dict[str, str]:
    """Status of each ended call of an agent."""
    return {event.call: event.status for event in watched.of(e.ToolEnded, path)}


KID = step(call("spawn_agent", task_name="kid", message="x"))


async def test_wrong_arguments_to_every_tool_are_answers(stage: Stage) -> None:
    calls = [call(name, **arguments) for name, many in WRONG.items() for arguments in many]
    agents = {
        "/root": [KID, step(call("wait_agent", targets=["kid"])), step(*calls), step(text="end")],
        "/root/kid": [step(text="ok")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        offered = {tool["name"] for tool in stage.bodies()[0]["tools"]}
    called = watched.of(e.ToolCalled, "/root")[2:]
    status = failed(watched)
    assert [(c.name, c.arguments) for c in called if status[c.call] != "error"] == []
    assert len(called) == len(calls)
    for name, many in WRONG.items():
        said = outputs(watched, "/root", name)
        assert len([text for text in said if text]) >= len(many)
    assert (watched.at("/root").status, watched.at("/root").status_message) == ("completed", "end")
    assert [agent.path for agent in watched.state.agents.values()] == ["/root", "/root/kid"]
    # A tool that comes to these has its wrong arguments here too.
    assert offered == set(WRONG)


async def test_targets_that_do_not_exist_are_answers(stage: Stage) -> None:
    calls = [
        call(name, target=target, **({"message": "x"} if name in ("send_message", "followup_task") else {}))
        for name in ("send_message", "followup_task", "interrupt_agent", "close_agent", "resume_agent")
        for target in NOBODY
    ] + [call("wait_agent", targets=[target]) for target in NOBODY]
    agents = {
        "/root": [KID, step(call("wait_agent", targets=["kid"])), step(*calls), step(text="end")],
        "/root/kid": [step(text="ok")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    called = watched.of(e.ToolCalled, "/root")[2:]
    status = failed(watched)
    assert [(c.name, c.arguments) for c in called if status[c.call] != "error"] == []
    assert len(called) == len(calls)
    assert watched.at("/root").status_message == "end"
    assert watched.at("/root/kid").status == "completed"


# --- too long --------------------------------------------------------------------------------------------

HUGE = 10_000_000


async def test_a_message_of_10_mb_is_refused_whoever_sends_it(tmp_path: Path) -> None:
    huge = "x" * HUGE
    answers: dict[str, list[Answer | None]] = {
        "/root": [
            [call("spawn_agent", task_name="kid", message="x")],
            [
                call("spawn_agent", task_name="other", message=huge),
                call("send_message", target="kid", message=huge),
                call("followup_task", target="kid", message=huge),
            ],
            "end",
        ]
    }
    async with world(tmp_path, answers) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "completed"))
        ended = [event for event in w.events if isinstance(event, e.ToolEnded)]
        assert [event.status for event in ended] == ["ok", "error", "error", "error"]
        said = [event.text for event in w.events if isinstance(event, e.ToolResult)][-3:]
        assert all(f"10000000 characters; at most {MESSAGE_CHARS} are sent" in text for text in said)
        assert [agent.path for agent in w.state.agents.values()] == ["/root", "/root/kid"]
        assert len(w.swarm.registry) == 2


async def test_an_operators_10_mb_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "chunk_chars = 200\n", sandbox="off")
    async with engine(settings) as client:
        refused = await client.send(StartSwarm(task="x" * HUGE))
        assert (refused.ok, refused.code) == (False, "refused")
        assert "write it into a file" in refused.error
        reply = await client.send(StartSwarm(task=None))
        where = {"swarm": reply.value["swarm"], "thread": reply.value["thread"]}
        refused = await client.send(SendInput(**where, text="x" * HUGE))
        assert (refused.ok, refused.code) == (False, "refused")
        tried = await client.send(SendInput(**where, text="x" * HUGE, dry_run=True))
        assert not tried.ok
        assert (await client.send(SendInput(**where, text="x" * MESSAGE_CHARS))).ok


# --- going round in circles --------------------------------------------------------------------------------


def tasks(target: str) -> list[Answer | None]:
    """An agent that gives another a task in each of its turns."""
    turn: list[Answer | None] = [
        [call("followup_task", target=target, message="your turn")],
        "I passed it on",
    ]
    return turn * 60


def spawn(name: str) -> Answer:
    return [call("spawn_agent", task_name=name, message="x")]


CIRCLE: dict[str, list[Answer | None]] = {
    "/root": [spawn("b"), [call("wait_agent", targets=["b"])], spawn("a"), *["I see"] * 200],
    "/root/a": tasks("/root/b"),
    "/root/b": ["ready", *tasks("/root/a")],
}


def turns(w: World, path: str) -> int:
    return w.at(path).turns


async def test_agents_that_wake_each_other_for_ever_are_stopped(tmp_path: Path) -> None:
    async with world(tmp_path, CIRCLE, limits=Limits(max_turns=5)) as w:
        root = await w.swarm.births.start_root("go")
        await w.until(lambda: w.state.quiet())
        asked = len(w.model.requests)
        for path in ("/root/a", "/root/b"):
            assert w.at(path).turns <= 6
        stopped = [a for a in w.state.agents.values() if a.status == "errored"]
        assert stopped
        for agent in stopped:
            assert agent.status_message.startswith("limit reached: max_turns = 5; mail alone began")
        assert not w.state.mail
        assert w.swarm.slots.used == 0
        # The operator's word begins the count anew, for all of them.
        await w.swarm.send_input(root.thread, "go on", by="operator")
        await w.until(lambda: w.state.quiet())
        assert w.at("/root").turns > 1
        assert len(w.model.requests) > asked


async def test_turns_that_the_operator_began_are_not_counted(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {"/root": ["yes"] * 12}
    async with world(tmp_path, answers, limits=Limits(max_turns=2)) as w:
        root = await w.swarm.births.start_root("go")
        for number in range(1, 11):
            await w.until(lambda n=number: w.state.quiet() and turns(w, "/root") == n)  # type: ignore[misc]
            await w.swarm.send_input(root.thread, "again", by="operator")
        await w.until(lambda: turns(w, "/root") == 11 and w.state.quiet())
        assert w.at("/root").status == "completed"


async def test_as_many_turns_as_allowed_are_no_circle(tmp_path: Path) -> None:
    answers: dict[str, list[Answer | None]] = {"/root": ["ok"] * 20, "/root/a": ["done"] * 20}
    async with world(tmp_path, answers, limits=Limits(max_turns=4, wake_parent=False)) as w:
        root = await w.swarm.births.start_root(None)
        kid = await w.swarm.births.spawn(root, name="a", message="x")
        for number in range(1, 6):
            await w.until(lambda n=number: w.at("/root/a").turn is None and turns(w, "/root/a") == n)  # type: ignore[misc]
            assert w.at("/root/a").status == ("completed" if number <= 4 else "errored")
            if number < 5:
                await w.swarm.send_message(root, kid, "more", trigger=True)
        told = [event for event in w.events if isinstance(event, e.MailQueued) and event.agent == root.thread]
        assert "max_turns = 4" in told[-1].text
