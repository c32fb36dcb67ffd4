"""The console and its engine: starting, losing it, lagging, closing; transcripts as they come."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.channel.client import ClientError
from core.domain import events as e
from core.domain.commands import GetTranscript, Lagged, Reply, StartSwarm
from tests.tui.fake_client import FakeClient
from tests.tui.stage import StageClock, audit_client, ready, screen_text, stage
from tests.tui.story import SWARM, Story, audit, thread
from tests.tui.terminal import ROOT as CHECKOUT
from tui.app import WatchroomApp

ROOT, ATLAS, IRIS = thread(1), thread(2), thread(4)
SIZE = (160, 45)


async def test_the_first_frame_comes_before_the_engine() -> None:
    opened = asyncio.Event()

    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        await opened.wait()
        yield audit_client()

    app = WatchroomApp(connect, SWARM, clock=StageClock(), refresh_seconds=0)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        assert "starting" in screen_text(app)
        opened.set()
        await ready(pilot)
        assert "AGENTS  11" in screen_text(app)


def test_importing_the_console_imports_no_engine() -> None:
    code = "import sys, tui.app; print([m for m in {mods} if m in sys.modules])"
    mods = [
        "httpx",
        "aiohttp",
        "polars",
        "aiosqlite",
        "sqlite3",
        "pydantic",
        "core.engine.engine",
        "core.store.store",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code.format(mods=mods)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=True,
    )
    assert done.stdout.strip() == "[]"


async def test_start_swarm_is_sent_and_its_swarm_followed() -> None:
    client = audit_client()
    app = stage(client, start=StartSwarm(task="audit", source="demo"))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert client.sent == [StartSwarm(task="audit", source="demo")]
        assert app.swarm_screen.selected == ROOT


@pytest.mark.parametrize("error", [ClientError("the store is newer than this program"), OSError("disk full")])
async def test_an_engine_that_cannot_be_opened_ends_the_console_with_its_sentence(error: Exception) -> None:
    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        raise error
        yield

    app = WatchroomApp(connect, SWARM, clock=StageClock(), refresh_seconds=0)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        await pilot.pause()
    assert app.failure == str(error)
    assert app.return_code == 1


async def test_a_start_that_is_refused_ends_the_console_with_its_sentence() -> None:
    client = FakeClient()
    client.replies[StartSwarm] = Reply(ok=False, code="usage", error="no model is set")
    app = stage(client, start=StartSwarm(task="x"))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        await pilot.pause()
    assert app.failure == "no model is set"
    assert client.closed


async def test_a_page_that_fails_is_a_toast() -> None:
    client = audit_client()
    client.page_error = "no such agent"
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        await pilot.pause()
        assert "no such agent" in screen_text(app)


async def test_a_lag_starts_again_from_the_snapshot() -> None:
    story = audit()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.events.append(story.add(e.AssistantMessage(agent=ROOT, text="said while we lagged")))
        client.feed(Lagged())
        client.feed(client.snapshot())
        await ready(pilot)
        assert "said while we lagged" in screen_text(app)


async def test_live_events_reach_tree_transcript_and_head() -> None:
    story = audit()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.push(story.add(e.AssistantMessage(agent=ROOT, text="a new answer")))
        client.push(story.add(e.TurnFailed(agent=ATLAS, turn="t", error="server said 500")))
        await ready(pilot)
        text = screen_text(app)
        assert "a new answer" in text
        assert "2 failed" in text
        assert "server said" in text


async def test_text_being_written_grows_and_becomes_a_row() -> None:
    story = audit()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.stream(ROOT, " are left.", offset=37)
        await ready(pilot)
        assert "Two modules are left." in screen_text(app)
        client.stream(ROOT, "", offset=0)
        client.push(story.add(e.AssistantMessage(agent=ROOT, text="Two modules are left, whole.")))
        await ready(pilot)
        assert screen_text(app).count("Two modules are left") == 1


async def test_a_paused_transcript_counts_what_comes_and_G_follows_again() -> None:
    story = audit()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("enter", "k")
        client.push(*(story.add(e.AssistantMessage(agent=ROOT, text=f"later {i}")) for i in range(38)))
        await ready(pilot)
        assert "PAUSED ↑ 38 new below — G to follow" in screen_text(app)
        await pilot.press("G")
        await ready(pilot)
        assert "FOLLOW" in screen_text(app)
        assert "later 37" in screen_text(app)


async def test_f_pauses_and_follows_from_any_pane() -> None:
    app = stage()
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("f")
        assert "PAUSED" in screen_text(app)
        await pilot.press("f")
        assert "FOLLOW" in screen_text(app)


async def test_older_pages_come_when_the_top_is_reached_and_nothing_jumps() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "long", 0)
    story.turn(root)
    for number in range(300):
        story.add(e.AssistantMessage(agent=root, text=f"message {number:03}"), number)
    client = FakeClient(story.events, page_limit=100)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        transcript = app.swarm_screen.transcript
        assert transcript.loaded() == 100
        await pilot.press("enter", "g")
        await ready(pilot)
        assert transcript.loaded() == 200
        key = transcript.cursor_key
        assert "message 200" in screen_text(app)
        for _ in range(3):
            await pilot.press("g")
            await ready(pilot)
        assert transcript.loaded() == 300
        assert "message 000" in screen_text(app)
        assert transcript.cursor_key != key
        asked = [r.before for r in client.pages if isinstance(r, GetTranscript)]
        assert len(asked) == len(set(asked)) == 3


async def test_an_older_page_of_a_transcript_that_was_let_go_meanwhile_does_not_pass_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tui.app.KEEP_TRANSCRIPTS", 1)
    story = Story()
    story.start()
    root = story.spawn("root", None, "long", 0)
    other = story.spawn("other", root, "x", 0)
    for number in range(300):
        story.add(e.AssistantMessage(agent=root, text=f"message {number:03}"), number)
    client = FakeClient(story.events, page_limit=100)
    app = stage(client)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        client.gate.clear()
        app.want_older(root)
        app.swarm_screen.select(other)
        await pilot.pause()
        assert root not in app.view.transcripts
        client.gate.set()
        await ready(pilot)
        app.swarm_screen.select(root)
        await ready(pilot)
        assert [row.text for row in app.view.transcripts[root].rows] == [
            f"message {number:03}" for number in range(200, 300)
        ]


async def test_calls_unfold_in_two_steps_and_fold_again() -> None:
    app = stage()
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        transcript = app.swarm_screen.transcript
        await pilot.press("enter", "k", "k")
        row = transcript._row_here()
        assert row is not None
        assert row.call is not None
        assert row.call.brief == "pytest -q tests/core"
        assert "… 59 more lines" in screen_text(app)
        await pilot.press("l")
        assert "… 52 more lines" in screen_text(app)
        await pilot.press("l")
        assert "52 more lines" not in screen_text(app)
        seen = screen_text(app)
        for _ in range(4):
            await pilot.press("ctrl+d")
            seen += screen_text(app)
        assert "test_60.py" in seen
        transcript.select(row.seq)
        await pilot.press("h", "h")
        assert "… 59 more lines" in screen_text(app)
        await pilot.press("enter")
        assert "… 52 more lines" in screen_text(app)


async def test_seconds_move_only_while_something_runs() -> None:
    clock = StageClock()
    app = stage(clock=clock)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await pilot.press("j")
        await ready(pilot)
        assert "34s" in screen_text(app)
        await clock.advance(5)
        app._tick()
        await ready(pilot)
        assert "39s" in screen_text(app)


async def test_sandbox_off_is_said_in_the_head() -> None:
    story = Story()
    story.start(sandboxed=False)
    story.spawn("root", None, "x", 0)
    app = stage(FakeClient(story.events))
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        assert "no sandbox" in screen_text(app)


async def test_a_silent_agent_is_said_to_be_silent() -> None:
    clock = StageClock()
    app = stage(clock=clock)
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        await clock.advance(200)
        app._tick()
        await ready(pilot)
        assert "silent" in screen_text(app)


async def test_sizes_change_while_it_runs() -> None:
    app = stage()
    async with app.run_test(size=SIZE) as pilot:
        await ready(pilot)
        for size, words in (
            ((59, 14), "needs 60x15"),
            ((80, 24), "[1 agents]"),
            (SIZE, "one cell = one agent"),
        ):
            await pilot.resize_terminal(*size)
            await ready(pilot)
            assert words in screen_text(app), size


async def test_the_ascii_set_writes_only_ascii() -> None:
    app = stage(ascii_glyphs=True)
    async with app.run_test(size=(120, 35)) as pilot:
        for keys in (("j",), ("J",), ("question_mark",), ("escape", "x")):
            await ready(pilot)
            await pilot.press(*keys)
            await ready(pilot)
            assert screen_text(app).isascii()
