"""The state of one swarm: what the events so far add up to.

Entries are frozen and replaced, containers are mutable: a shallow copy is a snapshot, and identity tells
what changed. Only `core.domain.apply` changes them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from core.domain.events import EPOCH
from core.domain.status import SETTLED, Budget, Spending, Status, Usage, Wait

_SPENT = "by budget: "
_OWN_LIMIT = "limit reached: budget.per_agent_"


class AgentState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    thread: str
    path: str
    nickname: str
    role: str = "default"
    model: str = ""
    parent: str | None = None
    depth: int = 0
    order: int = 0
    """Place in spawn order, from 0."""
    task: str = ""
    status: Status = "pending_init"
    status_message: str = ""
    """The final message of `completed`, the error of `errored`, who it was for `interrupted`."""
    error_kind: str = ""
    """Of `errored`: what kept the model from answering, as TurnFailed says."""
    wait: Wait | None = None
    turn: str | None = None
    """The running turn."""
    turns: int = 0
    outcome_seq: int = 0
    """seq of the event that ended its last turn."""
    calls: int = 0
    failed_calls: int = 0
    activity: str = ""
    """The last thing it began: a call's name and brief."""
    asks: int = 0
    """Pending approvals of this agent."""
    mail: int = 0
    """Queued, not delivered."""
    retries: int = 0
    tokens: Usage | None = None
    turn_tokens: Usage | None = None
    """Of its running or last turn."""
    spending: Spending = Spending()
    started_at: datetime = EPOCH
    last_at: datetime = EPOCH
    call: str | None = None
    job: str | None = None
    item: str | None = None
    closed_with: str | None = None
    """While it is closed: the agent whose close took it along, or itself."""

    @property
    def live(self) -> bool:
        """Running, or about to: what an operator counts as live."""
        return self.status in ("pending_init", "running")

    @property
    def start_failed(self) -> bool:
        """Whether its start-up failed: it has no turns before it is resumed."""
        return self.status == "errored" and self.turns == 0

    @property
    def spent(self) -> str | None:
        """What the budget said when it stopped this agent's last turn; None if it did not."""
        said = self.status_message
        return said.removeprefix(_SPENT) if self.status == "interrupted" and said.startswith(_SPENT) else None

    @property
    def spent_all(self) -> bool:
        """Whether a limit of the whole swarm stopped it: then nobody was woken to see to it."""
        return self.spent is not None and not self.spent.startswith(_OWN_LIMIT)


class OpenCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool call without an end; ended calls live in the journal and in transcripts only."""

    call: str
    thread: str
    name: str
    brief: str
    events: int = 0
    started_at: datetime = EPOCH


class QueuedMail(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Mail that is not delivered yet."""

    thread: str
    author: str
    kind: str
    trigger: bool
    seq: int


class Approval(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    approval: str
    thread: str
    call: str
    command: str
    argv: tuple[str, ...]
    cwd: str
    reason: str
    at: datetime


class McpServerState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An MCP server of the swarm, or of one agent."""

    server: str
    thread: str | None = None
    """Whose own it is; None: all agents share it."""
    status: str = "starting"
    detail: str = ""
    tools: int = 0
    required: bool = False
    seconds: float | None = None


JobStatus = Literal["pending", "running", "paused", "completed", "failed", "cancelled"]


class JobState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    job: str
    name: str
    owner: str | None = None
    status: JobStatus = "pending"
    instruction: str = ""
    input_path: str = ""
    output_path: str | None = None
    concurrency: int = 16
    total: int = 0
    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    created_at: datetime = EPOCH
    started_at: datetime | None = None
    ended_at: datetime | None = None
    last_error: str = ""
    refused: int = 0
    """Reports that came too late, twice, or from the wrong worker."""
    paused_by: str = ""
    pause_reason: str = ""
    cancelling: str = ""
    """Who asked for its end, while its workers are being stopped."""
    pace_from: datetime | None = None
    """When it went on last, after a pause or the end of its engine: its pace is measured from there."""
    pace_done: int = 0
    """Rows that were over then, or that an operator has taken out since."""

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.skipped

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


class SwarmState(msgspec.Struct, kw_only=True):
    """One swarm. `agents` is in spawn order; `approvals` and `calls` hold open ones only, oldest first."""

    swarm: str
    seq: int = 0
    title: str = ""
    cwd: str = ""
    model: str = ""
    server: str = ""
    source: str = ""
    approval_policy: str = "untrusted"
    sandbox: str = "workspace-write"
    sandboxed: bool = False
    unattended: str = "wait"
    slots: int = 17
    started_at: datetime = EPOCH
    last_at: datetime = EPOCH
    root: str | None = None
    tokens: Usage | None = None
    spending: Spending = Spending()
    budget: Budget = Budget()
    servers: dict[str, McpServerState] = {}
    """MCP servers by `server_key`; those of one agent are gone with it."""
    agents: dict[str, AgentState] = {}
    approvals: dict[str, Approval] = {}
    calls: dict[str, OpenCall] = {}
    """Keyed by `call_key`."""
    mail: dict[str, QueuedMail] = {}
    """Keyed by mail id, oldest first."""
    jobs: dict[str, JobState] = {}

    def copy(self) -> SwarmState:
        """An independent state that shares the frozen entries."""
        return msgspec.structs.replace(
            self,
            servers=dict(self.servers),
            agents=dict(self.agents),
            approvals=dict(self.approvals),
            calls=dict(self.calls),
            mail=dict(self.mail),
            jobs=dict(self.jobs),
        )

    def by_path(self, path: str) -> AgentState | None:
        """The agent that holds `path`: the open one if there is one, else the newest."""
        found = None
        for agent in self.agents.values():
            if agent.path == path:
                if agent.status != "shutdown":
                    return agent
                found = agent
        return found

    def closed_together(self, thread: str) -> list[AgentState]:
        """A closed agent and those below it that the same close ended, parents before children; without the
        workers of jobs, whose rows are over."""
        top = self.agents[thread]
        found = {thread: top}
        # In spawn order parents come first.
        for agent in self.agents.values():
            together = agent.status == "shutdown" and agent.closed_with == top.closed_with
            if together and agent.parent in found and agent.job is None:
                found[agent.thread] = agent
        return list(found.values())

    def places(self) -> dict[str, int]:
        """Who waits for a slot, by thread: the place in the line, from 1."""
        waits = ((agent.wait, agent.thread) for agent in self.agents.values())
        line = sorted((wait.line, thread) for wait, thread in waits if wait and wait.reason == "slot")
        return {thread: place for place, (_, thread) in enumerate(line, 1)}

    def subtrees(self) -> dict[str, tuple[Usage | None, Spending]]:
        """What each agent and all below it used and cost, by thread."""
        sums = {agent.thread: (agent.tokens, agent.spending) for agent in self.agents.values()}
        # In spawn order parents come first: from the end, each sum is whole before it is passed on.
        for agent in reversed(self.agents.values()):
            if agent.parent in sums:
                (above, spent), (tokens, spending) = sums[agent.parent], sums[agent.thread]
                sums[agent.parent] = (_sum(above, tokens), spent + spending)
        return sums

    def children(self, thread: str) -> list[AgentState]:
        return [a for a in self.agents.values() if a.parent == thread]

    def quiet(self) -> bool:
        """Whether nothing more will happen by itself: the root's last turn has an outcome, and no agent
        runs, starts or has mail that will wake it, and no job is under way."""
        root = self.agents.get(self.root) if self.root else None
        return root is not None and root.status in SETTLED and not self.active()

    def active(self) -> bool:
        """Whether an agent runs, starts or has mail that will wake it, or a job is under way. A root that
        waits for its first input is not active."""
        if any(agent.live for agent in self.agents.values()):
            return True
        if any(job.status in ("pending", "running") for job in self.jobs.values()):
            return True
        return any(self.wakes(mail) for mail in self.mail.values())

    def wakes(self, mail: QueuedMail) -> bool:
        """Whether queued mail will start a turn of its idle agent. Interrupt beats mail (decision 20): after
        one, only newer trigger mail counts. An agent whose start-up failed, or a closed one, is deaf."""
        agent = self.agents.get(mail.thread)
        if not mail.trigger or agent is None or agent.status == "shutdown":
            return False
        if agent.start_failed:
            return False
        return agent.status != "interrupted" or mail.seq > agent.outcome_seq


def call_key(thread: str, call: str) -> str:
    return f"{thread}:{call}"


def server_key(server: str, thread: str | None) -> str:
    return server if thread is None else f"{thread}:{server}"


def _sum(one: Usage | None, other: Usage | None) -> Usage | None:
    """Unknown, only if both are."""
    return one + other if one is not None and other is not None else one if one is not None else other


class Changes(msgspec.Struct, kw_only=True):
    """What an event touched: thread ids, approval ids, call keys, job ids; `swarm` for head-line fields."""

    agents: set[str] = set()
    approvals: set[str] = set()
    calls: set[str] = set()
    jobs: set[str] = set()
    transcripts: set[str] = set()
    swarm: bool = False

    def merge(self, other: Changes) -> None:
        self.agents |= other.agents
        self.approvals |= other.approvals
        self.calls |= other.calls
        self.jobs |= other.jobs
        self.transcripts |= other.transcripts
        self.swarm = self.swarm or other.swarm

    def __bool__(self) -> bool:
        return bool(
            self.swarm or self.agents or self.approvals or self.calls or self.jobs or self.transcripts
        )
