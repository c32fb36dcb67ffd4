"""Histories in memory: the limit holds when agents are idle, and nobody can tell who was flushed."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import msgspec
import pytest

from core.agents.swarm import Swarm
from core.domain import events as e
from core.domain.commands import Interrupt, SendInput
from core.tools.base import Tool
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import Gate, Stage, outputs
from tests.core.agents.test_comeback import close, followup, resume, said
from tests.core.agents.test_tools import spawn, wait
from tests.core.harness import Watched


class Inside(Stage):
    """A stage that can be looked behind."""

    swarm: Swarm

    def _tools(self, of: Swarm) -> list[Tool]:
        self.swarm = of
        return super()._tools(of)

    def resident(self) -> set[str]:
        """Paths of the agents with a history in memory; what is counted must be what is there."""
        agents = [agent for agent in self.swarm.agents.values() if agent.resident]
        assert len(self.swarm.residency) == len(agents)
        assert not any(agent.history.items for agent in self.swarm.agents.values() if not agent.resident)
        return {agent.path for agent in agents}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Inside:
    return Inside(tmp_path, monkeypatch, [gate])


async def say(watched: Watched, path: str, text: str) -> None:
    reply = await watched.client.send(
        SendInput(swarm=watched.swarm, thread=watched.at(path).thread, text=text)
    )
    assert reply.ok, reply.error


async def turns(watched: Watched, path: str, count: int) -> None:
    thread = watched.at(path).thread
    await watched.until(
        lambda s: s.agents[thread].turns == count and s.agents[thread].status == "completed" and s.quiet()
    )


HANGS_ONCE = step(text="one", fault={"kind": "hang", "after_events": 0, "times": 1})
CHILDREN = [f"c{n}" for n in range(6)]


async def test_the_least_recently_used_idle_agents_are_flushed(stage: Inside) -> None:
    steps = [step(*(spawn(name) for name in CHILDREN)), step(wait(*CHILDREN, mode="all"))]
    steps += [step(followup("c0")), step(wait("c0")), step(call("list_agents")), step(text="over")]
    agents = {"/root": steps, "/root/*": [step(text="one"), step(text="two"), step(text="three")]}
    async with stage.play(agents, limits={"max_resident": 3}) as watched:
        await watched.quiet()
        kept = stage.resident()
        assert len(kept) == 3
        assert {"/root", "/root/c0"} < kept  # the last two that were used
        await say(watched, "/root/c3", "more")
        await turns(watched, "/root/c3", 2)
        assert "/root/c3" in stage.resident()
        assert len(stage.resident()) == 3
        assert len(watched.state.agents) == 7
    rows = json.loads(outputs(watched, "/root", "list_agents")[0])["agents"]
    assert [row["agent_name"] for row in rows] == ["/root", *(f"/root/{name}" for name in CHILDREN)]
    assert said(stage.bodies("/root/c0")[-1]) == ["x", "one", "again"]
    assert said(stage.bodies("/root/c3")[-1]) == ["x", "one", "more"]


async def test_it_sends_the_same_request_as_if_it_had_stayed(stage: Inside, gate: Gate) -> None:
    gate.open.set()
    agents = {
        "/root": [
            step(spawn("a", agent_type="brief")),
            step(wait("a")),
            step(spawn("b", fork_turns="all"), spawn("c")),
            step(wait("b", "c", mode="all")),
            step(followup("a"), followup("b")),
            step(wait("a", "b", mode="all")),
            step(text="over"),
        ],
        "/root/*": [step(call("gate", n=1), call("gate", n=2)), step(text="one"), step(text="two")],
    }
    roles = {"brief": {"instructions": "Be brief.", "model": "other", "reasoning_effort": "low"}}
    seen = []
    for limit in (1, 256):
        async with stage.play(agents, limits={"max_resident": limit, "roles": roles}) as watched:
            await watched.quiet()
            assert len(stage.resident()) == min(limit, 4)
        keys = ("input", "instructions", "model", "reasoning", "tools")
        bodies = [stage.bodies(f"/root/{name}")[-1] for name in "ab"]
        text = json.dumps([{key: body.get(key) for key in keys} for body in bodies])
        ids = list(dict.fromkeys(re.findall(r"call_\w+", text)))
        for number, call_id in enumerate(ids):
            text = text.replace(call_id, f"call {number}")
        seen.append(json.loads(text))
    assert len(seen[0][0]["input"]) == 7
    assert seen[0] == seen[1]


@pytest.mark.parametrize("status", ["completed", "errored", "interrupted", "idle", "mail"])
async def test_an_agent_with_nothing_to_do_is_evictable_whatever_its_status(
    stage: Inside, status: str
) -> None:
    last = {"errored": step(text="", fault={"kind": "unauthorized", "times": 1}), "interrupted": HANGS_ONCE}
    more = {
        "idle": [step(close("a")), step(resume("a"))],
        "mail": [step(call("send_message", target="a", message="unread"))],
    }
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), *more.get(status, []), step(text="over")],
        "/root/a": [last.get(status, step(text="one")), step(text="two")],
    }
    async with stage.play(agents, limits={"max_resident": 1}) as watched:
        if status == "interrupted":
            await watched.until(lambda s: any(a.turn for a in s.agents.values() if a.path == "/root/a"))
            thread = watched.at("/root/a").thread
            await watched.client.send(Interrupt(swarm=watched.swarm, thread=thread))
        await watched.quiet()
        assert watched.at("/root/a").status == ("completed" if status == "mail" else status)
        assert stage.resident() == {"/root"}
        # It is reloaded, and is evictable again when the root has had a turn.
        await say(watched, "/root/a", "go on")
        await turns(watched, "/root/a", 2)
        assert len(stage.resident()) == 1
        assert "go on" in said(stage.bodies("/root/a")[-1])


async def test_who_runs_or_is_in_line_keeps_its_history_beyond_the_limit(stage: Inside, gate: Gate) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b"), spawn("c")), step(wait("a", "b", "c", mode="all"))],
        "/root/*": [step(call("gate")), step(text="one")],
    }
    async with stage.play(agents, limits={"max_resident": 1, "max_threads": 3}) as watched:
        await watched.until(
            lambda s: sum(a.wait is not None and a.wait.reason == "slot" for a in s.agents.values()) == 1
        )
        assert len(stage.resident()) == 4
        gate.open.set()
        await watched.quiet()
        assert len(stage.resident()) == 1


async def test_two_wake_ups_at_once_give_one_live_agent(stage: Inside) -> None:
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(text="over")],
        "/root/a": [step(text="one"), step(text="two"), step(text="three")],
    }
    async with stage.play(agents, limits={"max_resident": 1}) as watched:
        await watched.quiet()
        assert stage.resident() == {"/root"}
        await asyncio.gather(*(say(watched, "/root/a", word) for word in ("left", "right")))
        await watched.until(lambda s: not s.mail and s.quiet())
        assert sum(agent.path == "/root/a" for agent in stage.swarm.agents.values()) == 1
    heard = [x.text for x in watched.of(e.UserMessage, "/root/a")]
    assert sorted(heard) == ["left", "right"]
    words = said(stage.bodies("/root/a")[-1])
    assert words[:2] == ["x", "one"]
    assert len(words) == len(set(words))


async def test_a_fork_of_a_flushed_history_is_whole(stage: Inside) -> None:
    """The parent was flushed and came back before it spawns."""
    agents = {
        "/root": [step(text="first answer"), step(spawn("a", fork_turns="all")), step(wait("a"))],
        "/root/a": [step(text="one"), step(text="two"), step(text="three")],
    }
    async with stage.play(agents, limits={"max_resident": 1}) as watched:
        await watched.quiet()
        stage.swarm.agents[watched.root].evict()
        await say(watched, "/root", "second")
        await watched.until(lambda s: len(s.agents) == 2 and s.quiet())
        await say(watched, "/root/a", "go on")
        await watched.until(lambda s: not s.mail and s.quiet())
    for body in (stage.bodies("/root/a")[0], stage.bodies("/root/a")[-1]):
        assert said(body)[:4] == ["go", "first answer", "second", "x"]


async def test_one_that_was_woken_since_keeps_its_history(stage: Inside, gate: Gate) -> None:
    """It is the least recently used of those whose last turn is over, and in the middle of the next."""
    agents = {
        "/root": [step(spawn("a")), step(wait("a")), step(followup("a")), step(text="left it to a")],
        "/root/a": [step(text="one"), step(call("gate")), step(text="two")],
    }
    async with stage.play(agents, limits={"max_resident": 2}) as watched:
        await watched.until(lambda s: gate.entered.is_set() and s.agents[watched.root].status == "completed")
        for count in (2, 3):
            await say(watched, "/root", "and you?")
            await watched.until(lambda s, count=count: s.agents[watched.root].turns == count)
            await watched.until(lambda s: s.agents[watched.root].status == "completed")
        stage.swarm.residency.limit = 1
        await say(watched, "/root", "and now?")
        await watched.until(lambda s: s.agents[watched.root].turns == 4)
        await watched.until(lambda s: s.agents[watched.root].status == "completed")
        assert stage.resident() == {"/root/a"}
        gate.open.set()
        await watched.quiet()
    assert said(stage.bodies("/root/a")[-1]) == ["x", "one", "again"]


async def test_mail_that_will_wake_it_keeps_it_in_memory(stage: Inside) -> None:
    agents = {"/root": [step(spawn("a")), step(wait("a"))], "/root/a": [step(text="one")]}
    async with stage.play(agents) as watched:
        await watched.quiet()
        agent = stage.swarm.agents[watched.at("/root/a").thread]
        assert agent.evictable
        mail = e.MailQueued(
            agent=agent.thread, mail="m", author="/root", kind="MESSAGE", text="x", seq=watched.state.seq + 1
        )
        agent.on_event(mail)
        assert agent.evictable
        agent.on_event(msgspec.structs.replace(mail, mail="n", trigger=True))
        assert not agent.evictable


async def test_using_an_agent_again_makes_it_the_last_to_go(stage: Inside) -> None:
    steps = [step(spawn("a")), step(wait("a")), step(spawn("b")), step(wait("b"))]
    steps += [step(followup("a")), step(wait("a")), step(spawn("c")), step(wait("c"))]
    agents = {"/root": steps, "/root/*": [step(text="one"), step(text="two")]}
    async with stage.play(agents, limits={"max_resident": 3}) as watched:
        await watched.quiet()
        assert stage.resident() == {"/root", "/root/a", "/root/c"}
