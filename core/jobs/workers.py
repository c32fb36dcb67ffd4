"""What the job runner needs from the control plane, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from core.tools.base import Tool


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker's turn ended. `message`: its last words, its error, or who interrupted it."""

    status: Literal["completed", "errored", "interrupted"]
    message: str = ""


class WorkersGone(Exception):
    """The swarm is ending: no worker can be started any more. The job stays as it is, to be gone on with."""


class WorkersUnpaid(Exception):
    """The means are used up, which has stopped a worker and would stop every other: the job pauses. `by`: the
    swarm's budget, or what the account may ask of the model server, if only for a time. The message is what
    these said."""

    def __init__(self, message: str, by: Literal["budget", "quota"] = "budget") -> None:
        super().__init__(message)
        self.by = by


class Workers(Protocol):
    def check_role(self, role: str | None) -> None:
        """Raises JobInputError if there is no such role."""
        ...

    def check_room(self) -> None:
        """Raises JobInputError if no worker could start until somebody closes other agents."""
        ...

    def expect(self, count: int) -> None:
        """So many workers will ask the model at a time, because an operator wants so many."""
        ...

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
        """One worker from birth to close: below the agent with thread id `owner`, at `<its path>/<name>`,
        under the thread id `thread`, with `message` as its task and `tools` beside those of every worker.

        Returns when its first turn has ended and it is closed. Cancelling the call stops and closes it.
        Raises WorkersGone, WorkersUnpaid, or any other exception when it cannot start: its text becomes the
        row's error.
        """
        ...
