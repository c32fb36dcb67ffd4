"""AgentTree: every agent of the swarm below its parent, in spawn order; a job's workers below the job."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import NamedTuple

from rich.cells import cell_len

from core.clock import Clock
from core.domain.state import AgentState, JobState
from core.domain.status import Spending, Usage
from core.view import words
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs, agent_look, agent_state, row_look
from tui.paint import Line, width_of
from tui.widgets.line_view import LineView

MAX_GUIDES = 8
REASON = 24
"""Cells that are enough for the reason of a wait or a failure."""


class Node(NamedTuple):
    key: str
    """Thread id of an agent, `job:<id>` of a job."""
    depth: int
    below: int
    """Rows that unfolding shows."""
    open: bool


def job_key(job: str) -> str:
    return f"job:{job}"


class AgentTree(LineView):
    """Keys are thread ids and `job:<id>`. Jobs start folded, agents unfolded."""

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self._flat: list[Node] = []
        self._places: dict[str, int] = {}
        self._turned: set[str] = set()
        """Keys whose fold is not the default one."""
        self._children: dict[str, list[str]] = {}
        self._known: tuple[int, int, int] = (-1, -1, -1)
        self._sums: tuple[tuple[int, int], dict[str, tuple[Usage | None, Spending]]] = ((-1, -1), {})

    def refresh_rows(self) -> None:
        """The swarm changed: build the rows again if agents or jobs came, else only repaint."""
        state = self.view.state
        known = (self.view.reset, len(state.agents), len(state.jobs))
        if known != self._known:
            self._known = known
            self._children = self._family()
            self._flatten()
        else:
            self.repaint()

    def _family(self) -> dict[str, list[str]]:
        state = self.view.state
        children: dict[str, list[str]] = {"": []}
        for agent in state.agents.values():
            parent = agent.parent if agent.parent in state.agents else ""
            if agent.job in state.jobs:
                parent = job_key(str(agent.job))
            children.setdefault(parent or "", []).append(agent.thread)
        for job in state.jobs.values():
            owner = job.owner if job.owner in state.agents else ""
            children.setdefault(owner or "", []).append(job_key(job.job))
        return children

    def _flatten(self) -> None:
        place = self._place()
        nodes: list[Node] = []
        stack = [(key, 0) for key in reversed(self._children[""])]
        while stack:
            key, depth = stack.pop()
            below = self._children.get(key, [])
            is_open = key.startswith("job:") == (key in self._turned)
            nodes.append(Node(key, depth, len(below), is_open))
            if is_open:
                stack.extend((child, depth + 1) for child in reversed(below))
        self._flat = nodes
        self._places = {node.key: index for index, node in enumerate(nodes)}
        self._sync(0, place)

    # --- rows ----------------------------------------------------------------------------------------------

    def row_count(self) -> int:
        return len(self._flat)

    def row_key(self, index: int) -> Hashable:
        return self._flat[index].key

    def index_of(self, key: Hashable) -> int | None:
        return self._places.get(key) if isinstance(key, str) else None

    def row_lines(self, index: int, width: int) -> list[Line]:
        node = self._flat[index]
        now = self.clock.now()
        guides = self.glyphs.guide + " "
        line: Line = [(" ", "fg"), (guides * min(node.depth, MAX_GUIDES), "faint")]
        fold = (self.glyphs.unfold if node.open else self.glyphs.folded) if node.below else " "
        line.append((fold + " ", "muted"))
        if node.key.startswith("job:"):
            job = self.view.state.jobs.get(node.key[4:])
            return [self._job(line, job, width) if job is not None else line]
        agent = self.view.state.agents.get(node.key)
        return [self._agent(line, agent, node, now, width) if agent is not None else line]

    def _agent(self, line: Line, agent: AgentState, node: Node, now: datetime, width: int) -> Line:
        look = agent_look(agent, now, self.glyphs)
        quiet = look.style in ("muted", "violet", "muted+i")
        line.append((look.glyph, look.style))
        wide = width >= 44
        name_to = 21 if wide else 17
        name = agent.nickname if node.open or not node.below else f"{agent.nickname} +{node.below}"
        used = width_of(line) + 1
        name_cells = max(name_to - used, 5)
        line.append((" " + text.fit(name, name_cells) + " ", "muted" if quiet else "fg"))
        style = look.style.replace("+rb", "+b") if look.style != "muted+i" else "muted+i"
        line.append((text.fit(look.word, 7) + " ", style))
        if not wide and agent.wait is not None and not agent.asks:
            # No room for both: that it waits is in the glyph, and why it does in the place of the measures.
            line[-1] = (text.fit(self._detail(agent), max(width - used - name_cells - 2, 0)), style)
            return [*line, (" ", "fg")]
        age: Line = [(text.fit(text.age(self._seconds(agent, now)), 4, right=True), "muted")]
        tail: Line = [*age, *self._used(agent, node, wide=wide), (" ", "fg")]
        room = width - width_of(line) - width_of(tail)
        said = self._detail(agent)
        if wide and room <= REASON and cell_len(said) >= room and look.word in ("waits", "queued", "failed"):
            tail = tail[-2:]  # why it does not go on says more than how long and how much so far
            room = width - width_of(line) - width_of(tail)
        detail = text.fit(said, max(room - 1, 0)) + " " if room > 3 else " " * max(room, 0)
        return [*line, (detail, "red" if agent.status == "errored" else "muted"), *tail]

    def _used(self, agent: AgentState, node: Node, *, wide: bool) -> Line:
        """Tokens, and in a wide tree the cost if prices are known; of a folded row with all below it."""
        tokens, spending = agent.tokens, agent.spending
        if node.below and not node.open:
            tokens, spending = self._subtrees().get(agent.thread, (tokens, spending))
        line: Line = [(text.fit(text.count(tokens.total) if tokens else "", 5 + wide, right=True), "muted")]
        if wide and self.view.state.spending.priced:
            line.append((text.fit(words.cost(spending), 8, right=True), "muted"))
        return line

    def _subtrees(self) -> dict[str, tuple[Usage | None, Spending]]:
        """The sums of all subtrees, made once for each state of the swarm."""
        now = (self.view.reset, self.view.state.seq)
        if self._sums[0] != now:
            self._sums = (now, self.view.state.subtrees())
        return self._sums[1]

    def _job(self, line: Line, job: JobState, width: int) -> Line:
        look = row_look(job.status, self.glyphs)
        line.append((look.glyph + " ", look.style))
        tail = f"{job.done}/{job.total}"
        failed = f" {self.glyphs.states['failed']}{job.failed}" if job.failed else ""
        room = width - width_of(line) - len(tail) - len(failed) - 2
        line.append((text.fit(f"job {job.name}", room) + " ", "fg" if not job.ended else "muted"))
        return [*line, (tail, "muted"), (failed, "red"), (" ", "fg")]

    def _seconds(self, agent: AgentState, now: datetime) -> float:
        end = now if agent.live or agent.asks else agent.last_at
        return (end - agent.started_at).total_seconds()

    def _detail(self, agent: AgentState) -> str:
        """The one thing to know about an agent beyond its state."""
        if agent.asks:
            for approval in self.view.state.approvals.values():
                if approval.thread == agent.thread:
                    return text.one_line(approval.command)
        if agent.wait is not None:
            return words.waits_for(agent.wait, self.view.place(agent.thread), self.clock.now())
        if said := words.outcome(agent):
            return said
        return text.one_line(agent.activity.removeprefix("exec_command ") or agent.task)

    # --- moves ---------------------------------------------------------------------------------------------

    def thread(self) -> str | None:
        """Thread id of the agent under the cursor; None on a job or in an empty tree."""
        key = self.cursor_key
        return key if isinstance(key, str) and not key.startswith("job:") else None

    def parent_key(self, key: str) -> str | None:
        """Key of the row above in the lineage."""
        for parent, children in self._children.items():
            if parent and key in children:
                return parent
        return None

    def reveal(self, key: str) -> bool:
        """Put the cursor on a row, unfolding what hides it."""
        hidden = False
        parent = self.parent_key(key)
        while parent is not None:
            if (parent in self._turned) != parent.startswith("job:"):
                self._turned ^= {parent}
                hidden = True
            parent = self.parent_key(parent)
        if hidden:
            self._flatten()
        return self.select(key)

    def failed(self, index: int) -> bool:
        agent = self.view.state.agents.get(self._flat[index].key)
        return agent is not None and agent_state(agent, self.clock.now()) == "failed"

    def _turn(self, key: str) -> None:
        self._turned ^= {key}
        self._flatten()

    def action_fold(self) -> None:
        if not self._flat:
            return
        node = self._flat[self.cursor]
        if node.below and node.open:
            self._turn(node.key)
        elif (parent := self.parent_key(node.key)) is not None:
            self._set_cursor(self._places[parent])

    def action_unfold(self) -> None:
        if not self._flat:
            return
        node = self._flat[self.cursor]
        if node.below and not node.open:
            self._turn(node.key)
        elif node.below:
            self.action_move(1)
