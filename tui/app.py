"""The console: a Textual app that holds a Client and a SwarmView, and nothing else of the engine.

The first frame is painted before `connect` is called, so the engine's imports come after it. The app's
message loop never awaits the engine: the session, commands and pages run in workers that the app owns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter, NoColor
from textual.message import Message
from textual.timer import Timer
from textual.worker import Worker

from core.channel.client import Client, ClientError, EngineBusy, EngineGone
from core.clock import Clock, SystemClock
from core.domain.commands import (
    AnyCommand,
    GetJobOrder,
    GetJobRows,
    GetTranscript,
    JobOrderPage,
    JobRowsPage,
    ListSwarms,
    PageRequest,
    ResumeSwarm,
    Snapshot,
    StartSwarm,
    StopEngine,
    TranscriptPage,
)
from core.domain.state import AgentState
from core.view.swarm import SwarmView
from tui.again import Again, HeldClock
from tui.farewell import Fate, farewell
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
"""How long leaving waits for an engine of this process, or for one that was asked to stop."""
PAGE_ROWS = 500
KEEP_TRANSCRIPTS = 32
"""Loaded transcripts that are kept; an older one is asked for again."""
YIELD_EVERY = 64


Told = str | Callable[[Mapping[str, Any]], str]
"""What is said of a command that was carried out."""


class ViewChanged(Message):
    """The view holds something new. One is enough, however many items came."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ViewChanged)


class SessionOver(Message):
    """The connection is closed for good, or could not be opened."""


class WatchroomApp(App[str]):
    """Full-screen console of one swarm.

    `connect` opens the engine (or reaches it) and gives a Client; `start` begins a swarm, resumes one, or
    names one that runs; `again` is what R does when the engine is gone (None: `connect` once more). `attach`
    is the command to come back with, without the id. `run()` returns the lines to print afterwards; `failure`
    holds one sentence if the swarm could not be started or the engine is gone, and then `return_code` is 1.
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
        start: StartSwarm | ResumeSwarm | str,
        *,
        again: Again | None = None,
        attach: str = "watchroom attach",
        clock: Clock | None = None,
        tz: tzinfo | None = None,
        ascii_glyphs: bool = False,
        theme: str = DARK,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        super().__init__()
        self.connect = connect
        self.start = start
        self.again = again or Again(open=lambda _: connect())
        self.attach = attach
        self.clock: Clock = clock or SystemClock()
        self.view = SwarmView()
        self.client: Client | None = None
        self.failure: str | None = None
        self.lost = False
        """The engine is gone, and what is on the screen is how it stood then."""
        self.refresh_seconds = refresh_seconds
        for mine in themes():
            self.register_theme(mine)
        self.theme = theme if theme in (DARK, LIGHT) else DARK
        self.glyphs = ASCII if ascii_glyphs else UNICODE
        self._held = HeldClock(self.clock)
        self.swarm_screen = SwarmScreen(self.view, self._held, self.glyphs, tz)
        self._session: Worker[None] | None = None
        self._stop = asyncio.Event()
        self._wanted_again = asyncio.Event()
        """R was pressed, or the operator leaves."""
        self._disconnected = asyncio.Event()
        """The client is closed again; set also when the session was cancelled."""
        self._ended = asyncio.Event()
        """The connection ended after the engine was asked to stop."""
        self._question: ConfirmScope | None = None
        self._leaving = False
        self._stopping = False
        self._outlives = False
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
        """Connect, and again each time the operator asks for it, until he leaves."""
        try:
            await self._connected(self.connect, self.start)
            while self.view.state.swarm and not self._stop.is_set():
                self._wanted_again.clear()
                await self._wanted_again.wait()
                if not self._stop.is_set():
                    swarm = self.view.state.swarm
                    await self._connected(partial(self.again.open, swarm), swarm)
        finally:
            self._disconnected.set()
            self.post_message(SessionOver())

    async def _connected(self, connect: Connect, start: StartSwarm | ResumeSwarm | str) -> None:
        """Own one client from opening to closing. Every failure becomes one sentence."""
        try:
            async with connect() as client:
                self.client, self._outlives = client, client.outlives
                swarm = await self._open_swarm(client, start)
                if swarm is not None:
                    await self._follow(client, swarm)
        except Exception as error:  # the boundary: whatever the engine raises is shown, never a crash
            self._failed(str(error) or type(error).__name__)
        finally:
            self.client = None
            if self._stopping and not self._stop.is_set():
                self._ended.set()

    async def _open_swarm(self, client: Client, start: StartSwarm | ResumeSwarm | str) -> str | None:
        if isinstance(start, str):
            if not self.view.state.swarm or not self.again.resumes or await self._runs(client, start):
                return start
            start = ResumeSwarm(swarm=start, setup=self.again.setup(self.view.state.server))
        reply = await client.send(start)
        if not reply.ok:
            self._failed(reply.error)
            return None
        return str(reply.value["swarm"])

    @staticmethod
    async def _runs(client: Client, swarm: str) -> bool:
        """Whether this engine runs the swarm already: another console was quicker, or it never ended."""
        reply = await client.send(ListSwarms())
        return any(listed["swarm"] == swarm for listed in reply.value.get("swarms", ()))

    async def _follow(self, client: Client, swarm: str) -> None:
        """Fold the feed until it ends or the operator leaves."""
        feed = asyncio.create_task(self._feed(client, swarm))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({feed, stop}, return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                feed.result()
                self._failed("")
        finally:
            for task in (feed, stop):
                task.cancel()
            await asyncio.gather(feed, stop, return_exceptions=True)

    async def _feed(self, client: Client, swarm: str) -> None:
        taken = 0
        async with client.subscribe(swarm) as feed:
            async for item in feed:
                self.view.feed(item)
                if self.lost and isinstance(item, Snapshot):
                    self._regained()
                self.post_message(ViewChanged())
                taken += 1
                if taken % YIELD_EVERY == 0:
                    await self.clock.sleep(0)

    def _failed(self, sentence: str) -> None:
        """The swarm could not be opened, or the engine is gone: what is on the screen stays."""
        if self._stop.is_set() or self._stopping:
            return
        again = self.again
        if not self.view.state.swarm:
            self.failure = sentence or again.gone
            self.swarm_screen.head.trouble = self.failure
        else:
            self.failure = sentence or again.gone
            said = sentence if sentence != again.gone else ""
            self.swarm_screen.head.trouble = f"{again.title}: {said}" if said else again.gone
            # Why it could not be had back may be too long for the head, and R is known by then.
            self.say(said if said and self.lost else f"{again.gone}; {again.offer}", "amber")
            self.lost = True
            self._held.hold()
            if isinstance(self.screen, ConfirmScope):
                self.screen.dismiss(None)  # it asks about agents that nobody runs any more
            self.swarm_screen.refresh_bindings()
        self.post_message(ViewChanged())

    def _regained(self) -> None:
        self.lost, self.failure = False, None
        self._held.go_on()
        self.swarm_screen.head.trouble = ""
        self.swarm_screen.refresh_bindings()
        self.say("connected again", "teal")

    def connect_again(self) -> None:
        """What R does: start or reach an engine, resume the swarm if nobody runs it, and show it."""
        if self.lost and not self._wanted_again.is_set():
            self._wanted_again.set()
            self.swarm_screen.head.trouble = "connecting" + self.glyphs.ellipsis
            self.post_message(ViewChanged())

    def on_session_over(self) -> None:
        """Leave if the operator asked for it, or if there never was a swarm to look at."""
        if self._leaving or not self.view.state.swarm:
            self.exit(self.summary(), return_code=self.exit_code)

    async def on_unmount(self) -> None:
        """However the app ends, the client is closed before it returns."""
        self._stop.set()
        self._wanted_again.set()
        if self._session is None or self._disconnected.is_set():
            return
        self._give_up_connecting()
        try:
            async with self.clock.timeout(CLOSE_SECONDS):
                await self._disconnected.wait()
        except TimeoutError:
            self._session.cancel()

    def _give_up_connecting(self) -> None:
        """Nobody waits any more for an engine that is still being reached."""
        if self.client is None and self._session is not None:
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
        if self.busy() and not self.lost:
            self.swarm_screen.tick()
            self.swarm_screen.tick_lists()

    def say(self, words: str, style: str = "fg") -> None:
        """One line for the operator, in the place of the keys, for some seconds."""
        self.swarm_screen.keys.say(words, style)
        if self._toast_timer is not None:
            self._toast_timer.stop()
        self._toast_timer = self.set_timer(TOAST_SECONDS, self.swarm_screen.keys.hush)

    @property
    def offline(self) -> str:
        """Why nothing can be sent now."""
        if not self.lost:
            return "the engine is still starting"
        return f"{self.again.gone}; {self.again.offer}"

    def toggle_theme(self) -> None:
        self.theme = LIGHT if self.theme == DARK else DARK

    # --- commands and pages --------------------------------------------------------------------------------

    def command(self, command: AnyCommand, done: Told, *, names: str = "", undo: str = "") -> None:
        """Send a command in the background; its outcome is said in one line, `done` or what it makes of the
        reply's value.

        `names` is the reply's list of threads to name in it, `undo` the text to put back if it is refused.
        """
        self.run_worker(self._command(command, done, names, undo), group="commands", exit_on_error=False)

    async def _command(self, command: AnyCommand, done: Told, names: str, undo: str) -> None:
        client = self.client
        try:
            if client is None:
                raise EngineGone(self.offline)
            reply = await client.send(command)
            error = "" if reply.ok else reply.error
        except EngineBusy as failed:
            error = f"busy: {failed}"
        except ClientError as failed:
            error = str(failed)
        if error:
            self.say(error, "red")
            self.swarm_screen.put_back(undo)
            return
        if not isinstance(done, str):
            done = done(reply.value)
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

    def want_rows(self, job: str, start: int, rows: tuple[int, ...] = ()) -> None:
        """Ask for a page of a job's rows, or for these."""
        if self.client is None:
            self.swarm_screen.table.forget(start)
            return
        self.view.watch_job(job)
        if (key := ("rows", (job, start, rows, self.view.reset))) not in self._asking:
            swarm = self.view.state.swarm
            self._ask(key, GetJobRows(swarm=swarm, job=job, start=start, limit=PAGE, rows=rows), start)

    def want_order(self, request: GetJobOrder) -> None:
        """Ask which rows a job's filter leaves, in what order."""
        if self.client is None:
            self.swarm_screen.table.arrange(request, None)
        else:
            self._ask(("order", request), request)

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
                rows = self.view.transcripts.get(request.thread)
                # An older page goes before the rows that it was asked for; they may have been let go.
                if request.before is None or (rows is not None and rows.first_seq == request.before):
                    self.view.load_transcript(request.thread, page)
            elif isinstance(page, JobRowsPage) and isinstance(request, GetJobRows):
                self.view.load_job_rows(request.job, page)
                got = len(page.rows)
                if request.rows and 0 < got < len(request.rows):
                    left = tuple(sorted(request.rows)[got:])
                    self._ask(("rows", (request.job, left)), replace(request, rows=left), start)
                elif page.more and 0 < got < request.limit:
                    # Large rows: the page holds fewer than were asked for.
                    rest = replace(request, start=request.start + got, limit=request.limit - got)
                    self._ask(("rows", (request.job, rest.start, reset)), rest, start)
            elif isinstance(page, JobOrderPage) and isinstance(request, GetJobOrder):
                self.swarm_screen.table.arrange(request, page)
        except ClientError as failed:
            if isinstance(request, GetJobRows):
                self.swarm_screen.table.forget(start)
            elif isinstance(request, GetJobOrder):
                self.swarm_screen.table.arrange(request, None)
            self.say(str(failed), "red")
        finally:
            self._asking.discard(key)
            self.post_message(ViewChanged())

    # --- leaving -------------------------------------------------------------------------------------------

    def action_hint_quit(self) -> None:
        self.say("ctrl+q quits; i interrupts the selected agent")

    def action_leave(self) -> None:
        """Leave. While something runs only after a question, which a second ctrl+q answers: an engine of its
        own goes on, one of this process interrupts what runs. A third one no longer waits."""
        if self._leaving:
            self.exit(self.summary(), return_code=1)
            return
        if self._question is not None and self.screen is self._question:
            self._leave()
            return
        running = [agent for agent in self.view.state.agents.values() if agent.live]
        if not (running or self.view.state.active()) or self.client is None:
            self._leave()
            return
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self._question = self._leaving_question(self.client, running)

        def answer(choice: str | None) -> None:
            if choice == "leave":
                self._leave()
            elif choice == "stop":
                self.run_worker(self._stop_engine(), group="commands", exit_on_error=False)

        self.push_screen(self._question, answer)

    def _leaving_question(self, client: Client, running: list[AgentState]) -> ConfirmScope:
        queued = sum(1 for agent in self.view.state.agents.values() if agent.wait and not agent.live)
        number = f"{len(running)} running" + (f" and {queued} queued" if queued else "")
        names = " ".join(agent.nickname for agent in running[:40])
        if not client.outlives:
            title = f"Quit? {number} will be interrupted:"
            choices = [("ctrl+q", "quit and interrupt them", "leave")]
        else:
            title = f"Leave? The engine goes on without this console, {number}:"
            choices = [("ctrl+q", "leave; they go on", "leave")]
            if client.engine.kind == "background":
                choices.append(("s", "stop the engine and everything it runs", "stop"))
        return ConfirmScope(title, names, choices, self.glyphs)

    async def _stop_engine(self) -> None:
        """Ask the engine to stop, and leave when it has. What it interrupts comes through the feed."""
        client = self.client
        if client is None:
            self.say(self.offline, "red")
            return
        self._stopping = True
        self.swarm_screen.keys.say("stopping the engine" + self.glyphs.ellipsis, "amber")
        try:
            reply = await client.send(StopEngine())
            error = "" if reply.ok else reply.error
        except EngineGone:
            error = ""  # it ended before it could answer
        except ClientError as failed:
            error = str(failed)
        if error:
            self._stopping = False
            self.say(error, "red")
            return
        try:
            async with self.clock.timeout(CLOSE_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            self.failure = f"the engine has not stopped within {CLOSE_SECONDS:.0f} seconds"
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self._stop.set()
        self._wanted_again.set()
        if self._session is None or self._disconnected.is_set():
            self.exit(self.summary(), return_code=self.exit_code)
            return
        self._give_up_connecting()
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if not self._outlives:
            self.swarm_screen.keys.say("stopping the agents" + self.glyphs.ellipsis, "amber")

    @property
    def exit_code(self) -> int:
        """An engine that ended after everything was done, as that of `exec` does, is no failure."""
        return 1 if self.failure is not None and not (self.lost and not self.view.state.active()) else 0

    def fate(self) -> Fate:
        """How the engine stands as far as this console knows."""
        if self._stopping:
            return "stopped" if self._ended.is_set() else "stopping"
        if self.lost:
            return "ended" if self.again.resumes else "lost"
        if self._outlives:
            return "goes on"
        return "closed" if self._disconnected.is_set() else "ended"

    def summary(self) -> str:
        """What to print after the console is gone; empty if there was no swarm."""
        state = self.view.state
        return farewell(state, self.fate(), self.attach) if state.swarm else ""
