"""SwarmView: one swarm as a face sees it. Feed items go in, marks of what changed come out."""

from __future__ import annotations

from typing import Any, cast

from msgspec.structs import replace

from core.domain.apply import IN_TRANSCRIPT, apply
from core.domain.commands import Batch, Delta, FeedItem, JobRow, JobRowsPage, Lagged, Snapshot, TranscriptPage
from core.domain.events import AnyEvent, AssistantMessage, JobRowClaimed, JobRowEnded, JobRowMoved
from core.domain.state import AgentState, Changes, SwarmState
from core.safety.text import clean
from core.view.cleaning import clean_struct
from core.view.transcript import Transcript

KEEP_BEFORE = 32
"""Transcripts kept over a snapshot, until somebody asks for them again."""


RowEvent = JobRowClaimed | JobRowEnded | JobRowMoved


class JobRows:
    """The rows of one job that a face has loaded, by row_index, kept current by events."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.rows: dict[int, JobRow] = {}
        self.total = 0
        self.seq = 0
        self._late: list[RowEvent] = []

    def load(self, page: JobRowsPage) -> None:
        """Take a page. Events that came after the page was read are applied on top of it."""
        self.total = page.total
        for row in page.rows:
            self.rows[row.row_index] = clean_struct(row)
        for event in self._late:
            if event.seq > page.seq:
                self._fold(event)
        self.seq = max(self.seq, page.seq)

    def apply(self, event: RowEvent) -> None:
        self._late.append(event)
        del self._late[:-2000]
        self._fold(event)

    def _fold(self, event: RowEvent) -> None:
        row = self.rows.get(event.row_index)
        if row is None:
            return
        at = event.at.isoformat().replace("+00:00", "Z")
        if isinstance(event, JobRowMoved):
            ended = at if event.status == "skipped" else None
            self.rows[event.row_index] = replace(row, status=event.status, worker=None, ended_at=ended)
            return
        if isinstance(event, JobRowClaimed):
            fields = {"status": "running", "worker": event.worker, "started_at": at, "error": None}
            fields["ended_at"] = None
        elif event.status == "pending":
            fields = {"status": "pending", "worker": None, "error": event.error, "ended_at": None}
        else:
            fields = {"status": event.status, "result": event.result, "error": event.error, "ended_at": at}
        self.rows[event.row_index] = replace(row, attempt=event.attempt, **fields)


class SwarmView:
    """State, transcripts and job rows of one swarm. Not thread-safe: one loop feeds and reads it.

    Agents, calls and jobs are in `state`. A transcript is folded only once it is loaded (`load_transcript`);
    until then its events are dropped here, because a page brings them.
    """

    def __init__(self) -> None:
        self.state = SwarmState(swarm="")
        self.transcripts: dict[str, Transcript] = {}
        self.job_rows: dict[str, JobRows] = {}
        self.streaming: dict[str, str] = {}
        """Text still being written, by thread."""
        self.lagged = 0
        self.reset = 0
        """How often a snapshot replaced everything; loaded transcripts must be asked for again."""
        self._places: tuple[int, dict[str, int]] = (-1, {})
        self._changes = Changes()
        self._streaming_response: dict[str, str] = {}
        self._ahead: dict[str, list[AnyEvent]] = {}
        self._before: dict[str, Transcript] = {}
        """Transcripts that were loaded when a snapshot came: each goes on once a page reaches up to it."""

    def place(self, thread: str) -> int | None:
        """Where an agent stands in the line for a slot, from 1; None if it waits for none."""
        agent = self.state.agents.get(thread)
        if agent is None or agent.wait is None or agent.wait.reason != "slot":
            return None
        if self._places[0] != self.state.seq:
            self._places = (self.state.seq, self.state.places())
        return self._places[1].get(thread)

    def feed(self, item: FeedItem) -> None:
        match item:
            case Snapshot():
                self._snapshot(item)
            case Batch():
                for event in item.events:
                    self.apply(event)
            case Delta():
                self._delta(item)
            case Lagged():
                self.lagged += 1

    def take_changes(self) -> Changes:
        """What was touched since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def apply(self, event: AnyEvent) -> None:
        """Fold one event, cleaned; an old one does nothing."""
        if event.seq <= self.state.seq:
            return
        event = clean_struct(event)
        apply(self.state, event, self._changes)
        thread = event.agent
        if thread is not None and type(event) in IN_TRANSCRIPT and thread in self.state.agents:
            if (transcript := self.transcripts.get(thread)) is not None:
                transcript.apply(event)
            elif (ahead := self._ahead.get(thread)) is not None:
                ahead.append(event)
        if isinstance(event, AssistantMessage) and event.agent is not None:
            self.streaming.pop(event.agent, None)
            self._streaming_response.pop(event.agent, None)
        if isinstance(event, RowEvent) and event.job in self.job_rows:
            self.job_rows[event.job].apply(event)

    def expect_transcript(self, thread: str) -> None:
        """Call before asking for the newest page: events that arrive meanwhile are kept for it."""
        self._ahead.setdefault(thread, [])

    def load_transcript(self, thread: str, page: TranscriptPage) -> Transcript:
        """Take a page: the newest (first call) or an older one. Returns the transcript."""
        transcript = self.transcripts.get(thread)
        before = self._before.pop(thread, None)
        if transcript is not None:
            transcript.prepend(page)
        elif before is not None and (not page.more or page.events[0].seq <= before.seq):
            transcript = self.transcripts[thread] = before
            for event in page.events:
                transcript.apply(clean_struct(event))
        else:
            transcript = self.transcripts[thread] = Transcript(thread)
            transcript.prepend(page)
        for event in self._ahead.pop(thread, []):
            transcript.apply(event)
        self._changes.transcripts.add(thread)
        return transcript

    def load_job_rows(self, job: str, page: JobRowsPage) -> JobRows:
        rows = self.job_rows.setdefault(job, JobRows(job))
        rows.load(page)
        self._changes.jobs.add(job)
        return rows

    def watch_job(self, job: str) -> JobRows:
        """Call before asking for the first page of a job's rows."""
        return self.job_rows.setdefault(job, JobRows(job))

    def agent(self, thread: str | None) -> AgentState | None:
        return self.state.agents.get(thread) if thread is not None else None

    def name_of(self, key: str | None) -> str:
        """A short name for people of an agent that is given by thread id or path."""
        if key is None:
            return ""
        agent = self.state.agents.get(key) or self.state.by_path(key)
        return agent.nickname if agent is not None else key

    def _snapshot(self, item: Snapshot) -> None:
        state = item.state.copy()
        for table in (state.servers, state.agents, state.approvals, state.calls, state.mail, state.jobs):
            for key, entry in list(table.items()):
                table[key] = cast("Any", clean_struct(entry))
        same = self.state.swarm == state.swarm
        self._before = {**self._before, **self.transcripts} if same else {}
        for old in list(self._before)[:-KEEP_BEFORE]:
            del self._before[old]
        self.state = clean_struct(state)
        self.transcripts.clear()
        self.job_rows.clear()
        self._ahead.clear()
        self.streaming = {s.thread: clean(s.text) for s in item.streaming}
        self._streaming_response = {s.thread: s.response for s in item.streaming}
        self.reset += 1
        self._changes = Changes(
            agents=set(state.agents),
            approvals=set(state.approvals),
            calls=set(state.calls),
            jobs=set(state.jobs),
            transcripts=set(state.agents),
            swarm=True,
        )

    def _delta(self, item: Delta) -> None:
        thread = item.thread
        if item.offset == 0:
            self.streaming[thread] = clean(item.text)
            self._streaming_response[thread] = item.response
        elif self._streaming_response.get(thread) == item.response:
            self.streaming[thread] = self.streaming.get(thread, "") + clean(item.text)
        if not self.streaming.get(thread):
            self.streaming.pop(thread, None)
            self._streaming_response.pop(thread, None)
        self._changes.transcripts.add(thread)
        self._changes.agents.add(thread)
