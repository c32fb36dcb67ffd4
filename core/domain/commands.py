"""What a face may ask of an engine, and what it gets back. Plain data: this is what crosses the socket."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from core.domain.events import AnyEvent
from core.domain.state import AgentState, JobState, SwarmState


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a swarm runs with, from whoever starts or resumes it (decision 4). An engine keeps it in memory
    and never stores it: it may hold keys. Its repr shows none of it."""

    settings: dict[str, Any] = {}
    """`core.config.FileSettings` as JSON values."""
    api_key: str | None = None
    environment: dict[str, str] = {}
    """What commands of the agents get of the starter's environment; listed variables only."""
    secrets: tuple[str, ...] = ()
    """Values that must never be stored, shown or sent on."""

    def __repr__(self) -> str:
        return "Setup(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """A console that crashes prints its variables by this one."""
        return []


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """`author` is who asks: "operator" unless a script says otherwise; it is recorded with the effect."""

    author: str = "operator"


class StartSwarm(Command, frozen=True, kw_only=True, tag="start_swarm"):
    """Start a root. With `task` None the root waits for input. Reply: {"swarm", "thread"}.

    `setup` None: the engine's own settings, environment and key."""

    setup: Setup | None = None
    task: str | None = None
    cwd: str = "."
    title: str = ""
    source: str = "console"
    unattended: Literal["wait", "refuse"] = "wait"


class RunJob(Command, frozen=True, kw_only=True, tag="run_job"):
    """Create and start a job below a root of its own (decision 30). Reply: {"swarm", "thread", "job"}.

    Refused with code "usage" before anything is stored when the input is bad.
    """

    setup: Setup | None = None
    input_path: str = ""
    glob: str | None = None
    """Instead of `input_path`: a pattern like `src/**/*.py`, whose files are the rows."""
    instruction: str
    cwd: str = "."
    output_path: str | None = None
    id_column: str | None = None
    name: str | None = None
    max_concurrency: int | None = None
    max_runtime_seconds: float | None = None
    max_attempts: int | None = None
    output_schema: dict[str, Any] | None = None
    auto_export: bool = True
    raw: bool = False
    unattended: Literal["wait", "refuse"] = "refuse"


class ResumeSwarm(Command, frozen=True, kw_only=True, tag="resume_swarm"):
    """Go on with a swarm that the store holds and nobody owns. Reply: {"swarm", "thread", "changed"};
    `changed` is False if this engine runs it already. Code "owned" names another owner."""

    swarm: str
    setup: Setup | None = None
    unattended: Literal["wait", "refuse"] | None = None
    """None: as the swarm had it."""


class StopEngine(Command, frozen=True, kw_only=True, tag="stop_engine"):
    """End the engine: running turns are interrupted and recorded, processes ended, everything flushed.
    Reply, before it has happened: {"pid"}. The connection ends when it has."""


class SendInput(Command, frozen=True, kw_only=True, tag="send_input"):
    """The operator's words to an agent; they start a turn, or join the running one at its next step.
    Reply: {"changed"}: whether anything was sent (not in a dry run)."""

    swarm: str
    thread: str
    text: str
    dry_run: bool = False


class Interrupt(Command, frozen=True, kw_only=True, tag="interrupt"):
    """Stop the running turn. Reply: {"stopped": [thread, …], "changed"}; a dry run names who would be."""

    swarm: str
    thread: str
    cascade: bool = False
    dry_run: bool = False


class Close(Command, frozen=True, kw_only=True, tag="close"):
    """End an agent and everything below it. Reply: {"closed": [thread, …], "changed"}; a dry run names who
    would be. Closing a closed agent changes nothing."""

    swarm: str
    thread: str
    dry_run: bool = False


class ResumeAgent(Command, frozen=True, kw_only=True, tag="resume_agent"):
    """Open a closed agent again, with those below it that the same close ended. Reply: {"resumed":
    [thread, …], "changed"}; a dry run names who would come back. An open agent is not changed."""

    swarm: str
    thread: str
    dry_run: bool = False


class SetBudget(Command, frozen=True, kw_only=True, tag="set_budget"):
    """Change what a swarm may spend; turns that waited for that go on. None leaves a limit as it is, 0 takes
    it away. Reply: {"budget": {"tokens", "cost", "per_agent_tokens", "per_agent_cost"}, "changed"}; a dry run
    tells what they would be. Code "refused" for money where a model has no price."""

    swarm: str
    tokens: int | None = None
    cost: float | None = None
    per_agent_tokens: int | None = None
    per_agent_cost: float | None = None
    dry_run: bool = False


class Compact(Command, frozen=True, kw_only=True, tag="compact"):
    """Have an agent's history replaced by a summary before its next request, also if that is long after.
    Reply: {"changed"}; False if it was asked for already. Refused, like input, for an agent that starts up or
    could not, and for one that has no history yet."""

    swarm: str
    thread: str
    dry_run: bool = False


class PauseJob(Command, frozen=True, kw_only=True, tag="pause_job"):
    """Start no further rows; those at work go on. Reply: {"changed", "running": rows still at work}."""

    swarm: str
    job: str
    dry_run: bool = False


class ContinueJob(Command, frozen=True, kw_only=True, tag="continue_job"):
    """Go on with a paused job, or run one that was reopened. Reply: {"changed"}."""

    swarm: str
    job: str
    dry_run: bool = False


class CancelJob(Command, frozen=True, kw_only=True, tag="cancel_job"):
    """End a job: its workers are stopped, their rows fail, rows not started stay pending. Reply, once the
    workers are being stopped: {"changed", "running"}."""

    swarm: str
    job: str
    dry_run: bool = False


class RetryRows(Command, frozen=True, kw_only=True, tag="retry_rows"):
    """Put rows that failed or were skipped back into the queue: `items`, or all that failed. A job that has
    ended runs again. Reply: {"changed", "rows": how many}. Code "not_found" names an unknown item."""

    swarm: str
    job: str
    items: tuple[str, ...] = ()
    dry_run: bool = False


class SkipRows(Command, frozen=True, kw_only=True, tag="skip_rows"):
    """Take rows out of a job that nobody works on. Reply: {"changed", "rows"}."""

    swarm: str
    job: str
    items: tuple[str, ...]
    dry_run: bool = False


class SetJob(Command, frozen=True, kw_only=True, tag="set_job"):
    """Change how many rows of a job are worked on side by side. Reply: {"changed", "concurrency"}: the
    swarm's slots cap it."""

    swarm: str
    job: str
    max_concurrency: int
    dry_run: bool = False


class Decide(Command, frozen=True, kw_only=True, tag="decide"):
    """Answer one approval by the id that was shown. The first decision wins; code "decided" names who."""

    swarm: str
    approval: str
    approve: bool


class ListSwarms(Command, frozen=True, kw_only=True, tag="list_swarms"):
    """Reply: {"swarms": [{"swarm", "title", "root", "live", "running", "asks", "started_at"}, …]}: those this
    engine owns, newest first. `live`: something in it still happens; `running`: agents with a turn."""


AnyCommand = (
    StartSwarm
    | RunJob
    | ResumeSwarm
    | StopEngine
    | SendInput
    | Interrupt
    | Close
    | ResumeAgent
    | SetBudget
    | Compact
    | PauseJob
    | ContinueJob
    | CancelJob
    | RetryRows
    | SkipRows
    | SetJob
    | Decide
    | ListSwarms
)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one per command. `error` is one sentence for people; `code` is for programs:
    not_found, usage, refused, decided, owned, limit, busy, closed, error."""

    ok: bool = True
    value: dict[str, Any] = {}
    error: str = ""
    code: str = ""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: `kind` is "background" (the home's own engine), "exec", "job", "demo" or "local"."""

    engine: str
    pid: int
    kind: str
    version: str


# --- the feed --------------------------------------------------------------------------------------------


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """Text of an answer still being written (decision 9): never stored, forgotten when it is whole."""

    thread: str
    response: str
    text: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """Everything up to and including `state.seq`."""

    state: SwarmState
    streaming: tuple[Streaming, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag="batch"):
    """Events after what came before, dense and in order."""

    events: tuple[AnyEvent, ...]


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """Text to append at `offset` of a streaming answer. `offset` 0 starts it anew; an empty text at offset 0
    ends it."""

    thread: str
    response: str
    offset: int
    text: str


class Lagged(msgspec.Struct, frozen=True, kw_only=True, tag="lagged"):
    """The reader was too slow; a new Snapshot follows."""


FeedItem = Snapshot | Batch | Delta | Lagged


# --- pages -----------------------------------------------------------------------------------------------


class TranscriptPage(msgspec.Struct, frozen=True, kw_only=True, tag="transcript_page"):
    """Transcript events of one agent, in order; `seq` is what the page is true for."""

    events: tuple[AnyEvent, ...]
    seq: int
    more: bool
    """Whether there are older events before the first (asked with `after`: newer ones behind the last). A
    page may be shorter than its limit because it is large."""


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    item: str
    row_index: int
    status: str
    attempt: int = 0
    worker: str | None = None
    source_id: str | None = None
    result: str | None = None
    error: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    label: str = ""
    """A few of the row's own values, for people."""


class JobRowsPage(msgspec.Struct, frozen=True, kw_only=True, tag="job_rows_page"):
    """`more`: there are rows behind the last; a page may be shorter than its limit because it is large."""

    rows: tuple[JobRow, ...]
    total: int
    seq: int
    job: JobState | None = None
    more: bool = False


class GetTranscript(msgspec.Struct, frozen=True, kw_only=True, tag="get_transcript"):
    """The newest `limit` transcript events of an agent with seq < `before` (None: the newest of all); with
    `after`, the oldest `limit` with seq > `after` instead."""

    swarm: str
    thread: str
    before: int | None = None
    after: int | None = None
    limit: int = 500


class GetJobRows(msgspec.Struct, frozen=True, kw_only=True, tag="get_job_rows"):
    """Rows of a job in input order from row_index `start` on; or only `rows`, by their row_index."""

    swarm: str
    job: str
    start: int = 0
    limit: int = 200
    rows: tuple[int, ...] = ()


JobSort = Literal["row", "state", "tries", "time"]


class GetJobOrder(msgspec.Struct, frozen=True, kw_only=True, tag="get_job_order"):
    """Which rows of a job a filter leaves, and in what order: `status` (empty: all) and a `text` in their
    values, result or error. Rows themselves are asked for with `GetJobRows.rows`."""

    swarm: str
    job: str
    status: tuple[str, ...] = ()
    text: str = ""
    sort: JobSort = "row"
    descending: bool = False


class JobOrderPage(msgspec.Struct, frozen=True, kw_only=True, tag="job_order_page"):
    """Row indexes; `truncated`: there are more than one answer holds."""

    rows: tuple[int, ...]
    total: int
    """Of the job, without the filter."""
    seq: int
    truncated: bool = False


class GetEvents(msgspec.Struct, frozen=True, kw_only=True, tag="get_events"):
    """Events of a swarm with seq > `after`, oldest first: what a reader of the feed missed. With `before`
    the newest `limit` of those with seq < `before`, still oldest first. `agent`: of one agent only."""

    swarm: str
    after: int = 0
    before: int | None = None
    agent: str | None = None
    limit: int = 1000


class GetAgents(msgspec.Struct, frozen=True, kw_only=True, tag="get_agents"):
    """Agents of a swarm in spawn order, from `order` `start` on; `status` (empty: all) filters."""

    swarm: str
    status: tuple[str, ...] = ()
    start: int = 0
    limit: int = 1000


class AgentsPage(msgspec.Struct, frozen=True, kw_only=True, tag="agents_page"):
    """`counts` is complete, by status; `truncated` says that more agents fit the question."""

    agents: tuple[AgentState, ...]
    counts: dict[str, int]
    truncated: bool
    seq: int


class EventsPage(msgspec.Struct, frozen=True, kw_only=True, tag="events_page"):
    events: tuple[AnyEvent, ...]
    seq: int
    """The newest seq of the swarm when this was read."""
    more: bool = False
    """Whether more events fit the question: a page is bounded in events and in bytes."""


PageRequest = GetTranscript | GetJobRows | GetJobOrder | GetEvents | GetAgents
Page = TranscriptPage | JobRowsPage | JobOrderPage | EventsPage | AgentsPage
