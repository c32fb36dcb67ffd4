from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.status import Usage, Wait
from core.store import readers
from core.store.connection import FILE_NAME, Row
from core.store.errors import NotFound, StoreError
from core.store.jobs import JobInput
from core.store.readers import Reader
from core.store.store import Store
from tests.clock import FakeClock, settle
from tests.core.domain.strategies import fold, plausible
from tests.core.store.tools import new_swarm, opened, query

JOB = "0b7c4d1e-1111-4111-8111-111111111111"
SESSION_KEYS = [
    "thread",
    "title",
    "started_at",
    "last_at",
    "status",
    "agents",
    "jobs",
    "tokens",
    "cost",
    "cost_partial",
    "model",
    "cwd",
    "swarm",
]
TREE_KEYS = [
    "thread",
    "parent",
    "path",
    "nickname",
    "role",
    "status",
    "status_message",
    "waiting",
    "waits_for",
    "depth",
    "model",
    "tokens",
    "cost",
    "cost_partial",
    "started_at",
    "last_at",
    "file",
]
SHOW_KEYS = [
    "thread",
    "root",
    "parent",
    "path",
    "nickname",
    "role",
    "status",
    "status_message",
    "model",
    "tokens",
    "cost",
    "cost_partial",
    "rows",
    "calls",
    "damage",
]
JOB_KEYS = [
    "job_id",
    "name",
    "status",
    "total_items",
    "completed_items",
    "failed_items",
    "running_items",
    "pending_items",
    "skipped_items",
    "rate_per_minute",
    "eta_seconds",
    "input_path",
    "output_csv_path",
    "created_at",
    "last_error",
]


async def scene(store: Store) -> tuple[str, str, str]:
    swarm, [root] = await new_swarm(store)
    child = f"{root[:-4]}beef"
    await store.append(
        swarm,
        [
            e.TurnStarted(agent=root, turn="u1"),
            e.UserMessage(agent=root, text="look\x1b[31m around"),
            e.Reasoning(agent=root, summary="thinking"),
            e.AssistantMessage(agent=root, text="I will"),
            e.ToolCalled(agent=root, call="c1", name="spawn_agent", arguments='{"task_name": "audit"}'),
            e.AgentSpawned(agent=child, path="/root/audit", nickname="Ada", parent=root, depth=1, call="c1"),
            e.ToolResult(agent=root, call="c1", index=0, source="spawn_agent", text="started", about=child),
            e.ToolEnded(agent=root, call="c1"),
            e.AgentReady(agent=child),
            e.TurnStarted(agent=child, turn="u2"),
            e.TurnFailed(agent=child, turn="u2", error="the server said no"),
            e.ResponseCompleted(agent=root, response="r", usage=Usage(input=7, output=3, total=10)),
            e.ToolCalled(agent=root, call="c2", name="exec_command", arguments='{"cmd": "rm x"}'),
            e.ApprovalRequested(agent=root, approval="p1", call="c2", command="rm x", argv=("rm", "x")),
            e.AgentWaits(agent=root, wait=Wait(reason="approval", detail="rm x")),
        ],
    )
    return swarm, root, child


async def test_a_home_without_a_store_is_empty(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "nowhere"):
        async with Reader.open(home) as reader:
            assert await reader.sessions() == {"sessions": []}
            assert await reader.jobs() == {"jobs": []}
            asks = (reader.tree, reader.show, reader.job, lambda ref, of=reader: anext(of.job_rows(ref)))
            for ask in asks:
                with pytest.raises(NotFound, match="'0190' in the store"):
                    await ask("0190")
    assert os.listdir(tmp_path) == []


async def test_an_empty_file_is_an_empty_store(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / FILE_NAME).execute("VACUUM").connection.close()
    async with await Reader.open(tmp_path) as reader:
        assert await reader.sessions() == {"sessions": []}


async def test_shapes_while_the_owner_lives(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, Reader.open(tmp_path) as reader:
        swarm, root, child = await scene(store)
        [session] = (await reader.sessions())["sessions"]
        assert list(session) == SESSION_KEYS
        assert (session["thread"], session["status"], session["agents"], session["tokens"]) == (
            root,
            "running",
            2,
            10,
        )
        tree = await reader.tree(swarm)
        assert tree["root"] == root
        assert [list(agent) for agent in tree["agents"]] == [TREE_KEYS, TREE_KEYS]
        assert [(a["thread"], a["status"], a["waiting"]) for a in tree["agents"]] == [
            (root, "running", "approval"),
            (child, "errored", None),
        ]
        assert tree["agents"][1]["status_message"] == "the server said no"
        shown = await reader.show(root)
        assert list(shown) == SHOW_KEYS
        assert shown["tokens"] == {"input": 7, "cached": 0, "output": 3, "reasoning": 0, "total": 10}
        assert [(row["role"], row.get("text"), row.get("call")) for row in shown["rows"]] == [
            ("user", "look around", None),
            ("notice", "thinking", None),
            ("assistant", "I will", None),
            ("assistant", None, "c1"),
            ("assistant", None, "c2"),
        ]
        spawn, command = shown["calls"]
        assert (spawn["id"], spawn["row"], spawn["child"], spawn["status"]) == ("c1", 3, child, "ok")
        assert spawn["summary"] == "started"
        assert spawn["events"] == [
            {
                "index": 0,
                "source": "spawn_agent",
                "status": "",
                "text": "started",
                "agent": child,
                "child": child,
                "at": shown["rows"][3]["at"],
            }
        ]
        assert (command["status"], command["events"], command["child"]) == ("open", [], None)
        assert shown["damage"] == {"unreadable_events": 0, "results_without_call": 0}
        assert json.loads(json.dumps(shown)) == shown


async def test_a_swarm_whose_owner_died_is_interrupted_for_every_reader(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, root, child = await scene(store)
        alive = store.state(swarm).copy()
    async with Reader.open(tmp_path) as reader:
        assert (await reader.sessions())["sessions"][0]["status"] == "interrupted"
        tree = await reader.tree(root)
        assert [(a["thread"], a["status"], a["waiting"]) for a in tree["agents"]] == [
            (root, "interrupted", None),
            (child, "errored", None),
        ]
        assert (await reader.show(root))["status"] == "interrupted"
        state = await reader.load_state(swarm)
        assert state.approvals == state.calls == {}
        assert state.agents[root].asks == 0
    # Shown so, not repaired: whoever owns it next finds it as it was left.
    async with opened(tmp_path) as store:
        assert await store.reopen(swarm) == alive


async def test_a_job_whose_owner_died_is_paused_and_its_rows_wait(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock=clock) as store:
        swarm, [root] = await new_swarm(store)
        event = e.JobCreated(
            agent=root,
            job=JOB,
            name="lines",
            instruction="x",
            input_path="in.csv",
            output_path=None,
            total=3,
            concurrency=2,
        )
        rows = [JobInput(f"row-{n}", None, n, [str(n)]) for n in range(3)]
        await store.jobs.create(swarm, event, ["n"], rows, None, False)
        await store.jobs.start(swarm, JOB, 2)
        await store.jobs.claim(swarm, JOB, ["w0", "w1"])
        await clock.advance(30)
        await store.jobs.report(swarm, JOB, "row-0", "w0", '{"lines": 1}')
        async with Reader.open(tmp_path, clock=clock) as reader:
            [listed] = (await reader.jobs())["jobs"]
            assert list(listed) == JOB_KEYS
            assert (listed["status"], listed["running_items"], listed["completed_items"]) == ("running", 1, 1)
            assert (listed["rate_per_minute"], listed["eta_seconds"]) == (2.0, 60)
            assert (await reader.sessions())["sessions"][0]["status"] == "running"
            assert (await reader.job(JOB))["in_flight"] == 1
    async with Reader.open(tmp_path, clock=clock) as reader:
        found = await reader.job("lines")
        assert (found["status"], found["running_items"], found["pending_items"]) == ("paused", 0, 2)
        assert found["last_error"] == "its engine ended before the job did"
        assert (found["rate_per_minute"], found["eta_seconds"]) == (None, None)
        rows = [row async for row in reader.job_rows(JOB[:4])]
        assert [(r["item_id"], r["status"], r["result"]) for r in rows] == [
            ("row-0", "completed", {"lines": 1}),
            ("row-1", "pending", None),
            ("row-2", "pending", None),
        ]
        [attempt] = rows[1]["attempts"]
        assert (attempt["worker"], attempt["status"], attempt["tokens"]) == ("w1", "interrupted", None)
        assert (await reader.sessions())["sessions"][0]["status"] == "interrupted"


async def test_a_jobs_own_root_has_the_status_of_its_job(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        event = e.JobCreated(
            agent=root,
            job=JOB,
            name="n",
            instruction="",
            input_path="",
            output_path=None,
            total=0,
            concurrency=1,
        )
        await store.jobs.create(swarm, event, ["n"], [], None, False)
        await store.jobs.start(swarm, JOB, 1)
        await store.jobs.end(swarm, JOB, "completed", None, "engine")
        [session] = (await store.reader.sessions())["sessions"]
        assert (session["status"], session["jobs"]) == ("completed", 1)


async def test_references(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        reader = store.reader
        swarms = ["aaaa0000-1", "aaaa0000-2"]
        for number, swarm in enumerate(swarms):
            await store.create(swarm)
            thread = f"bbbb000{number}-x"
            spawned = [
                e.AgentSpawned(agent=thread, path="/root", nickname="n"),
                e.AgentSpawned(agent=f"bbbb000{number}-x-y", path="/root/a", nickname="m", parent=thread),
            ]
            await store.append(
                swarm, [e.SwarmStarted(title=swarm, cwd="", model="", source="exec"), *spawned]
            )
        assert (await reader.tree("AAAA0000-1"))["root"] == "bbbb0000-x"
        assert (await reader.show("bbbb0001-x"))["thread"] == "bbbb0001-x"
        assert (await reader.show(" bbbb0001-x-"))["thread"] == "bbbb0001-x-y"
        with pytest.raises(
            NotFound, match="more than one session or agent: bbbb0000-x, bbbb0000-x-y, bbbb0001-x"
        ):
            await reader.show("bbbb")
        for ref in ("bbbb0001", "BBBB0001-X", "bbbb0001-x-y", "aaaa0000-2"):  # all of one swarm
            assert await reader.find_swarm(ref) == "aaaa0000-2"
        with pytest.raises(NotFound, match="more than one session or agent: aaaa0000-1, aaaa0000-2"):
            await reader.find_swarm("bbbb")
        with pytest.raises(NotFound, match="there is no session or agent 'cccc'"):
            await reader.tree("cccc")
        with pytest.raises(NotFound, match="there is no session or agent '%'"):
            await reader.tree("%")
        with pytest.raises(NotFound, match="give the id"):
            await reader.show("  ")
        jobs = [JOB, JOB.replace("0b7c", "0b7d")]
        for job in jobs:
            event = e.JobCreated(
                agent="bbbb0000-x",
                job=job,
                name="Lines",
                instruction="",
                input_path="",
                output_path=None,
                total=0,
                concurrency=1,
            )
            await store.jobs.create(swarms[0], event, ["n"], [], None, False)
        assert await reader.find_job("0B7C") == jobs[0]
        assert await reader.find_job(jobs[1]) == jobs[1]
        with pytest.raises(NotFound, match="'Lines' means more than one job"):
            await reader.find_job("Lines")
        with pytest.raises(NotFound, match="means more than one job"):
            await reader.find_job("0b7")


async def test_a_late_agent_does_not_hide_the_swarm_that_began_then(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for swarm, threads in (("0190-a", ["0190-b", "0191-c"]), ("0191-d", ["0191-e"])):
            await store.create(swarm)
            root, *rest = threads
            await store.append(
                swarm,
                [
                    e.SwarmStarted(title=swarm, cwd="", model="", source="exec"),
                    e.AgentSpawned(agent=root, path="/root", nickname="n"),
                    *(e.AgentSpawned(agent=a, path=f"/root/{a}", nickname=a, parent=root) for a in rest),
                ],
            )
        reader = store.reader
        assert await reader.find_swarm("0191") == "0191-d"
        assert await reader.find_swarm("0191-c") == "0190-a"
        with pytest.raises(NotFound, match="more than one"):
            await reader.find_thread("0191")


async def test_an_event_that_cannot_be_read_leaves_a_notice_and_is_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        await store.append(swarm, [e.AssistantMessage(agent=root, text="fine")])
        await store.append(swarm, [e.AssistantMessage(agent=root, text="spoilt")])
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        other.execute('UPDATE events SET body = \'{"type": "from_the_future"}\' WHERE seq = 5')
    other.close()
    async with Reader.open(tmp_path) as reader:
        shown = await reader.show(root)
        assert [row["text"] for row in shown["rows"]] == [
            "fine",
            "an event of type assistant_message could not be read",
        ]
        assert shown["damage"]["unreadable_events"] == 1
        page = await reader.transcript(swarm, root)
        assert [event.seq for event in page.events] == [4, 5]


async def test_unknown_agents_and_swarms_have_no_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, _ = await new_swarm(store)
        with pytest.raises(NotFound, match="no agent x"):
            await store.reader.transcript(swarm, "x")
        with pytest.raises(NotFound, match="no swarm x"):
            await store.reader.events("x")


async def test_reading_goes_on_while_a_writer_is_at_work(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, Reader.open(tmp_path) as reader:
        swarm, [root] = await new_swarm(store)
        stop = False

        async def write() -> int:
            count = 0
            while not stop:
                await store.append(swarm, [e.AssistantMessage(agent=root, text=str(count))])
                count += 1
            return count

        writing = asyncio.create_task(write())
        for _ in range(30):
            page = await reader.transcript(swarm, root, None, 3)
            assert len(page.events) <= 3
            assert all(event.seq <= page.seq for event in page.events)
            if page.seq > 3:
                assert page.events[-1].seq == page.seq
            state = await reader.load_state(swarm)
            assert state.seq >= page.seq
        stop = True
        assert await writing > 0


def test_a_store_in_a_folder_that_cannot_be_written_is_read() -> None:
    """The engine is gone and has left no WAL; the reader may not make one."""
    # Not below pytest's own folder, which another user may not even enter.
    home = Path(tempfile.mkdtemp())
    asyncio.run(_make(home))
    assert [path.name for path in home.glob(f"{FILE_NAME}*")] == [FILE_NAME]
    script = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from core.store.readers import Reader

async def main(folder):
    async with Reader.open(folder) as reader:
        print(len((await reader.sessions())["sessions"]))

folder = Path(sys.argv[1])
if os.geteuid() == 0:
    # Modes do not hold root back.
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.setuid(65534)
os.chmod(folder, 0o500)
asyncio.run(main(folder))
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(home)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        home.chmod(0o700)
        shutil.rmtree(home)
    assert (done.stdout, done.stderr) == ("1\n", "")


async def _make(home: Path) -> None:
    async with opened(home) as store:
        await new_swarm(store)


@settings(max_examples=30, deadline=None)
@given(plausible, st.integers(1, 7))
def test_pages_put_together_are_the_whole_transcript(events: list[e.Event], limit: int) -> None:
    async def run(home: Path) -> None:
        async with opened(home) as store:
            await store.create("s")
            stamped = await store.append("s", events)
            assert fold(stamped) == store.state("s")
            for thread in store.state("s").agents:
                found: list[e.AnyEvent] = []
                before: int | None = None
                while True:
                    page = await store.reader.transcript("s", thread, before, limit)
                    assert page.seq == len(events)
                    found[:0] = page.events
                    if not page.more:
                        break
                    assert len(page.events) == limit
                    before = page.events[0].seq
                assert found == [ev for ev in stamped if ev.agent == thread and isinstance(ev, e.TRANSCRIPT)]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_pages_are_bounded_by_size_and_nothing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PAGE_SIZE", 4000)
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        sizes = [10, 1500, 1500, 9000, 10, 9000, 10, 10, 2500]
        texts = [f"{n}" * size for n, size in enumerate(sizes)]
        for text in texts:
            await store.append(swarm, [e.AssistantMessage(agent=root, text=text)])
        reader, last = store.reader, store.state(swarm).seq
        up: list[e.AnyEvent] = []
        lengths = []
        while True:
            page = await reader.events(swarm, up[-1].seq if up else 0, 100)
            up += page.events
            lengths.append(len(page.events))
            if not page.more:
                break
        assert [event.seq for event in up] == list(range(1, last + 1))
        assert 1 in lengths, "what is larger than a page is one alone"
        assert len(lengths) > 4
        down: list[e.AnyEvent] = []
        while True:
            page = await reader.events(swarm, limit=100, before=down[0].seq if down else last + 1)
            down[:0] = page.events
            if not page.more:
                break
        assert down == up
        older = [await reader.transcript(swarm, root)]
        while older[0].more:
            older.insert(0, await reader.transcript(swarm, root, older[0].events[0].seq))
        newer = [await reader.transcript(swarm, root, after=0, limit=100)]
        while newer[-1].more:
            newer.append(await reader.transcript(swarm, root, after=newer[-1].events[-1].seq, limit=100))
        for pages in (older, newer):
            shown = [ev.text for page in pages for ev in page.events if isinstance(ev, e.AssistantMessage)]
            assert shown == texts
            assert all(len(page.events) == 1 or len(e.encode(page.events[0])) < 4000 for page in pages)


async def test_numbers_that_no_column_holds_are_the_nearest_that_one_does(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        whole = await store.reader.events(swarm)
        for huge in (2**63, 2**200):
            assert await store.reader.events(swarm, before=huge, limit=huge) == whole
            assert (await store.reader.events(swarm, after=huge)).events == ()
            assert await store.reader.events(swarm, after=-huge) == whole
            assert (await store.reader.events(swarm, before=-huge)).events == ()
            assert (await store.reader.transcript(swarm, root, before=-huge, limit=-huge)).events == ()


async def test_a_large_page_lets_the_loop_go_on(tmp_path: Path) -> None:
    """However many pages are read at once, one slice of one of them is decoded between two turns."""
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        await store.append(swarm, [e.AssistantMessage(agent=root, text="x" * 300)] * 5000)
        decoded: list[int] = []
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        def note(rows: Sequence[Row], thread: str | None) -> Any:
            decoded.append(turns)
            assert len(rows) < 1000
            return decode(rows, thread)

        decode = readers._decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "_decode", note)
            running = asyncio.create_task(others())
            pages = await asyncio.gather(*[store.reader.events(swarm, limit=5000) for _ in range(3)])
            running.cancel()
        assert all(len(page.events) > 2000 for page in pages)
        assert len(decoded) > 10
        assert len(set(decoded)) == len(decoded), "never two slices in one turn"


async def test_transcripts_and_pages_use_their_indexes(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    shown = "agent = 'a' AND shown = 1 AND swarm = 's' AND seq < 9"
    plans = {
        f"SELECT body FROM events WHERE {shown} ORDER BY seq DESC LIMIT 5": "events_transcript",
        "SELECT body FROM events WHERE swarm = 's' AND seq > 1 ORDER BY seq LIMIT 5": "events_swarm",
        "SELECT item FROM agent_job_items WHERE job = 'j' AND status = 'pending'"
        " ORDER BY attempt, row_index LIMIT 1": "agent_job_items_queue",
        "SELECT item FROM agent_job_items WHERE job = 'j' AND row_index > 1"
        " ORDER BY row_index LIMIT 1": "agent_job_items_row",
    }
    for sql, index in plans.items():
        [*_, (_, _, _, detail)] = query(tmp_path, f"EXPLAIN QUERY PLAN {sql}")
        assert index in detail
        assert "TEMP B-TREE" not in detail


async def test_a_damaged_cell_is_one_sentence(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await scene(store)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE agents SET tokens = 'x'")
    db.close()
    async with Reader.open(tmp_path) as reader:
        thread = (await reader.sessions())["sessions"][0]["thread"]
        with pytest.raises(StoreError, match="is damaged: the tokens of an entry"):
            await reader.tree(thread)


async def test_a_reader_survives_the_end_of_those_who_asked_it(tmp_path: Path) -> None:
    """Cancelled at any step, a read leaves no transaction behind: the next one sees what is there now."""
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        for steps in range(40):
            reading = asyncio.create_task(store.reader.load_state(swarm))
            await settle(steps % 20)
            reading.cancel()
            await asyncio.wait({reading})
            await store.append(swarm, [e.AssistantMessage(agent=root, text="x")])
            assert (await store.reader.load_state(swarm)).seq == store.state(swarm).seq
