"""The journal, the state tables and the live state say the same, whatever happened."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain import events as e
from core.store.loading import load_state
from core.view.transcript import Transcript
from tests.core.domain.strategies import fold, plausible, random_events
from tests.core.store.tools import opened, query


async def check(home: Path, events: list[e.Event], sizes: list[int]) -> None:
    async with opened(home) as store:
        told: list[e.AnyEvent] = []
        store.on_commit = lambda _, batch, bodies: told.extend(batch)
        await store.create("s")
        left, turn = list(events), 0
        while left:
            size = sizes[turn % len(sizes)]
            turn += 1
            await store.append("s", left[:size])
            del left[:size]
        live = store.state("s")
        async with store.reader.snapshot() as db:
            assert await load_state(db, "s") == live
        page = await store.reader.events("s", limit=5000)
        assert list(page.events) == told
        assert fold(list(page.events)) == live
        copy = live.copy()
    # Whoever owns it next goes on from the same state, and keeps folding open calls into their rows.
    async with opened(home) as store:
        assert await store.reopen("s") == copy
        ends: list[e.Event] = []
        for call in copy.calls.values():
            ends.append(
                e.ToolResult(agent=call.thread, call=call.call, index=call.events, source="x", text="last")
            )
            ends.append(e.ToolEnded(agent=call.thread, call=call.call, status="aborted"))
        await store.append("s", ends)
        async with store.reader.snapshot() as db:
            assert await load_state(db, "s") == store.state("s")
        assert store.state("s").calls == {}
        await check_calls(home)


async def check_calls(home: Path) -> None:
    """`tool_calls` holds what a transcript shows of each call."""
    shown: dict[tuple[str, str], tuple[str, str, int]] = {}
    for (thread,) in query(home, "SELECT thread FROM agents"):
        transcript = Transcript(thread)
        rows = query(home, "SELECT body FROM events WHERE agent = ? AND shown = 1 ORDER BY seq", thread)
        for (body,) in rows:
            transcript.apply(e.decode(body))
        for row in transcript.rows:
            if row.call is not None:
                call = row.call
                shown[thread, call.call] = (call.status, call.summary(), len(call.events))
    stored = query(home, "SELECT thread, call, status, result_content, events FROM tool_calls")
    assert {(thread, call): (status, text, count) for thread, call, status, text, count in stored} == shown


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(plausible, sizes)
def test_journal_tables_and_live_state_agree(events: list[e.Event], batch: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder), events, batch))


@settings(max_examples=30, deadline=None)
@given(random_events, sizes)
def test_nothing_that_decodes_breaks_the_writer(events: list[e.Event], batch: list[int]) -> None:
    async def run(home: Path) -> None:
        async with opened(home) as store:
            await store.create("s")
            await store.append("s", [e.SwarmStarted(title="", cwd="", model="", source="exec")])
            for start in range(0, len(events), batch[0]):
                await store.append("s", events[start : start + batch[0]])
            page = await store.reader.events("s")
            assert fold(list(page.events)) == store.state("s")
            assert not store.failed.done()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_mail_is_queued_delivered_and_consumed(tmp_path: Path) -> None:
    columns = "SELECT mail, kind, delivered_seq, consumed_seq FROM mail ORDER BY seq"
    async with opened(tmp_path) as store:
        await store.create("s")
        queued = [
            e.MailQueued(agent="t", mail=mail, author="/root", kind="MESSAGE", text=mail)
            for mail in ("a", "b")
        ]
        await store.append("s", [e.AgentSpawned(agent="t", path="/root", nickname="n"), *queued])
        assert query(tmp_path, columns) == [("a", "MESSAGE", None, None), ("b", "MESSAGE", None, None)]
        deliver = e.AgentMessage(agent="t", kind="MESSAGE", author="/root", text="a", mail="a")
        again = e.AgentMessage(agent="t", kind="MESSAGE", author="/root", text="b", mail="b")
        await store.append("s", [deliver, e.ResponseCompleted(agent="t", response="r"), again])
        assert query(tmp_path, columns) == [("a", "MESSAGE", 4, 5), ("b", "MESSAGE", 6, None)]
        await store.append("s", [e.ResponseCompleted(agent="t", response="r2")])
        assert query(tmp_path, columns) == [("a", "MESSAGE", 4, 5), ("b", "MESSAGE", 6, 7)]


async def test_an_approval_keeps_who_decided(tmp_path: Path) -> None:
    ask = e.ApprovalRequested(agent="t", approval="p", call="c", command="rm x", argv=("rm", "x"), cwd="/w")
    async with opened(tmp_path) as store:
        await store.create("s")
        await store.append("s", [e.AgentSpawned(agent="t", path="/root", nickname="n"), ask])
        await store.append(
            "s", [e.ApprovalDecided(agent="t", approval="p", decision="denied", by="operator")]
        )
        rows = query(tmp_path, "SELECT argv, decision, decided_by FROM approvals")
        assert rows == [('["rm","x"]', "denied", "operator")]
