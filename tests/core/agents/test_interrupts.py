"""What an interrupt leaves behind, and who is told that it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.domain import events as e
from core.domain.commands import Interrupt
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import HANGING, Gate, Stage
from tests.core.agents.test_tools import spawn, wait


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Stage:
    return Stage(tmp_path, monkeypatch, [gate])


async def test_the_end_of_a_turn_comes_after_all_that_belongs_to_it(stage: Stage, gate: Gate) -> None:
    """Its calls end, then the marker that the model will read, then the turn; nothing of it comes later, and
    the calls and the marker are on disk before anybody hears of the end."""
    agents = {
        "/root": [step(spawn("a")), step(wait("a"))],
        "/root/a": [step(call("gate", n=1), call("gate", n=2))],
    }
    async with stage.play(agents) as watched:
        await gate.entered.wait()
        await watched.until(lambda s: len(s.calls) == 3)
        child = watched.at("/root/a").thread
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=child))
        await watched.quiet()
        told = [event for event in watched.events if event.agent == child]
        (end,) = [event for event in told if isinstance(event, e.TurnInterrupted)]
        kinds = [type(event) for event in told[told.index(end) - 5 :]]
        assert kinds == [e.ToolResult, e.ToolEnded] * 2 + [e.Notice, e.TurnInterrupted]
        marker = told[told.index(end) - 1]
        assert isinstance(marker, e.Notice)
        assert not marker.hidden
        assert "operator" in marker.text
        # The parent's mail is written with it.
        (mail,) = [event for event in watched.of(e.MailQueued, "/root") if event.author == "/root/a"]
        assert mail.seq == end.seq + 1


async def test_the_stream_of_the_model_is_closed(stage: Stage) -> None:
    async with stage.play({"/root": [HANGING]}) as watched:
        await watched.until(lambda s: bool(stage.log))
        requests = stage._transports[-1].requests
        assert requests.in_flight == 1
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        await watched.quiet()
        assert requests.in_flight == 0


async def test_who_did_it_is_recorded_and_told(stage: Stage) -> None:
    """An operator by the name he gave, an agent by its path."""
    agents = {
        "/root": [
            step(spawn("a"), spawn("b")),
            step(wait("b")),
            step(text="over"),
        ],
        "/root/a": [HANGING],
        "/root/b": [step(call("interrupt_agent", target="/root/a")), step(text="b")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        (cut,) = watched.of(e.TurnInterrupted, "/root/a")
        assert cut.by == "/root/b"
        assert watched.at("/root/a").status_message == "by /root/b"
        (told,) = [m.text for m in watched.of(e.MailQueued, "/root") if m.author == "/root/a"]
        assert "was interrupted by /root/b" in told
    async with stage.play({"/root": [HANGING]}) as watched:
        await watched.until(lambda s: s.agents[watched.root].status == "running")
        await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root, author="alice"))
        state = await watched.quiet()
        assert state.agents[watched.root].status_message == "by alice"
