"""What becomes of a swarm when an operator changes its budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.domain import events as e
from core.domain.commands import CancelJob, PauseJob, RunJob, SetBudget
from core.domain.status import Budget
from tests.core.agents.scenarios import scenario, step
from tests.core.agents.stage import Stage
from tests.core.harness import Watched, engine, settings_for

CATALOG = {"scripted": {"input": 1.0, "output": 4.0, "max_output": 2000}}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


async def test_two_operators_at_once_change_what_each_of_them_said(stage: Stage) -> None:
    async with stage.play({"/root": [step(text="x")]}, options={"catalog": CATALOG}) as watched:
        await watched.quiet()
        changes: list[dict[str, Any]] = [
            {"tokens": 900_000},
            {"cost": 5.0},
            {"per_agent_tokens": 80_000},
            {"per_agent_cost": 1.0},
        ]
        replies = await asyncio.gather(
            *(watched.client.send(SetBudget(swarm=watched.swarm, **change)) for change in changes)
        )
        assert all(reply.value["changed"] for reply in replies)
        everything = Budget(tokens=900_000, cost=5.0, per_agent_tokens=80_000, per_agent_cost=1.0)
        assert replies[-1].value["budget"]["tokens"] == 900_000
        state = await watched.until(lambda s: s.budget == everything)
    assert state.budget == everything


# --- jobs ------------------------------------------------------------------------------------------------

WORKER = """
[[agents]]
path = "/root/job_*"
[agents.captures]
job = { in = "first", match = '^Job ID: (.+)$' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { ok = true } }
"""


@asynccontextmanager
async def job_at_its_budget(tmp_path: Path, tokens: int) -> AsyncIterator[tuple[Watched, str]]:
    """A job of four rows, one after the other, that its budget has paused."""
    options = {"budget": {"tokens": tokens}, "catalog": CATALOG}
    settings = settings_for(tmp_path, scenario({}) + WORKER, sandbox="off", **options)
    (tmp_path / "in.csv").write_text("n\n1\n2\n3\n4\n")
    async with engine(settings) as client:
        run = RunJob(
            input_path=str(tmp_path / "in.csv"), instruction="do {n}", cwd=str(tmp_path), max_concurrency=1
        )
        reply = await client.send(run)
        assert reply.ok, reply.error
        watched = Watched(client, reply.value["swarm"], reply.value["thread"])
        follower = asyncio.create_task(watched.follow())
        try:
            job = reply.value["job"]
            await watched.until(lambda s: job in s.jobs and s.jobs[job].status == "paused")
            yield watched, job
        finally:
            follower.cancel()
            await asyncio.wait({follower})


async def test_a_job_that_its_budget_paused_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    async with job_at_its_budget(tmp_path, 5_000) as (watched, job):
        paused = watched.state.jobs[job]
        assert paused.paused_by == "budget"
        assert paused.pause_reason.startswith("limit reached: budget.tokens = 5,000; ")
        # Neither a look, nor a lower limit, nor one of another kind.
        changes: list[dict[str, Any]] = [
            {"tokens": 0, "dry_run": True},
            {"tokens": 4_999},
            {"per_agent_tokens": 10**6},
        ]
        for change in changes:
            await watched.client.send(SetBudget(swarm=watched.swarm, **change))
        assert watched.state.jobs[job].status == "paused"
        assert len(watched.of(e.JobStarted)) == 1
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=0, author="alice"))
        state = await watched.until(lambda s: s.jobs[job].ended)
        assert (state.jobs[job].status, state.jobs[job].completed) == ("completed", 4)
        assert [event.by for event in watched.of(e.JobStarted)] == ["", "alice"]
    assert (tmp_path / f"in.agent-job-{job[:8]}.csv").read_text().count("\n") == 5


async def test_one_that_is_still_not_enough_pauses_it_again(tmp_path: Path) -> None:
    async with job_at_its_budget(tmp_path, 5_000) as (watched, job):
        before = len(watched.of(e.JobPaused))
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=5_001))
        state = await watched.until(
            lambda s: len(watched.of(e.JobPaused)) > before and s.jobs[job].status == "paused"
        )
        assert state.jobs[job].pending + state.jobs[job].completed == 4
        assert state.jobs[job].failed == 0
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=10**6))
        await watched.until(lambda s: s.jobs[job].completed == 4)


async def test_a_job_that_an_operator_stopped_is_not_started_by_a_raise(tmp_path: Path) -> None:
    async with job_at_its_budget(tmp_path, 5_000) as (watched, job):
        assert (await watched.client.send(CancelJob(swarm=watched.swarm, job=job))).value["changed"]
        await watched.client.send(PauseJob(swarm=watched.swarm, job=job))
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=0))
        await watched.until(lambda s: s.budget.tokens is None)
        assert watched.state.jobs[job].status == "cancelled"
        assert len(watched.of(e.JobStarted)) == 1
