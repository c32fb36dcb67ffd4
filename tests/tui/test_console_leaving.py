"""Leaving a console: the engine goes on, or is stopped on request; what the terminal says afterwards."""

from __future__ import annotations

import pytest
from textual import events

from core.channel.client import ClientError, EngineBusy, EngineGone
from core.domain import events as e
from core.domain.commands import Interrupt, Reply, SendInput, StopEngine
from tests.tui.fake_client import FakeClient
from tests.tui.stage import StageClock, audit_client, ready, screen_text, stage
from tests.tui.story import SWARM, Story, audit, thread
from tui.app import CLOSE_SECONDS, WatchroomApp
from tui.farewell import Fate, farewell, short_id
from tui.screens.confirm import ConfirmScope

SIZE = (160, 45)
COME_BACK = f"watchroom attach {short_id(SWARM)}"
RESUME = f"watchroom resume {short_id(SWARM)}"


def background(story: Story | None = None) -> FakeClient:
    client = audit_client(story)
    client.outlives = True
    client.engine = FakeClient(kind="background").engine
    return client


def line_of(app: WatchroomApp) -> str:
    return app.return_value or ""


async def test_ctrl_q_asks_once_and_a_second_one_leaves_the_engine_alone() -> None:
    client = background()
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
        text = screen_text(app)
        assert "goes on without this console" in text
        assert "stop the engine and everything it runs" in text
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert client.closed
    assert not client.sent
    assert app.return_code == 0
    assert "the engine goes on" in line_of(app)
    assert line_of(app).endswith(COME_BACK)
    assert "running" in line_of(app)


async def test_esc_stays_and_other_keys_do_nothing_to_the_question() -> None:
    client = background()
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q", "x", "enter", "q")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScope)
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen is app.swarm_screen
        assert app.client is client
        assert not client.sent


async def test_keys_typed_ahead_answer_a_question_once() -> None:
    """They are in the question's queue already when the first of them closes it."""
    client = background()
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
        question = app.screen
        assert isinstance(question, ConfirmScope)
        for _ in range(3):
            question.post_message(events.Key("s", "s"))
        await pilot.pause()
        question.action_dismiss_none()
        assert app.screen is app.swarm_screen
        assert [type(sent) for sent in client.sent] == [StopEngine]


async def test_leaving_asks_its_own_question_when_another_one_is_open() -> None:
    """A ctrl+q on "Close iris?" must not be taken for the answer to a question that was never shown."""
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("x")
        await pilot.pause()
        assert "Close " in screen_text(app)
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert app.is_running
        assert "will be interrupted" in screen_text(app)
        assert "Close " not in screen_text(app)


async def test_with_nothing_live_it_leaves_at_once_and_says_how_to_come_back() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "done", 0)
    story.turn(root)
    story.done(root, "finished", 3)
    client = FakeClient(story.events, outlives=True, kind="background")
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert client.closed
    assert line_of(app) == (
        f"swarm {short_id(SWARM)}: 1 completed; the engine goes on\ncome back with: {COME_BACK}"
    )


async def test_s_stops_the_engine_waits_for_it_and_says_what_was_interrupted() -> None:
    story = audit()
    client = background(story)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q", "s")
        await pilot.pause()
        assert [c for c in client.sent if isinstance(c, StopEngine)] == [StopEngine()]
        assert "stopping the engine" in screen_text(app)
        assert app.is_running
        client.push(story.add(e.TurnInterrupted(agent=thread(1), turn="t", by="engine", reason="stopped")))
        client.feed(None)
        await pilot.pause()
        await pilot.pause()
    assert app.return_code == 0
    assert app.failure is None
    assert "interrupted" in line_of(app)
    assert "running" not in line_of(app)
    assert line_of(app).endswith(f"the engine was stopped\ngo on with: {RESUME}")


async def test_an_engine_that_does_not_stop_in_time_is_left_with_a_sentence() -> None:
    clock = StageClock()
    client = background()
    app = stage(client, clock=clock)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q", "s")
        await pilot.pause()
        await clock.advance(CLOSE_SECONDS + 1)
        await pilot.pause()
        await pilot.pause()
    assert app.return_code == 1
    assert "has not stopped within 15 seconds" in (app.failure or "")
    assert "the engine is still stopping" in line_of(app)


@pytest.mark.parametrize(
    ("error", "said"),
    [(ClientError("the line is noisy"), "the line is noisy"), (None, "it belongs to watchroom exec")],
)
async def test_a_stop_that_is_refused_keeps_the_console(error: ClientError | None, said: str) -> None:
    client = background()
    client.raises = error
    client.replies[StopEngine] = Reply(ok=False, code="refused", error="it belongs to watchroom exec")
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q", "s")
        await ready(pilot)
        assert said in screen_text(app)
        client.feed(None)  # a later end is a loss again, not the end of the stop
        await ready(pilot)
        assert app.lost


async def test_only_the_homes_own_engine_is_offered_to_be_stopped() -> None:
    client = background()
    client.engine = FakeClient(kind="exec").engine
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert "goes on without this console" in screen_text(app)
        assert "stop the engine" not in screen_text(app)
        await pilot.press("s")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScope)
        assert not client.sent


async def test_the_command_to_come_back_names_the_other_machine() -> None:
    client = background()
    app = stage(client, attach="watchroom attach --ssh build")
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q", "ctrl+q")
        await pilot.pause()
    assert line_of(app).endswith(f"watchroom attach --ssh build {short_id(SWARM)}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EngineBusy("no answer within 30 s; it may still happen"), "busy: no answer within 30 s"),
        (EngineGone("the engine has ended"), "the engine has ended"),
    ],
)
async def test_a_message_that_may_not_have_arrived_is_a_draft_again(error: ClientError, said: str) -> None:
    client = background()
    client.raises = error
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("m", *"look", "space", *"there", "enter")
        await pilot.press(*"and here")
        await ready(pilot)
        assert [c.text for c in client.sent if isinstance(c, SendInput)] == ["look there"]
        assert said in screen_text(app)
        text = app.swarm_screen.composer.text
        assert "look there" in text
        assert "and here".replace(" ", "") in text.replace(" ", "")
        assert app.is_running


async def test_a_busy_engine_is_said_for_other_commands_too() -> None:
    client = background()
    client.raises = EngineBusy("no answer within 30 s")
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("j", "i")
        await pilot.pause()
        if isinstance(app.screen, ConfirmScope):
            await pilot.press("i")
        await ready(pilot)
        assert any(isinstance(c, Interrupt) for c in client.sent)
        assert "busy: no answer within 30 s" in screen_text(app)


@pytest.mark.parametrize(
    ("fate", "running", "words"),
    [
        ("goes on", True, "the engine goes on"),
        ("stopped", False, "the engine was stopped"),
        ("stopping", True, "still stopping"),
        ("ended", False, "the engine has ended"),
        ("lost", True, "the connection is lost\ncome back with: watchroom attach"),
        ("closed", False, "watchroom resume"),
    ],
)
def test_the_last_lines(fate: Fate, running: bool, words: str) -> None:
    state = audit_client().snapshot().state
    line = farewell(state, fate)
    assert ("running" in line) == running
    assert words in line
    assert line.count("\n") == 1
    assert short_id(SWARM) in line.rsplit(" ", 1)[-1]


def test_a_short_id_is_a_beginning_that_holds_random_bits() -> None:
    assert SWARM.startswith(short_id(SWARM))
    assert len(short_id(SWARM)) == 18
    assert short_id("swarm-1") == "swarm-1"
