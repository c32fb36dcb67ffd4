"""The one fold: `apply(state, event)` serves the state tables, the view and the property tests.

It reads nothing but its arguments. An event about something unknown (an agent that the journal lost)
changes nothing and raises nothing: a reader must always get through a journal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from core.domain import events as e
from core.domain.state import (
    AgentState,
    Approval,
    Changes,
    JobState,
    McpServerState,
    OpenCall,
    QueuedMail,
    SwarmState,
    call_key,
    server_key,
)
from core.domain.status import Spending, Usage

ACTIVITY_CHARS = 120
TITLE_CHARS = 60
Handler = Callable[[SwarmState, Any, Changes], None]


def apply(state: SwarmState, event: e.Event, changes: Changes | None = None) -> Changes:
    """Fold one event into `state`; tell what it touched, in `changes` if that is given. Events at or before
    `state.seq` do nothing."""
    if changes is None:
        changes = Changes()
    if event.seq and event.seq <= state.seq:
        return changes
    state.seq = event.seq or state.seq + 1
    state.last_at = max(state.last_at, event.at)
    handler = _HANDLERS.get(type(event))
    if handler is not None:
        handler(state, event, changes)
    if event.agent is not None and event.agent in state.agents:
        if type(event) in IN_TRANSCRIPT:
            changes.transcripts.add(event.agent)
        agent = state.agents[event.agent]
        if agent.last_at < event.at and type(event) not in _PASSIVE:
            _set(state, changes, agent, last_at=event.at)
    return changes


IN_TRANSCRIPT = frozenset(e.TRANSCRIPT)
_PASSIVE = frozenset(
    {
        e.MailQueued,
        e.CompactionAsked,
        e.JobRowClaimed,
        e.JobRowEnded,
        e.JobReportRefused,
        e.JobPaused,
        e.JobCancelling,
        e.JobChanged,
        e.JobReopened,
        e.JobRowMoved,
    }
)
"""Events in an agent's history that it did not cause itself: they do not make it look alive."""


def _set(state: SwarmState, changes: Changes, agent: AgentState, **fields: Any) -> None:
    state.agents[agent.thread] = replace(agent, **fields)
    changes.agents.add(agent.thread)


def _agent(state: SwarmState, event: e.Event) -> AgentState | None:
    return state.agents.get(event.agent) if event.agent is not None else None


def _swarm_started(state: SwarmState, event: e.SwarmStarted, changes: Changes) -> None:
    state.swarm = event.swarm or state.swarm
    state.started_at = event.at
    for name in ("title", "cwd", "model", "server", "source", "approval_policy", "sandbox", "sandboxed"):
        setattr(state, name, getattr(event, name))
    state.unattended = event.unattended
    state.slots = event.slots
    changes.swarm = True


def _swarm_resumed(state: SwarmState, event: e.SwarmResumed, changes: Changes) -> None:
    for name in ("server", "approval_policy", "sandbox", "sandboxed", "unattended", "slots"):
        setattr(state, name, getattr(event, name))
    for job in list(state.jobs.values()):
        if not job.ended:
            _job_set(state, changes, job, pace_from=event.at, pace_done=job.done)
    changes.swarm = True


def _agent_spawned(state: SwarmState, event: e.AgentSpawned, changes: Changes) -> None:
    if event.agent is None or event.agent in state.agents:
        return
    state.agents[event.agent] = AgentState(
        thread=event.agent,
        path=event.path,
        nickname=event.nickname,
        role=event.role,
        model=event.model,
        parent=event.parent,
        depth=event.depth,
        order=len(state.agents),
        task=event.task,
        started_at=event.at,
        last_at=event.at,
        call=event.call,
        job=event.job,
        item=event.item,
    )
    if event.parent is None and state.root is None:
        state.root = event.agent
    changes.agents.add(event.agent)
    changes.swarm = True


def _agent_ready(state: SwarmState, event: e.AgentReady, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None and agent.status == "pending_init":
        _set(state, changes, agent, status="idle", wait=None)


def _agent_failed(state: SwarmState, event: e.AgentFailed, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None and agent.status != "shutdown":
        _set(state, changes, agent, status="errored", status_message=event.error, wait=None, turn=None)


def _agent_waits(state: SwarmState, event: e.AgentWaits, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None:
        _set(state, changes, agent, wait=event.wait)


def _agent_closed(state: SwarmState, event: e.AgentClosed, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None:
        if agent.mail:
            for mail in [key for key, queued in state.mail.items() if queued.thread == agent.thread]:
                del state.mail[mail]
        top = event.top or agent.thread
        _set(state, changes, agent, status="shutdown", wait=None, turn=None, mail=0, closed_with=top)
        for key in [key for key, server in state.servers.items() if server.thread == agent.thread]:
            del state.servers[key]
        changes.swarm = True


def _agent_resumed(state: SwarmState, event: e.AgentResumed, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is None:
        return
    if agent.status == "shutdown":
        _set(state, changes, agent, status="idle", status_message="", activity="", closed_with=None)
        changes.swarm = True
    elif agent.start_failed:
        _set(state, changes, agent, status="pending_init", status_message="", activity="")
        changes.swarm = True


def _turn_started(state: SwarmState, event: e.TurnStarted, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None:
        _set(
            state,
            changes,
            agent,
            status="running",
            status_message="",
            error_kind="",
            wait=None,
            turn=event.turn,
            turns=agent.turns + 1,
            turn_tokens=None,
        )


def _turn_ended(
    state: SwarmState, event: e.Event, changes: Changes, status: str, message: str, kind: str = ""
) -> None:
    agent = _agent(state, event)
    if agent is not None and agent.status != "shutdown":
        _set(
            state,
            changes,
            agent,
            status=status,
            status_message=message,
            error_kind=kind,
            wait=None,
            turn=None,
            activity="",
            outcome_seq=state.seq,
        )


def _turn_completed(state: SwarmState, event: e.TurnCompleted, changes: Changes) -> None:
    _turn_ended(state, event, changes, "completed", event.message or "")


def _turn_failed(state: SwarmState, event: e.TurnFailed, changes: Changes) -> None:
    _turn_ended(state, event, changes, "errored", event.error, event.kind)


def _turn_interrupted(state: SwarmState, event: e.TurnInterrupted, changes: Changes) -> None:
    text = f"by {event.by}" + (f": {event.reason}" if event.reason else "")
    _turn_ended(state, event, changes, "interrupted", text)


def _tool_called(state: SwarmState, event: e.ToolCalled, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is None:
        return
    key = call_key(agent.thread, event.call)
    state.calls[key] = OpenCall(
        call=event.call, thread=agent.thread, name=event.name, brief=event.brief, started_at=event.at
    )
    changes.calls.add(key)
    activity = f"{event.name} {event.brief}".strip()[:ACTIVITY_CHARS]
    _set(state, changes, agent, calls=agent.calls + 1, activity=activity)


def _tool_result(state: SwarmState, event: e.ToolResult, changes: Changes) -> None:
    key = call_key(event.agent or "", event.call)
    call = state.calls.get(key)
    if call is not None:
        state.calls[key] = replace(call, events=call.events + 1)
        changes.calls.add(key)


def _tool_ended(state: SwarmState, event: e.ToolEnded, changes: Changes) -> None:
    key = call_key(event.agent or "", event.call)
    if state.calls.pop(key, None) is not None:
        changes.calls.add(key)
    agent = _agent(state, event)
    if agent is not None and event.status in ("error", "refused"):
        _set(state, changes, agent, failed_calls=agent.failed_calls + 1)


def _mcp_server_changed(state: SwarmState, event: e.McpServerChanged, changes: Changes) -> None:
    if event.agent is not None and event.agent not in state.agents:
        return
    state.servers[server_key(event.server, event.agent)] = McpServerState(
        server=event.server,
        thread=event.agent,
        status=event.status,
        detail=event.detail,
        tools=event.tools,
        required=event.required,
        seconds=event.seconds,
    )
    changes.swarm = True


def _budget_set(state: SwarmState, event: e.BudgetSet, changes: Changes) -> None:
    state.budget = event.budget
    changes.swarm = True


def _usage_unknown(state: SwarmState, event: e.UsageUnknown, changes: Changes) -> None:
    spent = Spending(unmetered=event.tokens, unmetered_dollars=event.cost or 0.0)
    _spent(state, changes, _agent(state, event), None, spent)


def _response_completed(state: SwarmState, event: e.ResponseCompleted, changes: Changes) -> None:
    known = event.cost is not None
    spent = Spending(dollars=event.cost or 0.0, priced=int(known), unpriced=int(not known))
    _spent(state, changes, _agent(state, event), event.usage, spent)


def _spent(
    state: SwarmState, changes: Changes, agent: AgentState | None, usage: Usage | None, spent: Spending
) -> None:
    state.spending += spent
    if usage is not None:
        state.tokens = (state.tokens or Usage()) + usage
    changes.swarm = True
    if agent is None:
        return
    fields: dict[str, Any] = {"spending": agent.spending + spent}
    if usage is not None:
        fields["tokens"] = (agent.tokens or Usage()) + usage
        fields["turn_tokens"] = (agent.turn_tokens or Usage()) + usage
    _set(state, changes, agent, **fields)


def _model_retry(state: SwarmState, event: e.ModelRetry, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None:
        _set(state, changes, agent, retries=agent.retries + 1)


def _mail_queued(state: SwarmState, event: e.MailQueued, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is not None and agent.status != "shutdown" and event.mail not in state.mail:
        state.mail[event.mail] = QueuedMail(
            thread=agent.thread, author=event.author, kind=event.kind, trigger=event.trigger, seq=event.seq
        )
        _set(state, changes, agent, mail=agent.mail + 1)


def _user_message(state: SwarmState, event: e.UserMessage, changes: Changes) -> None:
    _delivered(state, event, changes)
    if not state.title and event.agent is not None and event.agent == state.root:
        # A swarm that began without a task is called by the first thing it was told.
        state.title = next(iter(event.text.strip().splitlines()), "")[:TITLE_CHARS]
        changes.swarm = True


def _delivered(state: SwarmState, event: e.UserMessage | e.AgentMessage, changes: Changes) -> None:
    mail = state.mail.pop(event.mail, None) if event.mail is not None else None
    if mail is not None and (agent := state.agents.get(mail.thread)) is not None:
        _set(state, changes, agent, mail=agent.mail - 1)


def _approval_requested(state: SwarmState, event: e.ApprovalRequested, changes: Changes) -> None:
    agent = _agent(state, event)
    if agent is None or event.approval in state.approvals:
        return
    state.approvals[event.approval] = Approval(
        approval=event.approval,
        thread=agent.thread,
        call=event.call,
        command=event.command,
        argv=event.argv,
        cwd=event.cwd,
        reason=event.reason,
        at=event.at,
    )
    changes.approvals.add(event.approval)
    changes.swarm = True
    _set(state, changes, agent, asks=agent.asks + 1)


def _approval_decided(state: SwarmState, event: e.ApprovalDecided, changes: Changes) -> None:
    approval = state.approvals.pop(event.approval, None)
    if approval is None:
        return
    changes.approvals.add(event.approval)
    changes.swarm = True
    if (agent := state.agents.get(approval.thread)) is not None:
        _set(state, changes, agent, asks=agent.asks - 1)


def _job_set(state: SwarmState, changes: Changes, job: JobState, **fields: Any) -> None:
    state.jobs[job.job] = replace(job, **fields)
    changes.jobs.add(job.job)


def _job_created(state: SwarmState, event: e.JobCreated, changes: Changes) -> None:
    state.jobs[event.job] = JobState(
        job=event.job,
        name=event.name,
        owner=event.agent,
        instruction=event.instruction,
        input_path=event.input_path,
        output_path=event.output_path,
        concurrency=event.concurrency,
        total=event.total,
        pending=event.total,
        created_at=event.at,
    )
    changes.jobs.add(event.job)
    changes.swarm = True


def _job_started(state: SwarmState, event: e.JobStarted, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        started = job.started_at or event.at
        _job_set(
            state,
            changes,
            job,
            status="running",
            started_at=started,
            concurrency=event.concurrency,
            paused_by="",
            pause_reason="",
            pace_from=event.at,
            pace_done=job.done,
        )
        changes.swarm = True


def _job_paused(state: SwarmState, event: e.JobPaused, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None and not job.ended:
        _job_set(state, changes, job, status="paused", paused_by=event.by, pause_reason=event.reason)
        changes.swarm = True


def _job_cancelling(state: SwarmState, event: e.JobCancelling, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None and not job.ended:
        _job_set(state, changes, job, cancelling=event.by)


def _job_changed(state: SwarmState, event: e.JobChanged, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        _job_set(state, changes, job, concurrency=event.concurrency)


def _job_reopened(state: SwarmState, event: e.JobReopened, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None and job.ended:
        _job_set(state, changes, job, status="pending", ended_at=None, last_error="")
        changes.swarm = True


def _job_row_moved(state: SwarmState, event: e.JobRowMoved, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None and event.source != event.status:
        fields = {event.source: getattr(job, event.source) - 1, event.status: getattr(job, event.status) + 1}
        moved = replace(job, **fields)
        _job_set(state, changes, moved, pace_done=job.pace_done + moved.done - job.done)


def _job_report_refused(state: SwarmState, event: e.JobReportRefused, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        _job_set(state, changes, job, refused=job.refused + 1)


def _job_row_claimed(state: SwarmState, event: e.JobRowClaimed, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        _job_set(state, changes, job, pending=job.pending - 1, running=job.running + 1)


def _job_row_ended(state: SwarmState, event: e.JobRowEnded, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is None:
        return
    fields: dict[str, Any] = {event.status: getattr(job, event.status) + 1}
    source = "running" if event.worker is not None else "pending"
    fields[source] = fields.get(source, getattr(job, source)) - 1
    if event.error and event.status == "failed":
        fields["last_error"] = event.error
    _job_set(state, changes, job, **fields)


def _job_ended(state: SwarmState, event: e.JobEnded, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        error = event.error or job.last_error
        _job_set(
            state,
            changes,
            job,
            status=event.status,
            ended_at=event.at,
            last_error=error,
            paused_by="",
            pause_reason="",
            cancelling="",
        )
        changes.swarm = True


def _job_exported(state: SwarmState, event: e.JobExported, changes: Changes) -> None:
    job = state.jobs.get(event.job)
    if job is not None:
        _job_set(state, changes, job, output_path=event.path)


_HANDLERS: dict[type[e.Event], Handler] = {
    e.SwarmStarted: _swarm_started,
    e.SwarmResumed: _swarm_resumed,
    e.AgentSpawned: _agent_spawned,
    e.AgentReady: _agent_ready,
    e.AgentFailed: _agent_failed,
    e.AgentWaits: _agent_waits,
    e.AgentClosed: _agent_closed,
    e.AgentResumed: _agent_resumed,
    e.TurnStarted: _turn_started,
    e.TurnCompleted: _turn_completed,
    e.TurnFailed: _turn_failed,
    e.TurnInterrupted: _turn_interrupted,
    e.McpServerChanged: _mcp_server_changed,
    e.BudgetSet: _budget_set,
    e.UsageUnknown: _usage_unknown,
    e.UserMessage: _user_message,
    e.AgentMessage: _delivered,
    e.ToolCalled: _tool_called,
    e.ToolResult: _tool_result,
    e.ToolEnded: _tool_ended,
    e.ResponseCompleted: _response_completed,
    e.ModelRetry: _model_retry,
    e.MailQueued: _mail_queued,
    e.ApprovalRequested: _approval_requested,
    e.ApprovalDecided: _approval_decided,
    e.JobCreated: _job_created,
    e.JobStarted: _job_started,
    e.JobPaused: _job_paused,
    e.JobCancelling: _job_cancelling,
    e.JobChanged: _job_changed,
    e.JobReopened: _job_reopened,
    e.JobRowMoved: _job_row_moved,
    e.JobReportRefused: _job_report_refused,
    e.JobRowClaimed: _job_row_claimed,
    e.JobRowEnded: _job_row_ended,
    e.JobEnded: _job_ended,
    e.JobExported: _job_exported,
}
