from __future__ import annotations

from itertools import chain

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.commands import (
    Batch,
    Delta,
    JobRow,
    JobRowsPage,
    Lagged,
    Snapshot,
    Streaming,
    TranscriptPage,
)
from core.domain.state import SwarmState
from core.safety.text import is_clean
from core.view.cleaning import clean_struct
from core.view.swarm import SwarmView
from core.view.transcript import Transcript
from tests.core.domain.strategies import HOSTILE, fold, plausible, stamp


def strings(value: object) -> list[str]:
    """Every string in whatever the view holds, dictionary keys of ids apart."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list | tuple | set):
        return [text for inner in value for text in strings(inner)]
    if isinstance(value, msgspec.Struct):
        return [text for name in value.__struct_fields__ for text in strings(getattr(value, name))]
    if isinstance(value, Transcript):
        return strings(value.rows)
    return []


def transcript_of(events: list[e.AnyEvent], thread: str) -> list[e.AnyEvent]:
    return [event for event in events if event.agent == thread and isinstance(event, e.TRANSCRIPT)]


def page_of(events: list[e.AnyEvent], thread: str, before: int | None, limit: int) -> TranscriptPage:
    """What a store that holds `events` answers."""
    seq = events[-1].seq if events else 0
    own = [ev for ev in transcript_of(events, thread) if before is None or ev.seq < before]
    return TranscriptPage(events=tuple(own[-limit:]), seq=seq, more=len(own) > limit)


def whole(events: list[e.AnyEvent], thread: str) -> Transcript:
    transcript = Transcript(thread)
    transcript.prepend(page_of(events, thread, None, 10_000))
    return transcript


@given(plausible, st.data())
def test_a_snapshot_and_what_follows_is_the_fold_of_all(events: list[e.Event], data: st.DataObject) -> None:
    # What is cleaned away differs: a snapshot is cleaned after the fold, an event before it.
    stamped = [clean_struct(event) for event in stamp(events)]
    cut = data.draw(st.integers(0, len(stamped)))
    view, listener = SwarmView(), SwarmView()
    listener.feed(Snapshot(state=SwarmState(swarm="s")))
    listener.feed(Batch(events=tuple(stamped)))
    view.feed(Snapshot(state=fold(stamped[:cut])))
    position = cut
    while position < len(stamped):
        # Batches may overlap what is known already.
        start = data.draw(st.integers(max(position - 3, 0), position))
        end = data.draw(st.integers(position + 1, len(stamped)))
        view.feed(Batch(events=tuple(stamped[start:end])))
        position = end
    assert view.state.seq == len(stamped)
    assert msgspec.to_builtins(view.state) == msgspec.to_builtins(listener.state)


@settings(deadline=None, max_examples=200)
@given(
    plausible,
    st.integers(0, 50),
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.integers(1, 3),
    st.lists(
        st.sampled_from([["events"], ["ask"], ["read"], ["answer"], ["ask", "read", "answer"]]), max_size=30
    ),
)
def test_pages_loaded_at_any_moment_and_events_give_the_whole_transcript(
    events: list[e.Event], start: int, ahead: list[int], limit: int, steps: list[list[str]]
) -> None:
    """The engine is ahead of the view, and pages are read from it at moments that nobody arranges."""
    stamped = stamp(events)
    known = 2 + start % (len(stamped) - 1)
    view = SwarmView()
    view.feed(Snapshot(state=fold(stamped[:known])))
    thread = max(view.state.agents, key=lambda agent: len(transcript_of(stamped, agent)))
    loading, reads, engine = False, 0, 0
    answer: TranscriptPage | None = None
    finish = ["answer", *["events"] * len(stamped), *["ask", "read", "answer"] * (len(stamped) + 1)]
    for step in [*chain.from_iterable(steps), *finish]:
        transcript = view.transcripts.get(thread)
        if step == "events" and known < len(stamped):
            known += 1
            view.feed(Batch(events=(stamped[known - 1],)))
        elif step == "ask" and not loading and (transcript is None or transcript.more):
            view.expect_transcript(thread)
            loading = True
        elif step == "read" and loading and answer is None:
            # The engine answers with what it has by now: perhaps more than the view has heard of.
            reads += 1
            engine = max(engine, known + ahead[reads % len(ahead)] % (len(stamped) - known + 1))
            before = transcript.first_seq if transcript is not None else None
            answer = page_of(stamped[:engine], thread, before, limit)
        elif step == "answer" and answer is not None:
            view.load_transcript(thread, answer)
            answer, loading = None, False
    assert view.transcripts[thread].rows == whole(stamped, thread).rows


@given(plausible)
def test_row_ids_never_repeat_and_grow(events: list[e.Event]) -> None:
    stamped = stamp(events)
    for thread in fold(stamped).agents:
        seqs = [row.seq for row in whole(stamped, thread).rows]
        assert seqs == sorted(set(seqs))


@given(plausible, st.data())
def test_changed_rows_are_told(events: list[e.Event], data: st.DataObject) -> None:
    stamped = stamp(events)
    thread = data.draw(st.sampled_from(sorted(fold(stamped).agents)))
    transcript = Transcript(thread)
    for event in transcript_of(stamped, thread):
        before = list(transcript.rows)
        transcript.apply(event)
        changed = transcript.take_changed()
        first = next(
            (i for i, row in enumerate(transcript.rows) if i >= len(before) or row is not before[i]), None
        )
        assert changed == first


@given(plausible, st.text(max_size=20))
def test_hostile_text_is_nowhere_in_the_view(events: list[e.Event], text: str) -> None:
    more: list[e.Event] = [
        e.AssistantMessage(agent="t0", text=HOSTILE + text),
        e.Reasoning(agent="t0", summary=HOSTILE, item={"opaque": HOSTILE}),
        e.ToolCalled(agent="t0", call=HOSTILE, name=HOSTILE, arguments=HOSTILE, brief=HOSTILE),
        e.ToolResult(
            agent="t0", call=HOSTILE, index=0, source=HOSTILE, status=HOSTILE, text=text, about=HOSTILE
        ),
        e.ApprovalRequested(
            agent="t0", approval="p", call="c", command=HOSTILE, argv=("a", HOSTILE), cwd=HOSTILE
        ),
        e.JobCreated(
            agent="t0",
            job="j",
            name=HOSTILE,
            instruction=HOSTILE,
            input_path=HOSTILE,
            output_path=HOSTILE,
            total=1,
            concurrency=1,
        ),
        e.TurnStarted(agent="t0", turn=HOSTILE),
        e.TurnFailed(agent="t0", turn=HOSTILE, error=HOSTILE),
    ]
    stamped = stamp([*events, *more])
    listener, late = SwarmView(), SwarmView()
    listener.feed(Snapshot(state=SwarmState(swarm="s")))
    for view in (listener, late):
        view.expect_transcript("t0")
    for event in stamped:
        listener.feed(Batch(events=(event,)))
    late.feed(Snapshot(state=fold(stamped), streaming=(Streaming(thread="t0", response="r", text=HOSTILE),)))
    for view in (listener, late):
        view.load_transcript("t0", page_of(stamped, "t0", None, 10_000))
        view.feed(Delta(thread="t0", response="r", offset=0, text=HOSTILE))
        view.feed(Delta(thread="t0", response="r", offset=9, text=HOSTILE))
        row = JobRow(
            item=HOSTILE, row_index=0, status="pending", label=HOSTILE, error=HOSTILE, result=HOSTILE
        )
        rows = view.load_job_rows("j", JobRowsPage(rows=(row,), total=1, seq=0))
        view.feed(
            Batch(
                events=(
                    e.JobRowEnded(
                        seq=view.state.seq + 1,
                        job="j",
                        item="i",
                        row_index=0,
                        attempt=1,
                        status="failed",
                        worker=HOSTILE,
                        error=HOSTILE,
                        result=HOSTILE,
                    ),
                )
            )
        )
        shown = [view.state, view.transcripts, view.streaming, rows.rows]
        assert [bad for bad in strings(shown) if not is_clean(bad)] == []
        summaries = [row.call.summary() for row in view.transcripts["t0"].rows if row.call is not None]
        assert all(is_clean(summary) for summary in summaries)


def test_streaming_text_grows_and_ends_with_the_message() -> None:
    events = stamp(
        [e.AgentSpawned(agent="t0", path="/root", nickname="n"), e.AssistantMessage(agent="t0", text="hello")]
    )
    view = SwarmView()
    view.feed(Snapshot(state=fold(events[:1])))
    view.feed(Delta(thread="t0", response="r1", offset=0, text="hel"))
    view.feed(Delta(thread="t0", response="other", offset=3, text="XX"))
    view.feed(Delta(thread="t0", response="r1", offset=3, text="lo"))
    assert view.streaming == {"t0": "hello"}
    view.feed(Batch(events=(events[1],)))
    assert view.streaming == {}
    view.feed(Delta(thread="t0", response="r2", offset=0, text="again"))
    view.feed(Delta(thread="t0", response="r2", offset=0, text=""))
    assert view.streaming == {}


def test_a_snapshot_after_a_lag_starts_everything_anew() -> None:
    events = stamp([e.AgentSpawned(agent="t0", path="/root", nickname="n"), e.Notice(agent="t0", text="x")])
    view = SwarmView()
    view.feed(Snapshot(state=fold(events[:1])))
    view.load_transcript("t0", page_of(events[:1], "t0", None, 5))
    view.feed(Lagged())
    view.feed(Snapshot(state=fold(events)))
    assert (view.lagged, view.reset, view.transcripts) == (1, 2, {})
    assert view.take_changes().swarm
    assert not view.take_changes()


def test_a_result_waits_for_its_call_on_an_older_page() -> None:
    events = stamp(
        [
            e.AgentSpawned(agent="t0", path="/root", nickname="n"),
            e.ToolCalled(agent="t0", call="c", name="exec_command", arguments="{}"),
            e.ToolResult(agent="t0", call="c", index=0, source="shell", text="one"),
            e.ToolResult(agent="t0", call="c", index=1, source="shell", text="two"),
            e.ToolEnded(agent="t0", call="c", status="error", seconds=1.5),
        ]
    )
    transcript = Transcript("t0")
    transcript.prepend(page_of(events[:3], "t0", None, 1))
    assert transcript.rows == []
    assert transcript.orphans == 1
    for event in events[3:]:
        transcript.apply(event)
    assert transcript.orphans == 3
    transcript.prepend(page_of(events, "t0", transcript.first_seq, 5))
    [row] = transcript.rows
    assert row.call is not None
    assert [event.text for event in row.call.events] == ["one", "two"]
    assert (row.call.status, row.call.seconds, transcript.orphans) == ("error", 1.5, 0)


def test_job_rows_take_events_that_the_page_did_not_know() -> None:
    row = JobRow(item="i", row_index=0, status="pending")
    claimed = e.JobRowClaimed(seq=5, job="j", item="i", row_index=0, attempt=1, worker="w")
    ended = e.JobRowEnded(
        seq=6, job="j", item="i", row_index=0, attempt=1, status="completed", worker="w", result="{}"
    )
    view = SwarmView()
    view.feed(Snapshot(state=SwarmState(swarm="s", seq=4)))
    view.watch_job("j")
    view.feed(Batch(events=(claimed, ended)))
    rows = view.load_job_rows("j", JobRowsPage(rows=(row,), total=1, seq=4))
    assert (rows.rows[0].status, rows.rows[0].result, rows.rows[0].attempt) == ("completed", "{}", 1)


def test_a_retried_row_shows_no_error_of_the_attempt_before() -> None:
    view = SwarmView()
    view.feed(Snapshot(state=SwarmState(swarm="s", seq=1)))
    failed = JobRow(item="i", row_index=0, status="pending", attempt=1, error="no", ended_at="t")
    rows = view.load_job_rows("j", JobRowsPage(rows=(failed,), total=1, seq=1))
    claimed = e.JobRowClaimed(seq=2, job="j", item="i", row_index=0, attempt=2, worker="w2")
    view.feed(Batch(events=(claimed,)))
    assert (rows.rows[0].status, rows.rows[0].error, rows.rows[0].worker) == ("running", None, "w2")


def test_a_call_that_was_cut_off_has_no_length_that_nobody_measured() -> None:
    def seconds(ended: e.ToolEnded) -> float | None:
        events: list[e.Event] = [
            e.AgentSpawned(agent="t0", path="/root", nickname="n"),
            e.ToolCalled(agent="t0", call="c", name="wait_agent", arguments="{}"),
            ended,
        ]
        [row] = whole(stamp(events), "t0").rows
        assert row.call is not None
        return row.call.seconds

    assert seconds(e.ToolEnded(agent="t0", call="c", status="aborted")) is None
    assert seconds(e.ToolEnded(agent="t0", call="c", status="aborted", seconds=1.5)) == 1.5
    assert seconds(e.ToolEnded(agent="t0", call="c")) == 0.0


def test_a_folded_call_shows_the_last_text_or_a_line_per_agent() -> None:
    def call(*results: tuple[str | None, str, str]) -> str:
        events: list[e.Event] = [
            e.AgentSpawned(agent="t0", path="/root", nickname="n"),
            e.ToolCalled(agent="t0", call="c", name="wait_agent", arguments="{}"),
        ]
        events += [
            e.ToolResult(agent="t0", call="c", index=i, source="s", about=about, status=status, text=text)
            for i, (about, status, text) in enumerate(results)
        ]
        [row] = whole(stamp(events), "t0").rows
        assert row.call is not None
        return row.call.summary()

    assert call() == ""
    assert call((None, "", "first"), (None, "", "last")) == "last"
    assert call((None, "refused", ""), (None, "", "")) == "refused"
    assert call(("a", "", "a1"), ("b", "running", ""), ("a", "", "a2")) == "a2\nrunning"
    assert call((None, "", "started"), ("a", "", "done")) == "done"


def test_an_older_page_read_later_does_not_swallow_events_on_their_way() -> None:
    spawned = e.AgentSpawned(agent="t0", path="/root", nickname="n")
    events = stamp([spawned, *(e.Notice(agent="t0", text=str(n)) for n in range(5))])
    transcript = Transcript("t0")
    transcript.prepend(page_of(events[:3], "t0", None, 1))
    older = page_of(events, "t0", transcript.first_seq, 1)
    assert older.seq > events[2].seq
    transcript.prepend(older)
    for event in events[3:]:
        transcript.apply(event)
    assert [row.text for row in transcript.rows] == ["0", "1", "2", "3", "4"]


@given(
    plausible,
    st.lists(st.integers(0, 80), min_size=2, max_size=6),
    st.integers(1, 12),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_transcripts_outlive_snapshots(
    events: list[e.AnyEvent], cuts: list[int], limit: int, older: bool
) -> None:
    """However often a reader lags, what it has read of an agent is the end of the whole transcript, without
    a gap; and a snapshot that a page reaches up to costs no row that was loaded."""
    thread = next((event.agent for event in events if isinstance(event, e.AgentSpawned)), "t")
    assert thread is not None
    view = SwarmView()
    for cut in sorted(min(cut, len(events)) for cut in cuts):
        known = view.transcripts.get(thread)
        reach, loaded = (known.seq, len(known.rows)) if known is not None else (0, 0)
        view.feed(Snapshot(state=fold(events[:cut])))
        assert thread not in view.transcripts
        view.expect_transcript(thread)
        page = page_of(events[:cut], thread, None, limit)
        mine = view.load_transcript(thread, page)
        if older and mine.more and mine.first_seq is not None:
            mine = view.load_transcript(thread, page_of(events[:cut], thread, mine.first_seq, limit))
        for event in events[cut : cut + 3]:
            view.apply(event)
        last = min(cut + 3, len(events))
        whole = Transcript(thread)
        whole.prepend(page_of(events[:last], thread, None, 10_000))
        rows = mine.rows
        assert [row.seq for row in rows] == [row.seq for row in whole.rows[len(whole.rows) - len(rows) :]]
        if page.events and page.events[0].seq <= reach:
            assert len(rows) >= loaded
