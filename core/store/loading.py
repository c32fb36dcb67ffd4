"""A swarm's state from the state tables: as its owner left it, or as a reader has to show it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from core.domain.state import Approval, OpenCall, QueuedMail, SwarmState, call_key
from core.domain.summary import note_result
from core.store.connection import Db
from core.store.errors import NotFound
from core.store.projection import AGENTS, JOBS, SWARMS, CallRow, LiveSwarm

_CALLS = (
    "SELECT thread, call, seq, name, category, arguments, brief, started_at, events FROM tool_calls"
    " WHERE swarm = ? AND status = 'open' ORDER BY seq"
)
_RESULTS = (
    "SELECT about, text, status FROM tool_result_events"
    " WHERE swarm = ? AND thread = ? AND call = ? AND seq > ? ORDER BY seq"
)
_APPROVALS = (
    "SELECT approval, thread, call, command, argv, cwd, reason, at FROM approvals"
    " WHERE swarm = ? AND decision IS NULL ORDER BY at, rowid"
)
_MAIL = (
    'SELECT mail, thread, author, kind, "trigger", seq FROM mail'
    " WHERE swarm = ? AND delivered_seq IS NULL ORDER BY seq"
)


async def load_state(db: Db, swarm: str) -> SwarmState:
    """What the tables say. Call it inside a read transaction. Raises NotFound."""
    row = await db.one(SWARMS.select + "WHERE swarm = ?", (swarm,))
    if row is None:
        raise NotFound(f"there is no swarm {swarm} in the store")
    state = SWARMS.entry(row)
    for row in await db.all(AGENTS.select + 'WHERE swarm = ? ORDER BY "order"', (swarm,)):
        agent = AGENTS.entry(row)
        state.agents[agent.thread] = agent
    for row in await db.all(JOBS.select + "WHERE swarm = ? ORDER BY created_at", (swarm,)):
        job = JOBS.entry(row)
        state.jobs[job.job] = job
    for row in await db.all(_CALLS, (swarm,)):
        call = _call_row(row)
        state.calls[call_key(call.thread, call.call)] = OpenCall(
            call=call.call,
            thread=call.thread,
            name=call.name,
            brief=call.brief,
            events=call.events,
            started_at=call.started_at,
        )
    for row in await db.all(_APPROVALS, (swarm,)):
        approval = _approval(row)
        state.approvals[approval.approval] = approval
    for mail, thread, author, kind, trigger, seq in await db.all(_MAIL, (swarm,)):
        state.mail[mail] = QueuedMail(thread=thread, author=author, kind=kind, trigger=bool(trigger), seq=seq)
    return state


async def load_live(db: Db, swarm: str) -> LiveSwarm:
    """What a new owner starts from: the state, and the open calls with their results so far."""
    live = LiveSwarm(await load_state(db, swarm))
    for row in await db.all(_CALLS, (swarm,)):
        call = _call_row(row)
        for about, text, status in await db.all(_RESULTS, (swarm, call.thread, call.call, call.seq)):
            note_result(call.last, about, text, status)
        live.calls[call_key(call.thread, call.call)] = call
    return live


def without_owner(state: SwarmState) -> SwarmState:
    """A swarm whose owner is dead, as every reader shows it (decision 2): what ran is interrupted, nobody
    will answer an approval, rows under way are pending and their job is paused. A copy."""
    shown = state.copy()
    for thread, agent in state.agents.items():
        if agent.live:
            shown.agents[thread] = replace(
                agent,
                status="interrupted",
                status_message="its engine ended",
                turn=None,
                wait=None,
                activity="",
            )
        elif agent.wait is not None:
            shown.agents[thread] = replace(agent, wait=None)
        if agent.asks:
            shown.agents[thread] = replace(shown.agents[thread], asks=0)
    for key, job in state.jobs.items():
        if not job.ended:
            shown.jobs[key] = replace(
                job,
                status="paused",
                pending=job.pending + job.running,
                running=0,
                last_error=job.last_error or "its engine ended before the job did",
            )
    shown.approvals.clear()
    shown.calls.clear()
    return shown


def _call_row(row: Any) -> CallRow:
    thread, call, seq, name, category, arguments, brief, started_at, events = row
    return CallRow(
        thread=thread,
        call=call,
        seq=seq,
        name=name,
        category=category,
        arguments=arguments,
        brief=brief,
        started_at=datetime.fromisoformat(started_at),
        events=events,
    )


def _approval(row: Any) -> Approval:
    names = ("approval", "thread", "call", "command", "argv", "cwd", "reason", "at")
    fields = dict(zip(names, row, strict=True))
    return msgspec.convert({**fields, "argv": json.loads(fields["argv"])}, Approval)
