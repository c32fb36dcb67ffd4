"""What a face may ask of an engine, and what it gets back. Plain data: this is what will cross the socket."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from core.domain.events import AnyEvent
from core.domain.state import JobState, SwarmState


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """`author` is who asks: "operator" unless a script says otherwise; it is recorded with the effect."""

    author: str = "operator"


class StartSwarm(Command, frozen=True, kw_only=True, tag="start_swarm"):
    """Start a root. With `task` None the root waits for input. Reply: {"swarm", "thread"}."""

    task: str | None = None
    cwd: str = "."
    title: str = ""
    source: str = "console"
    unattended: Literal["wait", "refuse"] = "wait"


class RunJob(Command, frozen=True, kw_only=True, tag="run_job"):
    """Create and start a job below a root of its own (decision 30). Reply: {"swarm", "thread", "job"}.

    Refused with code "usage" before anything is stored when the input is bad.
    """

    input_path: str
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


class SendInput(Command, frozen=True, kw_only=True, tag="send_input"):
    """The operator's words to an agent; they start a turn, or join the running one at its next step."""

    swarm: str
    thread: str
    text: str


class Interrupt(Command, frozen=True, kw_only=True, tag="interrupt"):
    """Stop the running turn. Reply: {"stopped": [thread, …]}."""

    swarm: str
    thread: str
    cascade: bool = False


class Close(Command, frozen=True, kw_only=True, tag="close"):
    """End an agent and everything below it. Reply: {"closed": [thread, …]}."""

    swarm: str
    thread: str


class Decide(Command, frozen=True, kw_only=True, tag="decide"):
    """Answer one approval by the id that was shown. The first decision wins; code "decided" names who."""

    swarm: str
    approval: str
    approve: bool


class ListSwarms(Command, frozen=True, kw_only=True, tag="list_swarms"):
    """Reply: {"swarms": [{"swarm", "title", "live"}, …]}: those this engine owns."""


AnyCommand = StartSwarm | RunJob | SendInput | Interrupt | Close | Decide | ListSwarms


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one per command. `error` is one sentence for people; `code` is for programs:
    not_found, usage, refused, decided, limit, closed, error."""

    ok: bool = True
    value: dict[str, Any] = {}
    error: str = ""
    code: str = ""


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
    """Whether there are older events before the first."""


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
    rows: tuple[JobRow, ...]
    total: int
    seq: int
    job: JobState | None = None


class GetTranscript(msgspec.Struct, frozen=True, kw_only=True, tag="get_transcript"):
    """The newest `limit` transcript events of an agent with seq < `before` (None: the newest of all)."""

    swarm: str
    thread: str
    before: int | None = None
    limit: int = 500


class GetJobRows(msgspec.Struct, frozen=True, kw_only=True, tag="get_job_rows"):
    """Rows of a job in input order from row_index `start` on."""

    swarm: str
    job: str
    start: int = 0
    limit: int = 200


class GetEvents(msgspec.Struct, frozen=True, kw_only=True, tag="get_events"):
    """Every event of a swarm with seq > `after`, oldest first: what a reader of the feed missed."""

    swarm: str
    after: int = 0
    limit: int = 1000


class EventsPage(msgspec.Struct, frozen=True, kw_only=True, tag="events_page"):
    events: tuple[AnyEvent, ...]
    seq: int
    """The newest seq of the swarm when this was read."""


PageRequest = GetTranscript | GetJobRows | GetEvents
Page = TranscriptPage | JobRowsPage | EventsPage
