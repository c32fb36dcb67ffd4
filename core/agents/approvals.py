"""Approvals of a swarm: asked by agents, decided by an operator, durable both ways (decisions 27, 28)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

from core.domain import events as e
from core.domain.ids import uuid7
from core.tools.base import Verdict

Append = Callable[[Sequence[e.Event]], Awaitable[object]]
REMEMBERED = 1000
"""Decisions kept to tell a late decider who was first."""

UNATTENDED = (
    "refused: it needs an operator's approval and nobody attends this run "
    "(start it in the console, or allow more with --approval-policy)"
)


class AlreadyDecided(Exception):
    """Somebody was first. The message says who and what."""


class UnknownApproval(LookupError):
    """No approval with this id is pending."""


class Approvals:
    def __init__(self, append: Append, unattended: Literal["wait", "refuse"]) -> None:
        self._append = append
        self._unattended = unattended
        self._pending: dict[str, tuple[str, asyncio.Future[Verdict]]] = {}
        self._questions: set[str] = set()
        """Pending ones that do not end with a turn of the agent that they are asked at."""
        self._decided: OrderedDict[str, str] = OrderedDict()

    async def ask(
        self, *, thread: str, call: str, command: str, argv: Sequence[str], cwd: Path, reason: str
    ) -> Verdict:
        """Record the question and wait for the answer. Cancelling it leaves it pending: see `abort`."""
        approval = uuid7()
        asked = e.ApprovalRequested(
            agent=thread,
            approval=approval,
            call=call,
            command=command,
            argv=tuple(argv),
            cwd=str(cwd),
            reason=reason,
        )
        if self._unattended == "refuse":
            decided = e.ApprovalDecided(agent=thread, approval=approval, decision="denied", by="unattended")
            await self._append([asked, decided])
            return Verdict(approved=False, by="unattended", reason=UNATTENDED)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._pending[approval] = (thread, future)
        await self._append([asked])
        return await future

    async def question(self, *, thread: str, text: str, cwd: Path, reason: str) -> Verdict:
        """Ask the operator about something that is no call of `thread`, the agent at which it is shown: the
        end of its turn leaves the question there. Cancelled, it is withdrawn."""
        approval = uuid7()
        asked = e.ApprovalRequested(
            agent=thread, approval=approval, call="", command=text, cwd=str(cwd), reason=reason
        )
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._pending[approval] = (thread, future)
        self._questions.add(approval)
        try:
            await self._append([asked])
            return await future
        finally:
            self._questions.discard(approval)
            if self._pending.pop(approval, None) is not None:
                by = "whoever asked has gone"
                self._remember(approval, f"withdrawn ({by})")
                gone = e.ApprovalDecided(agent=thread, approval=approval, decision="aborted", by=by)
                await self._append([gone])

    async def decide(self, approval: str, *, approve: bool, by: str) -> None:
        """The first decision wins: it is taken from the table before anything is awaited."""
        entry = self._pending.pop(approval, None)
        if entry is None:
            if (earlier := self._decided.get(approval)) is not None:
                raise AlreadyDecided(f"this approval was already {earlier}")
            raise UnknownApproval("no such approval is pending")
        thread, future = entry
        word: Literal["approved", "denied"] = "approved" if approve else "denied"
        self._remember(approval, f"{word} by {by}")
        await self._append([e.ApprovalDecided(agent=thread, approval=approval, decision=word, by=by)])
        if not future.done():
            reason = "" if approve else f"denied by the {by}"
            future.set_result(Verdict(approved=approve, by=by, reason=reason))

    def abort(self, thread: str, by: str) -> list[e.Event]:
        """Withdraw what an agent still asks (its turn is over); the events to record."""
        pending = [approval for approval, (owner, _) in self._pending.items() if owner == thread]
        gone = [approval for approval in pending if approval not in self._questions]
        for approval in gone:
            _, future = self._pending.pop(approval)
            future.cancel()
            self._remember(approval, f"withdrawn ({by})")
        return [e.ApprovalDecided(agent=thread, approval=a, decision="aborted", by=by) for a in gone]

    def _remember(self, approval: str, what: str) -> None:
        self._decided[approval] = what
        while len(self._decided) > REMEMBERED:
            self._decided.popitem(last=False)
