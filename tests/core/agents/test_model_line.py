"""Agents that wait for a place at the model's server, as their operator sees it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import core.engine.models
from core.clock import Clock
from core.config import Settings
from core.domain import events as e
from core.domain.commands import Interrupt
from core.scripted.scenario import Scenario
from core.scripted.transport import ScriptedTransport
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, scenario, step
from tests.core.harness import Watched, engine, settings_for, swarm

FAMILY = {
    "/root": [
        step(*(call("spawn_agent", task_name=f"a{n}", message="go") for n in range(6))),
        step(call("wait_agent", targets=[f"a{n}" for n in range(6)], mode="all", timeout_ms=600_000)),
        step(text="over"),
    ]
}


def play(tmp_path: Path, agents: dict[str, Any], models: dict[str, Any], **top: Any) -> Settings:
    others = {"*": [step(text="said")]}
    return settings_for(tmp_path, scenario({**agents, **others}, **top), sandbox="off", models=models)


def waits(watched: Watched, reason: str) -> list[str]:
    """What agents were shown to wait for."""
    found = [event.wait for event in watched.of(e.AgentWaits)]
    return [wait.detail for wait in found if wait is not None and wait.reason == reason]


async def pass_time(watched: Watched, clock: FakeClock) -> None:
    """Until the swarm is quiet: time passes whenever somebody waits for it."""
    while not watched.state.quiet():
        await settle()
        if clock.sleeping:
            await clock.advance(0.25)


async def test_a_place_in_line_is_shown_and_passes(tmp_path: Path) -> None:
    settings = play(tmp_path, FAMILY, {"concurrency": 2}, latency_ms=50)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    assert watched.at("/root").status_message == "over"
    told = waits(watched, "model")
    assert told
    assert set(told) <= {"1st in line", "2nd in line", "3rd in line", "4th in line", "5th in line"}
    assert all(agent.wait is None for agent in watched.state.agents.values())


async def test_without_a_limit_nobody_waits(tmp_path: Path) -> None:
    async with engine(play(tmp_path, FAMILY, {})) as client, swarm(client) as watched:
        await watched.quiet()
    assert waits(watched, "model") == []


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedTransport]:
    made: list[ScriptedTransport] = []

    def make(played: Scenario, clock: Clock) -> ScriptedTransport:
        made.append(ScriptedTransport(played, clock, keep=1000))
        return made[-1]

    monkeypatch.setattr(core.engine.models, "ScriptedTransport", make)
    return made


async def test_the_limit_is_kept_whoever_asks(tmp_path: Path, transports: list[ScriptedTransport]) -> None:
    settings = play(tmp_path, FAMILY, {"concurrency": 3}, latency_ms=20)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    assert transports[0].requests.max_in_flight == 3


async def test_a_rate_limit_of_one_agent_holds_the_others_back_and_shows_until_when(tmp_path: Path) -> None:
    clock = FakeClock()
    limited = step(text="said", fault={"kind": "rate_limit", "retry_after": 30})
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="first", message="go")),
            step(call("wait_agent", timeout_ms=20_000)),
            step(text="over"),
        ],
        "/root/first": [limited],
    }
    async with engine(play(tmp_path, agents, {}), clock) as client, swarm(client) as watched:
        await watched.until(lambda s: bool(watched.of(e.ModelRetry)))
        until = watched.of(e.ModelRetry)[0].at + timedelta(seconds=30)
        await clock.advance(20)  # the root's wait ends; its next request is not sent
        await watched.until(
            lambda s: any(w.wait and w.wait.reason == "rate_limit" for w in s.agents.values())
        )
        root = await watched.until(lambda s: bool((a := s.by_path("/root")) and a.wait and a.wait.until))
        wait = root.agents[watched.root].wait
        assert wait is not None
        assert (wait.reason, wait.until) == ("rate_limit", until)
        await pass_time(watched, clock)
    # It may have been woken once more by the answer of its child.
    assert watched.of(e.TurnCompleted, "/root")[0].message == "over"
    assert watched.at("/root/first").status == "completed"


async def test_who_waits_in_line_can_be_interrupted_and_takes_no_place(
    tmp_path: Path, transports: list[ScriptedTransport]
) -> None:
    hang = step(text="never", fault={"kind": "hang", "after_events": 0, "times": 0})
    agents = {
        "/root": [
            step(*(call("spawn_agent", task_name=name, message="go") for name in ("one", "two"))),
            step(call("wait_agent", targets=["two"], timeout_ms=600_000)),
        ],
        "/root/one": [hang],
        "/root/two": [step(text="said")],
    }
    settings = play(tmp_path, agents, {"concurrency": 1})
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(lambda s: "model" in {a.wait.reason for a in s.agents.values() if a.wait})
        waiting = next(a for a in watched.state.agents.values() if a.wait and a.wait.reason == "model")
        await client.send(Interrupt(swarm=watched.swarm, thread=waiting.thread))
        await watched.until(lambda s: s.agents[waiting.thread].status == "interrupted")
        assert watched.state.agents[waiting.thread].wait is None
        for agent in list(watched.state.agents.values()):
            await client.send(Interrupt(swarm=watched.swarm, thread=agent.thread))
        await watched.until(lambda s: not any(a.wait for a in s.agents.values()))


async def test_a_storm_of_rate_limits_loses_no_agent(
    tmp_path: Path, transports: list[ScriptedTransport]
) -> None:
    clock = FakeClock()
    fault = {"kind": "rate_limit", "every": 3, "times": 0, "retry_after": 2}
    settings = play(tmp_path, FAMILY, {}, latency_ms=1000, fault=[fault])
    async with engine(settings, clock) as client, swarm(client) as watched:
        await pass_time(watched, clock)
        await watched.quiet()
    assert watched.at("/root").status_message == "over"
    assert {a.status for a in watched.state.agents.values()} == {"completed"}
    assert watched.of(e.ModelRetry)
    assert transports[0].requests.in_flight == 0


async def test_a_used_up_quota_stops_the_asking_of_a_whole_swarm(
    tmp_path: Path, transports: list[ScriptedTransport]
) -> None:
    """Those in line are told what the server said to one of them. Nobody repeats anything, everybody ends."""
    names = [f"a{n}" for n in range(16)]
    agents = {
        "/root": [
            step(*(call("spawn_agent", task_name=name, message="go") for name in names)),
            step(call("wait_agent", targets=names, mode="all", timeout_ms=600_000)),
            step(text="over"),
        ]
    }
    fault = {"kind": "quota", "path": "/root/*", "times": 0}
    settings = play(tmp_path, agents, {"concurrency": 1}, latency_ms=30, fault=[fault])
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(lambda s: s.quiet() and len(s.agents) == 17)
        failed = watched.of(e.TurnFailed)
        state = watched.state
    below = [a for a in state.agents.values() if a.depth]
    assert {a.status for a in below} == {"errored"}
    assert all("exceeded your current quota" in a.status_message for a in below)
    assert any("(said to another request to the same server)" in event.error for event in failed)
    assert watched.of(e.ModelRetry) == []
    assert all(a.wait is None for a in state.agents.values())
    asked = [entry for entry in transports[0].requests.log if entry.agent != "/root"]
    assert 1 <= len(asked) < 16
