"""Who an agent is: its registration, path, nickname, role and what it takes over; each rule of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.agents.births import Births
from core.agents.errors import Refused
from core.agents.history import History
from core.agents.nicknames import NAMES
from core.domain import events as e
from core.domain import paths
from core.domain.commands import SendInput
from core.models.responses import ResponsesClient
from core.models.types import ModelError, ModelRequest
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import Gate, Stage
from tests.core.agents.test_comeback import close
from tests.core.agents.test_resume import Later
from tests.core.agents.test_tools import answered, spawn, wait
from tests.core.harness import Watched
from tests.core.store.tools import query


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


def refused(watched: Watched, path: str, name: str) -> list[str]:
    """What the calls of one tool that failed were answered with."""
    calls = {c.call for c in watched.of(e.ToolCalled, path) if c.name == name}
    failed = {end.call for end in watched.of(e.ToolEnded, path) if end.status == "error"}
    return [r.text for r in watched.of(e.ToolResult, path) if r.call in calls & failed]


# --- registration ----------------------------------------------------------------------------------------


async def test_an_agents_registration_is_its_first_event(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b", fork_turns="all")), step(wait("a", "b", mode="all"))],
        "/root/a": [step(spawn("c")), step(wait("c"))],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    first = query(
        stage.folder / "home",
        "SELECT agent, type, min(seq) FROM events WHERE agent IS NOT NULL GROUP BY agent",
    )
    assert [kind for _, kind, _ in first] == ["agent_spawned"] * 4
    # And the tool's answer comes after it.
    for spawned in watched.of(e.AgentSpawned):
        told = [r for r in watched.of(e.ToolResult) if r.about == spawned.agent and r.source == "spawn"]
        assert all(r.seq > spawned.seq for r in told)
        assert len(told) == (spawned.parent is not None)


async def test_a_birth_that_fails_leaves_path_and_place_free(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    born = Births._born
    failed: list[str] = []

    def fails_once(self: Births, spec: Any, birth: Any) -> list[e.Event]:
        if birth.name == "a" and not failed:
            failed.append(spec.nickname)
            raise Refused("not now")
        return born(self, spec, birth)

    monkeypatch.setattr(Births, "_born", fails_once)
    # With two agents in all there is room for the second only if the first gave its place back.
    agents = {"/root": [step(spawn("a")), step(spawn("a")), step(wait("a"))], "/root/a": [step(text="x")]}
    async with stage.play(agents, limits={"max_agents": 2}) as watched:
        await watched.quiet()
    assert refused(watched, "/root", "spawn_agent") == ["not now"]
    assert watched.at("/root/a").status_message == "x"
    assert watched.at("/root/a").nickname not in failed


# --- paths -----------------------------------------------------------------------------------------------

BAD_NAMES = {
    "": "an agent name must not be empty",
    "root": "the agent name 'root' is reserved",
    ".": "the agent name '.' is reserved",
    "..": "the agent name '..' is reserved",
    "a/b": "the agent name 'a/b' must not contain '/'",
    "Audit": "the agent name 'Audit' may hold only a-z, 0-9 and _",
    "two words": "the agent name 'two words' may hold only a-z, 0-9 and _",
    "é": "the agent name 'é' may hold only a-z, 0-9 and _",
}
BAD_PATHS = {
    "/other/a": "the agent path '/other/a' must start with /root",
    "/rooted": "the agent path '/rooted' must start with /root",
    "/root/": "the agent path '/root/' must not end with '/'",
    "/root/a/": "the agent path '/root/a/' must not end with '/'",
    "/root//a": "an agent name must not be empty",
    "/root/root": "the agent name 'root' is reserved",
}


@pytest.mark.parametrize(("path", "says"), BAD_PATHS.items())
def test_each_way_to_get_a_path_wrong_has_an_error_of_its_own(path: str, says: str) -> None:
    with pytest.raises(paths.PathError) as error:
        paths.check_path(path)
    assert str(error.value) == says


async def test_a_bad_name_or_path_is_told_to_the_model_in_its_own_words(stage: Stage) -> None:
    agents = {
        "/root": [
            step(*(spawn(name) for name in BAD_NAMES)),
            step(*(call("send_message", target=path, message="x") for path in BAD_PATHS)),
        ]
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    assert sorted(refused(watched, "/root", "spawn_agent")) == sorted(BAD_NAMES.values())
    assert sorted(refused(watched, "/root", "send_message")) == sorted(BAD_PATHS.values())
    assert len(watched.state.agents) == 1


async def test_targets_resolve_downwards_only(stage: Stage, gate: Gate) -> None:
    def tells(target: str) -> dict[str, Any]:
        return call("send_message", target=target, message=f"to {target}")

    agents = {
        "/root": [step(spawn("a"), spawn("b")), step(tells("a/c"), wait("a", "b", mode="all"))],
        "/root/a": [
            step(spawn("c")),
            step(wait("c")),
            step(*map(tells, ["c", "/root/b", "/root", "b", "a", "../b", "root"])),
        ],
        "/root/b": [step(call("gate"))],
    }
    async with stage.play(agents) as watched:
        await watched.until(lambda s: (a := s.by_path("/root/a")) is not None and a.status == "completed")
        gate.open.set()
        await watched.quiet()
    sent = {
        (m.author, m.text, watched.state.agents[m.agent or ""].path)
        for m in watched.of(e.MailQueued)
        if m.kind == "MESSAGE"
    }
    assert sent >= {
        ("/root/a", "to c", "/root/a/c"),
        ("/root/a", "to /root/b", "/root/b"),
        ("/root/a", "to /root", "/root"),
    }
    everybody = "open agents: /root, /root/a, /root/a/c, /root/b"
    assert sorted(refused(watched, "/root/a", "send_message")) == sorted(
        [
            f"no open agent has the path /root/a/b; {everybody}",
            f"no open agent has the path /root/a/a; {everybody}",
            "the agent name '..' is reserved",
            "the agent name 'root' is reserved",
        ]
    )


async def test_a_path_is_free_again_when_its_agent_is_closed_and_not_before(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a")),
            step(wait("a")),
            step(spawn("a")),
            step(close("a")),
            step(spawn("a")),
            step(wait("a")),
        ],
        "/root/a": [step(text="x")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    assert refused(watched, "/root", "spawn_agent") == [
        "the agent path /root/a is taken; choose another task_name"
    ]
    first, second = [s for s in watched.of(e.AgentSpawned) if s.path == "/root/a"]
    assert first.agent != second.agent
    assert first.nickname != second.nickname


# --- nicknames -------------------------------------------------------------------------------------------


async def test_a_nickname_is_never_given_again_not_even_by_another_engine(later: Later) -> None:
    before = [f"b{n}" for n in range(5)]
    after = [f"c{n}" for n in range(len(NAMES))]
    steps = [
        step(*map(spawn, before)),
        step(wait(*before, mode="all")),
        step(*map(close, before)),
        step(text="half"),
        *(
            one
            for some in (after[i : i + 20] for i in range(0, len(after), 20))
            for one in (step(*map(spawn, some)), step(wait(*some, mode="all")), step(*map(close, some)))
        ),
    ]
    played = {"/root": steps, "/root/*": [step(text="x")]}
    async with later.first(played) as (one, swarm, root):
        await one.until(swarm, lambda s: s.agents[root].status_message == "half" and s.quiet())
        later.dies()
    async with later.second(played, swarm) as two:
        await two.send(SendInput(swarm=swarm, thread=root, text="go on"))
        await two.until(swarm, lambda s: s.agents[root].status_message == "done" and s.quiet(), 40)
        names = [agent.nickname for agent in two.engine.state(swarm).agents.values()]
    assert len(names) == 1 + len(before) + len(after)
    assert len(set(names)) == len(names)
    assert sum(name.endswith(" the 2nd") for name in names) == len(before)


# --- roles and models ------------------------------------------------------------------------------------

ROLES = {
    "scout": {"description": "Only looks.\nNever writes.", "instructions": "Look."},
    "writer": {"instructions": "Write."},
}


async def test_an_unknown_role_is_answered_with_those_that_exist(stage: Stage) -> None:
    agents = {"/root": [step(spawn("a", agent_type="nobody"), spawn("b", agent_type=""))]}
    async with stage.play(agents, limits={"roles": ROLES}) as watched:
        await watched.quiet()
    assert refused(watched, "/root", "spawn_agent") == [
        "there is no role 'nobody'; the roles are: default, scout, writer",
        "there is no role ''; the roles are: default, scout, writer",
    ]
    assert len(watched.state.agents) == 1
    # Whoever spawns is told of them before.
    [tool] = [t for t in stage.bodies()[0]["tools"] if t["name"] == "spawn_agent"]
    assert tool["description"].endswith(
        "\n\nThe roles (agent_type):\n- scout: Only looks. Never writes.\n- writer"
    )


CATALOG = {"big": {"input": 1.0, "output": 2.0}, "small": {"context_window": 100_000}}


async def test_an_unknown_model_is_answered_with_those_that_exist(stage: Stage) -> None:
    agents = {
        "/root": [
            step(spawn("a", model="huge"), spawn("b", model="small"), spawn("c", agent_type="scout")),
            step(wait("b", "c", mode="all")),
        ],
        "/root/*": [step(text="x")],
    }
    roles = {"scout": {"model": "of-the-role"}}
    async with stage.play(agents, limits={"roles": roles}, options={"catalog": CATALOG}) as watched:
        await watched.quiet()
    assert refused(watched, "/root", "spawn_agent") == [
        "there is no model 'huge'; the models are: big, of-the-role, scripted, small"
    ]
    assert {a.path: a.model for a in watched.state.agents.values()} == {
        "/root": "scripted",
        "/root/b": "small",
        "/root/c": "of-the-role",
    }
    [tool] = [t for t in stage.bodies()[0]["tools"] if t["name"] == "spawn_agent"]
    assert tool["description"].endswith("\nThe models: big, of-the-role, scripted, small.")


@pytest.mark.parametrize("catalog", [{}, {**CATALOG, "*": {}}])
async def test_where_no_list_of_models_is_known_the_server_decides(
    stage: Stage, catalog: dict[str, Any]
) -> None:
    agents = {
        "/root": [step(spawn("a", model="huge")), step(wait("a")), step(text="over")],
        "/root/a": [step(text="x")],
    }
    options = {"catalog": catalog} if catalog else {}
    async with stage.play(agents, options=options) as watched:
        await watched.quiet()
    assert watched.at("/root/a").model == "huge"
    [tool] = [t for t in stage.bodies()[0]["tools"] if t["name"] == "spawn_agent"]
    assert "The models:" not in tool["description"]


async def test_a_parent_whose_childs_model_the_server_does_not_have_reads_which_there_are(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = ResponsesClient.stream

    async def knows_few(self: ResponsesClient, request: ModelRequest) -> Any:
        if request.model == "huge":
            raise ModelError("404 the model huge does not exist", kind="not_found", status=404)
        async for event in stream(self, request):
            yield event

    monkeypatch.setattr(ResponsesClient, "stream", knows_few)
    agents = {"/root": [step(spawn("a", model="huge")), step(wait("a")), step(text="over")]}
    async with stage.play(agents, limits={"default_subagent_model": "small"}) as watched:
        await watched.until(lambda s: answered(watched, "over"))
        await watched.quiet()
    [mail] = [m for m in watched.of(e.AgentMessage, "/root") if m.kind == "FINAL_ANSWER"]
    assert "404 the model huge does not exist" in mail.text
    assert mail.text.endswith(" The models in use here are: scripted, small.")


# --- forks -----------------------------------------------------------------------------------------------


def told(history: History, turns: int | None) -> list[str]:
    return [item["content"][0]["text"].splitlines()[-1] for item in history.fork(turns)]


def mail(kind: Any, text: str) -> e.AgentMessage:
    return e.AgentMessage(kind=kind, author="/root/x", text=text)


def test_a_fork_takes_no_mail_but_tasks_and_counts_turns_by_them() -> None:
    history = History("/root/a")
    for event in (
        mail("NEW_TASK", "task one"),
        e.AssistantMessage(text="answer one"),
        mail("FINAL_ANSWER", "what a child found"),
        e.AssistantMessage(text="more on one"),
        e.UserMessage(text="typed"),
        e.UserMessage(text="and typed"),
        mail("MESSAGE", "by the way"),
        e.AssistantMessage(text="answer two"),
        mail("NEW_TASK", "task three"),
    ):
        history.add(event)
    everything = ["task one", "answer one", "more on one", "and typed", "answer two", "task three"]
    assert told(history, None) == told(history, 3) == told(history, 9) == everything
    assert told(history, 1) == ["task three"]
    assert told(history, 2) == ["and typed", "answer two", "task three"]
    # A fork of a fork: what was taken over counts as before, and the own task comes behind it.
    below = History("/root/a/b")
    below.inherit(history, "2")
    below.add(mail("NEW_TASK", "task of b"))
    below.add(mail("MESSAGE", "beside"))
    assert told(below, None) == ["and typed", "answer two", "task three", "task of b"]
    assert told(below, 2) == ["task three", "task of b"]


def test_a_compacted_history_forks_by_what_is_left_of_it() -> None:
    history = History("/root")
    for event in (
        e.UserMessage(text="one"),
        mail("FINAL_ANSWER", "found"),
        e.AssistantMessage(text="answer one"),
        e.UserMessage(text="two " * 300),
        e.AssistantMessage(text="answer two"),
        e.HistoryCompacted(summary="all of it", keep=1000),
        e.UserMessage(text="three"),
        mail("MESSAGE", "beside"),
        e.AssistantMessage(text="answer three"),
    ):
        history.add(event)
    assert told(history, 1) == ["three", "answer three"]
    whole = told(history, 2)
    assert whole[0].startswith("two two")  # cut, and still the begin of a turn
    assert whole[-2:] == ["three", "answer three"]
    assert "beside" not in told(history, None)
