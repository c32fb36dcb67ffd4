"""Swarms that run into their budget: it is never exceeded, and everybody is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import core.scripted.engine
from core.agents.budget import IMAGE_TOKENS, Meter, size_of
from core.agents.history import MARK, user_item
from core.domain import events as e
from core.domain.apply import apply
from core.domain.commands import Interrupt, ResumeSwarm, SetBudget, StartSwarm
from core.domain.state import SwarmState
from core.domain.status import Usage
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import Stage
from tests.core.harness import Watched, engine, settings_for

CATALOG = {"scripted": {"input": 1.0, "output": 4.0, "max_output": 2000}}
MANY = 64


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def options(unattended: str = "refuse", catalog: Any = CATALOG, **budget: Any) -> dict[str, Any]:
    return {"budget": budget, "catalog": catalog, "unattended": unattended}


def spent(state: SwarmState) -> int:
    return (state.tokens.total if state.tokens is not None else 0) + state.spending.unmetered


def most_spent(watched: Watched) -> int:
    """At any moment of the swarm's life."""
    state, most = SwarmState(swarm=watched.swarm), 0
    for event in watched.events:
        apply(state, event)
        most = max(most, spent(state))
    return most


def crowd(*child: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    spawns = [call("spawn_agent", task_name=f"a{n}", message="do it") for n in range(MANY)]
    return {"/root": [step(*spawns), step(text="sent")], "/root/*": list(child)}


LIST = step(call("list_agents"))


@pytest.mark.parametrize("how", ["told", "not told", "cut"])
async def test_many_agents_at_once_stay_below_one_cap(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cap = 110_000 if how == "told" else 400_000
    steps = [step(text="one"), step(text="two")]
    if how == "not told":
        monkeypatch.setattr(core.scripted.engine, "_usage", lambda *_: None)
    if how == "cut":
        steps[0]["fault"] = {"kind": "cut", "after_events": 4, "times": 1}
    async with stage.play(crowd(*steps), limits={"max_threads": 65}, options=options(tokens=cap)) as watched:
        state = await watched.until(lambda s: s.quiet() and len(s.agents) == MANY + 1, seconds=40)
    assert cap / 2 < most_spent(watched) <= cap
    stopped = [agent for agent in state.agents.values() if agent.spent]
    done = [agent for agent in state.agents.values() if agent.status == "completed"]
    assert stopped
    assert done
    assert len(stopped) + len(done) == MANY + 1
    for agent in stopped:
        assert agent.spent.startswith(f"limit reached: budget.tokens = {cap:,}; ")
        assert agent.spent_all
    # What was sent told the server how long its answer may be.
    assert all(body["max_output_tokens"] <= 2000 for entry in stage.log if (body := entry.body))
    if how != "told":
        assert state.spending.unmetered > 0


async def test_a_waiting_agent_goes_on_when_the_limit_is_raised(stage: Stage) -> None:
    agents = {"/root": [LIST, step(text="done at last")]}
    async with stage.play(agents, options=options("wait", tokens=1500)) as watched:
        state = await watched.until(lambda s: waits(s) is not None)
        assert "budget.tokens = 1,500" in (waits(state) or "")
        assert state.agents[watched.root].status == "running"
        shown = await watched.client.send(SetBudget(swarm=watched.swarm, tokens=900_000, dry_run=True))
        assert shown.value["budget"]["tokens"] == 900_000
        assert shown.value["changed"] is False
        # One that is not enough changes nothing for it.
        await watched.client.send(SetBudget(swarm=watched.swarm, tokens=1600))
        await watched.until(lambda s: "1,600" in (waits(s) or ""))
        raised = await watched.client.send(SetBudget(swarm=watched.swarm, tokens=0, per_agent_tokens=10**6))
        assert raised.value["changed"] is True
        state = await watched.quiet()
    assert state.agents[watched.root].status_message == "done at last"
    assert (state.budget.tokens, state.budget.per_agent_tokens) == (None, 10**6)


def waits(state: SwarmState) -> str | None:
    root = state.agents.get(state.root or "")
    return root.wait.detail if root and root.wait and root.wait.reason == "budget" else None


async def test_a_wait_for_the_budget_can_be_interrupted(stage: Stage) -> None:
    async with stage.play({"/root": [step(text="x")]}, options=options("wait", tokens=1500)) as watched:
        await watched.until(lambda s: waits(s) is not None)
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        state = await watched.quiet()
    assert state.agents[watched.root].status_message == "by operator"
    assert spent(state) == 0


async def test_a_child_at_its_own_limit_wakes_its_parent(stage: Stage) -> None:
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="go")),
            step(text="sent"),
            step(text="seen"),
        ],
        "/root/a": [LIST] * 50,
    }
    async with stage.play(agents, options=options(per_agent_tokens=30_000)) as watched:
        state = await watched.quiet()
    child = watched.at("/root/a")
    assert child.spent is not None
    assert not child.spent_all
    assert child.spent.startswith("limit reached: budget.per_agent_tokens = 30,000; /root/a has spent ")
    assert 30_000 - 15_000 < (child.tokens or Usage()).total <= 30_000
    assert state.agents[watched.root].status_message == "seen"
    [mail] = watched.of(e.AgentMessage, "/root")
    assert "was interrupted by budget (limit reached: budget.per_agent_tokens" in mail.text


async def test_the_last_request_takes_what_is_left(stage: Stage) -> None:
    """Nobody else holds anything: it may have a shorter answer, and says so to the server."""
    async with stage.play(
        {"/root": [step(text="x")]}, options=options("refuse", {}, tokens=20_000)
    ) as watched:
        await watched.quiet()
    [body] = stage.bodies()
    assert 1024 <= body["max_output_tokens"] < 20_000


async def test_an_answer_is_cut_at_what_is_left(stage: Stage) -> None:
    """A server that is asked for so many tokens at most gives no more, and the agent says so."""
    agents = {"/root": [step(text="word " * 20_000)]}
    async with stage.play(agents, options=options("refuse", {}, tokens=20_000)) as watched:
        state = await watched.quiet()
    assert spent(state) <= 20_000
    [body] = stage.bodies()
    assert (state.tokens or Usage()).output <= body["max_output_tokens"]
    assert [notice.text for notice in watched.of(e.Notice)] == [
        "the server ended the answer early: max_output_tokens"
    ]


async def test_what_it_costs(stage: Stage) -> None:
    async with stage.play({"/root": [LIST, step(text="x")]}, options=options("refuse", cost=5.0)) as watched:
        state = await watched.quiet()
    told = watched.of(e.ResponseCompleted)
    for event in told:
        assert event.usage is not None
        assert event.cost == pytest.approx((event.usage.input + 4 * event.usage.output) / 1e6)
    assert state.spending.cost == pytest.approx(sum(event.cost or 0 for event in told))
    assert (state.spending.priced, state.spending.unpriced) == (2, 0)


async def test_without_a_price_it_costs_nothing_that_is_known(stage: Stage) -> None:
    async with stage.play({"/root": [step(text="x")]}) as watched:
        state = await watched.quiet()
    assert [event.cost for event in watched.of(e.ResponseCompleted)] == [None]
    assert state.spending.cost is None
    assert state.spending.unpriced == 1
    assert "max_output_tokens" not in stage.bodies()[0]


async def test_money_needs_a_price_for_every_model(tmp_path: Path, stage: Stage) -> None:
    script = scenario({"/root": [step(text="x")]})
    other = {"agents": {"roles": {"cheap": {"model": "unheard-of"}}}}
    for more in (options("refuse", {}, cost=1.0), {**options("refuse", cost=1.0), **other}):
        async with engine(settings_for(tmp_path, script, **more)) as client:
            reply = await client.send(StartSwarm(task="go"))
            assert (reply.ok, reply.code) == (False, "usage")
            assert "has no price" in reply.error
    spawns = [call("spawn_agent", task_name="a", message="go", model="unheard-of")]
    agents = {"/root": [step(*spawns), step(text="x")]}
    async with stage.play(agents, options=options("refuse", cost=1.0)) as watched:
        state = await watched.quiet()
        refused = watched.of(e.ToolEnded)
        assert [event.status for event in refused] == ["error"]
        assert len(state.agents) == 1
    async with stage.play({"/root": [step(text="x")]}) as watched:
        await watched.quiet()
        reply = await watched.client.send(SetBudget(swarm=watched.swarm, cost=1.0))
        assert (reply.ok, reply.code) == (False, "refused")
        for wrong in ({"tokens": -1}, {"cost": -0.5}, {"tokens": 2**60}):
            reply = await watched.client.send(SetBudget(swarm=watched.swarm, **wrong))
            assert (reply.ok, reply.code) == (False, "usage")


async def test_a_restart_goes_on_with_the_ledger(tmp_path: Path) -> None:
    script = scenario({"/root": [*[LIST] * 12, step(text="whole")]})
    small = settings_for(tmp_path, script, **options(tokens=20_000))
    async with engine(small) as client:
        reply = await client.send(StartSwarm(task="go", unattended="refuse"))
        watched = Watched(client, reply.value["swarm"], reply.value["thread"])
        state = await until_quiet(watched)
        before = spent(state)
        assert 0 < before <= 20_000
        assert state.agents[watched.root].spent
    # The same limit: it is still spent. A higher one: it goes on, and what was spent counts.
    for limit, ends in ((20_000, "interrupted"), (90_000, "completed")):
        bigger = settings_for(tmp_path, script, **options(tokens=limit))
        async with engine(bigger) as client:
            assert (await client.send(ResumeSwarm(swarm=watched.swarm))).ok
            again = Watched(client, watched.swarm, watched.root)
            state = await until_quiet(again)
            assert state.agents[watched.root].status == ends
            assert state.budget.tokens == limit
            assert before <= spent(state) <= limit
    assert state.agents[watched.root].status_message == "whole"


async def until_quiet(watched: Watched) -> SwarmState:
    follower = asyncio.create_task(watched.follow())
    try:
        return await watched.until(lambda s: s.quiet() and not s.active())
    finally:
        follower.cancel()
        await asyncio.wait({follower})


# --- bounds ----------------------------------------------------------------------------------------------


def test_the_bound_of_a_request() -> None:
    meter, tools = Meter(), [{"name": "x"}]
    items = [user_item("hello")]
    first = meter.bound("abc", tools, items)
    assert first >= len("abc") + len("hello")
    meter.counted("abc", tools, items, Usage(input=50, output=7, total=57))
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]}
    items += [said, user_item("z" * 100)]
    assert meter.bound("abc", tools, items) == 50 + size_of(said) + size_of(items[-1])
    # A history that is not what was counted is measured anew.
    assert meter.bound("abc", tools, [user_item("other"), *items[1:]]) > 50 + size_of(items[-1])
    meter.counted("abc", tools, items, None)
    assert meter.bound("abc", tools, items) == first - size_of(items[0]) + sum(map(size_of, items))


def test_a_picture_counts_as_a_picture() -> None:
    mark = {"type": MARK, "blob": "b", "media_type": "image/png", "size": 10**7}
    item = {"type": "function_call_output", "call_id": "c", "output": [mark, mark]}
    assert 2 * IMAGE_TOKENS < size_of(item) < 2 * IMAGE_TOKENS + 200


def test_half_a_character_has_a_size() -> None:
    assert size_of(user_item("\ud800")) > 0
