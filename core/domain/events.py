"""Everything that happens, as one discriminated union. The journal, the feed and `exec --json` carry these.

An event is flat: `{"type", "v", "seq", "at", "swarm", "agent", ...}`. `agent` is the thread id of the agent
whose history the event belongs to, None for the swarm's own. `seq` is dense per swarm and, like `at` and
`swarm`, stamped by the store's writer: whoever makes an event leaves them out.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from core.domain.status import Budget, Usage, Wait

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VERSION = 1


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="type", tag=_snake):
    # Without gc: plain data cannot be part of a cycle, and a collector that need not look at a hundred
    # thousand of them does not stop the loop.
    v: int = VERSION
    seq: int = 0
    at: datetime = EPOCH
    swarm: str = ""
    agent: str | None = None


# --- the swarm -------------------------------------------------------------------------------------------


class SwarmStarted(Event, frozen=True, kw_only=True):
    """The first event of a swarm (seq 1). `source`: console, exec, job or demo."""

    title: str
    cwd: str
    model: str
    source: str
    server: str = ""
    approval_policy: str = "untrusted"
    sandbox: str = "workspace-write"
    sandboxed: bool = False
    """Whether commands really run in a sandbox on this machine."""
    unattended: Literal["wait", "refuse"] = "wait"
    slots: int = 17


class SwarmResumed(Event, frozen=True, kw_only=True):
    """Another engine goes on with the swarm, with these settings from now on. `by`: who asked for it."""

    by: str
    server: str = ""
    approval_policy: str = "untrusted"
    sandbox: str = "workspace-write"
    sandboxed: bool = False
    unattended: Literal["wait", "refuse"] = "wait"
    slots: int = 17


# --- agents and turns ------------------------------------------------------------------------------------


class AgentSpawned(Event, frozen=True, kw_only=True):
    """An agent's registration, its first event; `agent` is its own new thread id."""

    path: str
    nickname: str
    role: str = "default"
    model: str = ""
    effort: str | None = None
    parent: str | None = None
    """Thread id of the parent, None for a root."""
    depth: int = 0
    task: str = ""
    """What it was asked for, in one line."""
    call: str | None = None
    """The parent's spawn call."""
    job: str | None = None
    item: str | None = None
    fork: str = "none"
    """`none`, `all` or a number of turns: what it took over of the parent's history (decision 22)."""
    fork_seq: int = 0
    """The parent's history up to and including this seq is what the fork refers to."""


class AgentReady(Event, frozen=True, kw_only=True):
    seconds: float = 0.0


class AgentFailed(Event, frozen=True, kw_only=True):
    """Start-up failed: the agent has no turns, and its mail waits, until it is resumed."""

    error: str


class AgentWaits(Event, frozen=True, kw_only=True):
    """The agent starts to wait (`wait` set) or goes on (`wait` None)."""

    wait: Wait | None = None


class AgentClosed(Event, frozen=True, kw_only=True):
    """Mail that the agent had not read is dropped with it, and stays dropped if it is resumed."""

    by: str = ""
    top: str | None = None
    """Thread id of the agent whose close took this one along; None: it was closed itself."""


class AgentResumed(Event, frozen=True, kw_only=True):
    """A closed agent is open again: idle, with its history, path and nickname. One whose start-up failed
    starts up again."""

    by: str = ""


class TurnStarted(Event, frozen=True, kw_only=True):
    turn: str
    cause: Literal["input", "mail", "resume"] = "input"


class TurnCompleted(Event, frozen=True, kw_only=True):
    turn: str
    message: str | None = None
    seconds: float = 0.0


class TurnFailed(Event, frozen=True, kw_only=True):
    """`kind`: what kept the model from answering, a word of `core.models.types.ModelError`; "" else."""

    turn: str
    error: str
    kind: str = ""
    seconds: float = 0.0


class TurnInterrupted(Event, frozen=True, kw_only=True):
    """`by`: "operator", an agent's path, "engine", "budget"."""

    turn: str
    by: str
    reason: str = ""
    seconds: float = 0.0


# --- what it runs on -------------------------------------------------------------------------------------


class McpServerChanged(Event, frozen=True, kw_only=True):
    """How an MCP server is from now on. `agent` None: all agents share it, else it is that agent's own."""

    server: str
    status: Literal["starting", "ready", "failed", "ended"]
    detail: str = ""
    """Why it failed or ended, or what is wrong with what it offers."""
    tools: int = 0
    required: bool = False
    seconds: float | None = None
    """How long its start-up took; None while it starts."""


class BudgetSet(Event, frozen=True, kw_only=True):
    """What the swarm and each of its agents may spend from now on, all told."""

    budget: Budget
    by: str


class UsageUnknown(Event, frozen=True, kw_only=True):
    """Tokens that a server may have counted and did not tell: a bound, which a budget takes as spent."""

    tokens: int
    cost: float | None = None
    """In US dollars; None: the model has no price."""
    reason: str = ""


# --- the history of an agent -----------------------------------------------------------------------------


class UserMessage(Event, frozen=True, kw_only=True):
    """The operator's words, at the moment they enter the history."""

    text: str
    author: str = "operator"
    mail: str | None = None


class AgentMessage(Event, frozen=True, kw_only=True):
    """Mail from another agent, at the moment it enters the history."""

    kind: Literal["NEW_TASK", "MESSAGE", "FINAL_ANSWER"]
    author: str
    """Path of the sender."""
    text: str
    mail: str | None = None


class AssistantMessage(Event, frozen=True, kw_only=True):
    text: str
    response: str = ""


class Reasoning(Event, frozen=True, kw_only=True):
    """A reasoning item. `item` is the server's own item, echoed back unchanged in later requests."""

    summary: str = ""
    item: dict[str, Any] | None = None


class Notice(Event, frozen=True, kw_only=True):
    """A line about the run itself: retries, markers, what was left out. Not sent to the model if `hidden`."""

    text: str
    level: Literal["info", "warning", "error"] = "info"
    hidden: bool = True


class ToolCalled(Event, frozen=True, kw_only=True):
    """A tool call of the model. `arguments` is its JSON text as it came; `brief` one line for people."""

    call: str
    """Unique within the agent."""
    name: str
    arguments: str
    brief: str = ""
    category: str = "other"


class ToolResult(Event, frozen=True, kw_only=True):
    """One result event of a call: append-only, in order of `index` (0, 1, …)."""

    call: str
    index: int
    source: str
    status: str = ""
    text: str = ""
    about: str | None = None
    """Thread id (or what the source said) of the agent this is about."""


class Image(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A picture that a call returned; the store holds it under `blob`, the hash of its bytes."""

    blob: str
    media_type: str
    size: int
    """In bytes."""


class ToolEnded(Event, frozen=True, kw_only=True):
    """The call is over; `output` is what the model gets, None meaning the last result event's text. `images`
    go to the model after it; the text has a line for each."""

    call: str
    status: Literal["ok", "error", "refused", "aborted"] = "ok"
    output: str | None = None
    seconds: float = 0.0
    images: tuple[Image, ...] = ()


class ResponseCompleted(Event, frozen=True, kw_only=True):
    """One response of the model is whole. Mail delivered before it counts as consumed."""

    response: str
    model: str = ""
    usage: Usage | None = None
    """None when the server said nothing."""
    cost: float | None = None
    """In US dollars, by the prices of the settings; None: unknown."""
    seconds: float = 0.0
    attempts: int = 1


class CompactionAsked(Event, frozen=True, kw_only=True):
    """The history shall be compacted before the agent's next request."""

    by: str


class HistoryCompacted(Event, frozen=True, kw_only=True):
    """What came before is replaced, for the model, by the newest messages of users in it, `summary` and
    `team`. What the model has not answered yet comes behind these."""

    summary: str
    """Empty: there was nothing to say."""
    team: str = ""
    """The agents and jobs that this agent must not forget, as lines."""
    tokens: int | None = None
    """How many the last request had; None: unknown."""
    reason: Literal["window", "error", "operator"] = "window"
    keep: int = 80_000
    """How many bytes of the messages stay."""


class ModelRetry(Event, frozen=True, kw_only=True):
    """A request will be repeated after `delay` seconds; `reason` names server, status and its message."""

    attempt: int
    delay: float
    reason: str


# --- mail ------------------------------------------------------------------------------------------------


class MailQueued(Event, frozen=True, kw_only=True):
    """A message for `agent`. It is delivered by the UserMessage or AgentMessage that carries its id."""

    mail: str
    author: str
    """Path of the sender, or "operator"."""
    kind: Literal["INPUT", "NEW_TASK", "MESSAGE", "FINAL_ANSWER"]
    text: str
    trigger: bool = False
    """Whether it starts a turn of an idle agent."""


# --- approvals -------------------------------------------------------------------------------------------


class ApprovalRequested(Event, frozen=True, kw_only=True):
    approval: str
    call: str
    command: str
    argv: tuple[str, ...] = ()
    cwd: str = ""
    reason: str = ""


class ApprovalDecided(Event, frozen=True, kw_only=True):
    approval: str
    decision: Literal["approved", "denied", "aborted"]
    by: str = ""


# --- jobs ------------------------------------------------------------------------------------------------


class JobCreated(Event, frozen=True, kw_only=True):
    """`agent` is the agent that owns the job: its starter, or the job's own root."""

    job: str
    name: str
    instruction: str
    input_path: str
    output_path: str | None
    total: int
    concurrency: int
    max_attempts: int = 1
    max_runtime_seconds: float = 1800
    call: str | None = None


class JobStarted(Event, frozen=True, kw_only=True):
    """Its rows are worked on from now on: for the first time, or again after a pause."""

    job: str
    concurrency: int
    by: str = ""


class JobPaused(Event, frozen=True, kw_only=True):
    """No further row is started; those at work go on to their ends. `by`: "operator", "budget", "quota"."""

    job: str
    by: str
    reason: str = ""


class JobCancelling(Event, frozen=True, kw_only=True):
    """Somebody asked for the job's end; its workers are being stopped."""

    job: str
    by: str


class JobChanged(Event, frozen=True, kw_only=True):
    """So many rows side by side from now on."""

    job: str
    concurrency: int
    by: str


class JobReopened(Event, frozen=True, kw_only=True):
    """A job that had ended has rows to do again; it is pending until somebody runs it."""

    job: str
    by: str


class JobRowMoved(Event, frozen=True, kw_only=True):
    """An operator takes a row out of the job (skipped), or puts it back into the queue (pending)."""

    job: str
    item: str
    row_index: int
    source: Literal["pending", "failed", "skipped"]
    status: Literal["pending", "skipped"]
    by: str


class JobRowClaimed(Event, frozen=True, kw_only=True):
    """A row goes to a worker. `worker` is the thread id that only this attempt has."""

    job: str
    item: str
    row_index: int
    attempt: int
    worker: str


class JobRowEnded(Event, frozen=True, kw_only=True):
    """A row is over, or (status pending) goes back to the queue after a failed attempt."""

    job: str
    item: str
    row_index: int
    attempt: int
    status: Literal["completed", "failed", "pending", "skipped"]
    worker: str | None = None
    result: str | None = None
    """The accepted report, as JSON text."""
    error: str | None = None


class JobReportRefused(Event, frozen=True, kw_only=True):
    """A report that came too late, twice, or from the wrong worker; kept, never counted."""

    job: str
    item: str
    worker: str
    reason: str
    result: str = ""


class JobEnded(Event, frozen=True, kw_only=True):
    job: str
    status: Literal["completed", "failed", "cancelled"]
    error: str | None = None
    by: str = ""


class JobExported(Event, frozen=True, kw_only=True):
    job: str
    path: str
    rows: int


AnyEvent = (
    SwarmStarted
    | SwarmResumed
    | AgentSpawned
    | AgentReady
    | AgentFailed
    | AgentWaits
    | AgentClosed
    | AgentResumed
    | TurnStarted
    | TurnCompleted
    | TurnFailed
    | TurnInterrupted
    | McpServerChanged
    | BudgetSet
    | UsageUnknown
    | UserMessage
    | AgentMessage
    | AssistantMessage
    | Reasoning
    | Notice
    | ToolCalled
    | ToolResult
    | ToolEnded
    | ResponseCompleted
    | CompactionAsked
    | HistoryCompacted
    | ModelRetry
    | MailQueued
    | ApprovalRequested
    | ApprovalDecided
    | JobCreated
    | JobStarted
    | JobPaused
    | JobCancelling
    | JobChanged
    | JobReopened
    | JobRowMoved
    | JobRowClaimed
    | JobRowEnded
    | JobReportRefused
    | JobEnded
    | JobExported
)

TRANSCRIPT: tuple[type[Event], ...] = (
    UserMessage,
    AgentMessage,
    AssistantMessage,
    Reasoning,
    Notice,
    ToolCalled,
    ToolResult,
    ToolEnded,
    ModelRetry,
    CompactionAsked,
    HistoryCompacted,
    TurnFailed,
    TurnInterrupted,
)
"""The events that a transcript shows; a transcript page holds these and nothing else."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """One line of JSON, without a newline."""
    return _encoder.encode(event)


def decode(line: bytes | str) -> AnyEvent:
    """The event of one JSON line. Raises msgspec.ValidationError on an unknown type or a wrong field."""
    return _decoder.decode(line)


def type_name(event: Event | type[Event]) -> str:
    """The `type` tag of an event."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
