"""From events to rows: what one batch of the writer adds to the journal and changes in the state tables."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import AgentState, JobState, SwarmState, call_key
from core.domain.summary import LastTexts, note_result, summary_of
from core.store.rows import Table, cell, timestamp

SWARMS = Table("swarms", SwarmState, ["swarm"], leave_out=["agents", "approvals", "calls", "mail", "jobs"])
AGENTS = Table("agents", AgentState, ["thread", "swarm"])
JOBS = Table("agent_jobs", JobState, ["job"])

_EVENTS = "INSERT INTO events (swarm, seq, agent, type, at, shown, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_CALLS = (
    "INSERT OR REPLACE INTO tool_calls (swarm, thread, call, seq, name, category, arguments, brief,"
    " status, events, result_content, started_at, ended_at, seconds)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_RESULTS = (
    'INSERT INTO tool_result_events (swarm, seq, thread, call, "index", source, status, text, about, at)'
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_MAIL = (
    'INSERT OR REPLACE INTO mail (swarm, mail, thread, author, kind, text, "trigger", seq, queued_at)'
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DELIVERED = "UPDATE mail SET delivered_seq = ?, delivered_at = ? WHERE swarm = ? AND mail = ?"
_DROPPED = (
    "UPDATE mail SET delivered_seq = 0"
    " WHERE swarm = ? AND thread = ? AND seq < ? AND consumed_seq IS NULL AND delivered_seq IS NULL"
)
"""Mail of a closed agent: it will never be read. What comes after it was resumed, in the same batch, will."""
_CONSUMED = (
    "UPDATE mail SET consumed_seq = ?"
    " WHERE swarm = ? AND thread = ? AND consumed_seq IS NULL AND delivered_seq BETWEEN 1 AND ?"
)
_APPROVALS = (
    "INSERT OR REPLACE INTO approvals (swarm, approval, thread, call, command, argv, cwd, reason, at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DECIDED = (
    "UPDATE approvals SET decision = ?, decided_by = ?, decided_at = ? WHERE swarm = ? AND approval = ?"
)
_ORDER = (_EVENTS, _CALLS, _RESULTS, _MAIL, _DELIVERED, _DROPPED, _CONSUMED, _APPROVALS, _DECIDED)
_SHOWN = frozenset(e.TRANSCRIPT)


class CallRow(msgspec.Struct):
    """The `tool_calls` row of an open call, as far as it has come."""

    thread: str
    call: str
    seq: int
    name: str
    category: str
    arguments: str
    brief: str
    started_at: datetime
    status: str = "open"
    events: int = 0
    ended_at: datetime | None = None
    seconds: float | None = None
    last: LastTexts = {}

    def row(self, swarm: str) -> tuple[Any, ...]:
        return (
            swarm,
            self.thread,
            self.call,
            self.seq,
            self.name,
            self.category,
            self.arguments,
            self.brief,
            self.status,
            self.events,
            summary_of(self.last),
            timestamp(self.started_at),
            cell(self.ended_at),
            self.seconds,
        )


class LiveSwarm:
    """What the writer keeps of a swarm that it owns."""

    def __init__(self, state: SwarmState) -> None:
        self.state = state
        """Committed. Its identity stays; its contents change after a commit and at no other time."""
        self.ahead = state.copy()
        """The same with the batch that is being written. Kept, not copied for each batch: folding an event
        twice costs the same at any size of the swarm."""
        self.calls: dict[str, CallRow] = {}
        """Open calls by call key."""

    def publish(self, events: Iterable[e.AnyEvent]) -> None:
        """Fold events that are on disk now into the live state."""
        for event in events:
            apply(self.state, event)


class Projection:
    """The rows of one batch, collected event by event, then written table by table."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[Any, ...]]] = {sql: [] for sql in _ORDER}
        self._states: dict[str, SwarmState] = {}
        self._agents: dict[tuple[str, str], None] = {}
        self._jobs: dict[tuple[str, str], None] = {}
        self._calls: dict[tuple[str, str], CallRow] = {}

    def add(self, live: LiveSwarm, event: e.AnyEvent, body: str) -> None:
        """Fold one stamped event into `live.ahead` and note what it writes."""
        swarm, ahead = event.swarm, live.ahead
        shown = int(type(event) in _SHOWN)
        at = timestamp(event.at)
        kind = e.type_name(event)
        self._rows[_EVENTS].append((swarm, event.seq, event.agent, kind, at, shown, body))
        known_mail = event.mail in ahead.mail if isinstance(event, _WITH_MAIL) else False
        changes = apply(ahead, event)
        self._states[swarm] = ahead
        for thread in changes.agents:
            self._agents[swarm, thread] = None
        for job in changes.jobs:
            self._jobs[swarm, job] = None
        match event:
            case e.ToolCalled() | e.ToolResult() | e.ToolEnded():
                self._call(live, event, call_key(event.agent or "", event.call), changes.calls)
            case e.MailQueued() if not known_mail and event.mail in ahead.mail:
                self._rows[_MAIL].append(
                    (
                        swarm,
                        event.mail,
                        event.agent,
                        event.author,
                        event.kind,
                        event.text,
                        event.trigger,
                        event.seq,
                        at,
                    )
                )
            case e.UserMessage() | e.AgentMessage() if known_mail:
                self._rows[_DELIVERED].append((event.seq, at, swarm, event.mail))
            case e.AgentClosed():
                self._rows[_DROPPED].append((swarm, event.agent, event.seq))
            case e.ResponseCompleted():
                self._rows[_CONSUMED].append((event.seq, swarm, event.agent, event.seq))
            case e.ApprovalRequested() | e.ApprovalDecided() if event.approval in changes.approvals:
                self._approval(event, at)
            case _:
                pass

    def _call(
        self,
        live: LiveSwarm,
        event: e.ToolCalled | e.ToolResult | e.ToolEnded,
        key: str,
        changed: Iterable[str],
    ) -> None:
        swarm = event.swarm
        if isinstance(event, e.ToolResult):
            self._rows[_RESULTS].append(
                (
                    swarm,
                    event.seq,
                    event.agent,
                    event.call,
                    event.index,
                    event.source,
                    event.status,
                    event.text,
                    event.about,
                    timestamp(event.at),
                )
            )
        if key not in changed or event.agent is None:
            return
        if isinstance(event, e.ToolCalled):
            row = live.calls[key] = CallRow(
                thread=event.agent,
                call=event.call,
                seq=event.seq,
                name=event.name,
                category=event.category,
                arguments=event.arguments,
                brief=event.brief,
                started_at=event.at,
            )
        elif isinstance(event, e.ToolResult):
            row = live.calls[key]
            row.events += 1
            note_result(row.last, event.about, event.text, event.status)
        else:
            row = live.calls.pop(key)
            row.status, row.seconds, row.ended_at = event.status, event.seconds, event.at
        self._calls[swarm, key] = row

    def _approval(self, event: e.ApprovalRequested | e.ApprovalDecided, at: str) -> None:
        if isinstance(event, e.ApprovalDecided):
            self._rows[_DECIDED].append((event.decision, event.by, at, event.swarm, event.approval))
            return
        self._rows[_APPROVALS].append(
            (
                event.swarm,
                event.approval,
                event.agent,
                event.call,
                event.command,
                cell(event.argv),
                event.cwd,
                event.reason,
                at,
            )
        )

    def statements(self) -> list[tuple[str, list[tuple[Any, ...]]]]:
        """All rows, one statement per table, in the order to run them; nothing to write: empty."""
        self._rows[_CALLS] = [row.row(swarm) for (swarm, _), row in self._calls.items()]
        states = self._states
        agents = [AGENTS.row(states[swarm].agents[thread], swarm) for swarm, thread in self._agents]
        tables = [
            (SWARMS.upsert, [SWARMS.row(state, swarm) for swarm, state in states.items()]),
            *self._rows.items(),
            (AGENTS.upsert, agents),
            (JOBS.upsert, [JOBS.row(states[swarm].jobs[job], swarm) for swarm, job in self._jobs]),
        ]
        return [(sql, rows) for sql, rows in tables if rows]


_WITH_MAIL = (e.MailQueued, e.UserMessage, e.AgentMessage)
