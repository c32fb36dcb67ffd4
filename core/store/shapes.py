"""The JSON shapes that scripts depend on. Times are RFC 3339 in UTC; unknown is None, never 0 or ""."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from core.domain.events import EPOCH
from core.domain.state import AgentState, JobState, McpServerState, SwarmState
from core.domain.status import Spending, Usage
from core.store.connection import Row
from core.store.rows import timestamp
from core.view import words
from core.view.transcript import Call, Transcript

_JOB_STATUS = {"completed": "completed", "failed": "errored", "cancelled": "interrupted"}


def time(at: datetime | None) -> str | None:
    return None if at is None or at == EPOCH else timestamp(at)


def session_status(root: str | None, *, live: bool, alive: bool, last_job: str | None) -> str:
    """One word for a swarm. The root of a job has no turns: then the job's end is the swarm's."""
    if live:
        return "running" if alive else "interrupted"
    if root in (None, "idle") and last_job is not None:
        return _JOB_STATUS.get(last_job, "idle")
    return root or "pending_init"


def session(state: SwarmState, status: str, agents: int, jobs: int) -> dict[str, Any]:
    return {
        "thread": state.root or state.swarm,
        "title": state.title,
        "started_at": time(state.started_at),
        "last_at": time(state.last_at),
        "status": status,
        "agents": agents,
        "jobs": jobs,
        "tokens": state.tokens.total if state.tokens is not None else None,
        **_cost(state.spending),
        "model": state.model or None,
        "cwd": state.cwd or None,
    }


def _cost(spending: Spending) -> dict[str, Any]:
    """What it cost in US dollars, and whether that is not all of it because nobody told the rest."""
    return {"cost": spending.cost, "cost_partial": words.partly_known(spending)}


def tree(state: SwarmState, now: datetime) -> dict[str, Any]:
    """Parents before children, and each agent's children right after it; then the MCP servers as they were
    told of last. `now` tells how long a wait still lasts."""
    children: dict[str | None, list[AgentState]] = {}
    for agent in state.agents.values():
        parent = agent.parent if agent.parent in state.agents else None
        children.setdefault(parent, []).append(agent)
    ordered: list[dict[str, Any]] = []
    places = state.places()
    stack = children.get(None, [])[::-1]
    while stack:
        agent = stack.pop()
        ordered.append(_agent(agent, places.get(agent.thread), now))
        stack += children.get(agent.thread, [])[::-1]
    return {"root": state.root, "agents": ordered, "servers": [*map(_server, state.servers.values())]}


def _server(server: McpServerState) -> dict[str, Any]:
    return {
        "server": server.server,
        "agent": server.thread,
        "status": server.status,
        "detail": server.detail or None,
        "tools": server.tools,
        "required": server.required,
        "seconds": server.seconds,
        "words": words.server(server),
    }


def _agent(agent: AgentState, place: int | None, now: datetime) -> dict[str, Any]:
    return {
        "thread": agent.thread,
        "parent": agent.parent,
        "path": agent.path,
        "nickname": agent.nickname,
        "role": agent.role,
        "status": agent.status,
        "status_message": agent.status_message or None,
        "waiting": agent.wait.reason if agent.wait is not None else None,
        "waits_for": words.waits_for(agent.wait, place, now) or None,
        "depth": agent.depth,
        "model": agent.model or None,
        "tokens": agent.tokens.total if agent.tokens is not None else None,
        **_cost(agent.spending),
        "started_at": time(agent.started_at),
        "last_at": time(agent.last_at),
        "file": None,
    }


def show(state: SwarmState, thread: str, transcript: Transcript, damaged: int) -> dict[str, Any]:
    agent = state.agents[thread]
    spawned = {a.call: a.thread for a in state.agents.values() if a.parent == thread and a.call is not None}
    rows: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for row in transcript.rows:
        at = time(row.at)
        if row.call is not None:
            calls.append(_call(row.call, len(rows), spawned.get(row.call.call), state))
            rows.append({"role": "assistant", "call": row.call.call, "at": at, "undone": False})
            continue
        # Not one of the four words of the shape: reasoning is told apart by its author.
        reasoning = row.role == "reasoning"
        rows.append(
            {
                "role": "notice" if reasoning else row.role,
                "text": row.text,
                "author": "reasoning" if reasoning else row.author or None,
                "at": at,
                "undone": False,
            }
        )
    return {
        "thread": thread,
        "root": state.root,
        "parent": agent.parent,
        "path": agent.path,
        "nickname": agent.nickname,
        "role": agent.role,
        "status": agent.status,
        "status_message": agent.status_message or None,
        "model": agent.model or None,
        "tokens": tokens(agent.tokens),
        **_cost(agent.spending),
        "rows": rows,
        "calls": calls,
        "damage": {"unreadable_events": damaged, "results_without_call": transcript.orphans},
    }


def _call(call: Call, row: int, child: str | None, state: SwarmState) -> dict[str, Any]:
    return {
        "id": call.call,
        "name": call.name,
        "arguments": call.arguments,
        "row": row,
        "child": child,
        "status": call.status,
        "events": [
            {
                "index": event.index,
                "source": event.source,
                "status": event.status,
                "text": event.text,
                "agent": event.about,
                "child": event.about if event.about in state.agents else None,
                "at": time(event.at),
            }
            for event in call.events
        ],
        "summary": call.summary(),
    }


def tokens(usage: Usage | None) -> dict[str, int] | None:
    return msgspec.to_builtins(usage) if usage is not None else None


def sum_tokens(stored: Iterable[str]) -> dict[str, int] | None:
    total: Usage | None = None
    for text in stored:
        total = (total or Usage()) + msgspec.json.decode(text, type=Usage)
    return tokens(total)


def sum_spending(stored: Iterable[str]) -> Spending:
    total = Spending()
    for text in stored:
        total += msgspec.json.decode(text, type=Spending)
    return total


def job(state: JobState, now: datetime) -> dict[str, Any]:
    rate, eta = _pace(state, now)
    return {
        "job_id": state.job,
        "name": state.name,
        "status": state.status,
        "total_items": state.total,
        "completed_items": state.completed,
        "failed_items": state.failed,
        "running_items": state.running,
        "pending_items": state.pending,
        "skipped_items": state.skipped,
        "rate_per_minute": rate,
        "eta_seconds": eta,
        "input_path": state.input_path,
        "output_csv_path": state.output_path,
        "created_at": time(state.created_at),
        "last_error": state.last_error or None,
    }


def job_with_details(
    state: JobState,
    now: datetime,
    failures: list[dict[str, Any]],
    used: dict[str, int] | None,
    spent: Spending,
) -> dict[str, Any]:
    paused = state.status == "paused"
    return {
        **job(state, now),
        "failed_item_errors": failures,
        "in_flight": state.running,
        "tokens": used,
        **_cost(spent),
        "max_concurrency": state.concurrency,
        "refused_reports": state.refused,
        "paused_by": state.paused_by or None if paused else None,
        "pause_reason": state.pause_reason or None if paused else None,
        "cancelling_by": state.cancelling or None,
    }


def _pace(state: JobState, now: datetime) -> tuple[float | None, int | None]:
    """Rows per minute since it went on last, and seconds to go at that pace; None while unknown."""
    done = state.done - state.pace_done
    if state.pace_from is None or done <= 0:
        return None, None
    if not state.ended and state.status != "running":
        return None, None
    seconds = ((state.ended_at or now) - state.pace_from).total_seconds()
    if seconds <= 0:
        return None, None
    left = state.total - state.done
    eta = round(left * seconds / done) if state.status == "running" else None
    return round(done * 60 / seconds, 1), eta


def job_rows(
    items: Sequence[Row], attempts: Sequence[Row], stale: Sequence[Row], interrupted: bool
) -> list[dict[str, Any]]:
    """Rows of `job rows --json`. `interrupted`: what was at work is no more, its engine has ended."""
    tried: dict[str, list[dict[str, Any]]] = {}
    for item, attempt, worker, status, error, started_at, ended_at, used in attempts:
        shown = "interrupted" if interrupted and status == "running" else status
        tried.setdefault(item, []).append(
            {
                "attempt": attempt,
                "worker": worker,
                "status": shown,
                "error": error,
                "started_at": started_at,
                "ended_at": ended_at,
                "tokens": json.loads(used)["total"] if used else None,
            }
        )
    refused: dict[str, list[dict[str, Any]]] = {}
    for item, worker, reason, result, at in stale:
        refused.setdefault(item, []).append(
            {"worker": worker, "reason": reason, "result": json.loads(result), "at": at}
        )
    return [
        {
            "item_id": item,
            "row_index": row_index,
            "source_id": source_id,
            "status": "pending" if interrupted and status == "running" else status,
            "attempts": tried.get(item, []),
            "result": json.loads(result) if result is not None else None,
            "last_error": error,
            "stale_reports": refused.get(item, []),
        }
        for item, row_index, source_id, status, result, error in items
    ]
