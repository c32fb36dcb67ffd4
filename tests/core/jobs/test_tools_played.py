"""The job tools in whole swarms: who is offered them, and what agents do with each other's jobs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import Interrupt, SendInput
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import WAIT, outputs
from tests.core.harness import Watched, engine, settings_for, swarm
from tests.core.test_engine import reporting

TOOLS = {
    "spawn_agents_on_csv",
    "run_agent_job",
    "get_agent_job_status",
    "wait_agent_job",
    "export_agent_job_csv",
}
SPAWN = {"csv_path": "in.csv", "instruction": "Do {{n}}.", "output_csv_path": "out.csv", "job_name": "count"}


def playing(folder: Path, played: dict[str, list[dict[str, Any]]], latency: int = 0, **options: Any) -> Any:
    settings = settings_for(folder, scenario(played) + reporting(latency), sandbox="off", **options)
    with (settings.cwd / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n"], ["1"], ["2"], ["3"]])
    return settings


def offered(watched: Watched, path: str) -> set[str]:
    """What an agent was told that it may use, when it asked for a tool that there is not."""
    [told] = outputs(watched, path, "nothing")
    return {name.strip(" .") for name in told.partition("the tools are: ")[2].split(",")}


async def test_agents_above_the_depth_limit_have_them_and_workers_have_none(tmp_path: Path) -> None:
    ask = step(call("nothing"))
    agents = {
        "/root": [
            ask,
            step(call("spawn_agent", task_name="a", message="x")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            step(call("spawn_agents_on_csv", **SPAWN)),
            step(text="over"),
        ],
        "/root/a": [ask, step(text="done")],
        "/root/job_*": [ask, step(text="done")],
    }
    async with (
        engine(playing(tmp_path, agents, agents={"max_depth": 1})) as client,
        swarm(client) as watched,
    ):
        await watched.quiet()
    assert offered(watched, "/root") >= TOOLS
    assert not TOOLS & offered(watched, "/root/a")
    workers = [agent.path for agent in watched.state.agents.values() if agent.job]
    assert len(workers) == 3
    for path in workers:
        assert offered(watched, path) == {"exec_command", "report_agent_job_result"}


async def test_an_agent_that_does_not_wait_is_woken_by_the_end_of_its_job(tmp_path: Path) -> None:
    agents = {
        "/root": [
            step(call("spawn_agents_on_csv", **SPAWN, wait=False)),
            step(text="it is on its way"),
            step(text="heard: {last_message}"),
        ]
    }
    async with engine(playing(tmp_path, agents, 50)) as client, swarm(client) as watched:
        state = await watched.quiet()
    answer = json.loads(outputs(watched, "/root", "spawn_agents_on_csv")[0])
    [job] = state.jobs.values()
    assert (answer["job_id"], answer["total_items"]) == (job.job, 3)
    assert answer["status"] in ("pending", "running")
    first, second = watched.of(e.TurnCompleted, "/root")
    assert first.message == "it is on its way"
    [ended] = watched.of(e.JobEnded)
    assert first.seq < ended.seq < second.seq
    assert second.message is not None
    assert f"Job count (Job ID {job.job}) has ended: completed. 3 of 3 rows are done." in second.message


async def test_a_job_of_another_agent_is_waited_for_asked_about_and_exported(tmp_path: Path) -> None:
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="x")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            step(call("wait_agent_job", job_id="count", timeout_ms=WAIT)),
            step(call("get_agent_job_status", job_id="count"), call("run_agent_job", job_id="count")),
            step(call("export_agent_job_csv", job_id="count", output_csv_path="mine.csv")),
            step(text="over"),
        ],
        "/root/a": [step(call("spawn_agents_on_csv", **SPAWN, wait=False)), step(text="begun")],
    }
    settings = playing(tmp_path, agents, 50)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    [job] = watched.state.jobs.values()
    assert job.owner == watched.at("/root/a").thread
    waited = json.loads(outputs(watched, "/root", "wait_agent_job")[0])
    assert (waited["status"], waited["completed_items"], waited["timed_out"]) == ("completed", 3, False)
    asked = json.loads(outputs(watched, "/root", "get_agent_job_status")[0])
    assert {**asked, "timed_out": False} == waited
    assert "has ended: completed" in outputs(watched, "/root", "run_agent_job")[0]
    exported = json.loads(outputs(watched, "/root", "export_agent_job_csv")[0])
    assert exported["output_csv_path"] == str(settings.cwd / "mine.csv")
    assert (settings.cwd / "mine.csv").read_bytes() == (settings.cwd / "out.csv").read_bytes()


async def test_the_operators_words_end_the_wait_for_a_job(tmp_path: Path) -> None:
    agents = {
        "/root": [
            step(call("spawn_agents_on_csv", **SPAWN, wait=False)),
            step(call("wait_agent_job", job_id="count", timeout_ms=600_000)),
            step(text="heard: {last_message}"),
        ]
    }
    async with engine(playing(tmp_path, agents, 60_000)) as client, swarm(client) as watched:
        await watched.until(
            lambda s: (
                s.agents[watched.root].wait is not None and any(job.running == 3 for job in s.jobs.values())
            )
        )
        await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="leave it"))
        await watched.until(lambda s: len(watched.of(e.TurnCompleted, "/root")) == 1)
        [job] = watched.state.jobs.values()
        assert not job.ended
    waited = json.loads(outputs(watched, "/root", "wait_agent_job")[0])
    assert (waited["status"], waited["timed_out"]) == ("running", False)
    [turn] = watched.of(e.TurnCompleted, "/root")
    assert turn.message == "heard: leave it"


@pytest.mark.parametrize("setting", ["detach", "cancel"])
async def test_an_interrupt_of_the_starter_leaves_no_orphan(tmp_path: Path, setting: str) -> None:
    agents = {"/root": [step(call("spawn_agents_on_csv", **SPAWN)), step(text="never said")]}
    settings = playing(tmp_path, agents, 300, jobs={"on_interrupt": setting})
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(lambda s: any(job.running == 3 for job in s.jobs.values()))
        await client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        state = await watched.quiet()
        mails = watched.of(e.MailQueued, "/root")
    [job] = state.jobs.values()
    assert state.agents[watched.root].status == "interrupted"
    assert not [a for a in state.agents.values() if a.job and a.status != "shutdown"]
    if setting == "cancel":
        assert (job.status, job.failed) == ("cancelled", 3)
    else:
        # It goes on, and its starter finds a message when it is spoken to again: it is not woken by it.
        assert (job.status, job.completed) == ("completed", 3)
        [told] = [mail for mail in mails if mail.author == f"job {job.job[:8]}"]
        assert not told.trigger
