"""The line for a slot says who stands where, without an event for each who moves up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.agents.slots import Slot, SlotPool
from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import SwarmState
from core.domain.status import Wait
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import Gate, Stage
from tests.core.agents.test_tools import spawn, wait
from tests.core.harness import Watched


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


def line(watched: Watched) -> list[str]:
    """Paths in the order of their places, which must count from 1."""
    agents = watched.state.agents
    places = {path: watched.view.place(thread) for thread, path in ((t, a.path) for t, a in agents.items())}
    standing = {path: place for path, place in places.items() if place is not None}
    assert sorted(standing.values()) == list(range(1, len(standing) + 1))
    return sorted(standing, key=lambda path: standing[path])


async def test_places_move_up_without_an_event_each(stage: Stage, gate: Gate) -> None:
    names = [f"c{n}" for n in range(5)]
    agents = {
        "/root": [step(*(spawn(name) for name in names)), step(wait(*names, mode="all"))],
        "/root/*": [step(call("gate")), step(text="one")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        state = await watched.until(lambda s: len(s.places()) == 4)
        first = next(a.path for a in state.agents.values() if a.status == "running" and a.path != "/root")
        stood = line(watched)
        assert len(stood) == 4
        gate.open.set()
        await watched.quiet()
        assert line(watched) == []
    begun = [watched.state.agents[x.agent or ""].path for x in watched.of(e.TurnStarted)]
    assert begun[1:6] == [first, *stood]
    for path in stood:
        waits = [x.wait is not None for x in watched.of(e.AgentWaits, path)]
        assert waits == [True, False]


async def test_who_lent_a_slot_stands_before_the_others(stage: Stage, gate: Gate) -> None:
    """`a` lends its slot while it waits for `b`; when `b` has answered, `c` holds it and `d` is in line."""
    agents = {
        "/root": [step(spawn("a")), step(wait("a"))],
        "/root/a": [step(spawn("b"), spawn("c"), spawn("d")), step(wait("b")), step(text="a")],
        "/root/a/b": [step(text="b")],
        "/root/a/*": [step(call("gate")), step(text="late")],
    }
    async with stage.play(agents, limits={"max_threads": 2}) as watched:
        state = await watched.until(
            lambda s: (
                len(s.places()) == 2 and s.agents[s.root or ""].status == "running" and gate.entered.is_set()
            )
        )
        assert line(watched)[0] == "/root/a"
        assert {state.agents[thread].path for thread in state.places()} < {
            "/root/a",
            "/root/a/c",
            "/root/a/d",
        }
        gate.open.set()
        await watched.quiet()


@given(st.lists(st.booleans(), max_size=12))
def test_tickets_and_places_agree(lenders: list[bool]) -> None:
    """Lenders first, each kind in order of arrival."""
    pool, state = SlotPool(1), SwarmState(swarm="s")
    for number, lent in enumerate(lenders):
        slot = Slot(pool)
        slot.lent = lent
        thread = f"t{number}"
        apply(state, e.AgentSpawned(agent=thread, path=f"/root/a{number}", nickname=thread))
        apply(state, e.AgentWaits(agent=thread, wait=Wait(reason="slot", line=slot.ticket())))
    numbers = range(len(lenders))
    expected = [n for n in numbers if lenders[n]] + [n for n in numbers if not lenders[n]]
    assert state.places() == {f"t{n}": place for place, n in enumerate(expected, 1)}
    if expected:
        gone = f"t{expected[0]}"
        apply(state, e.AgentWaits(agent=gone, wait=None))
        assert state.places() == {f"t{n}": place for place, n in enumerate(expected[1:], 1)}
    other = e.AgentWaits(agent="t0", wait=Wait(reason="approval"))
    apply(state, other)
    assert "t0" not in state.places()
