"""Plain lines: what happens in a swarm, one line each, for pipes, CI and screen readers.

`10:03:11 iris needs-you exec_command rm -r build/`: local time, who, one word, details. Lines are only ever
added: no cursor moves, no colours, no timers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from core.domain import events as e
from core.domain.state import call_key
from core.safety.text import clean_line, shorten
from core.view import budget, words
from core.view.cleaning import clean_struct
from core.view.swarm import SwarmView
from tui.progress import line as progress_line

MARKER = "<turn_aborted>"
"""What a model is told of an interrupt; the line about the interrupt says the same to people."""

DETAIL_CHARS = 160
PROGRESS_SECONDS = 1.0
"""At most one progress line of a job in this time, the first and last always."""

Scope = Literal["all", "headless"]


class PlainLines:
    """Events in, lines out. `view` must have folded the event already.

    `all` tells of every agent. `headless` is for `exec` and `job run`: of sub-agents only errors, warnings
    and asks; of the root its calls; its answer goes elsewhere. How a job's worker ended is told by its row.
    """

    def __init__(self, view: SwarmView, scope: Scope = "all", *, glyphs: bool = True) -> None:
        self.view = view
        self.scope = scope
        self.glyphs = glyphs
        self._calls: dict[str, tuple[str, str]] = {}
        """Open calls: what they are and what they said last."""
        self._asks: dict[str, str] = {}
        self._progress: dict[str, datetime] = {}

    def lines(self, event: e.AnyEvent) -> list[str]:
        handler = _HANDLERS.get(type(event))
        if handler is None:
            return []
        event = clean_struct(event)
        said = handler(self, event)
        return [f"{_clock(event.at)} {text}" for text in said]

    # --- who ---------------------------------------------------------------------------------------------

    def _name(self, thread: str | None) -> str:
        agent = self.view.agent(thread)
        if agent is None:
            return shorten(clean_line(thread or "swarm"), 40)
        return "root" if agent.thread == self.view.state.root else clean_line(agent.nickname) or agent.path

    def _root(self, event: e.Event) -> bool:
        return event.agent is not None and event.agent == self.view.state.root

    def _worker(self, event: e.Event) -> bool:
        agent = self.view.agent(event.agent)
        return agent is not None and agent.job is not None

    def _shown(self, event: e.Event) -> bool:
        """Whether ordinary news of this agent is told: job workers are counted, not told."""
        if self.scope == "headless":
            return self._root(event)
        return not self._worker(event)

    def _say(self, event: e.Event, word: str, *details: str) -> list[str]:
        text = " ".join(part for part in map(_detail, details) if part)
        return [f"{self._name(event.agent)} {word} {text}".rstrip()]

    # --- agents ------------------------------------------------------------------------------------------

    def _swarm_started(self, event: e.SwarmStarted) -> list[str]:
        boxed = "sandboxed" if event.sandboxed else "no sandbox"
        return [f"swarm started {event.swarm} {_detail(event.model)} on {_detail(event.server)} ({boxed})"]

    def _swarm_resumed(self, event: e.SwarmResumed) -> list[str]:
        boxed = "sandboxed" if event.sandboxed else "no sandbox"
        return [f"swarm resumed {event.swarm} by {_detail(event.by)} on {_detail(event.server)} ({boxed})"]

    def _spawned(self, event: e.AgentSpawned) -> list[str]:
        if self._root(event) or not self._shown(event):
            return []
        return self._say(event, "spawned", f"by {self._name(event.parent)}", f"({event.path})", event.task)

    def _failed(self, event: e.AgentFailed) -> list[str]:
        return [] if self._worker(event) else self._say(event, "failed", event.error)

    def _closed(self, event: e.AgentClosed) -> list[str]:
        return self._say(event, "closed", f"by {event.by}" if event.by else "") if self._shown(event) else []

    def _resumed(self, event: e.AgentResumed) -> list[str]:
        return self._say(event, "resumed", f"by {event.by}" if event.by else "") if self._shown(event) else []

    def _waits(self, event: e.AgentWaits) -> list[str]:
        wait = event.wait
        if wait is None or wait.reason in ("agents", "job", "approval", "mail", "retry"):
            return []  # the call, the ask or the retry has a line of its own
        limited = wait.reason in ("rate_limit", "budget")
        if not (limited or self._shown(event)):
            return []
        place = self.view.place(event.agent or "") if wait.reason == "slot" else None
        return self._say(event, "waits", words.waits_for(wait, place, event.at))

    def _turn_completed(self, event: e.TurnCompleted) -> list[str]:
        if not self._shown(event):
            return []
        return self._say(event, "completed", "" if self._root(event) else event.message or "")

    def _turn_failed(self, event: e.TurnFailed) -> list[str]:
        return [] if self._worker(event) else self._say(event, "errored", event.error)

    def _turn_interrupted(self, event: e.TurnInterrupted) -> list[str]:
        if self._worker(event):
            return []
        return self._say(event, "interrupted", f"by {event.by}" + (":" if event.reason else ""), event.reason)

    # --- what it runs on and spends ------------------------------------------------------------------------

    def _server(self, event: e.McpServerChanged) -> list[str]:
        """A server of one agent is told with that agent; one that starts is told when it has."""
        if event.status == "starting" or (event.status == "ready" and self._worker(event)):
            return []
        whose = f"{self._name(event.agent)} " if event.agent is not None else ""
        return [_detail(f"{whose}mcp {words.server(event)}")]

    def _budget_set(self, event: e.BudgetSet) -> list[str]:
        """Every limit with what is used of it; said for every swarm that has one."""
        found = budget.limits(self.view.state)
        said = "; ".join(limit.words() for limit in found) or "no limit"
        return [f"swarm budget {said} {_detail(f'(by {event.by})' if event.by else '')}".rstrip()]

    def _usage_unknown(self, event: e.UsageUnknown) -> list[str]:
        """It matters only where it counts against a limit."""
        if not self.view.state.budget:
            return []
        spent = f"{event.tokens:,} tokens count as used:"
        return self._say(event, "usage unknown", spent, event.reason or "the server did not say")

    def _compacted(self, event: e.HistoryCompacted) -> list[str]:
        if not self._shown(event):
            return []
        of = f"{event.tokens:,} tokens" if event.tokens is not None else "the history"
        return self._say(
            event, "compacted", of, {"operator": "because it was asked to"}.get(event.reason, "")
        )

    # --- words -------------------------------------------------------------------------------------------

    def _user_message(self, event: e.UserMessage) -> list[str]:
        if self.scope == "headless" or self._worker(event):
            return []
        return _paragraph(f"{event.author} to {self._name(event.agent)}:", event.text)

    def _agent_message(self, event: e.AgentMessage) -> list[str]:
        if event.kind != "MESSAGE" or not self._shown(event):
            return []  # tasks show with the spawn, answers with the end
        return self._say(event, "reads", f"from {self.view.name_of(event.author)}:", event.text)

    def _assistant_message(self, event: e.AssistantMessage) -> list[str]:
        if self.scope == "headless" or not self._root(event):
            return []
        return _paragraph("root says", event.text)

    def _notice(self, event: e.Notice) -> list[str]:
        if event.level == "info" and not self._shown(event):
            return []
        if event.text.startswith(MARKER):
            return []
        return self._say(event, "note" if event.level == "info" else event.level, event.text)

    def _retry(self, event: e.ModelRetry) -> list[str]:
        return self._say(event, "retry", f"{event.attempt} in {event.delay:.1f} s:", event.reason)

    # --- calls and asks ----------------------------------------------------------------------------------

    def _called(self, event: e.ToolCalled) -> list[str]:
        if not self._shown(event):
            return []
        title = f"{event.name} {event.brief}".strip()
        self._calls[call_key(event.agent or "", event.call)] = (title, "")
        return self._say(event, "calls", title)

    def _result(self, event: e.ToolResult) -> list[str]:
        key = call_key(event.agent or "", event.call)
        if key in self._calls and (said := event.text or event.status):
            self._calls[key] = (self._calls[key][0], said)
        return []

    def _ended(self, event: e.ToolEnded) -> list[str]:
        title, said = self._calls.pop(call_key(event.agent or "", event.call), ("", ""))
        if not self._shown(event):
            return []
        name = title.split(" ", 1)[0]
        took = f"{event.seconds:.1f}s" if event.seconds or event.status != "aborted" else ""
        if event.status == "ok" and self.scope == "headless":
            return []
        return self._say(event, event.status, name, took, "·" if said else "", said)

    def _requested(self, event: e.ApprovalRequested) -> list[str]:
        self._asks[event.approval] = event.command
        where = f"(in {event.cwd})" if event.cwd else ""
        # The command is never shortened: what may be approved must be seen whole.
        command = clean_line(event.command)
        # Where nobody attends, the refusal is recorded with the question: one line says both.
        word = "refused" if self.view.state.unattended == "refuse" else "needs-you"
        return [
            f"{self._name(event.agent)} {word} {command} {_detail(where)} {_detail(event.reason)}".rstrip()
        ]

    def _decided(self, event: e.ApprovalDecided) -> list[str]:
        command = self._asks.pop(event.approval, "")
        if event.by == "unattended":
            return []
        return self._say(event, event.decision, f"by {event.by}:" if event.by else "", command)

    # --- jobs --------------------------------------------------------------------------------------------

    def _job_created(self, event: e.JobCreated) -> list[str]:
        if self.scope == "headless":
            return []
        return [
            f"job {event.job[:8]} created {_detail(event.name)} "
            f"{event.total} rows of {clean_line(event.input_path)}"
        ]

    def _job_row(self, event: e.JobRowEnded) -> list[str]:
        said = []
        if event.status in ("failed", "pending") and event.error:
            word = "failed" if event.status == "failed" else "tries again"
            said.append(f"job {event.job[:8]} row {_detail(event.item)} {word}: {_detail(event.error)}")
        job = self.view.state.jobs.get(event.job)
        last = self._progress.get(event.job)
        first = last is None or (event.at - last).total_seconds() >= PROGRESS_SECONDS
        if self.scope == "all" and job is not None and (first or job.done == job.total):
            self._progress[event.job] = event.at
            said.append(progress_line(job, glyphs=self.glyphs))
        return said

    def _job_ended(self, event: e.JobEnded) -> list[str]:
        if self.scope == "headless":
            return []
        job = self.view.state.jobs.get(event.job)
        counts = f"{job.completed} done, {job.failed} failed of {job.total}" if job is not None else ""
        return [f"job {event.job[:8]} {event.status} {counts} {_detail(event.error or '')}".rstrip()]

    def _job_paused(self, event: e.JobPaused) -> list[str]:
        # In a headless run, what the run itself ran out of is told by its last words.
        if self.scope == "headless" and event.by in ("budget", "quota"):
            return []
        why = f": {_detail(event.reason)}" if event.reason else ""
        return [f"job {event.job[:8]} paused by {_detail(event.by)}{why}"]

    def _job_started(self, event: e.JobStarted) -> list[str]:
        return [f"job {event.job[:8]} goes on, by {_detail(event.by)}"] if event.by else []

    def _job_cancelling(self, event: e.JobCancelling) -> list[str]:
        return [f"job {event.job[:8]} is being cancelled by {_detail(event.by)}"]

    def _job_changed(self, event: e.JobChanged) -> list[str]:
        rows = f"{event.concurrency} row" + ("" if event.concurrency == 1 else "s")
        return [f"job {event.job[:8]} works on {rows} at a time, by {_detail(event.by)}"]

    def _job_reopened(self, event: e.JobReopened) -> list[str]:
        return [f"job {event.job[:8]} reopened by {_detail(event.by)}"]

    def _job_row_moved(self, event: e.JobRowMoved) -> list[str]:
        word = "skipped" if event.status == "skipped" else "is to be tried again"
        return [f"job {event.job[:8]} row {_detail(event.item)} {word}, by {_detail(event.by)}"]

    def _job_exported(self, event: e.JobExported) -> list[str]:
        return (
            []
            if self.scope == "headless"
            else [f"job {event.job[:8]} wrote {event.rows} rows to {clean_line(event.path)}"]
        )


_HANDLERS: dict[type[e.Event], Callable[[PlainLines, Any], list[str]]] = {
    e.SwarmStarted: PlainLines._swarm_started,
    e.SwarmResumed: PlainLines._swarm_resumed,
    e.AgentSpawned: PlainLines._spawned,
    e.AgentFailed: PlainLines._failed,
    e.AgentClosed: PlainLines._closed,
    e.AgentResumed: PlainLines._resumed,
    e.AgentWaits: PlainLines._waits,
    e.TurnCompleted: PlainLines._turn_completed,
    e.TurnFailed: PlainLines._turn_failed,
    e.TurnInterrupted: PlainLines._turn_interrupted,
    e.McpServerChanged: PlainLines._server,
    e.BudgetSet: PlainLines._budget_set,
    e.UsageUnknown: PlainLines._usage_unknown,
    e.HistoryCompacted: PlainLines._compacted,
    e.UserMessage: PlainLines._user_message,
    e.AgentMessage: PlainLines._agent_message,
    e.AssistantMessage: PlainLines._assistant_message,
    e.Notice: PlainLines._notice,
    e.ModelRetry: PlainLines._retry,
    e.ToolCalled: PlainLines._called,
    e.ToolResult: PlainLines._result,
    e.ToolEnded: PlainLines._ended,
    e.ApprovalRequested: PlainLines._requested,
    e.ApprovalDecided: PlainLines._decided,
    e.JobCreated: PlainLines._job_created,
    e.JobRowEnded: PlainLines._job_row,
    e.JobPaused: PlainLines._job_paused,
    e.JobStarted: PlainLines._job_started,
    e.JobCancelling: PlainLines._job_cancelling,
    e.JobChanged: PlainLines._job_changed,
    e.JobReopened: PlainLines._job_reopened,
    e.JobRowMoved: PlainLines._job_row_moved,
    e.JobEnded: PlainLines._job_ended,
    e.JobExported: PlainLines._job_exported,
}


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S")


def _detail(text: str) -> str:
    return shorten(clean_line(text), DETAIL_CHARS)


def _paragraph(head: str, text: str) -> list[str]:
    """A message whole: its first line after `head`, the others indented below it."""
    return [f"{clean_line(head)} " + textwrap.indent(text.strip(), " " * 9).lstrip()]
