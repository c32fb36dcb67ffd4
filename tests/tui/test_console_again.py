"""A console whose engine ends: what it shows, what it says, and how R brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC

import pytest

from core.channel.client import Client, ClientError, EngineGone
from core.domain import events as e
from core.domain.commands import GetTranscript, Lagged, ListSwarms, Reply, ResumeSwarm, SendInput, Setup
from tests.tui.fake_client import FakeClient, connecting
from tests.tui.stage import StageClock, ready, screen_text
from tests.tui.story import SWARM, Story, audit, thread
from tui.again import Again, HeldClock, over_ssh
from tui.app import WatchroomApp

ROOT, ATLAS, IRIS = thread(1), thread(2), thread(4)
SIZE = (160, 45)
SETUP = Setup(settings={"model": "m"}, api_key="k")


class Engines:
    """Engines one after the other: `open` gives the next one, or raises what stands in its place."""

    def __init__(self, *later: FakeClient | Exception) -> None:
        self.later = list(later)
        self.opened: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def open(self, swarm: str) -> AsyncIterator[Client]:
        self.opened.append(swarm)
        await self.gate.wait()
        found = self.later.pop(0)
        if isinstance(found, Exception):
            raise found
        yield found  # type: ignore[misc]


def living(story: Story, *, runs: bool = False) -> FakeClient:
    """A background engine over the same store; `runs`: it owns the swarm already."""
    client = FakeClient(story.events, outlives=True, kind="background")
    listed = [{"swarm": SWARM}] if runs else []
    client.replies[ListSwarms] = Reply(value={"swarms": listed})
    return client


def console(
    first: FakeClient, engines: Engines, *, clock: StageClock | None = None, again: Again | None = None
) -> WatchroomApp:
    return WatchroomApp(
        connecting(first),  # type: ignore[arg-type]
        SWARM,
        again=again or Again(open=engines.open, setup=lambda server: SETUP),
        clock=clock or StageClock(),
        tz=UTC,
        refresh_seconds=0,
    )


async def test_the_end_of_the_engine_is_said_at_once_and_everything_stays() -> None:
    client = living(audit())
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        before = screen_text(app)
        assert "start again" not in before
        client.feed(None)
        await ready(pilot)
        text = screen_text(app)
        assert "the engine has ended" in text.splitlines()[0]
        assert "R starts it again" in text
        assert text.splitlines()[4:40] == before.splitlines()[4:40]
        await pilot.press("j")
        assert app.swarm_screen.selected == ATLAS
        await pilot.press("2", "k", "g", "G", "1", "J", "escape", "question_mark")
        await pilot.pause()
        assert "Start the engine again" in screen_text(app)
        await pilot.press("escape", "ctrl+q")
        await pilot.pause()
    assert app.return_code == 1
    assert app.failure == "the engine has ended"
    assert "go on with: watchroom resume" in (app.return_value or "")


@pytest.mark.parametrize("size", [(160, 45), (100, 30), (80, 24)])
async def test_the_reason_and_the_key_are_readable_at_every_size(size: tuple[int, int]) -> None:
    client = living(audit())
    app = console(client, Engines())
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        client.fail(EngineGone("killed, pid 42"))
        await ready(pilot)
        assert "engine ended: killed" in screen_text(app).splitlines()[0]
        app.swarm_screen.keys.hush()
        await ready(pilot)
        assert "R start again" in screen_text(app)


async def test_ages_stand_still_without_an_engine_and_move_again_with_one() -> None:
    clock, story = StageClock(), audit()
    client = living(story)
    app = console(client, Engines(living(story, runs=True)), clock=clock)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("j")
        await ready(pilot)
        assert "34s" in screen_text(app)
        client.feed(None)
        await ready(pilot)
        await clock.advance(500)
        app._tick()
        app.swarm_screen.restyle()
        await ready(pilot)
        text = screen_text(app)
        assert "34s" in text
        assert "silent" not in text
        await pilot.press("R")
        await ready(pilot)
        app.refresh_now()
        await ready(pilot)
        assert "34s" not in screen_text(app)


async def test_R_resumes_a_swarm_that_nobody_owns_with_the_setup_of_this_console() -> None:
    story = audit()
    client, second = living(story), living(story)
    engines = Engines(second)
    app = console(client, engines)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.fail(EngineGone("gone"))
        await ready(pilot)
        story_more = story.add(e.AssistantMessage(agent=ROOT, text="said by the second engine"))
        second.events = list(story.events[:-1])
        await pilot.press("R")
        await ready(pilot)
        assert engines.opened == [SWARM]
        assert second.sent == [ListSwarms(), ResumeSwarm(swarm=SWARM, setup=SETUP)]
        assert not app.lost
        assert app.failure is None
        second.push(story_more)
        await ready(pilot)
        text = screen_text(app)
        assert "said by the second engine" in text
        assert "engine ended" not in text
        assert "start again" not in text
        await pilot.press("ctrl+q", "ctrl+q")
        await pilot.pause()
    assert app.return_code == 0
    assert "the engine goes on" in (app.return_value or "")


async def test_R_only_attaches_when_another_console_was_quicker() -> None:
    story = audit()
    client, second = living(story), living(story, runs=True)
    app = console(client, Engines(second))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.feed(None)
        await ready(pilot)
        await pilot.press("R")
        await ready(pilot)
        assert second.sent == [ListSwarms()]
        assert not app.lost


async def test_failures_keep_the_offer_until_it_works() -> None:
    story = audit()
    owned = living(story)
    owned.replies[ResumeSwarm] = Reply(ok=False, code="owned", error="it belongs to watchroom exec (77)")
    client, last = living(story), living(story)
    engines = Engines(ClientError("the engine is not ready"), owned, OSError("no room"), last)
    app = console(client, engines)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.feed(None)
        await ready(pilot)
        for said in ("the engine is not ready", "it belongs to watchroom exec (77)", "no room"):
            await pilot.press("R")
            await ready(pilot)
            assert said in screen_text(app).splitlines()[0]
            assert app.lost
        await pilot.press("R")
        await ready(pilot)
        assert not app.lost
        last.feed(None)
        await ready(pilot)
        assert app.lost


async def test_R_is_pressed_often_while_the_engine_starts() -> None:
    story = audit()
    client = living(story)
    engines = Engines(living(story, runs=True))
    engines.gate.clear()
    app = console(client, engines)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.feed(None)
        await ready(pilot)
        await pilot.press("R", "R", "R")
        await pilot.pause()
        assert "connecting" in screen_text(app).splitlines()[0]
        engines.gate.set()
        await ready(pilot)
        assert engines.opened == [SWARM]
        assert not app.lost


async def test_R_does_nothing_while_there_is_an_engine() -> None:
    client = living(audit())
    engines = Engines()
    app = console(client, engines)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("R")
        await ready(pilot)
        assert engines.opened == []
        assert not client.sent


async def test_what_is_typed_without_an_engine_stays_a_draft_and_is_sent_later() -> None:
    story = audit()
    client, second = living(story), living(story, runs=True)
    app = console(client, Engines(second))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("j", "m", *"half")
        client.feed(None)
        await ready(pilot)
        await pilot.press(*"way", "enter")
        await ready(pilot)
        assert "the engine has ended; R starts it again" in screen_text(app)
        assert app.swarm_screen.composer.text == "halfway"
        await pilot.press("escape", "R")
        await ready(pilot)
        assert app.swarm_screen.composer.text == "halfway"
        assert app.swarm_screen.selected == ATLAS
        await pilot.press("m", "enter")
        await ready(pilot)
        assert [c for c in second.sent if isinstance(c, SendInput)] == [
            SendInput(swarm=SWARM, thread=ATLAS, text="halfway")
        ]


async def test_keys_that_command_say_why_they_cannot() -> None:
    client = living(audit())
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.feed(None)
        await ready(pilot)
        for keys in (("!", "a"), ("x", "x")):
            app.swarm_screen.keys.hush()
            await app.clock.sleep(0)
            app.swarm_screen.needs.painted_at = -10.0
            await pilot.press(*("exclamation_mark" if key == "!" else key for key in keys))
            await ready(pilot)
            assert "the engine has ended; R starts it again" in screen_text(app), keys


async def test_selection_folds_and_place_survive_the_new_snapshot() -> None:
    story = audit()
    client, second = living(story), living(story, runs=True)
    app = console(client, Engines(second))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        screen = app.swarm_screen
        await pilot.press("j", "h")  # atlas, folded
        rows = screen.agents.row_count()
        await pilot.press("k", "2", "k", "k", "l", "l")  # a call of the root, unfolded whole
        await ready(pilot)
        key, top = screen.transcript.cursor_key, screen.transcript.scroll_offset.y
        before = screen_text(app)
        client.feed(None)
        await ready(pilot)
        await pilot.press("R")
        await pilot.pause()
        await ready(pilot)
        app.swarm_screen.keys.hush()
        await ready(pilot)
        assert (screen.transcript.cursor_key, screen.transcript.scroll_offset.y) == (key, top)
        assert screen.agents.row_count() == rows
        assert screen.selected == ROOT
        assert screen.pane == "thread"
        assert screen_text(app).splitlines()[4:40] == before.splitlines()[4:40]


async def test_an_agent_that_is_gone_from_the_new_snapshot_is_not_selected() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "x", 0)
    short = list(story.events)
    story.spawn("ash", root, "y", 1)
    client, second = living(story), living(story, runs=True)
    second.events = short
    app = console(client, Engines(second))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("escape", "j")
        assert app.swarm_screen.selected == ATLAS
        client.feed(None)
        await ready(pilot)
        await pilot.press("R")
        await ready(pilot)
        assert app.swarm_screen.selected == root
        assert app.is_running


async def test_a_lag_keeps_the_place_and_every_page_that_was_read() -> None:
    """Nothing blinks: the loaded rows stay, older pages too, and what was missed is added behind them."""
    story = Story()
    story.start()
    root = story.spawn("root", None, "long", 0)
    story.turn(root)
    for number in range(300):
        story.add(e.AssistantMessage(agent=root, text=f"message {number:03}"), number)
    client = FakeClient(story.events, page_limit=100, outlives=True)
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        transcript = app.swarm_screen.transcript
        await pilot.press("2", "g")
        await ready(pilot)
        assert transcript.loaded() == 200
        await pilot.press(*"jjj")
        await ready(pilot)
        key, seen = transcript.cursor_key, screen_text(app).splitlines()[4:40]
        client.events.append(story.add(e.AssistantMessage(agent=root, text="missed"), 301))
        client.feed(Lagged())
        client.feed(client.snapshot())
        await ready(pilot)
        assert transcript.loaded() == 201
        assert transcript.cursor_key == key
        assert screen_text(app).splitlines()[5:40] == seen[1:]
        await pilot.press("G")
        await ready(pilot)
        assert "missed" in screen_text(app)


async def test_a_lag_that_lost_more_than_a_page_begins_that_transcript_anew() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "long", 0)
    story.turn(root)
    for number in range(50):
        story.add(e.AssistantMessage(agent=root, text=f"message {number:03}"), number)
    client = FakeClient(story.events, page_limit=100, outlives=True)
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert app.swarm_screen.transcript.loaded() == 50
        for number in range(50, 250):
            client.events.append(
                story.add(e.AssistantMessage(agent=root, text=f"message {number:03}"), number)
            )
        client.feed(Lagged())
        client.feed(client.snapshot())
        await ready(pilot)
        assert app.swarm_screen.transcript.loaded() == 100
        assert "message 249" in screen_text(app)
        await pilot.press("2", "g")
        await ready(pilot)
        texts = [row.text for row in app.view.transcripts[root].rows]
        assert texts == [f"message {number:03}" for number in range(50, 250)]
        asked = [r for r in client.pages if isinstance(r, GetTranscript)]
        assert len(asked) == 3


async def test_a_lost_connection_to_another_machine_has_its_own_words_and_resumes_nothing() -> None:
    story = audit()
    client, second = living(story), living(story)
    engines = Engines(ClientError("no connection to build: Permission denied"), second)

    def connect() -> AbstractAsyncContextManager[Client]:
        return engines.open("over ssh")

    app = console(client, engines, again=over_ssh("build", connect))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.fail(EngineGone("the connection to build has ended"))
        await ready(pilot)
        assert "connection lost" in screen_text(app).splitlines()[0]
        assert "the connection to build is lost; R connects again" in screen_text(app)
        await pilot.press("R")
        await ready(pilot)
        assert "Permission denied" in screen_text(app).splitlines()[0]
        assert "Permission denied" in screen_text(app).splitlines()[-1]  # whole, where the head has no room
        await pilot.press("R")
        await ready(pilot)
        assert not app.lost
        assert second.sent == []


async def test_a_question_about_agents_goes_with_their_engine() -> None:
    client = living(audit())
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert "The engine goes on without this console" in screen_text(app)
        client.feed(None)
        await ready(pilot)
        assert app.screen is app.swarm_screen
        assert "the engine has ended" in screen_text(app)


async def test_the_end_of_a_job_s_own_engine_after_its_job_is_no_failure() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "", 0)
    story.add(
        e.JobCreated(
            agent=root,
            job="j",
            name="lines",
            instruction="",
            input_path="a.csv",
            output_path=None,
            total=1,
            concurrency=1,
        )
    )
    story.add(e.JobEnded(agent=root, job="j", status="completed"))
    client = FakeClient(story.events, outlives=True, kind="job")
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert app.focused is app.swarm_screen.agents  # nobody waits for a task
        client.feed(None)
        await ready(pilot)
        assert "the engine has ended" in screen_text(app)
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert app.return_code == 0


async def test_leaving_while_it_connects_does_not_wait_for_ever() -> None:
    client = living(audit())
    engines = Engines(OSError("never"))
    engines.gate.clear()
    app = console(client, engines)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.feed(None)
        await ready(pilot)
        await pilot.press("R")
        await pilot.pause()
        assert engines.opened == [SWARM]
        await pilot.press("ctrl+q")
        await pilot.pause()
        await pilot.pause()
        assert not app.is_running
    assert app.return_code == 1


async def test_leaving_while_the_first_engine_starts_does_not_wait_for_it() -> None:
    engines = Engines(OSError("never"))
    engines.gate.clear()
    app = WatchroomApp(lambda: engines.open(""), SWARM, clock=StageClock(), refresh_seconds=0)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        assert engines.opened == [""]
        await pilot.press("ctrl+q")
        await pilot.pause()
        await pilot.pause()
        assert not app.is_running
    assert app.return_code == 0
    assert app.return_value == ""


async def test_a_console_that_resumes_sends_that_and_follows() -> None:
    client = living(audit())
    app = WatchroomApp(
        connecting(client),  # type: ignore[arg-type]
        ResumeSwarm(swarm=SWARM, setup=SETUP),
        clock=StageClock(),
        tz=UTC,
        refresh_seconds=0,
    )
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert client.sent == [ResumeSwarm(swarm=SWARM, setup=SETUP)]
        assert "AGENTS  11" in screen_text(app)


async def test_decisions_of_other_clients_are_shown_with_their_names() -> None:
    story = audit()
    client = living(story)
    app = console(client, Engines())
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert "needs you" in screen_text(app)
        (approval,) = app.view.state.approvals
        client.push(story.add(e.UserMessage(agent=ROOT, text="from a script", author="nightly")))
        client.push(story.add(e.UserMessage(agent=ROOT, text="from here", author="operator")))
        client.push(
            story.add(e.ApprovalDecided(agent=IRIS, approval=approval, decision="approved", by="nightly")),
            story.add(e.TurnInterrupted(agent=ROOT, turn="t", by="nightly")),
        )
        await ready(pilot)
        text = screen_text(app)
        assert "interrupted by nightly" in text
        assert "nightly" in next(line for line in text.splitlines() if "from a script" in line)
        assert "you" in next(line for line in text.splitlines() if "from here" in line)
        assert "a approve" not in text


def test_a_held_clock_stands_still_and_goes_on() -> None:
    inner = StageClock()
    held = HeldClock(inner)
    start = held.now()
    held.hold()

    def later(seconds: float) -> Callable[[], object]:
        return lambda: inner.advance(seconds)

    asyncio.run(later(5)())  # type: ignore[arg-type]
    assert held.now() == start
    held.hold()  # a second loss does not move it
    assert held.now() == start
    held.go_on()
    assert (held.now() - start).total_seconds() == 5
    assert held.monotonic() == inner.monotonic()
