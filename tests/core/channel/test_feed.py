"""The feed: snapshot plus events is the whole truth, for readers that come, stall and lag at random."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from core.channel.feed import Feed, Reader
from core.domain import events as e
from core.domain.apply import apply
from core.domain.commands import Batch, Delta, Lagged, Snapshot
from core.domain.state import SwarmState
from core.view.swarm import SwarmView


def spawned(seq: int) -> e.AgentSpawned:
    return e.AgentSpawned(seq=seq, swarm="s", agent=f"t{seq}", path=f"/root/a{seq}", nickname=f"n{seq}")


class Source:
    """A state that grows by one agent per event, published as the store would."""

    def __init__(self) -> None:
        self.state = SwarmState(swarm="s")
        self.feed = Feed(lambda: self.state)

    def happen(self, count: int) -> None:
        self.publish(*[spawned(self.state.seq + 1 + i) for i in range(count)])

    def publish(self, *events: e.AnyEvent) -> None:
        for event in events:
            apply(self.state, event)
        self.feed.publish(events, [e.encode(event).decode() for event in events])


async def drain(reader: Reader) -> list[object]:
    """Everything the reader has now."""
    items: list[object] = []
    while True:
        pending = asyncio.ensure_future(reader.__anext__())
        await asyncio.sleep(0)
        if not pending.done():
            pending.cancel()
            await asyncio.wait({pending})
            return items
        items.append(pending.result())


async def test_a_snapshot_comes_first_and_events_follow_without_gap_or_repeat() -> None:
    source = Source()
    source.happen(3)
    reader = source.feed.subscribe()
    source.happen(2)  # before the first read: part of the snapshot
    first = await anext(reader)
    assert isinstance(first, Snapshot)
    assert first.state.seq == 5
    source.happen(4)
    source.happen(1)
    batch = await anext(reader)
    assert isinstance(batch, Batch)
    assert [event.seq for event in batch.events] == [6, 7, 8, 9, 10]
    assert first.state.seq == 5, "a snapshot does not move"


async def test_events_that_a_snapshot_holds_already_do_not_come_again() -> None:
    source = Source()
    ahead = [spawned(seq) for seq in range(1, 6)]
    for event in ahead:
        apply(source.state, event)
    reader = source.feed.subscribe()
    first = await anext(reader)
    assert isinstance(first, Snapshot)
    assert first.state.seq == 5
    bodies = [e.encode(event).decode() for event in ahead]
    source.feed.publish(ahead[:3], bodies[:3])
    late = [*ahead[3:], spawned(6), spawned(7)]
    source.feed.publish(late, [e.encode(event).decode() for event in late])
    batch = await anext(reader)
    assert isinstance(batch, Batch)
    assert [event.seq for event in batch.events] == [6, 7]


async def test_deltas_merge_also_when_several_agents_write_at_once() -> None:
    source = Source()
    reader = source.feed.subscribe(backlog=3)
    await anext(reader)
    for offset in range(50):
        for thread in ("a", "b", "c"):
            source.feed.publish_delta(Delta(thread=thread, response=thread, offset=offset, text=thread))
    items = [await anext(reader) for _ in range(3)]
    assert items == [Delta(thread=t, response=t, offset=0, text=t * 50) for t in "abc"]


async def test_an_empty_text_ends_what_was_being_written_and_a_lost_beginning_is_not_guessed() -> None:
    source = Source()
    source.feed.publish_delta(Delta(thread="t", response="r", offset=4, text="the end of it"))
    assert source.feed.snapshot().streaming == ()
    source.feed.publish_delta(Delta(thread="t", response="r", offset=0, text="new"))
    source.feed.publish_delta(Delta(thread="t", response="other", offset=3, text="not of this answer"))
    assert [s.text for s in source.feed.snapshot().streaming] == ["new"]
    source.feed.publish_delta(Delta(thread="t", response="r", offset=0, text=""))
    assert source.feed.snapshot().streaming == ()


async def test_who_subscribes_to_a_feed_that_has_ended_gets_its_last_state() -> None:
    source = Source()
    source.happen(2)
    source.feed.close()
    [item] = [item async for item in source.feed.subscribe()]
    assert isinstance(item, Snapshot)
    assert item.state == source.state


async def test_a_backlog_is_bounded_in_bytes_too() -> None:
    source = Source()
    reader = source.feed.subscribe(backlog_bytes=10_000)
    await anext(reader)
    source.feed.publish_delta(Delta(thread="t", response="r", offset=0, text="x" * 9_000))
    source.feed.publish_delta(Delta(thread="t", response="r", offset=9_000, text="x" * 2_000))
    assert await anext(reader) == Lagged()
    late = await anext(reader)
    assert isinstance(late, Snapshot)
    assert [len(s.text) for s in late.streaming] == [11_000]


async def test_batches_are_bounded_and_hold_every_event() -> None:
    source = Source()
    reader = source.feed.subscribe()
    await anext(reader)
    source.publish(*[e.Notice(seq=n + 1, text="x" * 300_000) for n in range(9)])
    sizes = []
    while sum(sizes) < 9:
        batch = await anext(reader)
        assert isinstance(batch, Batch)
        sizes.append(len(batch.events))
    assert sizes == [3, 3, 3]


async def test_a_slow_reader_is_told_and_starts_again() -> None:
    source = Source()
    reader = source.feed.subscribe(backlog=5)
    await anext(reader)
    source.happen(6)
    assert await anext(reader) == Lagged()
    fresh = await anext(reader)
    assert isinstance(fresh, Snapshot)
    assert fresh.state.seq == 6


async def test_deltas_of_one_answer_are_merged_and_a_late_reader_gets_the_text_so_far() -> None:
    source = Source()
    reader = source.feed.subscribe()
    await anext(reader)
    for offset, text in ((0, "Hel"), (3, "lo "), (6, "you")):
        source.feed.publish_delta(Delta(thread="t", response="r", offset=offset, text=text))
    assert await anext(reader) == Delta(thread="t", response="r", offset=0, text="Hello you")
    late = await anext(source.feed.subscribe())
    assert isinstance(late, Snapshot)
    assert [s.text for s in late.streaming] == ["Hello you"]
    source.publish(e.AssistantMessage(seq=1, agent="t", text="Hello you"))
    assert source.feed.snapshot().streaming == ()


async def test_readers_end_with_the_feed_after_what_they_have() -> None:
    source = Source()
    reader = source.feed.subscribe()
    await anext(reader)
    source.happen(1)
    source.feed.close()
    assert isinstance(await anext(reader), Batch)
    assert [item async for item in reader] == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["read", "join", "leave"])), max_size=40))
def test_every_reader_ends_with_the_fold_of_the_journal(steps: list[int | str]) -> None:
    async def play() -> None:
        source = Source()
        readers: list[tuple[Reader, SwarmView]] = []
        for step in steps:
            if isinstance(step, int):
                source.happen(step)
            elif step == "join":
                reader = source.feed.subscribe(backlog=12)
                readers.append((reader, SwarmView()))
            elif readers and step == "leave":
                source.feed.unsubscribe(readers.pop(0)[0])
            elif readers:
                reader, view = readers[0]
                readers.append(readers.pop(0))
                for item in await drain(reader):
                    view.feed(item)  # type: ignore[arg-type]
        for reader, view in readers:
            for item in await drain(reader):
                view.feed(item)  # type: ignore[arg-type]
            assert view.state.seq == source.state.seq
            assert view.state.agents == source.state.agents

    asyncio.run(play())
