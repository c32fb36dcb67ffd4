"""An engine in a process of its own, ended by SIGKILL at a moment that nobody chose; another goes on with its
swarm, and what must hold of every swarm holds (section 10 of the reference on multi-agent systems)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from core.config import Settings
from core.domain import events as e
from core.store.readers import Reader
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import WAIT
from tests.core.crash import check, home_settings, journal, killed, stand

NAMES = ("a", "b", "c", "d")
MOST = 210
"""An undisturbed run has a few events more."""


def wait(*targets: str) -> dict[str, Any]:
    return call("wait_agent", targets=list(targets), mode="all", timeout_ms=WAIT)


def task(name: str) -> dict[str, Any]:
    return call("spawn_agent", task_name=name, message=f"do {name}")


PARENT = [
    step(task("x"), call("exec_command", cmd="echo one")),
    step(wait("x")),
    step(call("send_message", target="/root", message="half way")),
    {"text": "it is done"},
]
PLAYED: dict[str, list[dict[str, Any]]] = {
    "/root": [
        step(*(task(name) for name in NAMES)),
        step(wait("a", "b")),
        step(call("followup_task", target="a", message="once more")),
        step(wait(*NAMES)),
        step(call("close_agent", target="d")),
        {"text": "all done"},
    ],
    "/root/[abcd]": PARENT,
    "/root/[abcd]/x": [{"text": "x is done", "latency_ms": 5}],
}


def crowd(folder: Path, home: Path) -> Settings:
    return home_settings(folder, home, scenario(PLAYED), sandbox="off", agents={"max_threads": 3})


@pytest.mark.parametrize("moment", [40, 110, 180])
async def test_an_engine_killed_at_any_moment_is_gone_on_from(tmp_path: Path, moment: int) -> None:
    await kill_and_go_on(tmp_path, moment)


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(50))
async def test_an_engine_killed_at_any_moment_is_gone_on_from_long(tmp_path: Path, seed: int) -> None:
    await kill_and_go_on(tmp_path, random.Random(seed).randrange(4, MOST))


async def kill_and_go_on(folder: Path, moment: int) -> None:
    settings = crowd(folder, folder / "home")
    told = await asyncio.to_thread(
        killed,
        settings,
        "go",
        lambda events: len(events) >= moment,
        sandbox="off",
        agents={"max_threads": 3},
    )
    swarm = told[0].swarm
    async with Reader.open(settings.home) as reader:
        # Before anybody has repaired anything: no reader takes it for alive.
        assert not any(agent.live for agent in (await reader.load_state(swarm)).agents.values())
    async with stand(settings) as two:
        before = await journal(two.engine, swarm)
        assert before[: len(told)] == told, "what was told is not on disk"
        assert (await two.resume(swarm)).ok
        await two.quiet(swarm)
        after = await journal(two.engine, swarm)
        assert after[: len(before)] == before
        await check(two.engine, swarm)
        state = two.engine.state(swarm)
        assert two.at(swarm, "/root").status == "completed"
        assert {a.status for a in state.agents.values()} <= {"completed", "interrupted", "shutdown"}
        slots = two.engine._hosted[swarm].swarm.slots
        assert (slots.used, slots.waiting) == (0, 0)
    each_end_is_told_once(after)
    nobody_is_lost(before, after)
    assert most_at_once(after) <= 2


def each_end_is_told_once(events: list[e.AnyEvent]) -> None:
    """The parent's mail is in the transaction that ends the child's turn: the next event, or it never was."""
    born = {event.agent: event for event in events if isinstance(event, e.AgentSpawned)}
    ends = 0
    for place, event in enumerate(events):
        child = born.get(event.agent)
        if not isinstance(event, e.TurnCompleted) or child is None or child.parent is None:
            continue
        mail = events[place + 1]
        assert isinstance(mail, e.MailQueued), "an answer that nobody was told"
        assert (mail.agent, mail.author, mail.text) == (child.parent, child.path, event.message)
        ends += 1
    queued = [m for m in events if isinstance(m, e.MailQueued) and m.kind == "FINAL_ANSWER"]
    assert sum("interrupted" not in mail.text for mail in queued) == ends
    read = {m.mail for m in events if isinstance(m, e.UserMessage | e.AgentMessage)}
    roots = {thread for thread, agent in born.items() if agent.parent is None}
    assert {mail.mail for mail in queued if mail.agent in roots and mail.trigger} <= read


def nobody_is_lost(before: list[e.AnyEvent], after: list[e.AnyEvent]) -> None:
    """Each turn that had begun has one end, and the dead engine's are not its own words."""
    begun = [event.turn for event in before if isinstance(event, e.TurnStarted)]
    ended = {t.turn for t in before if isinstance(t, e.TurnCompleted | e.TurnInterrupted)}
    cut = {turn for turn in begun if turn not in ended}
    repaired = [t for t in after[len(before) :] if isinstance(t, e.TurnInterrupted) and t.turn in cut]
    assert {t.turn for t in repaired} == cut
    assert all((t.by, t.reason) == ("engine", "the process ended") for t in repaired)


def most_at_once(events: list[e.AnyEvent]) -> int:
    """Turns of sub-agents that ran at the same moment; one that is blocked or waits for a slot does not."""
    root = next(event.agent for event in events if isinstance(event, e.AgentSpawned))
    running: set[str | None] = set()
    most = 0
    for event in events:
        if event.agent == root:
            continue
        if isinstance(event, e.TurnStarted):
            running.add(event.agent)
        elif isinstance(event, e.TurnCompleted | e.TurnInterrupted) or (
            isinstance(event, e.AgentWaits) and event.wait is not None
        ):
            running.discard(event.agent)
        elif isinstance(event, e.AssistantMessage | e.ToolCalled):
            running.add(event.agent)
            most = max(most, len(running))
    return most
