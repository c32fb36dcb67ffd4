"""The tools by which agents manage agents: what each answers, what it records, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import SendInput
from tests.clock import FakeClock
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, WAIT, Gate, Stage, outputs, passes
from tests.core.harness import Watched

Steps = list[dict[str, Any]]


def spawn(name: str, **fields: Any) -> dict[str, Any]:
    return call("spawn_agent", task_name=name, message=fields.pop("message", "x"), **fields)


def wait(*targets: str, **fields: Any) -> dict[str, Any]:
    return call("wait_agent", targets=list(targets), **{"timeout_ms": WAIT, **fields})


def results(watched: Watched, path: str, name: str) -> list[tuple[str, str, str | None]]:
    """(source, status, path of the agent it is about) of every result event of the calls of one tool."""
    calls = {c.call for c in watched.of(e.ToolCalled, path) if c.name == name}
    found = [r for r in watched.of(e.ToolResult, path) if r.call in calls]
    agents = watched.state.agents
    return [(r.source, r.status, agents[r.about].path if r.about else None) for r in found]


def errors(watched: Watched, path: str, name: str) -> list[str]:
    ended = {c.call: c.status for c in watched.of(e.ToolEnded, path)}
    calls = [c.call for c in watched.of(e.ToolCalled, path) if c.name == name]
    assert {ended[c] for c in calls} == {"error"}
    return outputs(watched, path, name)


def answered(watched: Watched, text: str) -> bool:
    return any(turn.message == text for turn in watched.of(e.TurnCompleted, "/root"))


def is_waiting(watched: Watched, path: str = "/root") -> bool:
    agent = watched.state.by_path(path)
    return agent is not None and agent.wait is not None and agent.wait.reason == "agents"


class Before(Gate):
    """A gate that the calls after it in the same response wait for."""

    parallel = False


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate() -> Before:
    return Before()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Before) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


# --- waiting for any message -----------------------------------------------------------------------------


async def test_a_message_that_came_before_the_wait_ends_it_at_once(
    stage: Stage, clock: FakeClock, gate: Before
) -> None:
    agents = {
        "/root": [step(spawn("a")), step(call("gate"), call("wait_agent")), step(text="over")],
        "/root/a": [step(text="early")],
    }
    async with stage.play(agents, clock=clock) as watched:
        await gate.entered.wait()
        await watched.until(lambda s: s.agents[watched.root].mail == 1)
        gate.open.set()
        await watched.quiet()
    assert json.loads(outputs(watched, "/root", "wait_agent")[0]) == {
        "message": "a message arrived",
        "timed_out": False,
    }
    # The message itself comes with the next request.
    assert [m.text for m in watched.of(e.AgentMessage, "/root")] == ["early"]
    assert watched.at("/root").turns == 1


@pytest.mark.parametrize(
    ("asked", "seconds", "note"),
    [
        ({"timeout_ms": 20_000}, 20, ""),
        ({}, 30, ""),
        ({"timeout_ms": 5}, 10, " (the shortest wait is 10000 ms)"),
    ],
    ids=["asked", "default", "too short"],
)
async def test_a_wait_in_vain_ends_when_its_time_is_over(
    stage: Stage, clock: FakeClock, asked: dict[str, int], seconds: int, note: str
) -> None:
    steps = [step(call("wait_agent", **asked)), step(text="over")]
    async with stage.play({"/root": steps}, clock=clock) as watched:
        await watched.until(lambda s: is_waiting(watched))
        await passes(clock, seconds - 0.1)
        assert watched.of(e.ToolEnded) == []
        await clock.advance(0.1)
        await watched.quiet()
    assert json.loads(outputs(watched, "/root", "wait_agent")[0]) == {
        "message": f"nothing arrived within {seconds} s{note}",
        "timed_out": True,
    }
    assert watched.at("/root").wait is None


async def test_what_the_operator_types_ends_a_wait_for_any_message(stage: Stage, clock: FakeClock) -> None:
    steps = [step(call("wait_agent")), step(text="yes?")]
    async with stage.play({"/root": steps}, clock=clock) as watched:
        await watched.until(lambda s: is_waiting(watched))
        await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="hello"))
        await watched.quiet()
    assert "a message arrived" in outputs(watched, "/root", "wait_agent")[0]
    assert (watched.at("/root").turns, watched.at("/root").status_message) == (1, "yes?")


async def test_wait_bounds_are_said_to_the_model(stage: Stage) -> None:
    bad = [wait("a", timeout_ms=0), wait("a", timeout_ms=3_600_001), wait(), wait("a", mode="most")]
    bad += [wait("a b"), wait("")]
    async with stage.play({"/root": [step(spawn("a")), step(*bad), step(text="over")]}) as watched:
        await watched.until(lambda s: s.quiet() and len(s.agents) == 2)
        told = errors(watched, "/root", "wait_agent")
    for words in (
        "timeout_ms: Input should be greater than 0",
        "timeout_ms may be at most 3600000",
        "targets: List should have at least 1 item",
        "mode: Input should be 'any' or 'all'",
        "the agent name 'a b' may hold only a-z, 0-9 and _",
        "the target must not be empty",
    ):
        assert any(words in text for text in told), words


async def test_an_agent_that_waits_for_itself_is_told_so_at_once(stage: Stage, clock: FakeClock) -> None:
    agents = {"/root": [step(spawn("a")), step(wait("a", "/root", mode="all")), step(text="over")]}
    async with stage.play(agents, clock=clock) as watched:
        await watched.quiet()
    assert errors(watched, "/root", "wait_agent") == [
        "'/root' is your own path; you cannot wait for yourself"
    ]


# --- waiting for agents ----------------------------------------------------------------------------------


async def test_any_returns_with_the_first_and_all_with_the_last(
    stage: Stage, clock: FakeClock, gate: Before
) -> None:
    agents = {
        "/root": [
            step(spawn("fast"), spawn("slow")),
            step(wait("slow", "fast")),
            step(wait("fast", "slow", mode="all")),
            step(text="over"),
        ],
        "/root/fast": [step(text="1")],
        "/root/slow": [step(call("gate")), step(text="2")],
    }
    async with stage.play(agents, clock=clock) as watched:
        await watched.until(lambda s: len(outputs(watched, "/root", "wait_agent")) == 1)
        await watched.until(lambda s: is_waiting(watched))
        gate.open.set()
        await watched.quiet()
    first, second = (json.loads(text) for text in outputs(watched, "/root", "wait_agent"))
    assert first == {"status": {"fast": {"completed": "1"}}, "timed_out": False}
    assert second["status"] == {"fast": {"completed": "1"}, "slow": {"completed": "2"}}
    assert results(watched, "/root", "wait_agent") == [
        ("wait_output", "completed", "/root/fast"),
        ("wait_output", "completed", "/root/fast"),
        ("wait_output", "completed", "/root/slow"),
    ]


async def test_a_wait_that_times_out_tells_who_was_ready(
    stage: Stage, clock: FakeClock, gate: Before
) -> None:
    agents = {
        "/root": [
            step(spawn("fast"), spawn("slow")),
            step(wait("slow", "fast", mode="all", timeout_ms=60_000)),
            step(wait("slow", timeout_ms=1)),
            step(text="over"),
        ],
        "/root/fast": [step(text="1")],
        "/root/slow": [step(call("gate"))],
    }
    async with stage.play(agents, clock=clock) as watched:
        for number, seconds in ((1, 60), (2, 10)):
            await watched.until(lambda s: is_waiting(watched))
            await watched.until(lambda s: s.by_path("/root/fast").status == "completed")  # type: ignore[union-attr]
            await passes(clock, seconds)
            await watched.until(
                lambda s, number=number: len(outputs(watched, "/root", "wait_agent")) == number
            )
        gate.open.set()
        await watched.until(lambda s: s.quiet())
    first, second = (json.loads(text) for text in outputs(watched, "/root", "wait_agent"))
    assert first == {"status": {"fast": {"completed": "1"}}, "timed_out": True}
    assert second == {"status": {}, "timed_out": True}
    told = [r for r in watched.of(e.ToolResult, "/root") if r.source == "wait_output"]
    assert [(r.status, r.text) for r in told] == [
        ("completed", "1"),
        ("timed_out", "timed out after 10 s (the shortest wait is 10000 ms)"),
    ]


@pytest.mark.parametrize("how", ["completed", "errored", "interrupted", "shutdown"])
async def test_an_agent_that_has_ended_is_not_waited_for(stage: Stage, clock: FakeClock, how: str) -> None:
    ends: dict[str, Steps] = {
        "completed": [step(wait("a"))],
        "errored": [step(wait("a"))],
        "interrupted": [step(call("interrupt_agent", target="a"))],
        "shutdown": [step(call("close_agent", target="a"))],
    }
    child: dict[str, Steps] = {
        "completed": [step(text="done")],
        "errored": [step(text="never", fault={"kind": "unauthorized", "times": 0})],
    }
    agents = {
        "/root": [step(spawn("a")), *ends[how], step(wait("/root/a")), step(text="over")],
        "/root/a": child.get(how, [HANGING]),
    }
    async with stage.play(agents, clock=clock) as watched:
        await watched.until(lambda s: answered(watched, "over"))
    answer = json.loads(outputs(watched, "/root", "wait_agent")[-1])
    message = watched.at("/root/a").status_message
    expected: Any = {how: message} if how in ("completed", "errored") else how
    assert answer == {"status": {"/root/a": expected}, "timed_out": False}
    assert results(watched, "/root", "wait_agent")[-1] == ("wait_output", how, "/root/a")
    if how == "errored":
        assert "HTTP 401" in message


async def test_a_followup_task_for_an_interrupted_agent_starts_it_again(
    stage: Stage, clock: FakeClock, gate: Before
) -> None:
    hangs_once = {"kind": "hang", "after_events": 6}
    agents = {
        "/root": [
            step(spawn("a")),
            step(call("gate"), call("interrupt_agent", target="a")),
            step(call("interrupt_agent", target="a")),
            step(call("followup_task", target="a", message="try again")),
            step(wait("a")),
            step(text="over"),
        ],
        "/root/a": [step(text="at last", fault=hangs_once)],
    }
    async with stage.play(agents, clock=clock) as watched:
        await watched.until(lambda s: bool(watched.view.streaming))
        gate.open.set()
        await watched.quiet()
    assert json.loads(outputs(watched, "/root", "wait_agent")[0])["status"] == {"a": {"completed": "at last"}}
    assert results(watched, "/root", "interrupt_agent") == [
        ("interrupt_agent", "interrupted", "/root/a"),
        ("interrupt_agent", "nothing was running", "/root/a"),
    ]
    assert results(watched, "/root", "followup_task") == [("followup_task", "queued", "/root/a")]
    assert (watched.at("/root").turns, watched.at("/root/a").turns) == (1, 2)


# --- talking ---------------------------------------------------------------------------------------------


async def test_a_message_to_an_idle_root_waits_for_its_next_turn(stage: Stage, gate: Before) -> None:
    limits = {"wake_parent": False}
    agents = {
        "/root": [step(spawn("a")), step(text="idle"), step(text="read it")],
        "/root/a": [
            step(call("gate")),
            step(call("send_message", target="/root", message="by the way")),
            step(text="done"),
        ],
    }
    async with stage.play(agents, limits=limits) as watched:
        await watched.until(lambda s: s.agents[watched.root].status == "completed")
        gate.open.set()
        await watched.quiet()
        assert (watched.at("/root").turns, watched.at("/root").mail) == (1, 2)
        await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="well?"))
        await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 2)
    assert watched.at("/root").mail == 0
    # The operator's words first, then the mail in the order in which it came.
    texts = [i["content"][0]["text"] for i in stage.bodies()[-1]["input"][-3:]]
    assert texts[0] == "well?"
    assert texts[1].startswith("Message Type: MESSAGE\n")
    assert texts[1].endswith("\nby the way")
    assert texts[2].startswith("Message Type: FINAL_ANSWER\n")
    assert results(watched, "/root/a", "send_message") == [("send_message", "queued", "/root")]


async def test_a_followup_task_joins_the_running_turn(stage: Stage, gate: Before) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(call("followup_task", target="a", message="and this")),
            step(wait("a")),
        ],
        "/root/a": [step(call("gate")), step(text="both done")],
    }
    async with stage.play(agents) as watched:
        await gate.entered.wait()
        await watched.until(lambda s: s.by_path("/root/a").mail == 1)  # type: ignore[union-attr]
        gate.open.set()
        await watched.quiet()
    assert watched.at("/root/a").turns == 1
    assert "and this" in stage.bodies("/root/a")[-1]["input"][-1]["content"][0]["text"]
    assert json.loads(outputs(watched, "/root", "wait_agent")[0])["status"] == {
        "a": {"completed": "both done"}
    }


async def test_nobody_talks_to_himself_or_to_the_closed(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(call("close_agent", target="a")),
            step(
                call("send_message", target="/root", message="x"),
                call("send_message", target="a", message="x"),
                call("send_message", target="/elsewhere", message="x"),
                call("followup_task", target="/root", message="x"),
                call("followup_task", target="/root/a", message="x"),
            ),
            step(text="over"),
        ],
        "/root/a": [step(text="done")],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda s: answered(watched, "over"))
    assert errors(watched, "/root", "send_message") == [
        "this is your own path; choose another target",
        "no open agent has the path /root/a; open agents: /root",
        "the agent path '/elsewhere' must start with /root",
    ]
    to_root, to_closed = errors(watched, "/root", "followup_task")
    assert "own path" in to_root or "takes no tasks" in to_root
    assert "no open agent has the path /root/a" in to_closed


# --- listing ---------------------------------------------------------------------------------------------


async def test_agents_are_listed_below_a_path_by_whole_names(stage: Stage, gate: Before) -> None:
    agents = {
        "/root": [
            step(spawn("a", message="look at\n  everything"), spawn("ab"), spawn("gone")),
            step(wait("ab", "gone", mode="all"), call("close_agent", target="gone")),
            step(wait("a")),
            step(call("list_agents"), call("list_agents", path_prefix="a")),
            step(call("list_agents", path_prefix="/root/nobody"), call("list_agents", path_prefix="/x")),
            step(text="over"),
        ],
        "/root/a": [
            step(spawn("b")),
            step(wait("b")),
            step(call("list_agents", path_prefix="b"), call("list_agents", path_prefix="/root/ab")),
            step(text="seen"),
        ],
        "/root/a/b": [step(text="deep")],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda s: answered(watched, "over"))

    def listed(path: str) -> list[list[str]]:
        found = [json.loads(text) for text in outputs(watched, path, "list_agents") if text[0] == "{"]
        return [[row["agent_name"] for row in one["agents"]] for one in found]

    assert sorted(listed("/root")) == [
        [],
        ["/root", "/root/a", "/root/a/b", "/root/ab"],
        ["/root/a", "/root/a/b"],
    ]
    assert sorted(listed("/root/a")) == [["/root/a/b"], ["/root/ab"]]
    assert any("'/x' must start with /root" in text for text in outputs(watched, "/root", "list_agents"))
    everything = max(outputs(watched, "/root", "list_agents"), key=len)
    row = next(r for r in json.loads(everything)["agents"] if r["agent_name"] == "/root/a")
    assert row == {
        "agent_name": "/root/a",
        "nickname": watched.at("/root/a").nickname,
        "agent_status": {"completed": "seen"},
        "task": "look at everything",
        "tokens": row["tokens"],
    }
    used = watched.at("/root/a").tokens
    assert used is not None
    assert row["tokens"] == used.total > 0


# --- stopping --------------------------------------------------------------------------------------------


async def test_an_agent_stops_neither_itself_nor_those_above_it(stage: Stage) -> None:
    def tries(*targets: str) -> dict[str, Any]:
        return step(*(call(n, target=t) for n in ("interrupt_agent", "close_agent") for t in targets))

    agents = {
        "/root": [step(spawn("a")), step(wait("a")), tries("/root"), step(text="over")],
        "/root/a": [step(spawn("b")), step(wait("b")), tries("/root/a", "/root"), step(text="stands")],
        "/root/a/b": [tries("/root/a/b", "/root/a", "/root", "nobody"), step(text="stands")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    for path, count in (("/root", 1), ("/root/a", 2), ("/root/a/b", 4)):
        for name in ("interrupt_agent", "close_agent"):
            told = errors(watched, path, name)
            assert len(told) == count
            assert sum("the root can only be stopped by the operator" in text for text in told) == 1
            own = sum("cannot stop itself or an agent it works for" in text for text in told)
            assert own == {"/root": 0, "/root/a": 1, "/root/a/b": 2}[path]
    assert {a.status for a in watched.state.agents.values()} == {"completed"}


async def test_a_sibling_may_be_interrupted_and_closed_with_all_below_it(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(spawn("z")), step(wait("z")), step(text="over")],
        "/root/a": [step(spawn("b")), step(spawn("c")), step(text="made two")],
        "/root/a/b": [HANGING],
        "/root/a/c": [step(spawn("d")), step(text="made one")],
        "/root/a/c/d": [HANGING],
        "/root/z": [
            step(wait("/root/a/c")),
            step(call("interrupt_agent", target="/root/a/b")),
            step(call("close_agent", target="/root/a/c")),
            step(text="cleaned"),
        ],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    assert results(watched, "/root/z", "interrupt_agent") == [("interrupt_agent", "interrupted", "/root/a/b")]
    assert json.loads(outputs(watched, "/root/z", "interrupt_agent")[0]) == {"previous_status": "running"}
    assert results(watched, "/root/z", "close_agent") == [
        ("close_agent", "shutdown", "/root/a/c"),
        ("close_agent", "shutdown", "/root/a/c/d"),
    ]
    assert json.loads(outputs(watched, "/root/z", "close_agent")[0]) == {
        "previous_status": {"completed": "made one"}
    }
    assert watched.at("/root/a/b").status_message == "by /root/z"
    assert [c.by for c in watched.of(e.AgentClosed)] == ["/root/z"] * 2
    assert watched.at("/root/a").status == "completed"


# --- forks and roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fork", "seen"),
    [
        (None, []),
        ("none", []),
        ("all", ["one", "first answer", "two", "second answer", "three"]),
        (" ALL ", ["one", "first answer", "two", "second answer", "three"]),
        ("1", ["three"]),
        ("2", ["two", "second answer", "three"]),
        ("99", ["one", "first answer", "two", "second answer", "three"]),
    ],
)
async def test_a_fork_takes_over_the_turns_it_asks_for_and_no_more(
    stage: Stage, fork: str | None, seen: list[str]
) -> None:
    fields = {} if fork is None else {"fork_turns": fork}
    agents = {
        "/root": [
            step(text="first answer"),
            step(call("list_agents"), text="I look first"),
            step(text="second answer"),
            step(spawn("a", **fields), text="I spawn"),
            step(wait("a")),
            step(text="third answer"),
        ],
        "/root/a": [step(text="ok")],
    }
    async with stage.play(agents, task="one") as watched:
        for turn, text in ((1, "two"), (2, "three")):
            await watched.until(lambda s, turn=turn: s.quiet() and s.agents[watched.root].turns == turn)
            await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text=text))
        await watched.until(lambda s: answered(watched, "third answer"))
    [first] = stage.bodies("/root/a")
    assert {item["type"] for item in first["input"]} == {"message"}
    texts = [item["content"][0]["text"] for item in first["input"]]
    assert texts[:-1] == seen
    assert texts[-1].endswith("Sender: /root\nPayload:\nx")


async def test_what_is_no_number_of_turns_spawns_nobody(stage: Stage) -> None:
    garbage = ["0", "-1", "1.5", "two", "²", "all 3"]
    steps = [step(*(spawn("a", fork_turns=word) for word in garbage)), step(text="over")]
    async with stage.play({"/root": steps}) as watched:
        await watched.quiet()
    told = errors(watched, "/root", "spawn_agent")
    assert len(told) == len(garbage)
    assert all("fork_turns: Value error, must be none, all or a positive number" in text for text in told)
    assert len(watched.state.agents) == 1


SCOUT = {
    "instructions": "Only look.",
    "model": "role-model",
    "reasoning_effort": "low",
    "max_tokens": 500,
    "tools": ["exec_command", "list_agents"],
}
DEFAULTS = {"default_subagent_model": "default-model", "default_subagent_reasoning_effort": "medium"}


@pytest.mark.parametrize(
    ("fields", "defaults", "model", "effort"),
    [
        ({}, {}, "scripted", None),
        ({}, DEFAULTS, "default-model", "medium"),
        ({"agent_type": "scout"}, DEFAULTS, "role-model", "low"),
        ({"agent_type": "scout", "model": "mine", "reasoning_effort": "high"}, DEFAULTS, "mine", "high"),
        ({"agent_type": "scout", "model": "mine"}, {}, "mine", "low"),
    ],
    ids=["parent", "defaults", "role", "arguments", "arguments-and-role"],
)
async def test_arguments_beat_the_role_beats_the_defaults_beats_the_parent(
    stage: Stage, fields: dict[str, str], defaults: dict[str, str], model: str, effort: str | None
) -> None:
    agents = {"/root": [step(spawn("a", **fields)), step(wait("a"))], "/root/a": [step(text="ok")]}
    limits = {"roles": {"scout": SCOUT}, **defaults}
    async with stage.play(agents, limits=limits) as watched:
        await watched.quiet()
    [body] = stage.bodies("/root/a")
    assert body["model"] == watched.at("/root/a").model == model
    assert (body.get("reasoning") or {}).get("effort") == effort
    scout = "agent_type" in fields
    assert watched.at("/root/a").role == ("scout" if scout else "default")
    assert body.get("max_output_tokens") == (500 if scout else None)
    assert body["instructions"].endswith("\n\nOnly look.") == scout
    names = {tool["name"] for tool in body["tools"]}
    assert (names == {"exec_command", "list_agents"}) == scout
    assert stage.bodies()[0]["model"] == "scripted"


async def test_a_grandchild_is_what_its_parent_is(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a", model="big", reasoning_effort="high")), step(wait("a"))],
        "/root/a": [step(spawn("b")), step(wait("b"))],
        "/root/a/b": [step(text="ok")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    [body] = stage.bodies("/root/a/b")
    assert (body["model"], body["reasoning"]["effort"]) == ("big", "high")


async def test_a_tool_that_a_role_does_not_have_is_not_there(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a", agent_type="scout")), step(wait("a"))],
        "/root/a": [step(spawn("b")), step(text="so be it")],
    }
    async with stage.play(agents, limits={"roles": {"scout": SCOUT}}) as watched:
        await watched.quiet()
    assert errors(watched, "/root/a", "spawn_agent") == [
        "there is no tool 'spawn_agent'; the tools are: exec_command, list_agents"
    ]
    assert len(watched.state.agents) == 2
