"""JobTable: the rows of one job, by page; only pages that are looked at are asked for."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, NamedTuple

from textual.binding import Binding, BindingType
from textual.message import Message

from core.clock import Clock
from core.domain.commands import JobRow
from core.domain.state import JobState
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs, row_look
from tui.paint import Line
from tui.widgets.line_view import LineView

PAGE = 200


class Columns(NamedTuple):
    """Cells per column for one width; 0 leaves a column out."""

    item: int
    agent: int
    result: int


def columns(width: int) -> Columns:
    """The columns of the table; row, state, try and took have fixed widths."""
    room = width - 3 - 6 - 11 - 5 - 9 - 2
    agent = 10 if width >= 70 else 0
    item = max(min(26, (room - agent) // 2), 8)
    return Columns(item, agent, max(room - agent - item, 0))


class JobTable(LineView):
    """Keys are row_index. `NeedRows` asks its owner for the page that starts at `start`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "screen.job('pause')", "pause", id="job.pause", tooltip="Pause the job, or go on"),
        Binding("r", "screen.job('retry')", "retry", id="job.retry", tooltip="Retry this row, or all failed"),
        Binding(
            "s", "screen.job('skip')", "skip", show=False, id="job.skip", tooltip="Leave this row undone"
        ),
        Binding("x", "screen.job('cancel')", "cancel", id="job.cancel", tooltip="Cancel the job"),
        Binding(
            "plus",
            "screen.job('more')",
            "more",
            show=False,
            key_display="+",
            id="job.more",
            tooltip="More rows at a time",
        ),
        Binding(
            "minus",
            "screen.job('fewer')",
            "fewer",
            show=False,
            key_display="-",
            id="job.fewer",
            tooltip="Fewer rows at a time",
        ),
    ]

    class NeedRows(Message):
        def __init__(self, job: str, start: int) -> None:
            super().__init__()
            self.job = job
            self.start = start

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.job: str | None = None
        self.riding = True
        """The view stays where the work is until the operator moves in it."""
        self._asked: set[tuple[int, int]] = set()

    @property
    def state(self) -> JobState | None:
        return self.view.state.jobs.get(self.job) if self.job is not None else None

    def show(self, job: str) -> None:
        if job != self.job:
            self.job = job
            self.cursor_key = None
            self.riding = True
            self._asked.clear()
            self.sync()
            self._ride()

    def refresh_rows(self) -> None:
        if self.row_count() != self._count:
            self.sync()
        self._ride()
        self.repaint()

    def _ride(self) -> None:
        """Rows are claimed in order, so the work is where as many rows are over."""
        if self.riding and self.state is not None and self._count:
            self._cursor = min(self.state.done, self._count - 1)
            self.cursor_key = self.row_key(self._cursor)
            self._scroll(self._cursor - self.size.height // 2)

    def ride(self) -> None:
        """Go back to where the work is, and stay there."""
        self.riding = True
        self.refresh_rows()

    def _set_cursor(self, index: int, *, tell: bool = True, show: bool = True) -> None:
        self.riding = False
        super()._set_cursor(index, tell=tell, show=show)

    def _wheel(self, lines: int) -> None:
        self.riding = False
        super()._wheel(lines)

    def _cursor_shown(self) -> bool:
        return self.has_focus

    def row_count(self) -> int:
        return self.state.total if self.state is not None else 0

    def row_lines(self, index: int, width: int) -> list[Line]:
        row = self._row(index)
        if row is None:
            return [[(" ", "fg"), (f"{index + 1:>8}", "muted"), (f"   {self.glyphs.ellipsis}", "muted")]]
        look = row_look(row.status, self.glyphs)
        item, agent, result = columns(width)
        quiet = "muted" if row.status in ("completed", "pending", "skipped") else "fg"
        outcome, style = (row.error, "red") if row.error else (row.result or "", "fg")
        line: Line = [
            (" ", "fg"),
            (look.glyph, look.style),
            (f"{row.row_index + 1:>6}  ", "muted"),
            (text.fit(text.one_line(row.label or row.source_id or row.item), item - 1) + " ", quiet),
        ]
        if agent:
            line.append((text.fit(self.view.name_of(row.worker) or "–", agent - 1) + " ", quiet))
        line += [
            (text.fit(look.word, 10) + " ", look.style),
            (text.fit(str(row.attempt) if row.attempt else "–", 4, right=True) + " ", "muted"),
            (text.fit(self._took(row), 8, right=True) + "  ", "muted"),
            (text.cut(text.one_line(outcome), max(result - 1, 0)), style),
        ]
        return [line]

    def heading(self, width: int) -> Line:
        """The names of the columns, over them."""
        item, agent, result = columns(width)
        return [
            (f"  {'row':>6}  ", "muted"),
            (text.fit("item", item), "muted"),
            (text.fit("agent", agent) if agent else "", "muted"),
            (text.fit("state", 11), "muted"),
            (text.fit("try", 4, right=True) + " ", "muted"),
            (text.fit("took", 8, right=True) + "  ", "muted"),
            (text.fit("result", max(result, 0)), "muted"),
        ]

    def failed(self, index: int) -> bool:
        rows = self.view.job_rows.get(self.job or "")
        row = rows.rows.get(index) if rows is not None else None
        return row is not None and row.status == "failed"

    def row(self) -> JobRow | None:
        """The row under the cursor, if its page is here."""
        return self._row(self.cursor) if self.row_count() else None

    def worker(self) -> str | None:
        """Thread id of the worker of the row under the cursor."""
        row = self.row()
        return row.worker if row is not None else None

    def _row(self, index: int) -> JobRow | None:
        rows = self.view.job_rows.get(self.job or "")
        row = rows.rows.get(index) if rows is not None else None
        if row is None and self.job is not None:
            start = index - index % PAGE
            if (start, self.view.reset) not in self._asked:
                self._asked.add((start, self.view.reset))
                self.post_message(self.NeedRows(self.job, start))
        return row

    def forget(self, start: int) -> None:
        """A page did not come: it may be asked for again."""
        self._asked.discard((start, self.view.reset))

    def _took(self, row: JobRow) -> str:
        if row.started_at is None:
            return "–"
        started = datetime.fromisoformat(row.started_at)
        if row.ended_at is None:
            return text.running((self.clock.now() - started).total_seconds())
        return text.took((datetime.fromisoformat(row.ended_at) - started).total_seconds())
