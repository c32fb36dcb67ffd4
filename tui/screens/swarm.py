"""The swarm screen: head, roll call, tree beside transcript, job strip, what needs you, composer, keys.

It reads a SwarmView and asks the app to send commands and fetch pages; it knows nothing else of the engine.
"""

from __future__ import annotations

from datetime import tzinfo
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget

from core.clock import Clock
from core.domain.commands import SendInput
from core.domain.state import AgentState, McpServerState
from core.view import budget, words
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import Glyphs
from tui.paint import Line
from tui.screens import keys
from tui.screens.help import HelpScreen
from tui.screens.job_steering import JobSteering
from tui.screens.layout import LEAST_HEIGHT, LEAST_WIDTH, sizes
from tui.screens.steering import Steering
from tui.widgets.agent_tree import AgentTree
from tui.widgets.bars import (
    Divider,
    Hairline,
    JobHead,
    Peek,
    RollCall,
    Tabs,
    TranscriptHead,
    TreeHead,
)
from tui.widgets.composer import Composer, ComposerLabel
from tui.widgets.head import HeadLine
from tui.widgets.job_table import JobTable
from tui.widgets.key_line import KeyLine, live_bindings
from tui.widgets.line_view import LineView, jump
from tui.widgets.needs import NeedsBar
from tui.widgets.painted import Painted
from tui.widgets.question import AnswerField, QuestionBar
from tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from tui.app import WatchroomApp


class TooSmall(Painted):
    def lines(self, width: int) -> list[Line]:
        return [[(f"needs {LEAST_WIDTH}x{LEAST_HEIGHT}", "amber")]]


class SwarmScreen(Screen[None]):
    BINDINGS: ClassVar[list[BindingType]] = keys.BINDINGS
    app: WatchroomApp

    def __init__(self, view: SwarmView, clock: Clock, glyphs: Glyphs, tz: tzinfo | None) -> None:
        super().__init__()
        self.view = view
        self.clock = clock
        self.glyphs = glyphs
        self.selected: str | None = None
        """Thread whose transcript is on show."""
        self.pane = "agents"
        self._placed = False
        self.head = HeadLine(view, clock, glyphs=glyphs)
        self.roll = RollCall(view, clock, glyphs=glyphs)
        self.agents = AgentTree(view, clock, glyphs=glyphs)
        self.tree_head = TreeHead(view, clock, glyphs=glyphs)
        self.transcript = Transcript(view, clock, tz, glyphs=glyphs)
        self.transcript_head = TranscriptHead(view, clock, self.transcript, glyphs=glyphs)
        self.table = JobTable(view, clock, glyphs=glyphs)
        self.job_head = JobHead(view, clock, self.table, glyphs=glyphs)
        self.needs = NeedsBar(view, clock, glyphs=glyphs)
        self.peek = Peek(view, clock, glyphs=glyphs)
        self.tabs = Tabs(glyphs=glyphs)
        self.label = ComposerLabel(view, glyphs=glyphs)
        self.composer = Composer()
        self.question = QuestionBar(view, id="question-bar", glyphs=glyphs)
        self.steering = Steering(self)
        self.job_steering = JobSteering(self)
        self._servers: dict[str, McpServerState] | None = None
        """The MCP servers as they were; what fails after that is said."""
        self.keys = KeyLine(glyphs=glyphs)
        self.top_line = Hairline("down", id="top-line", glyphs=glyphs)
        self.low_line = Hairline("up", id="low-line", glyphs=glyphs)

    def compose(self) -> ComposeResult:
        yield TooSmall()
        yield self.head
        yield self.roll
        yield self.tabs
        yield self.top_line
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield self.tree_head
                yield self.agents
            yield Divider(glyphs=self.glyphs)
            with Vertical(id="right"):
                yield self.transcript_head
                yield self.transcript
        with Vertical(id="jobs"):
            yield self.job_head
            yield self.table
        yield Hairline("", id="peek-line", glyphs=self.glyphs)
        yield self.peek
        yield self.low_line
        yield self.needs
        with Horizontal(id="line"):
            yield self.label
            yield self.composer
        yield self.question
        yield self.keys

    # --- what is shown -------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self.bindings_updated_signal.subscribe(self, lambda _: self.keys.repaint())
        self.set_focus(self.composer if self.app.awaits_task else self.agents)
        self._measure(self.app.size.width, self.app.size.height)

    def on_resize(self, event: events.Resize) -> None:
        self._measure(event.size.width, event.size.height)

    def _measure(self, width: int, height: int) -> None:
        found = sizes(width, height)
        for layout in ("wide", "medium", "narrow", "tiny"):
            self.set_class(layout == found.layout, f"-{layout}")
        if found.tree:
            self.query_one("#left").styles.width = found.tree
        else:
            self.query_one("#left").styles.width = "1fr"
        at = found.tree or None
        self.top_line.at = self.low_line.at = self.job_head.at = at
        self.roll.max_rows = found.roll
        self.roll.styles.height = self.roll.rows_needed(width)
        if self.question.display:
            self.question.fit()
        self._place_bar(width)
        self._show_pane(self.pane)

    @property
    def typing(self) -> bool:
        """Whether letters are text now."""
        return self.focused in (self.composer, self.question.field)

    @property
    def narrow(self) -> bool:
        return self.has_class("-narrow")

    def _painted(self) -> list[Painted]:
        return list(self.query(Painted))

    def _lists(self) -> list[LineView]:
        return [self.agents, self.transcript, self.table]

    def refresh_view(self) -> None:
        """Take over what changed in the view; called at most some times a second."""
        state = self.view.state
        if state.root is not None and not self._placed:
            self._placed = True
            root = state.agents[state.root]
            self.agents.refresh_rows()
            self.select(state.root)
            if root.status == "idle" and not (root.mail or root.turns or state.jobs):  # it waits for a task
                self.set_focus(self.composer)
        elif self.selected is not None and self.selected not in state.agents:
            self.agents.refresh_rows()
            self.select(state.root)
        job = self._job_on_show()
        if job is not None:
            self.table.show(job)
            self.head.job = job
        self.set_class(job is not None, "-has-job")
        self.agents.refresh_rows()
        self.transcript.refresh_rows()
        self.table.refresh_rows()
        self.needs.offline = self.app.lost
        self._tell_servers()
        needed = self.roll.rows_needed(self.app.size.width)
        if self.roll.styles.height is None or self.roll.styles.height.value != needed:
            self.roll.styles.height = needed
        self._place_bar(self.app.size.width)
        self.app.want_transcript(self.selected)
        self.tick()

    def _place_bar(self, width: int) -> None:
        """Give the bar the lines that it needs at that width: a command must be seen whole to be approved."""
        height = self.needs.height_needed(max(width, 20))
        if self.needs.display != bool(height):
            self.needs.display = bool(height)
            self.refresh_bindings()
        if height and (self.needs.styles.height is None or self.needs.styles.height.value != height):
            self.needs.styles.height = height
        self.needs.repaint()

    def _tell_servers(self) -> None:
        """Say once why an MCP server does not serve any more; the head only says that it does not."""
        before, self._servers = self._servers, dict(self.view.state.servers)
        for key, server in self._servers.items():
            bad = server.status in words.TROUBLE
            if before is not None and bad and server != before.get(key):
                self.app.say(f"mcp {words.server(server)}", "amber")

    def _job_on_show(self) -> str | None:
        """The job that runs, else the newest."""
        jobs = list(self.view.state.jobs.values())
        running = [job for job in jobs if not job.ended]
        return (running or jobs)[-1].job if jobs else None

    def tick(self) -> None:
        """Something changed, or a second passed: repaint the lines that differ."""
        for widget in self._painted():
            widget.repaint()

    def tick_lists(self) -> None:
        for view in self._lists():
            view.repaint()

    def restyle(self) -> None:
        for bar in self._painted():
            bar.restyle()
        for view in self._lists():
            view.restyle()

    # --- selecting -----------------------------------------------------------------------------------------

    def select(self, thread: str | None) -> None:
        """Show an agent: cursor, roll call, transcript."""
        if thread is None or self.view.agent(thread) is None:
            return
        self.selected = thread
        self.roll.selected = thread
        self.peek.thread = thread
        self.needs.wanted = thread
        if self.agents.cursor_key != thread:
            self.agents.reveal(thread)
        self.transcript.show(thread)
        self.app.want_transcript(thread)
        self._place_bar(self.app.size.width)
        self.tick()
        self.refresh_bindings()

    @on(LineView.Moved)
    def _moved(self, event: LineView.Moved) -> None:
        if event.view is self.agents:
            # The cursor as it is now: it may be rows ahead of this message, and must not be put back.
            self.select(self.agents.thread())
        elif event.view is self.transcript:
            self.transcript_head.repaint()

    @on(LineView.Opened)
    def _opened(self, event: LineView.Opened) -> None:
        if event.view is self.agents:
            if isinstance(event.key, str) and event.key.startswith("job:"):
                self.table.show(event.key[4:])
                self.head.job = event.key[4:]
                self._open_jobs()
            else:
                self._show_pane("thread", focus=True)
        elif event.view is self.table and (worker := self.table.worker()) is not None:
            self.select(worker)
            self._show_pane("thread", focus=True)

    @on(LineView.Scrolled)
    def _scrolled(self, event: LineView.Scrolled) -> None:
        if event.view is self.transcript:
            self.transcript_head.repaint()
        elif event.view is self.table:
            self.job_head.repaint()

    @on(Transcript.NeedOlder)
    def _older(self) -> None:
        self.app.want_older(self.transcript.thread)

    @on(JobTable.NeedRows)
    def _rows(self, event: JobTable.NeedRows) -> None:
        self.app.want_rows(event.job, event.start, event.rows)

    @on(JobTable.NeedOrder)
    def _order(self, event: JobTable.NeedOrder) -> None:
        self.app.want_order(event.request)

    @on(RollCall.Picked)
    def _picked(self, event: RollCall.Picked) -> None:
        self.select(event.thread)

    @on(Tabs.Picked)
    def _tab(self, event: Tabs.Picked) -> None:
        self._show_pane(event.pane, focus=True)

    # --- panes ---------------------------------------------------------------------------------------------

    def _panes(self) -> dict[str, Widget]:
        panes: dict[str, Widget] = {"agents": self.agents, "thread": self.transcript}
        if self.narrow or self.query_one("#jobs").display:
            panes["jobs"] = self.table
        return panes

    def _show_pane(self, pane: str, *, focus: bool = False) -> None:
        self.pane = self.tabs.pane = pane
        for name in self.tabs.names:
            self.set_class(name == pane, f"-pane-{name}")
        if focus:
            self.set_focus(self._panes().get(pane, self.agents))
        self.tabs.repaint()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        self._mark_focus()

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        self._mark_focus()

    def _mark_focus(self) -> None:
        """Say which pane has the focus: its head is lit."""
        focused = self.focused
        self.tree_head.active = focused is self.agents
        self.transcript_head.active = focused is self.transcript
        self.job_head.active = focused is self.table
        self.label.active = focused is self.composer
        self.needs.composing = self.typing
        self.needs.raising = focused is self.question.field
        panes = {self.agents: "agents", self.transcript: "thread", self.table: "jobs"}
        if isinstance(focused, LineView) and focused in panes and panes[focused] != self.pane:
            self._show_pane(panes[focused])
        self.tick()

    def action_pane(self, step: int) -> None:
        names = list(self._panes())
        at = names.index(self.pane) if self.pane in names else 0
        if self.typing:
            step = 0
        self._show_pane(names[(at + step) % len(names)], focus=True)

    def action_show(self, pane: str) -> None:
        if pane == "jobs" and not self.narrow:
            self._open_jobs()
        else:
            self._show_pane(pane, focus=True)

    def _open_jobs(self) -> None:
        if not self.view.state.jobs and not self.narrow:
            self.app.say("no job in this swarm")
            return
        self.add_class("-jobs-open")
        self._show_pane("jobs")
        self.call_after_refresh(self.table.focus)

    def action_jobs(self) -> None:
        if self.has_class("-jobs-open") and not self.narrow:
            self.remove_class("-jobs-open")
            self._show_pane("agents", focus=True)
        else:
            self._open_jobs()

    def action_back(self) -> None:
        """One step back; at the tree, nothing more happens."""
        if self.has_class("-jobs-open"):
            self.remove_class("-jobs-open")
        self._show_pane("agents", focus=True)

    # --- keys ----------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("message", "message_root", "budget"):
            return not self.typing
        if action in ("decide", "next_need"):
            return bool(self.view.state.approvals)
        if action == "jobs":
            return bool(self.view.state.jobs)
        if action == "connect_again":
            return self.app.lost
        return True

    def action_follow(self) -> None:
        if self.focused is self.table:
            self.table.ride()
        elif self.transcript.following:
            self.transcript.pause()
        else:
            self.transcript.resume()
        self.transcript_head.repaint()

    def action_error(self, step: int) -> None:
        focused = self.focused
        view = focused if isinstance(focused, (AgentTree, Transcript, JobTable)) else self.agents
        if not jump(view, view.failed, step):
            self.app.say("no error in this pane")

    def action_next_need(self) -> None:
        approvals = list(self.view.state.approvals.values())
        if not approvals:
            return
        threads = list(dict.fromkeys(approval.thread for approval in approvals))
        at = threads.index(self.selected) + 1 if self.selected in threads else 0
        self.select(threads[at % len(threads)])

    def action_decide(self, approve: bool) -> None:
        self.steering.decide(self.needs, approve)

    def _agent(self) -> AgentState | None:
        """The agent that a key acts on: the one whose transcript is on show. In the tree it is the one under
        the cursor, also while the message that the cursor moved is still on its way."""
        if self.focused is self.agents:
            if self.agents.thread() is None:
                return None
            if self.agents.thread() != self.selected:
                self.select(self.agents.thread())
        return self.view.agent(self.selected)

    def action_interrupt(self) -> None:
        self.steering.interrupt(self._agent())

    def action_close(self) -> None:
        self.steering.close(self._agent())

    def action_resume(self) -> None:
        self.steering.resume(self._agent())

    def action_job(self, verb: str) -> None:
        self.job_steering.do(verb)

    def action_parent(self) -> None:
        agent = self._agent() or self.view.agent(self.selected)
        if agent is not None and agent.parent is not None:
            self.select(agent.parent)

    def action_copy_id(self) -> None:
        self._agent()
        if self.selected is not None:
            self.app.copy_to_clipboard(self.selected)
            self.app.say(f"copied {self.selected}")

    def action_connect_again(self) -> None:
        self.app.connect_again()

    def action_theme(self) -> None:
        self.app.toggle_theme()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(live_bindings(self), self.glyphs))

    # --- writing to agents ---------------------------------------------------------------------------------

    def action_message(self) -> None:
        self._agent()
        self._compose_to(self.selected)

    def action_message_root(self) -> None:
        self._compose_to(self.view.state.root)

    def _compose_to(self, thread: str | None) -> None:
        """The focus moves at once, and the keys for it have priority: both are handled before the next key is
        read, so that nothing typed after them acts as a key of the tree."""
        self.label.target = thread or self.view.state.root
        self.label.styles.width = cell_len(self.label.label())
        self.label.restyle()
        self.set_focus(self.composer)

    # --- the budget ----------------------------------------------------------------------------------------

    def action_budget(self) -> None:
        """Show the budget and ask for a new limit, in the composer's row (decision 47)."""
        if self.app.lost or not self.view.state.swarm:
            self.app.say(self.app.offline, "amber")
            return
        self.query_one("#line").display = False
        self.question.open()
        self.set_focus(self.question.field)

    @on(AnswerField.Left)
    def _leave_question(self) -> None:
        if self.question.display:
            self.question.display = False
            self.query_one("#line").display = True
            self._show_pane(self.pane, focus=True)

    @on(AnswerField.Submitted)
    def _answered(self, event: AnswerField.Submitted) -> None:
        event.stop()
        if not event.value.strip():
            self._leave_question()
            return
        try:
            wanted = budget.parse(event.value, self.question.limit)
        except ValueError as error:
            self.app.say(str(error), "amber")
            return
        self._leave_question()
        self.app.command(wanted.command(self.view.state.swarm), wanted.told())

    @on(Composer.Left)
    def _left_composer(self) -> None:
        self._show_pane(self.pane, focus=True)

    def put_back(self, words: str) -> None:
        """What could not be sent is a draft again, before whatever was typed since."""
        if words:
            typed = self.composer.text
            self.composer.load_text(f"{words}\n{typed}" if typed else words)
            self.composer.move_cursor(self.composer.document.end)

    @on(Composer.Submitted)
    def _submitted(self, event: Composer.Submitted) -> None:
        thread = self.label.target or self.view.state.root
        if thread is None or self.app.client is None:
            self.put_back(event.text)
            self.app.say("the swarm is still starting" if thread is None else self.app.offline, "amber")
            return
        name = self.view.name_of(thread)
        command = SendInput(swarm=self.view.state.swarm, thread=thread, text=event.text)
        self.app.command(command, f"sent to {name}: {text.one_line(event.text)}", undo=event.text)
        if thread != self.selected:
            self.select(thread)
        if self.narrow:
            self._show_pane("thread")  # the answer comes there; the focus stays in the composer
        self.transcript.resume()
