from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from core.domain import events as e
from core.store import writer as writer_module
from core.store.connection import FILE_NAME, Transaction
from core.store.store import StoreError
from tests.clock import FakeClock, settle
from tests.core.store.tools import new_swarm, opened, query


def say(thread: str, text: str) -> e.AssistantMessage:
    return e.AssistantMessage(agent=thread, text=text)


async def test_events_come_back_stamped_and_durable(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock=clock) as store:
        swarm, [root] = await new_swarm(store)
        await clock.advance(5)
        first, second = await store.append(swarm, [say(root, "a"), say(root, "b")])
        assert (first.seq, second.seq) == (4, 5)
        assert first.at == second.at == clock.now()
        assert first.swarm == swarm
        assert query(tmp_path, "SELECT seq, type FROM events WHERE seq > 3") == [
            (4, "assistant_message"),
            (5, "assistant_message"),
        ]


async def test_time_never_goes_back_within_a_swarm(tmp_path: Path) -> None:
    class Backwards(FakeClock):
        def now(self) -> datetime:
            self._elapsed -= 60
            return super().now()

    async with opened(tmp_path, clock=Backwards()) as store:
        swarm, [root] = await new_swarm(store)
        times = [(await store.append(swarm, [say(root, "x")]))[0].at for _ in range(3)]
        assert times == sorted(times)


async def test_concurrent_appends_are_dense_ordered_and_told_before_callers_go_on(tmp_path: Path) -> None:
    told: list[e.AnyEvent] = []
    async with opened(tmp_path) as store:
        swarm, threads = await new_swarm(store, agents=4)
        before = store.state(swarm).seq
        store.on_commit = lambda _, events, bodies: told.extend(events)

        async def talk(thread: str) -> None:
            for number in range(50):
                done = await store.append(swarm, [say(thread, f"{number}.0"), say(thread, f"{number}.1")])
                assert [event.seq for event in done] == [done[0].seq, done[0].seq + 1]
                assert told[-1].seq >= done[-1].seq
                assert store.state(swarm).seq >= done[-1].seq

        async with asyncio.TaskGroup() as group:
            for thread in threads:
                group.create_task(talk(thread))
        assert [event.seq for event in told] == list(range(before + 1, before + 401))
        for thread in threads:
            own = [event.text for event in told if event.agent == thread]  # type: ignore[union-attr]
            assert own == [f"{n}.{half}" for n in range(50) for half in (0, 1)]
        rows = query(tmp_path, "SELECT seq FROM events ORDER BY rowid")
        assert [seq for (seq,) in rows] == list(range(1, before + 401))


async def test_what_gathers_during_a_commit_shares_the_next_one(tmp_path: Path) -> None:
    batches: list[int] = []
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        store.on_commit = lambda _, events, bodies: batches.append(len(events))
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(store.append(swarm, [say(root, str(number))]))
    assert sum(batches) == 200
    assert len(batches) <= 3


async def test_more_callers_than_the_queue_holds_all_get_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "QUEUE", 4)
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        done = await asyncio.gather(*(store.append(swarm, [say(root, str(n))]) for n in range(100)))
        assert [events[0].text for events in done] == [str(n) for n in range(100)]  # type: ignore[union-attr]
        assert store.state(swarm).seq == 103


async def test_state_is_one_object_that_changes_only_after_the_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        state, seen = store.state(swarm), []

        def told(_: str, events: Sequence[e.AnyEvent], bodies: Sequence[str]) -> None:
            on_disk = query(tmp_path, "SELECT max(seq) FROM events")[0][0]
            seen.append((on_disk, state.seq, events[-1].seq))

        store.on_commit = told
        waiting = asyncio.create_task(store.append(swarm, [e.TurnStarted(agent=root, turn="u")]))
        while not waiting.done():
            running = state.agents[root].status == "running"
            assert running == bool(
                query(tmp_path, "SELECT 1 FROM events WHERE type = 'turn_started'") and seen
            )
            await asyncio.sleep(0)
        assert seen == [(4, 4, 4)]
        assert store.state(swarm) is state
        assert state.agents[root].status == "running"


async def test_a_failing_operation_harms_no_other_of_its_batch(tmp_path: Path) -> None:
    class Broken(Exception):
        pass

    def broken(db: Transaction) -> tuple[None, Sequence[e.Event]]:
        db.execute("DELETE FROM agents")
        raise Broken("on purpose")

    def contradicts(db: Transaction) -> tuple[None, Sequence[e.Event]]:
        db.execute("DELETE FROM agents")
        db.execute("INSERT INTO events SELECT * FROM events")
        return None, []

    def works(db: Transaction) -> tuple[int, Sequence[e.Event]]:
        row = db.one("SELECT count(*) FROM agents")
        assert row is not None
        return row[0], [say(root, "from the operation")]

    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        results = await asyncio.gather(
            store.append(swarm, [say(root, "a")]),
            store.transact(swarm, broken),
            store.transact(swarm, contradicts),
            store.transact(swarm, works),
            store.append(swarm, [say(root, "b")]),
            return_exceptions=True,
        )
        assert isinstance(results[1], Broken)
        assert isinstance(results[2], StoreError)
        assert results[3] == 1
        texts = [text for (text,) in query(tmp_path, "SELECT body ->> 'text' FROM events WHERE seq > 3")]
        assert texts == ["a", "from the operation", "b"]
        assert store.state(swarm).seq == 6
        assert not store.failed.done()


async def test_an_operation_whose_events_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
        db.execute("DELETE FROM agents")
        return None, [e.Reasoning(agent="t", item={"not json": object()})]

    async with opened(tmp_path) as store:
        swarm, _ = await new_swarm(store)
        with pytest.raises(StoreError, match="type reasoning cannot be written"):
            await store.transact(swarm, op)
        assert query(tmp_path, "SELECT count(*) FROM agents") == [(1,)]
        assert store.state(swarm).seq == 3


async def test_a_cancelled_caller_neither_undoes_its_write_nor_hurts_the_writer(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        task = asyncio.create_task(store.append(swarm, [say(root, "kept")]))
        await settle(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [after] = await store.append(swarm, [say(root, "after")])
        assert after.seq == 5


async def test_lone_surrogates_are_stored_as_replacement_characters(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        [event] = await store.append(swarm, [say(root, "a\ud800b")])
        assert event.text == "a\ufffdb"  # type: ignore[union-attr]
        page = await store.reader.transcript(swarm, root)
        assert page.events[-1] == event


async def test_a_subscriber_that_fails_does_not_make_a_write_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(swarm: str, events: Sequence[e.AnyEvent], bodies: Sequence[str]) -> None:
        raise RuntimeError("subscriber")

    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        store.on_commit = broken
        with caplog.at_level(logging.ERROR, "watchroom.store"):
            await store.append(swarm, [say(root, "x")])
        assert "a subscriber failed" in caplog.text


async def test_only_an_owned_swarm_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError, match="not this engine's"):
            await store.append("nobody", [])
        with pytest.raises(StoreError, match="not this engine's"):
            store.state("nobody")


async def test_closing_writes_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        writes = [asyncio.create_task(store.append(swarm, [say(root, str(n))])) for n in range(20)]
        await settle(1)
        await store.aclose()
        assert [(await write)[0].seq for write in writes] == list(range(4, 24))
        with pytest.raises(StoreError, match="is closed"):
            await store.append(swarm, [say(root, "late")])
    assert query(tmp_path, "SELECT count(*) FROM events") == [(23,)]
    assert sorted(os.listdir(tmp_path)) == ["locks", FILE_NAME]


async def test_callers_that_wait_for_room_are_told_when_the_store_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "QUEUE", 1)
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        writes = [asyncio.create_task(store.append(swarm, [say(root, str(n))])) for n in range(30)]
        await settle(1)
        await store.aclose()
        results = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 5)
        written = [result for result in results if not isinstance(result, BaseException)]
        assert all(isinstance(r, StoreError) for r in results if isinstance(r, BaseException))
    assert query(tmp_path, "SELECT count(*) FROM events") == [(3 + len(written),)]


async def test_a_store_that_cannot_be_written_is_lost_for_all_and_memory_stays_with_the_disk(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        before = store.state(swarm).copy()
        other = sqlite3.connect(tmp_path / FILE_NAME)
        other.execute("ALTER TABLE agents RENAME TO gone")
        other.close()
        writes = [store.append(swarm, [e.TurnStarted(agent=root, turn=str(n))]) for n in range(5)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        assert "cannot be written" in str(results[0])
        assert store.failed.done()
        with pytest.raises(StoreError, match="cannot be written"):
            await store.append(swarm, [say(root, "later")])
        assert store.state(swarm) == before
        assert query(tmp_path, "SELECT count(*) FROM events") == [(before.seq,)]


async def test_another_process_that_writes_is_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(store.append(swarm, [say(root, "x")]))
        await settle()
        assert not write.done()
        other.execute("ROLLBACK")
        other.close()
        [event] = await write
        assert event.seq == 4


async def test_a_store_that_stays_busy_is_given_up_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("core.store.connection.BUSY_MS", 20)
    monkeypatch.setattr(writer_module, "BUSY_TRIES", 2)
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has held the store for too long"):
            await store.append(swarm, [say(root, "x")])
        other.execute("ROLLBACK")
        other.close()
    assert "another process is writing" in caplog.text


async def test_what_nests_too_deep_is_refused_alone(tmp_path: Path) -> None:
    deep: dict[str, object] = {}
    for _ in range(2000):
        deep = {"a": deep}
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        results = await asyncio.gather(
            store.append(swarm, [e.Reasoning(agent=root, item=deep)]),
            store.append(swarm, [say(root, "kept")]),
            return_exceptions=True,
        )
        assert "type reasoning cannot be written" in str(results[0])
        assert not isinstance(results[1], BaseException)
        assert not store.failed.done()


async def test_a_swarm_that_is_given_up_while_others_write_takes_nothing_more(tmp_path: Path) -> None:
    """The writer's thread is in the middle of a batch when the owner's own task goes on."""
    stamping, released = threading.Event(), threading.Event()

    class Slow(FakeClock):
        def now(self) -> datetime:
            if threading.current_thread() is not threading.main_thread():
                stamping.set()
                released.wait(5)
            return super().now()

    def nothing(db: Transaction) -> tuple[None, Sequence[e.Event]]:
        return None, []

    async with opened(tmp_path, clock=Slow()) as store:
        swarm, [root] = await new_swarm(store)
        other, _ = await new_swarm(store)
        earlier = asyncio.create_task(store.append(swarm, [say(root, "earlier")]))
        giving_up = asyncio.create_task(store.release(swarm))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # these two are being written
        late = asyncio.create_task(store.append(swarm, [say(root, "late")]))
        beside = asyncio.create_task(store.transact(other, nothing))
        await giving_up
        assert (await earlier)[0].seq == 4
        await asyncio.to_thread(stamping.wait, 5)
        released.set()
        with pytest.raises(StoreError, match="given up"):
            await late
        await beside
        assert not store.failed.done()
        await store.reopen(swarm)
