"""A swarm whose owner is gone: what it left open is closed, and its root goes on (decision 24)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from core.agents import prompts
from core.agents.history import History
from core.domain import events as e
from core.domain.apply import apply
from core.domain.ids import uuid7
from core.domain.state import AgentState, SwarmState
from core.store import reload as stored
from core.store.jobs import ENGINE_ENDED
from core.store.store import Store

BY = "engine"


class TakeOver(msgspec.Struct, frozen=True):
    """What a new owner records before anything else, in one transaction."""

    events: Sequence[e.Event]
    turn: str | None
    """The turn of the root that these events begin; None: the root waits."""


def take_over(state: SwarmState, resumed: e.SwarmResumed, *, interrupt_message: bool) -> TakeOver:
    """The events that make `state` one in which nothing runs but the root, if it goes on. Changes nothing.

    Of a swarm that was left in order this is no more than that it was resumed.
    """
    ahead = state.copy()
    events: list[e.Event] = [resumed, *_repairs(state, interrupt_message)]
    for event in events:
        apply(ahead, event)
    root = ahead.agents.get(ahead.root or "")
    if root is not None and root.start_failed:
        # Its start-up is tried again, and then reads what waits for it.
        events.append(e.AgentResumed(agent=root.thread, by=resumed.by))
        return TakeOver(events, None)
    if root is None or not _goes_on(ahead, root):
        return TakeOver(events, None)
    turn = uuid7()
    events.append(e.TurnStarted(agent=root.thread, turn=turn, cause="resume"))
    events.append(e.Notice(agent=root.thread, text=_notice(ahead, root), hidden=False))
    return TakeOver(events, turn)


def stopped_by_engine(agent: AgentState) -> bool:
    """Whether the end of its engine cut an agent's last turn."""
    said = agent.status_message
    return agent.status == "interrupted" and (said == f"by {BY}" or said.startswith(f"by {BY}: "))


def _cut_short(agent: AgentState) -> bool:
    return stopped_by_engine(agent) or agent.spent is not None


def _goes_on(state: SwarmState, root: AgentState) -> bool:
    """It was cut, or somebody waits for its answer, or agents that would have woken it were cut since."""
    if root.status == "shutdown":
        return False
    if _cut_short(root):
        return True
    if root.turns == 0:
        return False  # its first input, if it has one, starts it as it would have
    if any(mail.thread == root.thread and state.wakes(mail) for mail in state.mail.values()):
        return True
    return any(
        _cut_short(agent) and agent.outcome_seq > root.outcome_seq
        for agent in state.agents.values()
        if agent.job is None
    )


def _repairs(state: SwarmState, interrupt_message: bool) -> list[e.Event]:
    """Agent by agent, in spawn order: calls, approvals and waits end, then its turn, then a job's worker."""
    closed: dict[str, list[e.Event]] = defaultdict(list)
    for call in state.calls.values():
        text = f"aborted: {ENGINE_ENDED}"
        closed[call.thread] += [
            e.ToolResult(
                agent=call.thread, call=call.call, index=call.events, source=BY, status="aborted", text=text
            ),
            e.ToolEnded(agent=call.thread, call=call.call, status="aborted"),
        ]
    for asked in state.approvals.values():
        closed[asked.thread].append(
            e.ApprovalDecided(agent=asked.thread, approval=asked.approval, decision="aborted", by=BY)
        )
    events: list[e.Event] = []
    for agent in state.agents.values():
        events += closed[agent.thread]
        if agent.status == "shutdown":
            continue
        if agent.wait is not None:
            events.append(e.AgentWaits(agent=agent.thread, wait=None))
        if agent.turn is not None:
            events += _cut(state, agent, agent.turn, interrupt_message)
        if agent.job is not None:
            events.append(e.AgentClosed(agent=agent.thread, by=BY))
    events += [
        e.McpServerChanged(
            agent=server.thread,
            server=server.server,
            status="ended",
            detail=ENGINE_ENDED,
            required=server.required,
            seconds=server.seconds,
        )
        for server in state.servers.values()
        if server.status in ("starting", "ready")
        and (server.thread is None or state.agents[server.thread].status != "shutdown")
    ]
    return events


def _cut(state: SwarmState, agent: AgentState, turn: str, interrupt_message: bool) -> list[e.Event]:
    """The end of a turn that was running, and what its parent hears of it: as in an orderly interrupt."""
    events: list[e.Event] = []
    if interrupt_message and agent.job is None:
        marker = prompts.INTERRUPTED.format(who=f"because {ENGINE_ENDED}")
        events.append(e.Notice(agent=agent.thread, text=marker, level="warning", hidden=False))
    events.append(e.TurnInterrupted(agent=agent.thread, turn=turn, by=BY, reason=ENGINE_ENDED))
    # The root reads it in the notice that it goes on with.
    if agent.job is None and agent.parent not in (None, state.root):
        events.append(
            e.MailQueued(
                agent=agent.parent,
                mail=uuid7(),
                author=agent.path,
                kind="FINAL_ANSWER",
                text=prompts.interrupted_notice(agent.path, BY),
            )
        )
    return events


def _notice(state: SwarmState, root: AgentState) -> str:
    stopped: list[AgentState] = []
    working: list[AgentState] = []
    woken = {mail.thread for mail in state.mail.values() if state.wakes(mail)}
    for agent in state.agents.values():
        if agent is root or agent.job is not None or agent.status == "shutdown":
            continue
        if agent.thread in woken:
            working.append(agent)
        elif _cut_short(agent):
            stopped.append(agent)
    return prompts.resumed(
        cut=_cut_short(root),
        stopped=[_line(agent) for agent in stopped],
        working=[_line(agent) for agent in working],
        jobs=[
            f"{job.name} (job {job.job[:8]}): {job.done} of {job.total} rows done"
            for job in state.jobs.values()
            if job.status in ("pending", "running")
        ],
    )


def _line(agent: AgentState) -> str:
    return f"{agent.path} ({agent.nickname}): {agent.task}"


# --- histories -------------------------------------------------------------------------------------------


async def read_history(store: Store, swarm: str, thread: str, upto: int) -> tuple[History, e.AgentSpawned]:
    """An agent's history as of seq `upto`, folded from the journal as a running agent folds it, and its
    registration. Raises StoreError, or NotFound."""
    born = await stored.birth(store.reader, swarm, thread)
    history = History(born.path)
    if born.fork != "none" and born.parent is not None:
        above, _ = await read_history(store, swarm, born.parent, born.fork_seq)
        history.inherit(above, born.fork)
    async for event in stored.history(store.reader, swarm, thread, upto):
        history.add(event)
    return history, born
