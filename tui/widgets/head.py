"""The head: the swarm in one line, and the counts and measures that other lines share with it."""

from __future__ import annotations

from datetime import datetime

from core.clock import Clock
from core.domain.state import JobState
from core.view import budget, words
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, WORST, Glyphs, agent_look, agent_state
from tui.paint import Line, spread, width_of
from tui.progress import duration
from tui.widgets.painted import Painted

GAP = "   "
NAMES_CELLS = 20
"""Of the names of servers that are down; more of them are counted."""


def join(parts: list[Line], gap: str = GAP) -> Line:
    """`parts` in one line with a gap between them."""
    line: Line = []
    for part in parts:
        if line:
            line.append((gap, "fg"))
        line += part
    return line


def state_counts(view: SwarmView, now: datetime) -> dict[str, int]:
    """How many agents are in each state."""
    counts = dict.fromkeys(WORST, 0)
    for agent in view.state.agents.values():
        counts[agent_state(agent, now)] += 1
    return counts


def job_rate(job: JobState, now: datetime) -> tuple[float, float | None]:
    """Rows per minute since it went on last, and the seconds that are left at that rate (None: unknown or
    over). A job that is paused has neither."""
    done = job.done - job.pace_done
    if job.pace_from is None or done <= 0 or job.status == "paused":
        return 0.0, None
    seconds = max(((job.ended_at or now) - job.pace_from).total_seconds(), 0.1)
    rate = done / seconds
    left = None if job.ended else (job.total - job.done) / rate
    return rate * 60, left


class HeadLine(Painted):
    """The swarm in one line: title, state and clock, counts, tokens, job, what is unusual about it."""

    ground = "panel"

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.trouble = ""
        """One sentence that stays: the engine is gone, the feed ended."""
        self.job: str | None = None

    def lines(self, width: int) -> list[Line]:
        state = self.view.state
        now = self.clock.now()
        wide = width >= 140
        label = "SWARM  " if wide else ""
        if not state.swarm:
            words = self.trouble or "starting" + self.glyphs.ellipsis
            return [[(f" {label}", "muted"), (words, "amber" if self.trouble else "muted")]]
        gap = "      " if wide else GAP
        title = text.cut(text.one_line(state.title) or "swarm", max(width // 4, 12))
        left: Line = [(f" {label}", "muted"), (title, "fg+b"), (gap, "fg"), *self._status(now)]
        if self.trouble:
            room = width - width_of(left) - len(gap) - 1
            return [[*left, (gap, "fg"), (text.cut(text.one_line(self.trouble), max(room, 0)), "amber+b")]]
        right = self._warnings()
        parts = [self._counts(now, narrow=width < 100), self._used(width), self._job(now, width)]
        for part in parts:
            if part and width_of(left) + len(gap) + width_of(part) + width_of(right) < width - 1:
                left = [*left, (gap, "fg"), *part]
        return [spread(left, [*right, (" ", "fg")], width)]

    def _status(self, now: datetime) -> Line:
        state = self.view.state
        root = self.view.agent(state.root)
        live = any(agent.live for agent in state.agents.values())
        busy = live or any(not job.ended for job in state.jobs.values())
        end = now if busy else state.last_at
        clock = text.running((end - state.started_at).total_seconds())
        if self.trouble and busy:
            return [(f"{self.glyphs.states['lost']} ", "amber"), (clock, "fg")]
        if busy:
            glyph, word, style = self.glyphs.states["running"], "running", "teal"
        elif root is None:
            return [("starting" + self.glyphs.ellipsis, "muted")]
        else:
            glyph, word, style = agent_look(root, now, self.glyphs)
        return [(f"{glyph} {word} ", style), (clock, "fg")]

    def _counts(self, now: datetime, *, narrow: bool) -> Line:
        counts = state_counts(self.view, now)
        live = sum(counts[name] for name in ("running", "waiting", "queued", "lost", "asks"))
        line: Line = [(f"{live} live", "teal" if live else "muted")]
        shown = (("asks", "needs you", "amber+b"), ("done", "done", "muted"), ("failed", "failed", "red"))
        for name, word, style in shown:
            if counts[name] and narrow and name != "done":
                line.append((f" {self.glyphs.states[name]}{counts[name]}", style))
            elif counts[name] and not narrow:
                line += [(f" {self.glyphs.dot} ", "muted"), (f"{counts[name]} {word}", style)]
        return line

    def _used(self, width: int) -> Line:
        """Tokens and cost, each with its limit if there is one."""
        state = self.view.state
        bounds = {limit.kind: limit for limit in budget.limits(state)}
        unit = " tok" if width >= 140 else ""
        parts: list[Line] = []
        if (tokens := bounds.get("tokens")) is not None:
            amounts = f"{text.count(int(tokens.used))}/{text.count(int(tokens.limit))}{unit}"
            parts.append(_bounded(amounts, tokens))
        elif state.tokens is not None:
            parts.append([(text.count(state.tokens.total) + unit, "fg")])
        if (money := bounds.get("cost")) is not None:
            parts.append(_bounded(f"{words.dollars(money.used)}/{words.dollars(money.limit)}", money))
        elif width >= 100 and (cost := words.cost(state.spending)):
            parts.append([(cost, "muted" if cost == words.UNKNOWN else "fg")])
        return join(parts, "  ")

    def _job(self, now: datetime, width: int) -> Line:
        job = self.view.state.jobs.get(self.job or "")
        if job is None or job.total == 0:
            return []
        line: Line = [("job ", "muted"), (f"{job.done}/{job.total}", "fg")]
        if width >= 140:
            line += [(" ", "fg"), *progress_bar(job, 8, self.glyphs)]
        _, left = job_rate(job, now)
        if left is not None and width >= 100:
            line.append((f"  eta {duration(left)}", "muted"))
        return line

    def _warnings(self) -> Line:
        found: list[Line] = []
        if trouble := self._servers():
            found.append([(f"{self.glyphs.states['failed']} mcp {trouble}", "red")])
        if self.view.state.seq and not self.view.state.sandboxed:
            found.append([("no sandbox", "amber")])
        return join(found, "  ")

    def _servers(self) -> str:
        """Which MCP server does not serve, or how many do not."""
        servers = self.view.state.servers.values()
        bad = {server.server: server.status for server in servers if server.status in words.TROUBLE}
        if len(bad) > 1:
            names = ", ".join(text.one_line(name) for name in bad)
            return f"{names if len(names) <= NAMES_CELLS else f'{len(bad)} servers'} down"
        return " ".join(f"{text.cut(text.one_line(name), 16)} {status}" for name, status in bad.items())


def _bounded(amounts: str, limit: budget.Limit) -> Line:
    """What is used of a limit: from 80 % on with the share, and in another colour."""
    if limit.share < 0.8:
        return [(amounts, "fg")]
    style = "red+b" if limit.share >= 1 else "amber"
    return [(f"{amounts} {int(min(limit.share, 9.99) * 100)}%", style)]


def progress_bar(job: JobState, cells: int, glyphs: Glyphs) -> Line:
    done = job.done * cells // job.total if job.total else 0
    failed = min(done, -(-job.failed * cells // job.total)) if job.total else 0
    return [
        (glyphs.bar * (done - failed), "muted" if job.ended else "teal"),
        (glyphs.bar * failed, "red"),
        (glyphs.rest * (cells - done), "faint"),
    ]
