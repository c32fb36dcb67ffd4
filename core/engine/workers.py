"""Job workers on a swarm's control plane."""

from __future__ import annotations

from collections.abc import Sequence

from core.agents.errors import Refused, SwarmEnding
from core.agents.swarm import Swarm
from core.domain.limits import LimitError
from core.jobs.errors import JobInputError
from core.jobs.workers import Outcome, WorkersGone, WorkersUnpaid
from core.tools.base import Tool

_USED_UP = ("quota", "rate_limit")
"""Errors for which no row is to blame. A rate limit is an error only when the server asks for a longer wait
than any request should have, or has refused for minutes: what it allows is used up for now."""


class JobWorkers:
    """`core.jobs.workers.Workers` on a swarm's control plane."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def check_role(self, role: str | None) -> None:
        try:
            self._swarm.births.role(role)
        except Refused as error:
            raise JobInputError(str(error)) from None

    def check_room(self) -> None:
        try:
            self._swarm.check_room(1)
        except LimitError as error:
            raise JobInputError(str(error)) from None

    def expect(self, count: int) -> None:
        self._swarm.model.expect(count)

    async def run_worker(
        self,
        *,
        owner: str,
        thread: str,
        name: str,
        task: str,
        message: str,
        tools: Sequence[Tool],
        job: str,
        item: str,
        model: str | None,
        role: str | None,
    ) -> Outcome:
        try:
            state = await self._swarm.births.run_worker(
                owner=owner,
                thread=thread,
                name=name,
                task=task,
                message=message,
                tools=tools,
                job=job,
                item=item,
                model=model,
                role=role,
            )
        except SwarmEnding as error:
            raise WorkersGone(str(error)) from error
        if state.spent_all:
            raise WorkersUnpaid(state.spent or "")
        if state.status == "errored" and state.error_kind in _USED_UP:
            raise WorkersUnpaid(f"{state.status_message} (at row {item})", by="quota")
        status = state.status if state.status in ("completed", "interrupted") else "errored"
        return Outcome(status=status, message=state.status_message)
