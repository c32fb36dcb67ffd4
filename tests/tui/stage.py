"""The console on a stage: FakeClient, frozen clock, and a way to wait until it has caught up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from textual.pilot import Pilot

from core.domain.commands import Streaming
from tests.clock import FakeClock
from tests.tui.fake_client import FakeClient, connecting
from tests.tui.story import NOW, SWARM, Story, audit, job_rows, thread
from tui.app import WatchroomApp


class StageClock(FakeClock):
    """A FakeClock that starts when the story ends."""

    def __init__(self, now: datetime = NOW) -> None:
        super().__init__()
        self._start = now


def audit_client(story: Story | None = None) -> FakeClient:
    story = story or audit()
    writing = "The audit is nearly done. Two modules"
    streaming = [Streaming(thread=thread(1), response="live", text=writing)]
    return FakeClient(story.events, rows=job_rows(story), streaming=streaming)


def stage(client: FakeClient | None = None, **fields: Any) -> WatchroomApp:
    """The app on a finished story; `refresh_seconds` 0 makes each feed item reach the screen at once."""
    fields.setdefault("clock", StageClock())
    fields.setdefault("start", SWARM)
    client = client or audit_client()
    return WatchroomApp(connecting(client), tz=UTC, refresh_seconds=0, **fields)


async def ready(pilot: Pilot[Any]) -> None:
    """Wait until nothing moves: no page on its way, no message waiting, the last frame painted."""
    app = pilot.app
    assert isinstance(app, WatchroomApp)
    await pilot.pause()
    for _ in range(200):
        if app.view.state.seq or app.failure or app._disconnected.is_set():
            break
        await asyncio.sleep(0)
        await pilot.pause()
    await pilot.pause()
    while app._asking:
        await pilot.pause()
    await pilot.pause()


def screen_text(app: WatchroomApp) -> str:
    """What is on the screen, as lines."""
    screen = app.screen
    width, height = app.size
    strips = screen._compositor.render_strips(app.size)
    return "\n".join(strip.text.ljust(width).rstrip() for strip in strips[:height])
