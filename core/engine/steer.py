"""What an operator does to the agents of a running swarm, and to its budget."""

from __future__ import annotations

from typing import Any

import msgspec

from core.agents.bounds import check_message
from core.agents.budget import unpriced_sentence
from core.agents.compaction import ask_for
from core.agents.swarm import Swarm
from core.domain import commands as c
from core.domain import events as e
from core.domain.status import Budget
from core.engine.errors import CommandError
from core.jobs.service import JobService

MOST_TOKENS = 2**53
MOST_DOLLARS = 10**9

Steering = c.SendInput | c.Interrupt | c.Close | c.ResumeAgent | c.Compact | c.Decide


async def steer(command: Steering, swarm: Swarm) -> dict[str, Any]:
    """What is done to one agent of a swarm."""
    by = command.author
    match command:
        case c.SendInput():
            if not command.text.strip():
                raise CommandError("there is nothing to send", "usage")
            check_message(command.text)
            if command.dry_run:
                swarm.check_input(command.thread)
            else:
                await swarm.send_input(command.thread, command.text, by)
            return {"changed": not command.dry_run}
        case c.Interrupt():
            if command.dry_run:
                return {"stopped": swarm.would_stop(command.thread, command.cascade), "changed": False}
            stopped = await swarm.interrupt(command.thread, by=by, cascade=command.cascade)
            return {"stopped": stopped, "changed": bool(stopped)}
        case c.Close():
            if swarm.is_closed(command.thread):
                return {"closed": [], "changed": False}
            if command.dry_run:
                return {"closed": swarm.would_close(command.thread), "changed": False}
            return {"closed": await swarm.close(command.thread, by=by), "changed": True}
        case c.ResumeAgent():
            if command.dry_run:
                would = [known.thread for known in swarm.comeback.would_resume(command.thread)]
                return {"resumed": would, "changed": False}
            resumed = await swarm.comeback.resume(command.thread, by=by)
            return {"resumed": resumed, "changed": bool(resumed)}
        case c.Compact():
            return {"changed": await ask_for(swarm, command.thread, by=by, dry_run=command.dry_run)}
        case c.Decide():
            await swarm.approvals.decide(command.approval, approve=command.approve, by=by)
            return {"changed": True}


async def set_budget(command: c.SetBudget, swarm: Swarm, jobs: JobService) -> dict[str, Any]:
    """None leaves a limit as it is, 0 takes it away. If more is allowed than before, jobs that the budget has
    paused go on."""
    async with swarm.budgets.changing:
        old = swarm.state.budget
        budget = _changed(command, old)
        models = {agent.model for agent in swarm.state.agents.values() if agent.status != "shutdown"}
        why = unpriced_sentence(budget, swarm.config.catalog, swarm.config.models() | models)
        if why is not None:
            raise CommandError(why, "refused")
        changed = budget != old and not command.dry_run
        if changed:
            await swarm.append([e.BudgetSet(budget=budget, by=command.author)])
    if changed and _allows_more(old, budget):
        for job in list(swarm.state.jobs.values()):
            if job.status == "paused" and job.paused_by == "budget":
                await jobs.proceed(job.job, command.author)
    return {"budget": msgspec.structs.asdict(budget), "changed": changed}


def _changed(command: c.SetBudget, old: Budget) -> Budget:
    """Raises CommandError."""
    limits: dict[str, Any] = {}
    for name in Budget.__struct_fields__:
        value = getattr(command, name)
        most = MOST_DOLLARS if name.endswith("cost") else MOST_TOKENS
        if value is not None and not 0 <= value <= most:
            raise CommandError(f"the budget's {name} must be from 0 (no limit) to {most:,}", "usage")
        limits[name] = getattr(old, name) if value is None else value or None
    return Budget(**limits)


def _allows_more(old: Budget, new: Budget) -> bool:
    limits = ((getattr(old, name), getattr(new, name)) for name in Budget.__struct_fields__)
    return any(was is not None and (now is None or now > was) for was, now in limits)
