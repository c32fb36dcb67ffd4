"""What is done to a job that nobody runs, written to the store under the swarm's lock (decision 1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.clock import Clock
from core.domain import commands as c
from core.domain.state import JobState, SwarmState
from core.engine.errors import REFUSALS, CommandError, check_author, refusal
from core.engine.steer_jobs import JobSteering, check_concurrency, job_of
from core.store.errors import Owned
from core.store.jobs import JobStore
from core.store.locks import VERB, Owner
from core.store.store import Store


async def steer_ownerless(
    home: Path, command: JobSteering, *, clock: Clock, redact: Callable[[str], str]
) -> c.Reply:
    """Own the swarm for the moment of the write, and carry the command out; the reply is the one that an
    engine would give. Nothing is run: a job with rows to do waits until somebody resumes it.
    Raises Owned if somebody runs the swarm after all, and StoreError if the store cannot be used."""
    store = await Store.open(home, clock=clock, redact=redact)
    try:
        store.owner = Owner(pid=os.getpid(), kind=VERB)
        check_author(command.author)
        state = await store.reopen(command.swarm)
        return c.Reply(value=await _carry_out(command, store.jobs, state))
    except Owned:
        raise
    except REFUSALS as error:
        return refusal(error)
    finally:
        await store.aclose()


async def _carry_out(command: JobSteering, jobs: JobStore, state: SwarmState) -> dict[str, Any]:
    job = job_of(command, state)
    if isinstance(command, c.ContinueJob):
        raise CommandError("nobody runs this job; resume it", "refused")
    if not command.dry_run and any(one.running for one in state.jobs.values()):
        # Its engine died at work: those rows are pending again, as every reader shows them.
        await jobs.take_over(state.swarm, [])
    swarm, by, dry = state.swarm, command.author, command.dry_run
    match command:
        case c.PauseJob():
            could = job.status in ("pending", "running")
            changed = not dry and await jobs.pause(swarm, job.job, by)
            return {"changed": changed, "could": could, "running": 0}
        case c.CancelJob():
            changed = not dry and await jobs.end(swarm, job.job, "cancelled", None, by)
            return {"changed": changed, "could": not job.ended, "running": 0}
        case c.RetryRows():
            rows = await jobs.retry(swarm, job.job, command.items, by, dry_run=dry)
            return {"changed": bool(rows) and not dry, "rows": rows}
        case c.SkipRows():
            if not command.items:
                raise CommandError("name the rows to skip", "usage")
            rows = await jobs.skip(swarm, job.job, command.items, by, dry_run=dry, ownerless=True)
            return {"changed": bool(rows) and not dry, "rows": rows}
        case c.SetJob():
            return await _resize(command, jobs, state, job)


async def _resize(command: c.SetJob, jobs: JobStore, state: SwarmState, job: JobState) -> dict[str, Any]:
    check_concurrency(command.max_concurrency)
    wanted = command.max_concurrency
    if state.source != "job":
        # A job of its own brings its slots along when it is gone on with. One slot is the root's.
        wanted = max(1, min(wanted, state.slots - 1))
    if command.dry_run:
        return {"changed": False, "concurrency": wanted}
    changed = await jobs.change(state.swarm, job.job, wanted, command.author)
    return {"changed": changed, "concurrency": state.jobs[job.job].concurrency}
