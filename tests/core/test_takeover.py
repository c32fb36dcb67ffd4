"""An engine dies at any moment, and another goes on with its swarm: nothing that was acknowledged is lost,
nothing is done twice, everybody is there again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from core.config import Settings
from core.domain import events as e
from core.domain.commands import RunJob, SendInput, StartSwarm
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import WAIT
from tests.core.crash import check, home_settings, journal, leave, stand
from tests.core.test_engine import reporting

ENDED = "the process ended"
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


def team(folder: Path, home: Path, agents: dict[str, Any] = TEAM, **options: Any) -> Settings:
    return home_settings(folder, home, scenario(agents), sandbox="off", **options)


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
    settings = home_settings(folder, home, 'chunk_chars = 200\n' + reporting(), **options)
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
