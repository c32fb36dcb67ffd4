from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import SwarmState
from core.domain.status import Status
from tests.core.domain.strategies import EVENT_TYPES, event_of, fold, plausible, random_events, stamp

STATUSES = set(get_args(Status))


@given(random_events)
def test_apply_takes_any_event_in_any_order(events: list[e.Event]) -> None:
    state = fold(stamp(events))
    assert state.seq == len(events)
    assert {agent.status for agent in state.agents.values()} <= STATUSES
    assert all(agent.mail >= 0 and agent.asks >= 0 for agent in state.agents.values())


@given(random_events)
def test_old_events_change_nothing(events: list[e.Event]) -> None:
    stamped = stamp(events)
    state = fold(stamped)
    before = msgspec.to_builtins(state)
    for event in stamped:
        assert not apply(state, event)
    assert msgspec.to_builtins(state) == before


@given(plausible)
def test_counts_are_what_the_lists_say(events: list[e.Event]) -> None:
    state = fold(stamp(events))
    for agent in state.agents.values():
        assert agent.mail == sum(mail.thread == agent.thread for mail in state.mail.values())
        assert agent.asks == sum(ask.thread == agent.thread for ask in state.approvals.values())
        assert (agent.turn is not None) == (agent.status == "running")
    for job in state.jobs.values():
        assert job.pending + job.running + job.done == job.total
        assert min(job.pending, job.running, job.completed, job.failed) >= 0
    assert [agent.order for agent in state.agents.values()] == list(range(len(state.agents)))


@given(plausible, st.data())
def test_changes_name_everything_that_changed(events: list[e.Event], data: st.DataObject) -> None:
    stamped = stamp(events)
    cut = data.draw(st.integers(0, len(stamped)))
    state = fold(stamped[:cut])
    for event in stamped[cut:]:
        before = state.copy()
        changes = apply(state, event)
        for name in ("agents", "approvals", "calls", "jobs"):
            old, new = getattr(before, name), getattr(state, name)
            changed = {key for key in old.keys() | new.keys() if old.get(key) is not new.get(key)}
            assert changed <= getattr(changes, name), (name, event)


@given(plausible, st.data())
def test_a_copy_is_independent(events: list[e.Event], data: st.DataObject) -> None:
    stamped = stamp(events)
    cut = data.draw(st.integers(0, len(stamped)))
    state = fold(stamped[:cut])
    copy = state.copy()
    before = msgspec.to_builtins(copy)
    fold(stamped[cut:], state)
    assert msgspec.to_builtins(copy) == before
    assert fold(stamped[cut:], copy) == state


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_every_event_survives_json(kind: type[e.Event]) -> None:
    @given(event_of(kind))
    def check(event: e.Event) -> None:
        line = e.encode(event)
        assert b"\n" not in line
        assert e.decode(line) == event
        assert msgspec.json.decode(line)["type"] == e.type_name(kind)

    check()


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(msgspec.ValidationError, match="no_such_event"):
        e.decode(b'{"type": "no_such_event"}')


def test_mail_is_counted_for_whom_it_was_queued() -> None:
    events = stamp(
        [
            e.SwarmStarted(title="", cwd="", model="", source="exec"),
            e.AgentSpawned(agent="t0", path="/root", nickname="a"),
            e.AgentSpawned(agent="t1", path="/root/b", nickname="b", parent="t0"),
            e.MailQueued(agent="t1", mail="m", author="/root", kind="MESSAGE", text="x"),
            e.MailQueued(agent="t1", mail="m", author="/root", kind="MESSAGE", text="x"),
            e.AgentMessage(agent="t0", kind="MESSAGE", author="/root", text="x", mail="m"),
        ]
    )
    state = fold(events)
    assert state.mail == {}
    assert [agent.mail for agent in state.agents.values()] == [0, 0]


def test_nothing_revives_a_closed_agent_by_its_turn_ending() -> None:
    events = stamp(
        [
            e.AgentSpawned(agent="t0", path="/root", nickname="a"),
            e.TurnStarted(agent="t0", turn="u"),
            e.AgentClosed(agent="t0", by="operator"),
            e.TurnInterrupted(agent="t0", turn="u", by="operator"),
        ]
    )
    assert fold(events).agents["t0"].status == "shutdown"


def test_quiet_needs_the_root_settled_and_nothing_under_way() -> None:
    state = SwarmState(swarm="s")
    assert not state.quiet()
    events = stamp(
        [
            e.AgentSpawned(agent="t0", path="/root", nickname="a"),
            e.AgentReady(agent="t0"),
            e.TurnStarted(agent="t0", turn="u"),
            e.TurnCompleted(agent="t0", turn="u", message="done"),
            e.MailQueued(agent="t0", mail="m", author="operator", kind="INPUT", text="more", trigger=True),
        ]
    )
    assert fold(events[:4]).quiet()
    assert not fold(events[:3]).quiet()
    assert not fold(events).quiet()
