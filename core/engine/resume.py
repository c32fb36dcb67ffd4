"""Taking a swarm over from the store: its lock, what its last owner left open, and what goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from core.agents.config import SwarmConfig
from core.agents.reload import take_over as taken_over
from core.agents.swarm import Swarm
from core.config import Settings
from core.domain import events as e
from core.domain.state import SwarmState
from core.domain.status import Budget
from core.engine.setup import check_prices
from core.jobs.service import JobService
from core.store.jobs import StoredJob
from core.store.reload import queued_mail


class Begin(msgspec.Struct, frozen=True):
    """A swarm that is ours and closed up in the store; nothing of it runs yet."""

    swarm: Swarm
    jobs: JobService
    turn: str | None
    mail: Sequence[e.MailQueued]
    left: Sequence[StoredJob]

    def restore(self) -> None:
        """Have its agents; from here on they take mail."""
        self.swarm.restore(self.mail, self.turn)

    def go_on(self) -> None:
        """Let agents and jobs run; the swarm is being served."""
        self.swarm.go_on()
        self.jobs.go_on(self.left)


async def take_over(swarm: Swarm, jobs: JobService, *, by: str) -> Begin:
    """Own `swarm`, and record the end of what ran when its last owner died. Raises Owned, NotFound or
    StoreError; then it is not ours."""
    store = swarm.store
    state = await store.reopen(swarm.id)
    try:
        taken = taken_over(state, _resumed(swarm, by), interrupt_message=swarm.config.interrupt_message)
        budget = swarm.config.budget
        changed = [e.BudgetSet(budget=budget, by=by)] if budget != state.budget else []
        await store.jobs.take_over(swarm.id, [*taken.events, *changed])
        mail = await queued_mail(store.reader, swarm.id)
        left = await jobs.left_over()
    except BaseException:
        await store.release(swarm.id)
        raise
    return Begin(swarm, jobs, taken.turn, mail, left)


def _resumed(swarm: Swarm, by: str) -> e.SwarmResumed:
    config = swarm.config
    return e.SwarmResumed(
        by=by,
        server=swarm.model.server,
        approval_policy=config.approval_policy,
        sandbox=config.sandbox,
        sandboxed=config.sandboxed,
        unattended=config.unattended,
        slots=config.limits.max_threads,
    )


def with_budget(config: SwarmConfig, state: SwarmState) -> SwarmConfig:
    """What the resumer limits, and what else was limited before. Raises SetupError for money with models that
    have no price."""
    budget = Budget(
        **{
            name: limit
            if (limit := getattr(config.budget, name)) is not None
            else getattr(state.budget, name)
            for name in Budget.__struct_fields__
        }
    )
    config = msgspec.structs.replace(config, budget=budget)
    check_prices(config, (agent.model for agent in state.agents.values() if agent.status != "shutdown"))
    return config


def unattended_of(state: SwarmState) -> Literal["wait", "refuse"]:
    return "refuse" if state.unattended == "refuse" else "wait"


def threads_of(state: SwarmState, settings: Settings) -> int | None:
    """The slots of a swarm that comes back, if they are not those of the settings: a job has those that it
    began with, or more if it was set to more since, and nobody waits for ever because a new limit leaves no
    slot beside the root's."""
    if state.source == "job":
        wanted = [job.concurrency + 1 for job in state.jobs.values() if not job.ended]
        return max([state.slots, *wanted])
    below = any(agent.parent is not None and agent.status != "shutdown" for agent in state.agents.values())
    if settings.agents.max_threads < 2 and (below or not all(job.ended for job in state.jobs.values())):
        return 2
    return None
