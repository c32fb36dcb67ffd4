"""What an operator does to the jobs of a running swarm."""

from __future__ import annotations

from typing import Any

from core.domain import commands as c
from core.domain.state import JobState, SwarmState
from core.engine.errors import CommandError
from core.jobs.request import MAX_CONCURRENCY
from core.jobs.service import JobService
from core.safety.text import clean_line, shorten

JobSteering = c.PauseJob | c.ContinueJob | c.CancelJob | c.RetryRows | c.SkipRows | c.SetJob


async def steer_job(command: JobSteering, jobs: JobService, state: SwarmState) -> dict[str, Any]:
    """Carry one out, or with `dry_run` tell what it would do."""
    job = job_of(command, state)
    if isinstance(command, c.RetryRows | c.SkipRows):
        return await _move(command, jobs)
    by, dry = command.author, command.dry_run
    match command:
        case c.PauseJob():
            could = job.status in ("pending", "running")
            changed = not dry and await jobs.pause(job.job, by)
            return {"changed": changed, "could": could, "running": job.running}
        case c.ContinueJob():
            could = job.status == "paused" or (job.status == "pending" and not jobs.runs(job.job))
            return {"changed": not dry and await jobs.proceed(job.job, by), "could": could}
        case c.CancelJob():
            if not job.ended:
                jobs.refuse_when_closed()
            changed = not dry and await jobs.cancel(job.job, by)
            return {"changed": changed, "could": not job.ended, "running": job.running}
        case c.SetJob():
            return await _resize(command, jobs, job)


def job_of(command: JobSteering, state: SwarmState) -> JobState:
    """The job that a command means. Raises CommandError."""
    job = state.jobs.get(command.job)
    if job is None:
        shown = shorten(clean_line(command.job), 60)
        raise CommandError(f"there is no job {shown} in this swarm", "not_found")
    return job


def check_concurrency(wanted: int) -> None:
    """Raises CommandError."""
    if not 1 <= wanted <= MAX_CONCURRENCY:
        raise CommandError(f"max_concurrency must be from 1 to {MAX_CONCURRENCY:,}", "usage")


async def _move(command: c.RetryRows | c.SkipRows, jobs: JobService) -> dict[str, Any]:
    if isinstance(command, c.SkipRows):
        if not command.items:
            raise CommandError("name the rows to skip", "usage")
        rows = await jobs.skip(command.job, command.items, command.author, dry_run=command.dry_run)
    else:
        rows = await jobs.retry(command.job, command.items, command.author, dry_run=command.dry_run)
    return {"changed": bool(rows) and not command.dry_run, "rows": rows}


async def _resize(command: c.SetJob, jobs: JobService, job: JobState) -> dict[str, Any]:
    wanted = command.max_concurrency
    check_concurrency(wanted)
    if command.dry_run:
        return {"changed": False, "concurrency": min(wanted, jobs.slots)}
    changed, concurrency = await jobs.resize(job.job, wanted, command.author)
    return {"changed": changed, "concurrency": concurrency}
