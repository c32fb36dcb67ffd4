"""The transcript of one agent as rows: messages, tool calls with their result events, notices.

Rows are only ever added at the two ends (older pages in front, new events behind) or, for a call, replaced
by themselves with one more result event. Row ids never change, so a cursor and folds survive both.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from msgspec.structs import replace

from core.domain import events as e
from core.domain.commands import TranscriptPage
from core.domain.summary import LastTexts, note_result, summary_of
from core.view.cleaning import clean_struct

RowRole = Literal["user", "assistant", "agent", "reasoning", "notice", "call"]


class ResultEvent(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    source: str
    status: str
    text: str
    about: str | None
    at: datetime


class Call(msgspec.Struct, frozen=True, kw_only=True):
    call: str
    name: str
    arguments: str
    brief: str
    category: str
    status: str = "open"
    """open, ok, error, refused or aborted."""
    seconds: float | None = None
    events: tuple[ResultEvent, ...] = ()

    def summary(self) -> str:
        """What a folded call shows: the last text, or one line per agent in first-seen order."""
        last: LastTexts = {}
        for event in self.events:
            note_result(last, event.about, event.text, event.status)
        return summary_of(last)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    """Of the event that made the row: its identity in this transcript."""
    role: RowRole
    at: datetime
    text: str = ""
    author: str = ""
    """Path of the sending agent for `agent`, who typed for `user`."""
    level: str = "info"
    call: Call | None = None
    folds: bool = False
    """Whether its text is long and of the second order: a face shows its first line until asked for all."""


class Transcript:
    """Rows of one agent. `version` grows with each change; `take_changed` tells from which row on."""

    def __init__(self, thread: str) -> None:
        self.thread = thread
        self.rows: list[Row] = []
        self.seq = 0
        self.more = True
        """Whether older rows exist that are not loaded."""
        self.version = 0
        self._calls: dict[str, int] = {}
        self._orphans: list[e.Event] = []
        """Results of calls that are on an older page, not loaded yet."""
        self._loaded = False
        self._first_seq: int | None = None
        self._changed: int | None = None

    @property
    def first_seq(self) -> int | None:
        """The seq to ask for older events `before`; None while nothing is loaded."""
        return self._first_seq

    @property
    def orphans(self) -> int:
        """Results whose call is not among the loaded rows."""
        return len(self._orphans)

    def prepend(self, page: TranscriptPage) -> int:
        """Put an older page in front (or load the first one). Returns how many rows it added."""
        older = Transcript(self.thread)
        for event in [*page.events, *self._orphans]:
            older._fold(clean_struct(event))
        self._orphans = older._orphans
        self.rows[:0] = older.rows
        self._calls = {row.call.call: i for i, row in enumerate(self.rows) if row.call is not None}
        self.more = page.more
        if not self._loaded:
            # An older page may be read at a later moment than the events here: it brings none between.
            self.seq = max(self.seq, page.seq)
            self._loaded = True
        if page.events:
            self._first_seq = page.events[0].seq
        self._touch(0)
        return len(older.rows)

    def apply(self, event: e.Event) -> None:
        """Fold a live event (cleaned already); one at or before `seq` is on a page and does nothing."""
        if event.seq <= self.seq:
            return
        self.seq = event.seq
        if self._first_seq is None:
            self._first_seq = event.seq
        self._fold(event)

    def take_changed(self) -> int | None:
        """The lowest row index that changed since the last call, None if nothing did."""
        changed, self._changed = self._changed, None
        return changed

    def _touch(self, index: int) -> None:
        self.version += 1
        self._changed = index if self._changed is None else min(self._changed, index)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._touch(len(self.rows) - 1)

    def _fold(self, event: e.Event) -> None:
        match event:
            case e.ToolCalled():
                self._calls[event.call] = len(self.rows)
                call = Call(
                    call=event.call,
                    name=event.name,
                    arguments=event.arguments,
                    brief=event.brief,
                    category=event.category,
                )
                self._add(Row(seq=event.seq, role="call", at=event.at, call=call))
            case e.ToolResult() | e.ToolEnded():
                self._fold_call(event)
            case _:
                row = _plain_row(event)
                if row is not None:
                    self._add(row)

    def _fold_call(self, event: e.ToolResult | e.ToolEnded) -> None:
        index = self._calls.get(event.call)
        row = self.rows[index] if index is not None else None
        if index is None or row is None or row.call is None:
            self._orphans.append(event)
            return
        call = row.call
        if isinstance(event, e.ToolEnded):
            cut = event.status == "aborted" and not event.seconds  # nobody was there to measure it
            call = replace(call, status=event.status, seconds=None if cut else event.seconds)
        else:
            result = ResultEvent(
                index=event.index,
                source=event.source,
                status=event.status,
                text=event.text,
                about=event.about,
                at=event.at,
            )
            call = replace(call, events=(*call.events, result))
        self.rows[index] = replace(row, call=call)
        self._touch(index)


def _plain_row(event: e.Event) -> Row | None:
    match event:
        case e.UserMessage():
            return Row(seq=event.seq, role="user", at=event.at, text=event.text, author=event.author)
        case e.AgentMessage():
            return Row(
                seq=event.seq,
                role="agent",
                at=event.at,
                text=event.text,
                author=event.author,
                level=event.kind,
            )
        case e.AssistantMessage():
            return Row(seq=event.seq, role="assistant", at=event.at, text=event.text)
        case e.Reasoning():
            if not event.summary:
                return None
            return Row(seq=event.seq, role="reasoning", at=event.at, text=event.summary)
        case e.Notice():
            return Row(seq=event.seq, role="notice", at=event.at, text=event.text, level=event.level)
        case e.ModelRetry():
            text = f"retry {event.attempt} in {event.delay:.1f} s: {event.reason}"
            return Row(seq=event.seq, role="notice", at=event.at, text=text, level="warning")
        case e.CompactionAsked():
            text = f"{event.by} asked for this history to be compacted before the next request"
            return Row(seq=event.seq, role="notice", at=event.at, text=text)
        case e.HistoryCompacted():
            of = f" of {event.tokens:,} tokens" if event.tokens is not None else ""
            text = f"the history{of} was compacted; the model goes on from this summary:\n{event.summary}"
            return Row(seq=event.seq, role="notice", at=event.at, text=text, folds=True)
        case e.TurnFailed():
            return Row(seq=event.seq, role="notice", at=event.at, text=event.error, level="error")
        case e.TurnInterrupted():
            text = f"interrupted by {event.by}" + (f": {event.reason}" if event.reason else "")
            return Row(seq=event.seq, role="notice", at=event.at, text=text, level="warning")
        case _:
            return None
