"""An engine dies at any moment, and another goes on with its swarm: nothing that was acknowledged is lost,
nothing is done twice, everybody is there again."""

from __future__ import annotations

import asyncio
import csv
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import ClientError
from core.config import Settings
from core.domain import events as e
from core.domain.commands import Close, Interrupt, ListSwarms, ResumeSwarm, RunJob, SendInput, StartSwarm
from core.engine.resume import Begin
from core.store.readers import Reader
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import HANGING, WAIT
from tests.core.crash import check, home_settings, journal, killed, leave, stand
from tests.core.harness import Watched, engine
from tests.core.test_engine import reporting
from tests.core.tools.mcp.fakes import SCRIPT
from tests.core.tools.processes import alive, gone

TEAM: dict[str, list[dict[str, Any]]] = {
    "/root": [
        step(
            call("spawn_agent", task_name="a", message="do a"),
            call("spawn_agent", task_name="b", message="do b"),
        ),
        step(call("wait_agent", targets=["a", "b"], mode="all", timeout_ms=WAIT)),
        step(call("send_message", target="b", message="well done"), text="nearly"),
        {"text": "all done"},
    ],
    "/root/a": [
        step(call("spawn_agent", task_name="c", message="do c", fork_turns="all")),
        step(call("exec_command", cmd="echo one")),
        {"text": "a is done"},
    ],
    "/root/b": [{"text": "b is done"}],
    "/root/a/c": [{"text": "c is done"}],
}


def team(folder: Path, home: Path, played: dict[str, Any] = TEAM, **options: Any) -> Settings:
    return home_settings(folder, home, scenario(played), sandbox="off", **options)


async def crash_everywhere(
    settings: Settings, first: Any, copies: Path, condition: Any
) -> tuple[str, list[Path]]:
    """Run a swarm to its end, and keep the home after each commit on the way; (swarm, homes)."""
    homes: list[Path] = []

    def keep() -> None:
        homes.append(copies / str(len(homes)))
        leave(settings.home, homes[-1])

    async with stand(settings) as one:
        one.after_commit = keep
        value = await one.send(first)
        await one.until(value["swarm"], condition)
    return value["swarm"], homes


async def test_a_team_goes_on_from_every_commit(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home")
    swarm, homes = await crash_everywhere(
        settings, StartSwarm(task="go"), tmp_path / "copies", lambda state: state.quiet()
    )
    assert len(homes) > 20
    for home in homes:
        async with stand(team(tmp_path, home)) as two:
            before = await journal(two.engine, swarm)
            reply = await two.resume(swarm)
            assert reply.ok, reply.error
            assert reply.value["changed"]
            state = two.engine.state(swarm)
            if state.agents[reply.value["thread"]].turns == 0 and not state.mail:
                # It died before it had heard of the task; nobody was told that it had.
                await two.send(SendInput(swarm=swarm, thread=reply.value["thread"], text="go"))
            await two.quiet(swarm)
            after = await journal(two.engine, swarm)
            assert after[: len(before)] == before
            await check(two.engine, swarm)
            root = two.at(swarm, "/root")
            said = [t.message for t in after if isinstance(t, e.TurnCompleted) and t.agent == root.thread]
            # Answers that come after it wake the root once more.
            assert "all done" in said
            assert root.status == "completed"
            answers_reach_parents(after)


def answers_reach_parents(events: list[e.AnyEvent]) -> None:
    """Each turn of a child that came to its end has told its parent, once."""
    children = {event.agent: event for event in events if isinstance(event, e.AgentSpawned) and event.parent}
    told = [event for event in events if isinstance(event, e.MailQueued) and event.kind == "FINAL_ANSWER"]
    for thread, child in children.items():
        ends = [t for t in events if isinstance(t, e.TurnCompleted) and t.agent == thread]
        heard = [t for t in told if t.author == child.path and "interrupted" not in t.text]
        assert len(heard) == len(ends)


async def test_a_team_with_mcp_servers_goes_on_from_every_commit(tmp_path: Path) -> None:
    """Shared servers and an agent's own: the next engine starts what is needed, and ends it."""
    marker = f"mcp-{uuid.uuid4().hex}"
    docs = {"command": sys.executable, "args": ["-I", "-S", str(SCRIPT), "good", marker]}
    options: dict[str, Any] = {"mcp": {"docs": docs}, "agents": {"roles": {"loner": {"mcp": "own"}}}}
    echo = call("docs__echo", text="hello")
    played: dict[str, list[dict[str, Any]]] = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="do a", agent_type="loner")),
            step(echo),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            {"text": "all done"},
        ],
        "/root/a": [step(echo), {"text": "a is done"}],
    }
    settings = team(tmp_path, tmp_path / "home", played, **options)
    swarm, homes = await crash_everywhere(
        settings, StartSwarm(task="go"), tmp_path / "copies", lambda state: state.quiet()
    )
    assert gone(marker)
    for home in homes:
        async with stand(team(tmp_path, home, played, **options)) as two:
            reply = await two.resume(swarm)
            assert reply.ok, reply.error
            state = two.engine.state(swarm)
            if state.agents[reply.value["thread"]].turns == 0 and not state.mail:
                await two.send(SendInput(swarm=swarm, thread=reply.value["thread"], text="go"))
            await two.quiet(swarm)
            await check(two.engine, swarm)
            assert not [agent for agent in state.agents.values() if agent.status == "errored"]
            running = [server for server in state.servers.values() if server.status != "ended"]
            # What is said to run is what runs, whatever the one before had said.
            assert len(alive(marker)) == len(running)
            assert {server.status for server in running} <= {"ready"}
        assert gone(marker)


async def test_dying_again_while_it_comes_back(tmp_path: Path) -> None:
    """Homes of a second engine that dies after each of its own commits; a third one ends the work."""
    settings = team(tmp_path, tmp_path / "home")
    swarm, homes = await crash_everywhere(
        settings, StartSwarm(task="go"), tmp_path / "copies", lambda state: state.quiet()
    )
    middle = homes[len(homes) // 2]
    again: list[Path] = []

    def keep() -> None:
        again.append(tmp_path / "again" / str(len(again)))
        leave(middle, again[-1])

    async with stand(team(tmp_path, middle)) as two:
        two.after_commit = keep
        assert (await two.resume(swarm)).ok
        await two.quiet(swarm)
    for home in again:
        async with stand(team(tmp_path, home)) as three:
            assert (await three.resume(swarm)).ok
            await three.quiet(swarm)
            await check(three.engine, swarm)
            assert three.at(swarm, "/root").status == "completed"


# --- jobs ------------------------------------------------------------------------------------------------


def job_settings(folder: Path, home: Path, rows: int, **options: Any) -> Settings:
    settings = home_settings(folder, home, "chunk_chars = 200\n" + reporting(), **options)
    with (settings.cwd / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n"], *([str(n)] for n in range(rows))])
    return settings


STEADY = ("n", "item_id", "row_index", "source_id", "status", "attempt_count", "last_error", "result_json")


def steady(path: Path) -> list[tuple[str, ...]]:
    """What a CSV says, but for the times and the id of its job."""
    with path.open(newline="") as file:
        return [tuple(row[name] for name in STEADY) for row in csv.DictReader(file)]


async def test_a_job_goes_on_from_every_commit(tmp_path: Path) -> None:
    settings = job_settings(tmp_path, tmp_path / "home", 5)
    output = settings.cwd / "out.csv"
    command = RunJob(input_path="in.csv", instruction="Do {n}.", output_path="out.csv", max_concurrency=2)
    swarm, homes = await crash_everywhere(
        settings, command, tmp_path / "copies", lambda state: bool(state.jobs) and not state.active()
    )
    undisturbed = steady(output)
    assert len(undisturbed) == 5
    began = 0
    for home in homes:
        output.unlink(missing_ok=True)
        async with stand(job_settings(tmp_path, home, 5)) as two:
            assert (await two.resume(swarm)).ok
            state = two.engine.state(swarm)
            if not state.jobs:
                continue  # it died before the job was stored; nobody was told of it
            began += 1
            ended_before = next(iter(state.jobs.values())).ended
            await two.until(swarm, lambda state: not state.active())
            await check(two.engine, swarm)
            [job] = state.jobs.values()
            assert (job.status, job.completed, job.running, job.pending) == ("completed", 5, 0, 0)
            events = await journal(two.engine, swarm)
            done = [r.item for r in events if isinstance(r, e.JobRowEnded) and r.status == "completed"]
            assert sorted(done) == [f"row-{n}" for n in range(1, 6)]
            assert not [a for a in state.agents.values() if a.job and a.status != "shutdown"]
            if not ended_before:
                assert steady(output) == undisturbed, home
    assert began > 20


MAP = step(call("spawn_agents_on_csv", csv_path="in.csv", instruction="Do {{n}}.", output_csv_path="out.csv"))
MAPPING: dict[str, list[dict[str, Any]]] = {
    "/root": [step(call("spawn_agent", task_name="a", message="map")), {"text": "I wait"}],
    "/root/a": [MAP, {"text": "mapped"}],
}


def mapping(folder: Path, home: Path, **options: Any) -> Settings:
    settings = home_settings(folder, home, scenario(MAPPING) + reporting(), sandbox="off", **options)
    (settings.cwd / "in.csv").write_text("n\n1\n2\n3\n")
    return settings


async def test_a_job_of_an_agent_goes_on_and_the_agent_hears_of_its_end(tmp_path: Path) -> None:
    settings = mapping(tmp_path, tmp_path / "home")
    output = settings.cwd / "out.csv"
    swarm, homes = await crash_everywhere(
        settings, StartSwarm(task="go"), tmp_path / "copies", lambda s: s.quiet() and bool(s.jobs)
    )
    told = 0
    for home in homes[::2]:
        output.unlink(missing_ok=True)
        async with stand(mapping(tmp_path, home)) as two:
            reply = await two.resume(swarm)
            state = two.engine.state(swarm)
            had = bool(state.jobs)
            ended = any(job.ended for job in state.jobs.values())
            if state.agents[reply.value["thread"]].turns == 0 and not state.mail:
                continue
            await two.until(swarm, lambda state: not state.active())
            await check(two.engine, swarm)
            if had:
                [job] = state.jobs.values()
                assert (job.status, job.completed) == ("completed", 3)
                assert ended or len(steady(output)) == 3
                mails = [m for m in two.of(e.MailQueued) if m.author == f"job {job.job[:8]}"]
                told += len(mails)
                assert {mail.agent for mail in mails} <= {two.at(swarm, "/root/a").thread}
    assert told > 3


@pytest.mark.parametrize("on_interrupt", ["detach", "cancel"])
async def test_an_orderly_stop_ends_no_job(tmp_path: Path, on_interrupt: str) -> None:
    """Also when an interrupt by the operator would have cancelled it."""
    options = {"jobs": {"on_interrupt": on_interrupt}}
    slow = home_settings(
        tmp_path, tmp_path / "home", scenario(MAPPING) + reporting(60_000), sandbox="off", **options
    )
    (slow.cwd / "in.csv").write_text("n\n1\n2\n3\n")
    async with stand(slow) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(j.running == 3 for j in s.jobs.values()))
    async with Reader.open(slow.home) as reader:
        [job] = (await reader.load_state(swarm)).jobs.values()
        assert job.status == "paused"
    async with stand(mapping(tmp_path, tmp_path / "home", **options)) as two:
        assert (await two.resume(swarm)).ok
        state = await two.until(swarm, lambda s: not s.active())
        [job] = state.jobs.values()
        assert (job.status, job.completed) == ("completed", 3)
        assert len(steady(slow.cwd / "out.csv")) == 3
        await check(two.engine, swarm)


# --- who may -----------------------------------------------------------------------------------------


HANG = {"/root": [HANGING]}


async def test_two_resumes_at_once_give_one_live_swarm(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        leave(settings.home, tmp_path / "left")
    async with stand(team(tmp_path, tmp_path / "left", {"/root": [{"text": "x"}]})) as two:
        replies = await asyncio.gather(*(two.resume(swarm) for _ in range(5)))
        assert [reply.ok for reply in replies] == [True] * 5
        assert sorted(reply.value["changed"] for reply in replies) == [False] * 4 + [True]
        assert len({reply.value["thread"] for reply in replies}) == 1
        assert len(two.of(e.SwarmResumed)) == 1
        await two.quiet(swarm)
        assert len(two.of(e.TurnCompleted)) == 1
        assert not two.engine.busy()


async def test_of_two_engines_that_reach_for_a_swarm_one_gets_it(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
    after = team(tmp_path, tmp_path / "home", {"/root": [{"text": "x"}]})
    async with stand(after) as two, stand(after) as three:
        replies = await asyncio.gather(two.resume(swarm), three.resume(swarm))
        assert sorted((reply.ok, reply.code) for reply in replies) == [(False, "owned"), (True, "")]
        winner = two if replies[0].ok else three
        await winner.quiet(swarm)
        await check(winner.engine, swarm)
        assert sum(isinstance(event, e.SwarmResumed) for event in await journal(winner.engine, swarm)) == 1


async def test_a_living_owner_is_respected_and_a_dead_one_is_not(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
        async with stand(team(tmp_path, tmp_path / "home", HANG)) as two:
            reply = await two.resume(swarm)
            assert (reply.ok, reply.code) == (False, "owned")
            assert reply.error.startswith(f"swarm {swarm} belongs to another engine (process {os.getpid()}")
            assert not two.engine.runs(swarm)
            assert not two.engine.busy()
            assert one.at(swarm, "/root").status == "running"
    async with stand(team(tmp_path, tmp_path / "home", {"/root": [{"text": "x"}]})) as three:
        assert (await three.resume(swarm)).ok
        await three.quiet(swarm)


async def test_what_cannot_be_resumed_says_why_and_stays_free(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    folder = tmp_path / "gone"
    folder.mkdir()
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go", cwd=str(folder))))["swarm"]
    folder.rmdir()
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as two:
        reply = await two.resume("0199-nothing")
        assert (reply.ok, reply.code) == (False, "not_found")
        reply = await two.resume(swarm)
        assert (reply.code, reply.error) == ("usage", f"the folder {folder} does not exist")
        folder.mkdir()
        two.engine.stop_asked.set()
        reply = await two.resume(swarm)
        assert reply.code == "closed"
        two.engine.stop_asked.clear()
        assert (await two.resume(swarm)).ok
        assert two.at(swarm, "/root").status == "running"


async def test_a_takeover_that_cannot_be_recorded_gives_the_swarm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
        leave(settings.home, tmp_path / "left")
    async with stand(team(tmp_path, tmp_path / "left", {"/root": [{"text": "x"}]})) as two:

        async def broken(*args: Any) -> None:
            raise RuntimeError("no")

        with monkeypatch.context() as patch:
            patch.setattr("core.engine.resume.queued_mail", broken)
            with pytest.raises(RuntimeError):
                await two.resume(swarm)
        assert not two.engine.runs(swarm)
        assert not two.engine.busy()
        # The repairs are on disk, and so is the begin of a turn that nobody ran: it is repaired once more.
        assert (await two.resume(swarm)).ok
        await two.quiet(swarm)
        await check(two.engine, swarm)


async def test_settings_are_those_of_whoever_resumes(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go", unattended="refuse")))["swarm"]
        assert (one.engine.state(swarm).approval_policy, one.engine.state(swarm).slots) == ("untrusted", 17)
    options = {"approval_policy": "never", "agents": {"max_threads": 5}}
    async with stand(team(tmp_path, tmp_path / "home", HANG, **options)) as two:
        assert (await two.resume(swarm, author="script", unattended="wait")).ok
        state = two.engine.state(swarm)
        assert (state.approval_policy, state.slots, state.unattended) == ("never", 5, "wait")
        [resumed] = two.of(e.SwarmResumed)
        assert resumed.by == "script"
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as three:
        assert (await three.resume(swarm)).ok
        assert three.engine.state(swarm).unattended == "wait"


async def test_the_resumed_turn_can_be_stopped_and_its_agent_closed(tmp_path: Path) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as two:
        root = (await two.resume(swarm)).value["thread"]
        stopped = await two.send(Interrupt(swarm=swarm, thread=root))
        assert stopped == {"stopped": [root], "changed": True}
        assert two.at(swarm, "/root").status_message == "by operator"
        await two.send(Close(swarm=swarm, thread=root))
        await check(two.engine, swarm)
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as three:
        assert (await three.resume(swarm)).ok
        assert three.at(swarm, "/root").status == "shutdown"
        assert not three.engine.busy()
        reply = await three.engine.handle(SendInput(swarm=swarm, thread=root, text="x"))
        assert (reply.code, reply.error) == ("not_found", "root (/root) is closed")


async def test_a_root_that_is_closed_as_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
    restore = Begin.restore

    def and_close(begin: Begin) -> None:
        restore(begin)
        assert begin.swarm.root is not None
        begin.swarm.root.begin_close("operator", begin.swarm.root.thread)

    monkeypatch.setattr(Begin, "restore", and_close)
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as two:
        assert (await two.resume(swarm)).ok
        await two.until(swarm, lambda s: s.agents[s.root or ""].status == "shutdown")
        await check(two.engine, swarm)


async def test_an_engine_that_stops_as_a_root_comes_back_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
    async with stand(team(tmp_path, tmp_path / "home", HANG)) as two:
        ending: list[asyncio.Task[None]] = []
        restore = Begin.restore

        def and_stop(begin: Begin) -> None:
            restore(begin)
            ending.append(asyncio.create_task(two.engine.end_swarms()))

        monkeypatch.setattr(Begin, "restore", and_stop)
        assert (await two.resume(swarm)).ok
        await ending[0]
        assert two.at(swarm, "/root").status_message == "by engine: the engine was stopped"
        await check(two.engine, swarm)


# --- kill -9 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 30])
async def test_a_team_survives_kill_9(tmp_path: Path, count: int) -> None:
    settings = team(tmp_path, tmp_path / "home")
    told = await asyncio.to_thread(killed, settings, "go", lambda events: len(events) >= count, sandbox="off")
    swarm = told[0].swarm
    async with Reader.open(settings.home) as reader:
        shown = await reader.load_state(swarm)
        assert not any(agent.live for agent in shown.agents.values())
    async with stand(settings) as two:
        assert (await journal(two.engine, swarm))[: len(told)] == told
        assert (await two.resume(swarm)).ok
        await two.quiet(swarm)
        await check(two.engine, swarm)
        assert two.at(swarm, "/root").status == "completed"


async def test_a_job_survives_kill_9_twice(tmp_path: Path) -> None:
    settings = job_settings(tmp_path, tmp_path / "home", 60)
    told = await asyncio.to_thread(
        killed, settings, "in.csv", lambda events: sum(isinstance(x, e.JobRowEnded) for x in events) >= 20
    )
    swarm = told[0].swarm
    assert not (settings.cwd / "out.csv").exists()
    accepted = {r.item: r.result for r in told if isinstance(r, e.JobRowEnded) and r.status == "completed"}
    async with stand(settings) as two:
        assert (await two.resume(swarm)).ok
        state = await two.until(swarm, lambda s: not s.active())
        [job] = state.jobs.values()
        assert (job.status, job.completed, job.failed) == ("completed", 60, 0)
        await check(two.engine, swarm)
        events = await journal(two.engine, swarm)
        assert events[: len(told)] == told
        done = {r.item: r for r in events if isinstance(r, e.JobRowEnded) and r.status == "completed"}
        assert {item: done[item].result for item in accepted} == accepted
        assert all(done[item].seq <= told[-1].seq for item in accepted)
    rows = steady(settings.cwd / "out.csv")
    assert [row[4] for row in rows] == ["completed"] * 60
    assert {row[5] for row in rows} == {"1"}


async def test_a_client_sees_the_swarm_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = team(tmp_path, tmp_path / "home", HANG)
    async with stand(settings) as one:
        swarm = (await one.send(StartSwarm(task="go")))["swarm"]
        await one.until(swarm, lambda s: any(a.status == "running" for a in s.agents.values()))
        leave(settings.home, tmp_path / "left")
    async with engine(team(tmp_path, tmp_path / "left", {"/root": [{"text": "back"}]})) as client:
        with pytest.raises(ClientError):
            async with client.subscribe(swarm):
                pass
        reply = await client.send(ResumeSwarm(swarm=swarm))
        assert reply.value == {"swarm": swarm, "thread": reply.value["thread"], "changed": True}
        watched = Watched(client, swarm, reply.value["thread"])
        follower = asyncio.create_task(watched.follow())
        # From the reply on it is not quiet before the root has answered.
        await watched.quiet()
        assert watched.at("/root").status_message == "back"
        assert (await client.send(ListSwarms())).value["swarms"][0]["swarm"] == swarm
        follower.cancel()
        await asyncio.wait({follower})
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
