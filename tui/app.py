"""The console: a Textual app that holds a Client and a SwarmView, and nothing else of the engine.

The first frame is painted before `connect` is called, so the engine's imports come after it. The app's
message loop never awaits the engine: the session, commands and pages run in workers that the app owns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import tzinfo
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter, NoColor
from textual.message import Message
from textual.timer import Timer
from textual.worker import Worker

from core.channel.client import Client, ClientError
from core.clock import Clock, SystemClock
from core.domain.commands import (
    AnyCommand,
    GetJobRows,
    GetTranscript,
    JobRowsPage,
    PageRequest,
    StartSwarm,
    TranscriptPage,
)
from core.view.swarm import SwarmView
from tui.glyphs import ASCII, UNICODE
from tui.screens.confirm import ConfirmScope
from tui.screens.swarm import SwarmScreen
from tui.themes import DARK, LIGHT, themes
from tui.widgets.job_table import PAGE

Connect = Callable[[], AbstractAsyncContextManager[Client]]

REFRESH_SECONDS = 0.125
"""Least time between two updates of the screen from the feed."""
TOAST_SECONDS = 6.0
CLOSE_SECONDS = 15.0
PAGE_ROWS = 500
KEEP_TRANSCRIPTS = 32
"""Loaded transcripts that are kept; an older one is asked for again."""
YIELD_EVERY = 64


class ViewChanged(Message):
    """The view holds something new. One is enough, however many items came."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ViewChanged)


class SessionOver(Message):
    """The engine is closed, or could not be opened."""


class WatchroomApp(App[str]):
    """Full-screen console of one swarm.

    `connect` opens the engine (or reaches it) and gives a Client; `start` begins a swarm or names one that
    exists. `run()` returns the line to print afterwards; `failure` holds one sentence if the swarm could not
    be started, and then `return_code` is 1.
    """

    CSS_PATH = Path(__file__).parent / "styles" / "watchroom.tcss"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    ESCAPE_TO_MINIMIZE = False
    TITLE = "Watchroom"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "leave", "quit", id="quit", priority=True, tooltip="Quit; asks while agents run"),
        Binding("ctrl+c", "hint_quit", "", show=False, priority=True, id="quit.hint"),
    ]

    def __init__(
        self,
        connect: Connect,
        start: StartSwarm | str,
        *,
        clock: Clock | None = None,
        tz: tzinfo | None = None,
        ascii_glyphs: bool = False,
        theme: str = DARK,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        super().__init__()
        self.connect = connect
        self.start = start
        self.clock: Clock = clock or SystemClock()
        self.view = SwarmView()
        self.client: Client | None = None
        self.failure: str | None = None
        self.refresh_seconds = refresh_seconds
        for mine in themes():
            self.register_theme(mine)
        self.theme = theme if theme in (DARK, LIGHT) else DARK
        self.glyphs = ASCII if ascii_glyphs else UNICODE
        self.swarm_screen = SwarmScreen(self.view, self.clock, self.glyphs, tz)
        self._session: Worker[None] | None = None
        self._stop = asyncio.Event()
        self._disconnected = asyncio.Event()
        """The client is closed again; set also when the session was cancelled."""
        self._leaving = False
        self._refreshed_at = float("-inf")
        self._refresh_timer: Timer | None = None
        self._toast_timer: Timer | None = None
        self._asking: set[tuple[str, object]] = set()
        self._used: dict[str, None] = {}

    def get_default_screen(self) -> SwarmScreen:
        return self.swarm_screen

    def get_line_filters(self) -> Sequence[LineFilter]:
        """NO_COLOR means none at all: grey levels would still be colour sequences."""
        filters = list(super().get_line_filters())
        return [*filters, NoColor()] if self.no_color else filters

    @property
    def awaits_task(self) -> bool:
        """A new swarm without a task: the first keys typed are its task, however early they come."""
        return isinstance(self.start, StartSwarm) and not self.start.task

    # --- the session ---------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self.set_interval(1.0, self._tick)
        self.theme_changed_signal.subscribe(self, lambda _: self.swarm_screen.restyle())
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self._session = self.run_worker(self._run_session(), group="session", exit_on_error=False)

    async def _run_session(self) -> None:
        """Own the client from opening to closing. Every failure becomes one sentence."""
        try:
            async with self.connect() as client:
                self.client = client
                swarm = await self._open_swarm(client)
                if swarm is not None:
                    await self._follow(client, swarm)
                    await self._stop.wait()
        except Exception as error:  # the boundary: whatever the engine raises is shown, never a crash
            self._failed(str(error) or type(error).__name__)
        finally:
            self.client = None
            self._disconnected.set()
            self.post_message(SessionOver())

    async def _open_swarm(self, client: Client) -> str | None:
        if isinstance(self.start, str):
            return self.start
        reply = await client.send(self.start)
        if not reply.ok:
            self._failed(reply.error)
            return None
        return str(reply.value["swarm"])

    async def _follow(self, client: Client, swarm: str) -> None:
        """Fold the feed until it ends or the operator leaves."""
        feed = asyncio.create_task(self._feed(client, swarm))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({feed, stop}, return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                feed.result()
                self._failed("the engine ended the feed")
        finally:
            for task in (feed, stop):
                task.cancel()
            await asyncio.gather(feed, stop, return_exceptions=True)

    async def _feed(self, client: Client, swarm: str) -> None:
        taken = 0
        async with client.subscribe(swarm) as feed:
            async for item in feed:
                self.view.feed(item)
                self.post_message(ViewChanged())
                taken += 1
                if taken % YIELD_EVERY == 0:
                    await self.clock.sleep(0)

    def _failed(self, sentence: str) -> None:
        if self.failure is None and not self._stop.is_set():
            self.failure = sentence
            self.swarm_screen.head.trouble = sentence
            self.post_message(ViewChanged())

    def on_session_over(self) -> None:
        """Leave if the operator asked for it, or if there never was a swarm to look at."""
        if self._leaving or not self.view.state.swarm:
            self.exit(self.summary(), return_code=1 if self.failure else 0)

    async def on_unmount(self) -> None:
        """However the app ends, the engine is closed before it returns."""
        self._stop.set()
        if self._session is None or self._disconnected.is_set():
            return
        try:
            async with self.clock.timeout(CLOSE_SECONDS):
                await self._disconnected.wait()
        except TimeoutError:
            self._session.cancel()

    # --- refreshing ----------------------------------------------------------------------------------------

    def on_view_changed(self) -> None:
        """Update the screen now, or when the last update is old enough."""
        if self._refresh_timer is not None:
            return
        wait = self._refreshed_at + self.refresh_seconds - self.clock.monotonic()
        if wait <= 0 or self.refresh_seconds <= 0:
            self.refresh_now()
        else:
            self._refresh_timer = self.set_timer(wait, self.refresh_now)

    def refresh_now(self) -> None:
        """Bring the screen up to the view."""
        self._refresh_timer = None
        self._refreshed_at = self.clock.monotonic()
        self.view.take_changes()
        if self.swarm_screen.is_mounted:
            with self.batch_update():
                self.swarm_screen.refresh_view()

    def busy(self) -> bool:
        """Whether anything in the swarm moves by itself."""
        state = self.view.state
        return any(a.live or a.asks for a in state.agents.values()) or any(
            not job.ended for job in state.jobs.values()
        )

    def _tick(self) -> None:
        if self.busy():
            self.swarm_screen.tick()
            self.swarm_screen.tick_lists()

    def say(self, words: str, style: str = "fg") -> None:
        """One line for the operator, in the place of the keys, for some seconds."""
        self.swarm_screen.keys.say(words, style)
        if self._toast_timer is not None:
            self._toast_timer.stop()
        self._toast_timer = self.set_timer(TOAST_SECONDS, self.swarm_screen.keys.hush)

    def toggle_theme(self) -> None:
        self.theme = LIGHT if self.theme == DARK else DARK

    # --- commands and pages --------------------------------------------------------------------------------

    def command(self, command: AnyCommand, done: str, *, names: str = "", undo: str = "") -> None:
        """Send a command in the background; its outcome is said in one line.

        `names` is the reply's list of threads to name in it, `undo` the text to put back if it is refused.
        """
        self.run_worker(self._command(command, done, names, undo), group="commands", exit_on_error=False)

    async def _command(self, command: AnyCommand, done: str, names: str, undo: str) -> None:
        client = self.client
        try:
            if client is None:
                raise ClientError("there is no engine")
            reply = await client.send(command)
            error = "" if reply.ok else reply.error
        except ClientError as failed:
            error = str(failed)
        if error:
            self.say(error, "red")
            if undo and not self.swarm_screen.composer.text:
                self.swarm_screen.composer.load_text(undo)
            return
        threads = reply.value.get(names, ()) if names else ()
        if threads:
            verb = done.partition(" ")[0]
            done = f"{verb} " + ", ".join(self.view.name_of(str(thread)) for thread in threads)
        elif names:
            done = f"nothing {names}"
        self.say(done)

    def want_transcript(self, thread: str | None) -> None:
        """Ask for the newest page of an agent's transcript unless it is loaded or on its way."""
        if thread is None or self.client is None:
            return
        self._used.pop(thread, None)
        self._used[thread] = None
        for old in list(self._used)[:-KEEP_TRANSCRIPTS]:
            self.view.transcripts.pop(old, None)
            del self._used[old]
        key = ("thread", (thread, self.view.reset))
        if thread not in self.view.transcripts and key not in self._asking:
            self.view.expect_transcript(thread)
            self._ask(key, GetTranscript(swarm=self.view.state.swarm, thread=thread, limit=PAGE_ROWS))

    def want_older(self, thread: str | None) -> None:
        """Ask for the page before the first loaded row."""
        rows = self.view.transcripts.get(thread or "")
        if thread is None or rows is None or self.client is None or not rows.more:
            return
        if (key := ("older", thread)) not in self._asking:
            swarm = self.view.state.swarm
            before = rows.first_seq
            self._ask(key, GetTranscript(swarm=swarm, thread=thread, before=before, limit=PAGE_ROWS))

    def want_rows(self, job: str, start: int) -> None:
        """Ask for a page of a job's rows."""
        if self.client is None:
            self.swarm_screen.table.forget(start)
            return
        self.view.watch_job(job)
        if (key := ("rows", (job, start))) not in self._asking:
            swarm = self.view.state.swarm
            self._ask(key, GetJobRows(swarm=swarm, job=job, start=start, limit=PAGE), start)

    def _ask(self, key: tuple[str, object], request: PageRequest, start: int = 0) -> None:
        self._asking.add(key)
        self.run_worker(self._page(key, request, start), group="pages", exit_on_error=False)

    async def _page(self, key: tuple[str, object], request: PageRequest, start: int) -> None:
        """Fetch one page and give it to the view. A page asked for before a new snapshot is dropped: what
        happened between the two would be missing in it."""
        client, reset = self.client, self.view.reset
        try:
            if client is None:
                return
            page = await client.page(request)
            if reset != self.view.reset:
                return
            if isinstance(page, TranscriptPage) and isinstance(request, GetTranscript):
                self.view.load_transcript(request.thread, page)
            elif isinstance(page, JobRowsPage) and isinstance(request, GetJobRows):
                self.view.load_job_rows(request.job, page)
        except ClientError as failed:
            if isinstance(request, GetJobRows):
                self.swarm_screen.table.forget(start)
            self.say(str(failed), "red")
        finally:
            self._asking.discard(key)
            self.post_message(ViewChanged())

    # --- leaving -------------------------------------------------------------------------------------------

    def action_hint_quit(self) -> None:
        self.say("ctrl+q quits; i interrupts the selected agent")

    def action_leave(self) -> None:
        """Quit; while agents run only after a second ctrl+q. A third one no longer waits for the engine."""
        if self._leaving:
            self.exit(self.summary(), return_code=1)
            return
        running = [agent for agent in self.view.state.agents.values() if agent.live]
        if not running or isinstance(self.screen, ConfirmScope):
            self._leave()
            return
        queued = sum(1 for agent in self.view.state.agents.values() if agent.wait and not agent.live)
        number = f"{len(running)} running" + (f" and {queued} queued" if queued else "")
        title = f"Quit? {number} will be interrupted:"
        names = " ".join(agent.nickname for agent in running[:40])
        choices = [("ctrl+q", "quit and interrupt them", "quit")]

        def answer(choice: str | None) -> None:
            if choice is not None:
                self._leave()

        self.push_screen(ConfirmScope(title, names, choices, self.glyphs), answer)

    def _leave(self) -> None:
        self._leaving = True
        self._stop.set()
        if self._session is None or self._disconnected.is_set():
            self.exit(self.summary(), return_code=1 if self.failure else 0)
            return
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.swarm_screen.keys.say("stopping the agents" + self.glyphs.ellipsis, "amber")

    def summary(self) -> str:
        """The line to print after the console is gone: how the swarm stands and how to see it again."""
        state = self.view.state
        if not state.swarm:
            return ""
        # The feed ended before the engine did: what it stopped on its way out is interrupted by now.
        closed = self._disconnected.is_set() and self.failure is None
        counts: dict[str, int] = {}
        for agent in state.agents.values():
            status = "interrupted" if closed and (agent.live or agent.wait) else agent.status
            counts[status] = counts.get(status, 0) + 1
        words = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts.items())
        return f"swarm {state.swarm}: {words}; watchroom session show {state.swarm}"
