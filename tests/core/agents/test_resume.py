"""What a new owner makes of a swarm: repairs as a property of any story, and who comes back as what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

import core.engine.models
from core.agents.reload import read_history, stopped_by_engine, take_over
from core.clock import Clock
from core.domain import events as e
from core.domain.commands import Close, Interrupt, SendInput, StartSwarm
from core.domain.state import SwarmState
from core.scripted.scenario import Scenario
from core.scripted.transport import ScriptedTransport
from core.store.errors import StoreError
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import HANGING as HANG_ON
from tests.core.agents.stage import WAIT
from tests.core.crash import Stand, check, home_settings, journal, leave, stand
from tests.core.domain.strategies import fold, plausible, stamp

RESUMED = e.SwarmResumed(by="operator")


# --- any story -------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=150, deadline=None)
@given(plausible)
def test_after_a_takeover_nothing_runs_but_the_root(events: list[e.Event]) -> None:
    state = fold(stamp(events))
    before = state.copy()
    taken = take_over(state, RESUMED, interrupt_message=True)
    assert state == before
    after = fold(stamp([*events, *taken.events]))
    assert not after.calls
    assert not after.approvals
    for agent in after.agents.values():
        assert agent.wait is None or agent.status == "shutdown"
        assert agent.turn is None or (agent.thread, agent.turn) == (after.root, taken.turn)
        assert agent.job is None or agent.status == "shutdown"
        was = before.agents[agent.thread]
        if was.status not in ("running", "shutdown") and agent.job is None and agent.thread != after.root:
            assert agent.status == was.status
        if agent.job is None:
            assert agent.mail >= was.mail
    # Once repaired there is nothing more to repair: the next engine only says that it is there, and begins
    # the root's turn anew, if there was one.
    again = take_over(after, RESUMED, interrupt_message=True)
    kinds = [type(event) for event in again.events]
    cut = [e.Notice, e.TurnInterrupted, e.TurnStarted, e.Notice] if taken.turn else []
    assert kinds == [e.SwarmResumed, *cut]


def test_the_order_of_repairs_and_their_words() -> None:
    story: list[e.Event] = [
        e.SwarmStarted(title="t", cwd="/", model="m", source="exec"),
        e.AgentSpawned(agent="r", path="/root", nickname="root"),
        e.AgentSpawned(agent="a", path="/root/a", nickname="alder", parent="r", depth=1, task="do a"),
        e.AgentSpawned(
            agent="w", path="/root/job_1_1", nickname="ash", parent="r", depth=1, job="j", item="i"
        ),
        e.AgentReady(agent="r"),
        e.TurnStarted(agent="r", turn="t1"),
        e.ToolCalled(agent="r", call="c1", name="exec_command", arguments="{}"),
        e.ToolResult(agent="r", call="c1", index=0, source="x", text="half"),
        e.ApprovalRequested(agent="r", approval="p", call="c1", command="rm"),
        e.TurnStarted(agent="a", turn="t2"),
        e.TurnStarted(agent="w", turn="t3"),
    ]
    taken = take_over(fold(stamp(story)), RESUMED, interrupt_message=True)
    said = [(type(event).__name__, event.agent) for event in taken.events]
    assert said == [
        ("SwarmResumed", None),
        *[
            (kind, "r")
            for kind in ("ToolResult", "ToolEnded", "ApprovalDecided", "Notice", "TurnInterrupted")
        ],
        *[(kind, "a") for kind in ("Notice", "TurnInterrupted")],
        *[(kind, "w") for kind in ("TurnInterrupted", "AgentClosed")],
        ("TurnStarted", "r"),
        ("Notice", "r"),
    ]
    result, ended, decided, marker, cut = taken.events[1:6]
    assert isinstance(result, e.ToolResult)
    assert (result.index, result.source, result.status) == (1, "engine", "aborted")
    assert result.text == "aborted: the process ended"
    assert isinstance(ended, e.ToolEnded)
    assert ended.status == "aborted"
    assert isinstance(decided, e.ApprovalDecided)
    assert (decided.decision, decided.by) == ("aborted", "engine")
    assert isinstance(marker, e.Notice)
    assert "because the process ended" in marker.text
    assert not marker.hidden
    assert isinstance(cut, e.TurnInterrupted)
    assert (cut.turn, cut.by, cut.reason) == ("t1", "engine", "the process ended")
    begun, notice = taken.events[-2:]
    assert isinstance(begun, e.TurnStarted)
    assert (begun.turn, begun.cause) == (taken.turn, "resume")
    assert isinstance(notice, e.Notice)
    assert "- /root/a (alder): do a" in notice.text
    assert "job_1_1" not in notice.text
    assert not notice.hidden
    silent = take_over(fold(stamp(story)), RESUMED, interrupt_message=False).events
    assert sum(isinstance(event, e.Notice) for event in silent) == 1


# --- who comes back --------------------------------------------------------------------------------------


class Later:
    """A first engine plays one scenario until it dies; later ones play another, and keep their requests."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._transports: list[ScriptedTransport] = []
        monkeypatch.setattr(core.engine.models, "ScriptedTransport", self._transport)

    def _transport(self, played: Scenario, clock: Clock) -> ScriptedTransport:
        self._transports.append(ScriptedTransport(played, clock, keep=1000))
        return self._transports[-1]

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The requests that an agent has sent to the last engine's model."""
        log = self._transports[-1].requests.log
        return [entry.body for entry in log if entry.agent == path and entry.body is not None]

    @asynccontextmanager
    async def first(self, played: dict[str, Any], **options: Any) -> AsyncIterator[tuple[Stand, str, str]]:
        settings = home_settings(
            self.folder, self.folder / "home", scenario(played), sandbox="off", **options
        )
        async with stand(settings) as one:
            value = await one.send(StartSwarm(task="go"))
            yield one, value["swarm"], value["thread"]

    def dies(self) -> None:
        leave(self.folder / "home", self.folder / "left")

    @asynccontextmanager
    async def second(
        self, played: dict[str, Any], swarm: str, home: str = "left", **options: Any
    ) -> AsyncIterator[Stand]:
        settings = home_settings(self.folder, self.folder / home, scenario(played), sandbox="off", **options)
        async with stand(settings) as two:
            reply = await two.resume(swarm)
            assert reply.ok, reply.error
            yield two


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(tmp_path, monkeypatch)


SPAWN_A = step(call("spawn_agent", task_name="a", message="do a"))
WAIT_A = step(call("wait_agent", targets=["a"], timeout_ms=WAIT))


def running(path: str) -> Any:
    return lambda state: (a := state.by_path(path)) is not None and a.status == "running"


def waiting(path: str, reason: str) -> Any:
    return lambda state: (
        (a := state.by_path(path)) is not None and a.wait is not None and a.wait.reason == reason
    )


async def test_the_root_goes_on_and_its_child_can_be_called_again(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, WAIT_A], "/root/a": [HANG_ON]}) as (one, swarm, _):
        await one.until(swarm, lambda state: waiting("/root", "agents")(state) and running("/root/a")(state))
        later.dies()
    after = {
        "/root": [
            SPAWN_A,
            WAIT_A,
            step(call("followup_task", target="a", message="again")),
            WAIT_A,
            {"text": "the end"},
        ],
        "/root/a": [{"text": "a at last"}],
    }
    async with later.second(after, swarm) as two:
        root, child = two.at(swarm, "/root"), two.at(swarm, "/root/a")
        assert root.status == "running"
        assert child.status == "interrupted"
        assert stopped_by_engine(child)
        await two.quiet(swarm)
        await check(two.engine, swarm)
        assert two.at(swarm, "/root").status == "completed"
        assert two.at(swarm, "/root/a").status_message == "a at last"
        first = later.bodies("/root")[0]["input"]
        texts = [item["content"][0]["text"] for item in first if item["type"] == "message"]
        assert texts[0] == "go"
        assert f"- /root/a ({child.nickname}): do a" in texts[-1]
        assert "Your last turn was cut" in texts[-1]
        answers = {
            item["call_id"]: item["output"] for item in first if item["type"] == "function_call_output"
        }
        assert "aborted: the process ended" in answers.values()
        # Its first task, the marker of the cut, and the new one: nothing is lost and nothing is twice.
        child_texts = [item["content"][0]["text"] for item in later.bodies("/root/a")[0]["input"]]
        assert [text.splitlines()[-1] for text in child_texts] == ["do a", "</turn_aborted>", "again"]
        assert next(t.cause for t in two.of(e.TurnStarted, root.thread)) == "resume"


async def test_a_root_that_had_ended_waits(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, WAIT_A, {"text": "over"}], "/root/a": [{"text": "x"}]}) as (
        one,
        swarm,
        root,
    ):
        await one.quiet(swarm)
        await one.until(swarm, lambda state: not state.active())
    # An orderly end this time: there is nothing to repair.
    async with later.second({"/root": [{"text": "new words"}]}, swarm, home="home") as two:
        assert two.at(swarm, "/root").status == "completed"
        assert [type(event) for event in two.events] == [e.SwarmResumed]
        assert not two.engine.busy()
        await two.send(SendInput(swarm=swarm, thread=root, text="more?"))
        await two.quiet(swarm)
        texts = [i["content"][0]["text"] for i in later.bodies("/root")[0]["input"] if i["type"] == "message"]
        assert (texts[0], texts[-1]) == ("go", "more?")
        assert not [text for text in texts if "<resumed>" in text]


async def test_an_orderly_stop_says_so_and_is_gone_on_from(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, WAIT_A], "/root/a": [HANG_ON]}) as (one, swarm, _root):
        await one.until(swarm, lambda state: waiting("/root", "agents")(state) and running("/root/a")(state))
    async with later.second({"/root": [SPAWN_A, WAIT_A]}, swarm, home="home") as two:
        cuts = [event for event in await journal(two.engine, swarm) if isinstance(event, e.TurnInterrupted)]
        assert {(cut.by, cut.reason) for cut in cuts} == {("engine", "the engine was stopped")}
        assert len(cuts) == 2
        await two.quiet(swarm)
        assert two.at(swarm, "/root").status == "completed"
        await check(two.engine, swarm)


async def test_who_the_operator_stopped_stays_stopped(later: Later) -> None:
    async with later.first({"/root": [HANG_ON]}) as (one, swarm, root):
        await one.until(swarm, running("/root"))
        await one.send(SendInput(swarm=swarm, thread=root, text="typed before"))
        await one.send(Interrupt(swarm=swarm, thread=root))
        later.dies()
    async with later.second({"/root": [{"text": "ok"}]}, swarm) as two:
        assert two.at(swarm, "/root").status == "interrupted"
        assert not two.engine.busy()
        await two.send(SendInput(swarm=swarm, thread=root, text="typed after"))
        await two.quiet(swarm)
        last = later.bodies("/root")[0]["input"][-1]["content"][0]["text"]
        assert last == "typed before\n\ntyped after"


async def test_input_that_nobody_answered_is_answered(later: Later) -> None:
    async with later.first({"/root": [{"text": "one"}, HANG_ON]}) as (one, swarm, root):
        await one.quiet(swarm)

        def once() -> None:
            if isinstance(one.events[-1], e.MailQueued):
                later.dies()
                one.after_commit = lambda: None

        one.after_commit = once
        await one.send(SendInput(swarm=swarm, thread=root, text="two?"))
    async with later.second({"/root": [{"text": "one"}, {"text": "two"}]}, swarm) as two:
        assert two.of(e.TurnStarted)[0].cause == "resume"
        await two.quiet(swarm)
        assert two.at(swarm, "/root").status_message == "two"
        texts = [i["content"][0]["text"] for i in later.bodies("/root")[0]["input"]]
        assert "You had ended your turn" in texts[-2]
        assert texts[-1] == "two?"


async def test_a_child_that_would_have_woken_the_root_wakes_it_as_a_cut(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, {"text": "I wait"}], "/root/a": [HANG_ON]}) as (one, swarm, _):
        await one.until(
            swarm, lambda s: running("/root/a")(s) and s.agents[s.root or ""].status == "completed"
        )
        later.dies()
    again = {"/root": [SPAWN_A, {"text": "I wait"}, {"text": "I see"}]}
    async with later.second(again, swarm) as two:
        await two.quiet(swarm)
        assert two.at(swarm, "/root").status_message == "I see"
    # It has been told once: the next engine leaves it in peace.
    async with later.second(again, swarm) as three:
        assert three.at(swarm, "/root").status == "completed"
        assert not three.engine.busy()


async def test_an_agent_that_was_still_starting_has_its_first_turn(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, WAIT_A], "/root/a": [{"text": "x"}]}) as (one, swarm, _):

        def once() -> None:
            if one.of(e.AgentSpawned)[-1].path == "/root/a":
                later.dies()
                one.after_commit = lambda: None

        one.after_commit = once
        await one.quiet(swarm)
    async with later.second({"/root": [SPAWN_A], "/root/a": [{"text": "born twice"}]}, swarm) as two:
        await two.until(swarm, lambda s: (a := s.by_path("/root/a")) is not None and a.turns > 0)
        await two.quiet(swarm)
        assert two.at(swarm, "/root/a").status_message == "born twice"
        assert "- /root/a" in later.bodies("/root")[0]["input"][-1]["content"][0]["text"]
        await check(two.engine, swarm)


async def test_closed_agents_stay_closed_and_names_are_not_used_again(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, WAIT_A, HANG_ON], "/root/a": [{"text": "x"}]}) as (
        one,
        swarm,
        _,
    ):
        await one.until(swarm, lambda s: s.agents[s.root or ""].calls == 2 and not s.calls)
        first = one.at(swarm, "/root/a")
        await one.send(Close(swarm=swarm, thread=first.thread))
        later.dies()
    again = {"/root": [SPAWN_A, WAIT_A, SPAWN_A, WAIT_A], "/root/a": [{"text": "another"}]}
    async with later.second(again, swarm) as two:
        reply = await two.engine.handle(SendInput(swarm=swarm, thread=first.thread, text="hello?"))
        assert (reply.ok, reply.code) == (False, "not_found")
        await two.quiet(swarm)
        second = two.at(swarm, "/root/a")
        assert two.engine.state(swarm).agents[first.thread].status == "shutdown"
        assert second.thread != first.thread
        assert second.nickname != first.nickname
        await check(two.engine, swarm)


async def test_an_approval_is_withdrawn(later: Later) -> None:
    ask = step(call("exec_command", cmd="touch x"))
    async with later.first({"/root": [ask]}) as (one, swarm, _):
        state = await one.until(swarm, lambda s: bool(s.approvals))
        [approval] = state.approvals
        later.dies()
    async with later.second({"/root": [ask, {"text": "not done"}]}, swarm) as two:
        [decided] = two.of(e.ApprovalDecided)
        assert (decided.approval, decided.decision, decided.by) == (approval, "aborted", "engine")
        await two.quiet(swarm)
        await check(two.engine, swarm)


async def test_roles_efforts_and_limits_come_back(later: Later) -> None:
    spawn = step(
        call("spawn_agent", task_name="a", message="do a", agent_type="auditor", reasoning_effort="high"),
        call("spawn_agent", task_name="b", message="do b", agent_type="auditor"),
    )
    auditor = {
        "description": "d",
        "instructions": "You audit.",
        "model": "scripted-audit",
        "reasoning_effort": "low",
        "max_tokens": 777,
        "tools": ["exec_command"],
    }
    options = {"agents": {"roles": {"auditor": auditor}}}
    agents = {"/root": [spawn, HANG_ON], "/root/[ab]": [{"text": "x"}, {"text": "y"}]}
    async with later.first(agents, **options) as (one, swarm, _):
        await one.until(swarm, lambda s: sum(a.status == "completed" for a in s.agents.values()) == 2)
        sent = {path: later.bodies(path)[0] for path in ("/root/a", "/root/b")}
        later.dies()
    async with later.second({"/root": [spawn], "/root/[ab]": agents["/root/[ab]"]}, swarm, **options) as two:
        for path in ("/root/a", "/root/b"):
            await two.send(SendInput(swarm=swarm, thread=two.at(swarm, path).thread, text="more"))
        await two.until(swarm, lambda s: all(s.by_path(f"/root/{x}").turns == 2 for x in "ab"))  # type: ignore[union-attr]
        await two.quiet(swarm)
        for path, body in sent.items():
            now = later.bodies(path)[0]
            assert now["input"][: len(body["input"])] == body["input"]
            assert {k: v for k, v in now.items() if k != "input"} == {
                k: v for k, v in body.items() if k != "input"
            }
        assert sent["/root/a"]["reasoning"]["effort"] == "high"
        assert sent["/root/b"]["reasoning"]["effort"] == "low"
        assert sent["/root/b"]["max_output_tokens"] == 777
        # A role that is gone by then takes nobody down.
    async with later.second({"/root": [spawn], "/root/[ab]": [{"text": "x"}]}, swarm) as three:
        await three.quiet(swarm)
        await check(three.engine, swarm)


async def test_every_history_is_the_one_that_was_lived(later: Later) -> None:
    agents = {
        "/root": [
            step(text="thinking", reasoning="hm"),
            step(call("spawn_agent", task_name="a", message="do a", fork_turns="all")),
            WAIT_A,
            {"text": "fine"},
            step(call("spawn_agent", task_name="b", message="do b", fork_turns="1")),
        ],
        "/root/a": [
            step(call("spawn_agent", task_name="c", message="do c", fork_turns="2")),
            step(call("exec_command", cmd="ls")),
            {"text": "a"},
        ],
    }
    async with later.first(agents) as (one, swarm, root):
        await one.quiet(swarm)
        await one.until(swarm, lambda s: not s.active())
        for text in ("and now?", "go on", "and?"):
            await one.send(SendInput(swarm=swarm, thread=root, text=text))
            await one.until(swarm, lambda s: not s.active())
        live = one.engine._hosted[swarm].swarm
        assert len(live.agents) == 4
        for agent in live.agents.values():
            history, born = await read_history(one.engine.store, swarm, agent.thread, live.state.seq)
            assert history.items == agent.history.items
            assert history.call_ids == agent.history.call_ids
            assert (born.path, born.effort) == (agent.path, agent.effort)


async def test_a_history_that_cannot_be_read_fails_its_turn_alone(
    later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with later.first({"/root": [HANG_ON]}) as (one, swarm, _):
        await one.until(swarm, running("/root"))
        later.dies()

    async def broken(*args: Any) -> Any:
        raise StoreError("the file is damaged")

    monkeypatch.setattr("core.agents.agent.read_history", broken)
    async with later.second({"/root": [{"text": "x"}]}, swarm) as two:
        state = await two.quiet(swarm)
        root = two.at(swarm, "/root")
        assert root.status == "errored"
        assert root.status_message == "the history of /root cannot be read: the file is damaged"
        other = await two.send(StartSwarm(task="hello"))
        await two.quiet(other["swarm"])
        assert state.root == root.thread


async def test_idle_agents_hold_no_slot_and_all_go_on(later: Later) -> None:
    """Two slots, five agents that come back: what is left is worked off, one after the other."""
    names = [f"x{n}" for n in range(5)]
    spawn = step(*(call("spawn_agent", task_name=name, message="do") for name in names))
    options = {"agents": {"max_threads": 2}}
    async with later.first({"/root": [spawn, HANG_ON], "/root/*": [HANG_ON]}, **options) as (one, swarm, _):
        await one.until(swarm, lambda s: sum(a.wait is not None for a in s.agents.values()) == 4)
        later.dies()
    after = {"/root": [spawn, {"text": "over"}], "/root/*": [{"text": "x"}]}
    async with later.second(after, swarm, **options) as two:
        await two.quiet(swarm)
        statuses = sorted(a.status for a in two.engine.state(swarm).agents.values())
        assert statuses == ["completed"] * 5 + ["interrupted"]
        assert two.engine._hosted[swarm].swarm.slots.used == 0
        await check(two.engine, swarm)


async def test_nobody_waits_for_a_slot_that_a_new_limit_has_taken(later: Later) -> None:
    async with later.first({"/root": [SPAWN_A, HANG_ON], "/root/a": [HANG_ON]}) as (one, swarm, _):
        await one.until(swarm, running("/root/a"))
        later.dies()
    again = step(call("followup_task", target="a", message="go on"))
    after = {"/root": [SPAWN_A, again, WAIT_A, step(text="over")], "/root/a": [{"text": "x"}, {"text": "y"}]}
    async with later.second(after, swarm, agents={"max_threads": 1}) as two:
        await two.quiet(swarm)
        assert two.at(swarm, "/root/a").status == "completed"
        assert two.engine.state(swarm).slots == 2


def test_states_are_told_apart_by_who_stopped_them() -> None:
    def stopped(by: str, reason: str = "") -> bool:
        story: list[e.Event] = [
            e.AgentSpawned(agent="a", path="/root", nickname="root"),
            e.TurnStarted(agent="a", turn="t"),
            e.TurnInterrupted(agent="a", turn="t", by=by, reason=reason),
        ]
        state: SwarmState = fold(stamp(story))
        return stopped_by_engine(state.agents["a"])

    assert stopped("engine")
    assert stopped("engine", "the engine was stopped")
    assert not stopped("operator")
    assert not stopped("engineer")
    assert not stopped("/root/engine", "x")


async def test_only_those_who_go_on_read_their_history(later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a long swarm costs to resume is not what it has been through."""
    read: list[str] = []

    async def counted(store: Any, swarm: str, thread: str, upto: int) -> Any:
        read.append(thread)
        return await read_history(store, swarm, thread, upto)

    spawn = step(*(call("spawn_agent", task_name=f"x{n}", message="do") for n in range(4)))
    async with later.first({"/root": [spawn, HANG_ON], "/root/*": [{"text": "x"}]}) as (one, swarm, root):
        await one.until(swarm, lambda s: sum(a.status == "completed" for a in s.agents.values()) == 4)
        later.dies()
    monkeypatch.setattr("core.agents.agent.read_history", counted)
    async with later.second({"/root": [spawn], "/root/*": [{"text": "x"}, {"text": "y"}]}, swarm) as two:
        await two.quiet(swarm)
        assert read == [root]
        child = two.at(swarm, "/root/x2").thread
        await two.send(SendInput(swarm=swarm, thread=child, text="and you?"))
        await two.until(swarm, lambda s: s.agents[child].status_message == "y")
        await two.send(SendInput(swarm=swarm, thread=child, text="again?"))
        await two.until(swarm, lambda s: s.agents[child].turns == 3 and not s.active())
        assert read == [root, child]
