"""The lines around the panes: roll call, pane heads, hairlines, tabs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from textual import events
from textual.message import Message

from core.clock import Clock
from core.domain.state import AgentState, JobState
from core.view import words
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import STYLES, UNICODE, WORST, Glyphs, agent_look, agent_state, row_look
from tui.paint import Line, spread, width_of
from tui.progress import duration
from tui.widgets.head import job_rate, join, progress_bar, state_counts
from tui.widgets.painted import Painted

if TYPE_CHECKING:
    from tui.widgets.job_table import JobTable
    from tui.widgets.transcript import Transcript


def why(view: SwarmView, agent: AgentState, now: datetime) -> str:
    """Why an agent does not go on: what it waits for, or how it ended. Empty if it goes on."""
    if agent.status == "shutdown":
        return "closed; u resumes it"
    if agent.start_failed:
        return f"u tries again; {words.outcome(agent)}"
    if agent.wait is not None and not agent.asks:
        return words.waits_for(agent.wait, view.place(agent.thread), now)
    return words.outcome(agent)


class RollCall(Painted):
    """One cell per agent in spawn order. What does not fit is put in bins that show their worst state."""

    class Picked(Message):
        def __init__(self, thread: str) -> None:
            super().__init__()
            self.thread = thread

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.selected: str | None = None
        self.max_rows = 1

    def rows_needed(self, width: int) -> int:
        """Lines that show one cell per agent, at most `max_rows`."""
        return min(max(-(-len(self.view.state.agents) // self._cells(width)), 1), self.max_rows)

    @staticmethod
    def _cells(width: int) -> int:
        return max(width - 8, 1)

    def bins(self, width: int) -> list[list[str]]:
        """Thread ids per cell, in spawn order: one each if they fit, else as equal as can be."""
        threads = list(self.view.state.agents)
        cells = self._cells(width) * max(self.size.height, 1)
        if len(threads) <= cells:
            return [[thread] for thread in threads]
        return [threads[i * len(threads) // cells : (i + 1) * len(threads) // cells] for i in range(cells)]

    def lines(self, width: int) -> list[Line]:
        now = self.clock.now()
        agents = self.view.state.agents
        per_line = self._cells(width)
        cells: Line = []
        for members in self.bins(width):
            looks = {agent_state(agents[thread], now): agents[thread] for thread in members}
            worst = next(name for name in WORST if name in looks)
            style = agent_look(looks[worst], now, self.glyphs).style if len(members) == 1 else STYLES[worst]
            style = style.replace("+rb", "+b")
            if self.selected in members:
                style = style.partition("+")[0] + "+rb"
            cells.append((self.glyphs.states[worst], style))
        result: list[Line] = []
        for start in range(0, max(len(cells), 1), per_line):
            label = " ROLL  " if start == 0 else "       "
            result.append([(label, "muted"), *cells[start : start + per_line]])
        legend = "one cell = one agent, in spawn order"
        if len(result) == 1 and width >= 140:
            result[0] = spread(result[0], [(legend + " ", "muted")], width)
        return result

    def on_click(self, event: events.Click) -> None:
        index = event.y * self._cells(self.size.width) + event.x - 7
        bins = self.bins(self.size.width)
        if event.x >= 7 and 0 <= index < len(bins):
            now = self.clock.now()
            members = bins[index]
            states = {agent_state(self.view.state.agents[t], now): t for t in reversed(members)}
            self.post_message(self.Picked(states[next(name for name in WORST if name in states)]))


class Hairline(Painted):
    """A horizontal hairline, with a tee where the vertical one meets it."""

    def __init__(self, tee: str, *, id: str | None = None, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.tee = tee
        """`down`, `up` or empty."""
        self.at: int | None = None

    def lines(self, width: int) -> list[Line]:
        line = self.glyphs.horizontal * width
        if self.tee and self.at is not None and self.at < width:
            tee = self.glyphs.tee_down if self.tee == "down" else self.glyphs.tee_up
            line = line[: self.at] + tee + line[self.at + 1 :]
        return [[(line, "faint")]]


class Divider(Painted):
    """The vertical hairline between the panes."""

    def lines(self, width: int) -> list[Line]:
        return [[(self.glyphs.vertical, "faint")]] * self.size.height


class TreeHead(Painted):
    """How many agents, by state."""

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.active = False

    def lines(self, width: int) -> list[Line]:
        counts = state_counts(self.view, self.clock.now())
        total = len(self.view.state.agents)
        line: Line = [(" AGENTS", "teal+b" if self.active else "muted"), (f"  {total}  ", "fg")]
        for name in ("running", "waiting", "queued", "asks", "lost", "done", "failed", "stopped", "closed"):
            if counts[name]:
                style = STYLES[name].replace("+rb", "+b") if name not in ("done",) else "muted"
                line.append((f" {self.glyphs.states[name]}{counts[name]}", style))
        return [line]


class TranscriptHead(Painted):
    """Whose transcript, and whether its end is followed."""

    def __init__(
        self,
        view: SwarmView,
        clock: Clock,
        pane: Transcript,
        *,
        id: str | None = None,
        glyphs: Glyphs = UNICODE,
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.pane = pane
        self.active = False

    def lines(self, width: int) -> list[Line]:
        agent = self.view.agent(self.pane.thread)
        line: Line = [(" ", "fg")]
        if agent is not None:
            parent = self.view.name_of(agent.parent) if agent.parent else ""
            if parent:
                line.append((f"{text.cut(text.one_line(parent), 16)} {self.glyphs.arrow} ", "muted"))
            line.append((text.cut(text.one_line(agent.nickname), 16), "fg+b"))
            line.append((f" {self.glyphs.arrow} ", "muted"))
        line.append(("THREAD", "teal+b" if self.active else "muted"))
        mode = self._mode(width)
        room = width - width_of(line) - width_of(mode) - 4
        if agent is not None and (said := why(self.view, agent, self.clock.now())):
            look = agent_look(agent, self.clock.now(), self.glyphs)
            style = look.style.replace("+rb", "+b")
            line.append((f"   {text.cut(f'{look.glyph} {said}', room)}", style))
        elif agent is not None and agent.parent and width >= 90:
            line.append((f"   {text.cut(text.one_line(agent.task), width // 3)}", "muted"))
        return [spread(line, mode, width)]

    def _mode(self, width: int) -> Line:
        pane = self.pane
        rows = pane.rows
        at = f"{min(pane.cursor + 1, pane.loaded()):,}"
        more = "+" if rows is not None and rows.more else ""
        place: Line = [(f"   {at} / {pane.loaded():,}{more} ", "muted")] if width >= 60 else [(" ", "fg")]
        if pane.following:
            return [("FOLLOW", "teal"), ("  ↓ end" if width >= 60 else "", "muted"), *place]
        new = f"{pane.below} new below" if pane.below else ""
        words = f"PAUSED ↑ {new} — G to follow" if new else "PAUSED ↑ — G to follow"
        return [(words, "amber" if pane.below else "muted"), *(place if width >= 90 else [(" ", "fg")])]


class JobHead(Painted):
    """A hairline that carries the job: name, rows done, failures, rate, time left."""

    def __init__(
        self,
        view: SwarmView,
        clock: Clock,
        table: JobTable,
        *,
        id: str | None = None,
        glyphs: Glyphs = UNICODE,
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.table = table
        self.active = False
        self.at: int | None = None

    def lines(self, width: int) -> list[Line]:
        rule, tee = self.glyphs.horizontal, self.glyphs.tee_up
        lead = rule * (self.at or 2)
        line: Line = [(lead + (tee if self.at else rule) + rule + " ", "faint")]
        if self.at and self.at > width // 2:
            line = [(rule * 2 + " ", "faint")]
        job = self.table.state
        if job is None:
            line.append(("no job", "muted"))
        else:
            line += self._job(job, width)
        line.append((" ", "fg"))
        room = width - width_of(line)
        return [[*line, (rule * max(room, 0), "faint")], self.table.heading(width)]

    def _job(self, job: JobState, width: int) -> Line:
        look = row_look(job.status, self.glyphs)
        rate, left = job_rate(job, self.clock.now())
        parts: list[Line] = [
            [
                ("JOB", "teal+b" if self.active else "muted"),
                ("  ", "fg"),
                (text.cut(job.name, width // 4), "fg+b"),
            ],
            [(f"{look.glyph} {look.word}", look.style), *_about(job, width)],
        ]
        done: Line = [(f"{job.done}/{job.total}", "fg")]
        shown = self.table.words()
        if not shown or width >= 140:  # what the table leaves out is more than a picture of the counts
            done += [(" ", "fg"), *progress_bar(job, 12 if width < 100 else 20, self.glyphs)]
        parts.append(done)
        if shown:
            parts.append([(shown, "amber")])
        if job.failed:
            parts.append([(f"{self.glyphs.states['failed']}{job.failed}", "red")])
        if job.running and width >= 140:
            parts.append([(f"{job.running} of {job.concurrency} at work", "muted")])
        if rate and width >= 100:
            parts.append([(f"{rate:.1f}/min", "muted")])
        if left is not None:
            parts.append([(f"eta {duration(left)}", "muted")])
        return join(parts, "  ")


def _about(job: JobState, width: int) -> Line:
    """Who paused it and why, or who asked for its end."""
    if job.cancelling:
        return [(f" cancelling, by {text.one_line(job.cancelling)}", "amber")]
    if job.status != "paused":
        return []
    why = f": {text.one_line(job.pause_reason)}" if job.pause_reason else ""
    return [(text.cut(f" by {text.one_line(job.paused_by)}{why}", width // 4), "amber")]


class Peek(Painted):
    """Two lines about the selected agent, for the layout that shows one pane at a time."""

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.thread: str | None = None

    def lines(self, width: int) -> list[Line]:
        agent = self.view.agent(self.thread)
        if agent is None:
            return [[], []]
        now = self.clock.now()
        look = agent_look(agent, now, self.glyphs)
        since = f"{look.glyph} {look.word} {text.age((now - agent.last_at).total_seconds())} ago "
        what = text.one_line(agent.activity or agent.task)
        name = text.cut(text.one_line(agent.nickname), 16)
        left: Line = [(" ", "fg"), (name, "fg+b"), (f" {self.glyphs.prompt} ", "muted")]
        room = width - width_of(left) - len(since) - 2
        left.append((text.cut(what, max(room, 0)), "fg"))
        last = text.one_line(self.view.streaming.get(agent.thread, "")[-400:] or agent.status_message)
        second: Line = [(" last: ", "muted"), (text.cut(last or "–", width - 9), "muted")]
        if said := why(self.view, agent, now):
            second = [(f" {look.word}: ", "muted"), (text.cut(said, width - 9), "fg")]
        return [spread(left, [(since, look.style.replace("+rb", "+b"))], width), second]


class Tabs(Painted):
    """The panes of the narrow layout; the one on show is in brackets."""

    names = ("agents", "thread", "jobs")

    class Picked(Message):
        def __init__(self, pane: str) -> None:
            super().__init__()
            self.pane = pane

    pane = "agents"

    def lines(self, width: int) -> list[Line]:
        line: Line = []
        for number, name in enumerate(self.names, 1):
            if name == self.pane:
                line.append((f" [{number} {name}]", "teal+b"))
            else:
                line.append((f"  {number} {name} ", "muted"))
        return [spread(line, [("tab next pane ", "muted")], width)]

    def on_click(self, event: events.Click) -> None:
        at = 0
        for name in self.names:
            at += len(name) + 5
            if event.x < at:
                self.post_message(self.Picked(name))
                return
