"""Run by the pty tests: the console on a story of hostile text, or on one where nothing moves."""

from __future__ import annotations

import sys
from datetime import UTC

from core.clock import SystemClock
from core.domain.commands import Close, Decide, Interrupt, Reply, Streaming
from tests.tui.fake_client import FakeClient, connecting
from tests.tui.payloads import ALL
from tests.tui.stage import StageClock
from tests.tui.story import SWARM, Story, hostile, hostile_rows, thread
from tui.app import WatchroomApp


def main(what: str) -> None:
    if what == "hostile":
        streaming = [Streaming(thread=thread(1), response="r", text=f"stream {ALL} end")]
        client = FakeClient(hostile(ALL).events, rows=hostile_rows(ALL), streaming=streaming)
        for command in (Interrupt, Close, Decide):
            client.replies[command] = Reply(ok=False, code="error", error=f"refused {ALL} end")
        clock = StageClock()
    else:
        story = Story()
        story.start()
        root = story.spawn("root", None, "rest", 0)
        story.turn(root)
        story.done(root, "finished", 3)
        client, clock = FakeClient(story.events), SystemClock()
    app = WatchroomApp(connecting(client), SWARM, clock=clock, tz=UTC, refresh_seconds=0)
    result = app.run()
    print(result)


if __name__ == "__main__":
    main(sys.argv[1])
