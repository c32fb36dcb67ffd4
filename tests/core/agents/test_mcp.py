"""Agents with real MCP servers: who gets whose tools, what is recorded, and that no process survives."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.channel.launch import home_engine
from core.channel.setup import setup_of
from core.domain import commands as c
from core.domain import events as e
from core.domain.state import server_key
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import WAIT, Stage, outputs
from tests.core.agents.test_resume import Later
from tests.core.agents.test_startup import is_, resume, spawn, wait
from tests.core.channel import homes
from tests.core.crash import home_settings, killed
from tests.core.harness import Watched, engine, settings_for, swarm
from tests.core.tools.mcp.fakes import SCRIPT
from tests.core.tools.processes import alive, gone

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def marker() -> str:
    return f"mcp-{uuid.uuid4().hex}"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


def fake(marker: str = "", behaviour: str = "good", **more: Any) -> dict[str, Any]:
    """A server as a settings file has it."""
    args = ["-I", "-S", str(SCRIPT), behaviour, *([marker] if marker else [])]
    return {"command": sys.executable, "args": args, **more}


def mcp(*, roles: dict[str, Any] | None = None, **servers: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Stage.play`."""
    options: dict[str, Any] = {"mcp": servers}
    return {"options": options} | ({"limits": {"roles": roles}} if roles else {})


def tools_of(body: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in body["tools"] if "__" in tool["name"]}


def statuses(watched: Watched, server: str = "docs") -> list[str]:
    return [event.status for event in watched.of(e.McpServerChanged) if event.server == server]


# --- whose tools -----------------------------------------------------------------------------------------


@linux
async def test_one_server_serves_all_agents_of_a_swarm_and_ends_with_it(stage: Stage, marker: str) -> None:
    agents = {
        "/root": [
            step(spawn("a"), spawn("b"), call("docs__echo", text="from root")),
            step(wait("a", "b"), call("list_agents")),
            step(wait("b")),
            step(text="end"),
        ],
        "/root/*": [step(call("docs__echo", text="hello")), step(text="x")],
    }
    async with stage.play(agents, **mcp(docs=fake(marker))) as watched:
        await watched.quiet()
        assert len(alive(marker)) == 1
        assert statuses(watched) == ["starting", "ready"]
        server = watched.state.servers["docs"]
        assert (server.status, server.thread, server.tools > 20) == ("ready", None, True)
        assert server.seconds is not None
    assert gone(marker)
    assert outputs(watched, "/root", "docs__echo") == ['{"text": "from root"}']
    for path in ("/root/a", "/root/b"):
        assert outputs(watched, path, "docs__echo") == ['{"text": "hello"}']
        assert "docs__echo" in tools_of(stage.bodies(path)[0])
    assert {event.category for event in watched.of(e.ToolCalled) if "__" in event.name} == {"mcp"}


async def test_a_swarm_records_that_its_servers_ended(later: Later, marker: str) -> None:
    played = {"/root": [step(call("docs__echo", text="1")), step(text="one")]}
    options = {"mcp": {"docs": fake(marker)}}
    async with later.first(played, **options) as (one, swarm_id, _):
        await one.quiet(swarm_id)
    [ended] = [event for event in one.of(e.McpServerChanged) if event.status == "ended"]
    assert ended.detail == "it was stopped"
    # And the next engine starts them again when they are needed, for the same tools.
    async with later.second(played, swarm_id, home="home", **options) as two:
        assert two.engine.state(swarm_id).servers["docs"].status == "ended"
        root = two.at(swarm_id, "/root").thread
        await two.send(c.SendInput(swarm=swarm_id, thread=root, text="more"))
        await two.until(swarm_id, lambda s: s.agents[root].turns == 2 and s.quiet())
        assert two.engine.state(swarm_id).servers["docs"].status == "ready"
    assert gone(marker)
    assert "docs__echo" in tools_of(later.bodies("/root")[0])


@linux
async def test_agents_of_a_role_may_have_processes_of_their_own(stage: Stage, marker: str) -> None:
    agents = {
        "/root": [
            step(spawn("a", agent_type="loner"), spawn("b", agent_type="loner"), spawn("c")),
            step(call("wait_agent", targets=["a", "b", "c"], mode="all", timeout_ms=WAIT)),
            step(text="end"),
        ],
        "/root/*": [step(call("docs__echo", text="hello")), step(text="x")],
    }
    role = {"loner": {"mcp": "own"}}
    async with stage.play(agents, **mcp(roles=role, docs=fake(marker))) as watched:
        await watched.quiet()
        assert len(alive(marker)) == 3
        a = watched.at("/root/a").thread
        assert watched.state.servers[server_key("docs", a)].status == "ready"
        await watched.client.send(c.Close(swarm=watched.swarm, thread=a))
        await watched.until(is_("/root/a", "shutdown"))
        assert len(alive(marker)) == 2
        assert server_key("docs", a) not in watched.state.servers
        told = [event.status for event in watched.of(e.McpServerChanged) if event.agent == a]
        assert told == ["starting", "ready", "ended"]
        # It comes back with a process again, once it has a turn.
        await resume(watched, "/root/a")
        assert len(alive(marker)) == 2
        await watched.client.send(c.SendInput(swarm=watched.swarm, thread=a, text="more"))
        await watched.until(lambda s: s.agents[a].turns == 2 and s.quiet())
        assert len(alive(marker)) == 3
    assert gone(marker)


async def test_a_role_says_which_servers_and_which_tools_its_agents_get(stage: Stage) -> None:
    roles = {
        "none": {"mcp_servers": []},
        "shop": {"mcp_servers": ["shop"]},
        "echo": {"tools": ["docs__e*", "exec_command"]},
        "own": {"mcp_servers": ["shop"], "mcp": "own", "tools": ["*__echo"]},
    }
    names = [*roles, "all"]
    spawns = [spawn(name, **({"agent_type": name} if name in roles else {})) for name in names]
    agents = {
        "/root": [step(*spawns), step(call("wait_agent", targets=names, mode="all", timeout_ms=WAIT))],
        "/root/*": [step(text="x")],
    }
    servers = {"docs": fake(), "shop": fake(), "off": fake(enabled=False)}
    async with stage.play(agents, **mcp(roles=roles, **servers)) as watched:
        await watched.quiet()
    offered = {name: tools_of(stage.bodies(f"/root/{name}")[0]) for name in names}
    assert offered["none"] == set()
    assert {name.split("__")[0] for name in offered["shop"]} == {"shop"}
    assert offered["echo"] == {"docs__echo", "docs__error", "docs__endless", "docs__env"}
    assert offered["own"] == {"shop__echo"}
    assert {name.split("__")[0] for name in offered["all"]} == {"docs", "shop"}


async def test_workers_of_a_job_have_them_too(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "rows.csv").write_text("id\n1\n2\n")
    rows = call("spawn_agents_on_csv", csv_path="rows.csv", instruction="do {{id}}")
    agents = {"/root": [step(rows), step(text="end")], "/root/*": [step(call("docs__echo", text="w"))]}
    async with stage.play(agents, **mcp(docs=fake())) as watched:
        await watched.quiet()
        workers = [agent.path for agent in watched.state.agents.values() if agent.job]
    assert len(workers) == 2
    assert [outputs(watched, path, "docs__echo") for path in workers] == [['{"text": "w"}']] * 2
    assert statuses(watched)[:2] == ["starting", "ready"]


# --- starts that fail ------------------------------------------------------------------------------------


@linux
async def test_required_servers_that_fail_are_named_and_nothing_is_left_running(
    stage: Stage, marker: str
) -> None:
    clock = FakeClock()
    servers = {
        "zoo": fake(marker, "dies", required=True),
        "slow": fake(marker, "hangs", required=True),
        "fine": fake(marker, required=True),
        "extra": fake(marker, "dies_listing"),
    }
    async with stage.play({"/root": [step(text="x")]}, clock=clock, **mcp(**servers)) as watched:
        await watched.until(
            lambda s: (
                {n: o.status for n, o in s.servers.items()}
                == {"zoo": "failed", "extra": "failed", "fine": "ready", "slow": "starting"}
            )
        )
        assert watched.at("/root").status == "pending_init"
        # Only the one that it still waits for is named.
        await watched.until(
            lambda s: bool((w := s.agents[watched.root].wait) and w.detail == "MCP server slow")
        )
        await clock.advance(10)
        state = await watched.until(is_("/root", "errored"))
        assert state.quiet()
        assert gone(marker)
        assert watched.at("/root").status_message == (
            "slow: it did not start within 10 s (startup_timeout_sec sets how long it may take);"
            ' zoo: it ended with exit code 1 ("cannot open the database")'
        )
        await watched.until(lambda s: s.servers["fine"].status == "ended")
        reply = await watched.client.send(c.SendInput(swarm=watched.swarm, thread=watched.root, text="hello"))
        assert (reply.ok, reply.code) == (False, "refused")
        assert "cannot open the database" in reply.error
    failed = {ev.server: ev for ev in watched.of(e.McpServerChanged) if ev.status == "failed"}
    assert failed["slow"].seconds == 10
    assert failed["zoo"].required
    assert "no tools today" in failed["extra"].detail


async def test_an_optional_server_that_fails_is_missing_and_everything_else_goes_on(stage: Stage) -> None:
    agents = {"/root": [step(call("docs__echo", text="1")), step(text="end")]}
    async with stage.play(agents, **mcp(docs=fake(), bad=fake(behaviour="dies"))) as watched:
        await watched.quiet()
    assert watched.at("/root").status_message == "end"
    assert statuses(watched, "bad") == ["starting", "failed"]
    assert {name.split("__")[0] for name in tools_of(stage.bodies()[0])} == {"docs"}


async def test_after_a_failed_start_the_next_who_needs_it_tries_again(tmp_path: Path, stage: Stage) -> None:
    good = tmp_path / "good"
    script = 'test -e "$0" || { echo not yet >&2; exit 1; }; exec "$@"'
    command = ["-c", script, str(good), sys.executable, "-I", "-S", str(SCRIPT)]
    settings = {"command": "/bin/sh", "args": command, "required": True}
    agents = {"/root": [step(call("docs__echo", text="1")), step(text="end")]}
    async with stage.play(agents, **mcp(docs=settings)) as watched:
        await watched.until(is_("/root", "errored"))
        assert "not yet" in watched.at("/root").status_message
        good.touch()
        assert (await resume(watched, "/root"))["changed"]
        await watched.until(is_("/root", "completed"))
    assert outputs(watched, "/root", "docs__echo") == ['{"text": "1"}']
    assert statuses(watched)[:4] == ["starting", "failed", "starting", "ready"]


# --- servers that misbehave ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("die", "exit code 3"),
        ("flood", "flooded"),
        ("endless", "without the end of a message"),
        ("mutter", "flooded"),
    ],
)
@linux
async def test_a_server_that_dies_or_floods_never_stops_a_swarm(
    stage: Stage, marker: str, does: str, said: str
) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(call("docs__echo", text="1")), step(text="end")],
        "/root/a": [step(call(f"docs__{does}")), step(text="from a")],
    }
    async with stage.play(agents, **mcp(docs=fake(marker))) as watched:
        await watched.quiet()
        assert gone(marker)
        await watched.until(lambda s: s.servers["docs"].status == "ended")
        assert said in watched.state.servers["docs"].detail
    assert said in outputs(watched, "/root/a", f"docs__{does}")[0]
    assert "the MCP server docs is gone" in outputs(watched, "/root", "docs__echo")[0]
    assert watched.at("/root").status_message == "end"
    assert watched.at("/root/a").status_message == "from a"


async def test_a_call_that_hangs_ends_in_time_and_one_that_is_interrupted_at_once(stage: Stage) -> None:
    clock = FakeClock()
    agents = {"/root": [step(call("docs__hang")), step(call("docs__hang", text="again")), step(text="end")]}
    async with stage.play(agents, clock=clock, **mcp(docs=fake())) as watched:
        await watched.until(lambda s: len(s.calls) == 1)
        while clock.sleeping < 2:  # the call has its limit
            await settle()
        await clock.advance(60)
        await watched.until(lambda s: s.agents[watched.root].calls == 2 and len(s.calls) == 1)
        stopped = await watched.client.send(c.Interrupt(swarm=watched.swarm, thread=watched.root))
        assert stopped.value["changed"]
    first, second = outputs(watched, "/root", "docs__hang")
    assert "did not answer within 60 s" in first
    assert "interrupted by operator" in second


async def test_a_server_that_renames_its_tools_is_not_called_by_old_names(stage: Stage) -> None:
    names = ["docs__rename", "docs__echo", "docs__other"]
    agents = {"/root": [*(step(call(name, text="1")) for name in names), step(text="end")]}
    async with stage.play(agents, **mcp(docs=fake())) as watched:
        await watched.quiet()
    assert "no longer offers echo" in outputs(watched, "/root", "docs__echo")[0]
    assert "there is no tool 'docs__other'" in outputs(watched, "/root", "docs__other")[0]
    # What agents are told stays what it was: their requests keep their beginning.
    assert len({json.dumps(body["tools"]) for body in stage.bodies()}) == 1
    assert "changed or removed echo" in watched.of(e.McpServerChanged)[-1].detail


# --- approvals and questions -----------------------------------------------------------------------------


async def asked(watched: Watched) -> c.AnyCommand:
    state = await watched.until(lambda s: bool(s.approvals))
    [approval] = state.approvals.values()
    return c.Decide(swarm=watched.swarm, approval=approval.approval, approve=True)


async def test_a_tool_that_writes_is_asked_for(stage: Stage) -> None:
    agents = {"/root": [step(call("docs__write", text="1")), step(text="end")]}
    async with stage.play(agents, **mcp(docs=fake())) as watched:
        decide = await asked(watched)
        [approval] = watched.of(e.ApprovalRequested)
        assert approval.command == 'docs__write {"text": "1"}'
        assert (await watched.client.send(decide)).ok
        await watched.quiet()
    assert outputs(watched, "/root", "docs__write") == ["written"]


@pytest.mark.parametrize("approve", [True, False])
async def test_a_question_of_a_server_is_asked_at_the_root(stage: Stage, approve: bool) -> None:
    agents = {
        "/root": [step(spawn("a")), step(text="over")],
        "/root/a": [step(call("docs__ask")), step(text="from a")],
    }
    async with stage.play(agents, **mcp(docs=fake()), limits={"wake_parent": False}) as watched:
        await asked(watched)
        # The end of the root's turn does not take it away: it is not a call of the root.
        await watched.until(is_("/root", "completed"))
        [approval] = watched.state.approvals.values()
        assert approval.thread == watched.root
        assert approval.command == "docs asks: which one?"
        decide = c.Decide(swarm=watched.swarm, approval=approval.approval, approve=approve)
        assert (await watched.client.send(decide)).ok
        await watched.until(is_("/root/a", "completed"))
    answer, *note = outputs(watched, "/root/a", "docs__ask")[0].splitlines()
    if approve:
        assert json.loads(answer) == {"action": "accept", "content": {}}
    else:
        assert json.loads(answer) == {"action": "decline"}
        assert note == ["[the server asked: which one?; declined: denied by the operator]"]


async def test_while_a_question_waits_its_call_lends_its_slot_and_says_so(stage: Stage) -> None:
    """One slot beside the root's: b gets it while the operator thinks about what a's server wants to know."""
    agents = {
        "/root": [step(spawn("a"), spawn("b")), step(text="over")],
        "/root/a": [step(call("docs__ask")), step(text="from a")],
        "/root/b": [step(text="from b")],
    }
    limits = {"wake_parent": False, "max_threads": 2}
    async with stage.play(agents, **mcp(docs=fake()), limits=limits) as watched:
        decide = await asked(watched)
        await watched.until(is_("/root/b", "completed"))
        waits = watched.at("/root/a").wait
        assert waits is not None
        assert (waits.reason, waits.detail) == ("approval", "docs asks: which one?")
        assert (await watched.client.send(decide)).ok
        await watched.until(is_("/root/a", "completed"))
    answered = [event.wait for event in watched.of(e.AgentWaits, "/root/a")]
    assert answered[-1] is None


async def test_a_question_is_withdrawn_with_the_call_that_it_was_for(stage: Stage) -> None:
    agents = {
        "/root": [step(spawn("a")), step(text="over")],
        "/root/a": [step(call("docs__ask")), step(text="from a")],
    }
    async with stage.play(agents, **mcp(docs=fake()), limits={"wake_parent": False}) as watched:
        decide = await asked(watched)
        thread = watched.at("/root/a").thread
        assert (await watched.client.send(c.Interrupt(swarm=watched.swarm, thread=thread))).ok
        await watched.until(lambda s: not s.approvals)
        [decided] = watched.of(e.ApprovalDecided)
        assert decided.decision == "aborted"
        late = await watched.client.send(decide)
        assert (late.ok, late.code) == (False, "decided")


@pytest.mark.parametrize(
    ("name", "unattended", "why"),
    [
        ("ask", "refuse", "nobody can be asked in this run"),
        ("ask_values", "wait", "its form needs values (name), and nobody can enter any"),
    ],
)
async def test_a_question_that_nobody_can_answer_is_declined_with_the_reason(
    stage: Stage, name: str, unattended: str, why: str
) -> None:
    agents = {"/root": [step(call(f"docs__{name}")), step(text="end")]}
    play: dict[str, Any] = mcp(docs=fake())
    play["options"]["unattended"] = unattended
    async with stage.play(agents, **play) as watched:
        await watched.quiet()
    answer, note = outputs(watched, "/root", f"docs__{name}")[0].splitlines()
    assert json.loads(answer) == {"action": "decline"}
    assert note.endswith(f"declined: {why}]")
    assert watched.of(e.ApprovalRequested) == []


# --- what must not be told -------------------------------------------------------------------------------


async def test_a_server_gets_the_variables_it_names_and_no_journal_has_their_values(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "SHOP_PASS": "canary-of-the-shop", "OTHER": "canary-of-another"}
    server = fake(env_vars=["SHOP_PASS", "MISSING"], env={"DB_PASSWORD": "canary-of-the-db", "MODE": "fast"})
    agents = {"/root": [step(call("docs__env")), step(call("exec_command", cmd="env")), step(text="end")]}
    options: dict[str, Any] = {"sandbox": "off", "approval_policy": "never", "mcp": {"docs": server}}
    settings = settings_for(tmp_path, scenario(agents), **options)
    own = settings.model_copy(update={"mcp": {}})
    async with engine(own) as client, swarm(client, setup=setup_of(settings, environ)) as watched:
        await watched.quiet()
    told = json.loads(outputs(watched, "/root", "docs__env")[0])["env"]
    assert told["SHOP_PASS"] == told["DB_PASSWORD"] == "[redacted]"
    assert told["MODE"] == "fast"
    assert "OTHER" not in told
    shown = outputs(watched, "/root", "exec_command")[0]
    assert "SHOP_PASS" not in shown
    for file in settings.home.rglob("*"):
        if file.is_file():
            assert b"canary" not in file.read_bytes(), file


# --- nothing is left -------------------------------------------------------------------------------------

HANGS: dict[str, list[dict[str, Any]]] = {
    "/root": [step(spawn("a", agent_type="loner")), step(call("docs__hang"))],
    "/root/a": [step(call("docs__hang"))],
}
LONER = {"roles": {"loner": {"mcp": "own"}}}


@linux
@pytest.mark.parametrize("behaviour", ["family", "stubborn"])
def test_kill_9_of_the_engine_leaves_no_server(tmp_path: Path, marker: str, behaviour: str) -> None:
    """Servers with a child of their own, and servers that are still starting and take no SIGTERM."""
    options = {"mcp": {"docs": fake(marker, behaviour)}, "agents": LONER, "sandbox": "off"}
    settings = home_settings(tmp_path, tmp_path / "home", scenario(HANGS))

    def busy(events: list[e.AnyEvent]) -> bool:
        if behaviour == "stubborn":
            # Its start is recorded before its process is there.
            return any(isinstance(ev, e.McpServerChanged) for ev in events) and bool(alive(marker))
        return sum(isinstance(ev, e.ToolCalled) and ev.name == "docs__hang" for ev in events) == 2

    killed(settings, "go", busy, **options)
    assert gone(marker)


@linux
async def test_stop_leaves_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str) -> None:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        settings = homes.home_at(
            tmp_path, scenario(HANGS), mcp={"docs": fake(marker, "family")}, agents=LONER, sandbox="off"
        )
        try:
            async with home_engine(settings) as client, swarm(client, setup=setup_of(settings)) as watched:
                await watched.until(lambda s: len(s.calls) == 2)
                assert alive(marker)
                assert (await client.send(c.StopEngine())).ok
                assert await asyncio.to_thread(gone, marker)
        finally:
            homes.end_engines(settings.home)


@pytest.fixture(autouse=True)
def _no_process_is_left(marker: str) -> Iterator[None]:
    yield
    assert sys.platform != "linux" or gone(marker)
