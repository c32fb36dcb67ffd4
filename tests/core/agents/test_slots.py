"""Execution slots: the limit holds, the line is fair, lenders come back first, nothing leaks."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.agents.slots import Slot, SlotPool
from tests.clock import settle


async def test_a_full_house_serves_in_order_of_arrival() -> None:
    pool = SlotPool(1)
    slots = [Slot(pool) for _ in range(3)]
    await slots[0].acquire()
    order: list[int] = []

    async def wait(index: int) -> None:
        await slots[index].acquire()
        order.append(index)

    async with asyncio.TaskGroup() as group:
        for index in (1, 2):
            group.create_task(wait(index))
        await settle()
        assert order == []
        slots[0].release()
        await settle()
        assert order == [1]
        slots[1].release()
    assert order == [1, 2]
    assert pool.used == 1


async def test_a_lender_gets_its_slot_back_ahead_of_the_line() -> None:
    pool = SlotPool(1)
    lender, guest, queued = Slot(pool), Slot(pool), Slot(pool)
    await lender.acquire()
    lender.lend()
    await guest.acquire()
    order: list[str] = []

    async def wait(slot: Slot, name: str) -> None:
        await slot.acquire()
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(wait(queued, "queued"))
        await settle()
        group.create_task(wait(lender, "lender"))
        await settle()
        guest.release()
        await settle()
        assert order == ["lender"]
        lender.release()
    assert order == ["lender", "queued"]


async def test_cancelling_a_waiter_leaves_the_line_intact() -> None:
    pool = SlotPool(1)
    first, second, third = Slot(pool), Slot(pool), Slot(pool)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    behind = asyncio.create_task(third.acquire())
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})
    first.release()
    await behind
    assert third.held
    assert not second.held
    assert pool.used == 1


async def test_a_slot_that_arrives_while_its_waiter_is_cancelled_goes_to_the_next() -> None:
    pool = SlotPool(1)
    first, second, third = Slot(pool), Slot(pool), Slot(pool)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    behind = asyncio.create_task(third.acquire())
    await settle()
    first.release()  # the slot is on its way to `second` …
    waiting.cancel()  # … who goes before it can take it
    await asyncio.wait({waiting})
    await behind
    assert third.held
    assert pool.used == 1


async def test_a_cancelled_waiter_that_the_line_has_passed_over_is_just_cancelled() -> None:
    pool = SlotPool(1)
    holder, gone, last = Slot(pool), Slot(pool), Slot(pool)
    await holder.acquire()
    first = asyncio.create_task(gone.acquire())
    second = asyncio.create_task(last.acquire())
    await settle()
    first.cancel()
    holder.release()  # before the cancelled task could leave the line
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert second.exception() is None
    assert (pool.used, pool.waiting, last.held, gone.held) == (1, 0, True, False)


async def test_the_root_needs_no_slot() -> None:
    root = Slot(None)
    assert root.take()
    await root.acquire()
    root.lend()
    root.release()
    assert not root.held


async def test_release_and_lend_count_once() -> None:
    pool = SlotPool(2)
    slot = Slot(pool)
    await slot.acquire()
    await slot.acquire()
    assert pool.used == 1
    slot.lend()
    slot.lend()
    slot.release()
    slot.release()
    assert pool.used == 0


async def test_a_slot_that_is_kept_goes_back_at_the_end_only() -> None:
    pool = SlotPool(1)
    kept, waiting = Slot(pool, keeps=True), Slot(pool, keeps=True)
    assert kept.take()
    kept.lend()
    kept.release()
    assert (kept.held, pool.used, pool.free) == (True, 1, 0)
    assert not waiting.take()
    line = asyncio.create_task(waiting.acquire())
    await settle()
    kept.end()
    kept.end()
    await line
    assert (waiting.held, pool.used) == (True, 1)


async def test_who_was_there_before_holds_a_slot_although_none_is_free() -> None:
    pool = SlotPool(1)
    before = [Slot(pool, keeps=True) for _ in range(3)]
    for slot in before:
        slot.claim()
        slot.claim()
    assert (pool.used, pool.free) == (3, 0)
    for slot in before[:2]:
        slot.end()
        assert not Slot(pool).take()
    before[2].end()
    assert Slot(pool).take()


class SlotMachine(RuleBasedStateMachine):
    """Random acquire, lend, release, cancel: never too many held, no slot idle while some wait."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pool = SlotPool(2)
        self.slots = [Slot(self.pool) for _ in range(5)]
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def run(self) -> None:
        self.loop.run_until_complete(settle())
        self.tasks = {index: task for index, task in self.tasks.items() if not task.done()}

    @rule(index=st.integers(0, 4))
    def acquire(self, index: int) -> None:
        if index not in self.tasks:
            self.tasks[index] = self.loop.create_task(self.slots[index].acquire())
            self.run()

    @rule(index=st.integers(0, 4), lend=st.booleans())
    def give(self, index: int, lend: bool) -> None:
        if index not in self.tasks:
            (self.slots[index].lend if lend else self.slots[index].release)()
            self.run()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))].cancel()
        self.run()

    @invariant()
    def counts_agree(self) -> None:
        held = sum(slot.held for slot in self.slots)
        assert held == self.pool.used <= self.pool.capacity
        assert self.pool.waiting == len(self.tasks)
        assert not self.tasks or self.pool.used == self.pool.capacity

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.loop.run_until_complete(settle())
        self.loop.close()


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
