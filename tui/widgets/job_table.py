"""JobTable: the rows of one job, by page; only pages that are looked at are asked for."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import ClassVar, NamedTuple

from textual.binding import Binding, BindingType
from textual.message import Message

from core.clock import Clock
from core.domain.commands import GetJobOrder, JobOrderPage, JobRow, JobSort
from core.domain.state import JobState
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs, row_look
from tui.paint import Line
from tui.widgets.line_view import LineView

PAGE = 200
ORDER_SECONDS = 1.0
"""Between two questions about the order of a job that goes on."""
FILTERS = ("", "failed", "running", "pending", "completed", "skipped")
SORTS: tuple[JobSort, ...] = ("row", "state", "tries", "time")


class Columns(NamedTuple):
    """Cells per column for one width; 0 leaves a column out."""

    item: int
    agent: int
    result: int


def columns(width: int) -> Columns:
    """The columns of the table; row, state, try and took have fixed widths."""
    room = width - 3 - 6 - 11 - 5 - 9 - 2
    # Names come round again as "the 22nd": in a job of many rows the number is what tells them apart.
    agent = 20 if width >= 110 else 10 if width >= 70 else 0
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
        Binding(
            "v", "filter", "filter", id="job.filter", tooltip="Only failed rows, only running ones, … all"
        ),
        Binding("o", "sort", "order", id="job.sort", tooltip="Order by row, state, tries or time"),
        Binding("O", "reverse", "", show=False, id="job.reverse", tooltip="The other way round"),
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
        """The page of rows that begins at `start`; with a filter or an order they are `rows`."""

        def __init__(self, job: str, start: int, rows: tuple[int, ...] = ()) -> None:
            super().__init__()
            self.job = job
            self.start = start
            self.rows = rows

    class NeedOrder(Message):
        """Which rows there are now, in what order: `arrange` takes the answer."""

        def __init__(self, request: GetJobOrder) -> None:
            super().__init__()
            self.request = request

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.job: str | None = None
        self.riding = True
        """The view stays where the work is until the operator moves in it."""
        self._asked: set[tuple[int, int, int]] = set()
        self.filter = 0
        """Which of FILTERS is on."""
        self.sort = 0
        """Which of SORTS it is; with 0 and no filter the rows are simply there."""
        self.backwards = False
        self._order: list[int] | None = None
        """The rows that are shown, by row_index; None: all, in input order."""
        self._at: dict[int, int] = {}
        """Where each of them stands."""
        self._version = 0
        self._counted: tuple[int, ...] = ()
        """The job's counters when the order was asked for: it is asked for again when they have changed."""
        self._asked_at = float("-inf")
        self._asking = False

    @property
    def state(self) -> JobState | None:
        return self.view.state.jobs.get(self.job) if self.job is not None else None

    def show(self, job: str) -> None:
        if job != self.job:
            self.job = job
            self.cursor_key = None
            self.riding = True
            self._asked.clear()
            self._arrange_anew()
            self.sync()
            self._ride()

    # --- filter and order ----------------------------------------------------------------------------------

    @property
    def arranged(self) -> bool:
        """Whether rows are left out, or not in input order."""
        return bool(self.filter or self.sort or self.backwards)

    def words(self) -> str:
        """What filter and order there are, for people."""
        state = FILTERS[self.filter]
        shown = f"only {row_look(state, self.glyphs).word}" if state else ""
        order = f"by {SORTS[self.sort]}" if self.sort or self.backwards else ""
        return ", ".join(part for part in (shown, order + (" reversed" if self.backwards else "")) if part)

    def action_filter(self) -> None:
        self.filter = (self.filter + 1) % len(FILTERS)
        self._arrange_anew()

    def action_sort(self) -> None:
        self.sort = (self.sort + 1) % len(SORTS)
        self._arrange_anew()

    def action_reverse(self) -> None:
        self.backwards = not self.backwards
        self._arrange_anew()

    def _arrange_anew(self) -> None:
        """Filter or order changed, or the job on show."""
        self._counted = ()
        self._asked_at = float("-inf")
        self._asking = False
        if self.arranged:
            self.riding = False
            self._ask_order()
        else:
            self._put(None)
        self.post_message(self.Scrolled(self))

    def _ask_order(self) -> None:
        """At most once a second, and only when the job has moved on."""
        job, now = self.state, self.clock.monotonic()
        if job is None or self._asking or not self.arranged:
            return
        counted = (self.view.reset, job.pending, job.running, job.completed, job.failed, job.skipped)
        if counted == self._counted or now - self._asked_at < ORDER_SECONDS:
            return
        self._counted, self._asked_at, self._asking = counted, now, True
        status = FILTERS[self.filter]
        request = GetJobOrder(
            swarm=self.view.state.swarm,
            job=job.job,
            status=(status,) if status else (),
            sort=SORTS[self.sort],
            descending=self.backwards,
        )
        self.post_message(self.NeedOrder(request))

    def arrange(self, request: GetJobOrder, page: JobOrderPage | None) -> None:
        """The answer to `NeedOrder`; None: there was none."""
        status = FILTERS[self.filter]
        wanted = ((status,) if status else (), SORTS[self.sort], self.backwards)
        if request.job != self.job or (request.status, request.sort, request.descending) != wanted:
            return
        self._asking = False
        if page is None:
            self._counted = ()
        elif self.arranged:
            self._put(list(page.rows))

    def _put(self, order: list[int] | None) -> None:
        self._order = order
        self._at = {row: index for index, row in enumerate(order or ())}
        self._version += 1
        self.sync()

    def row_key(self, index: int) -> Hashable:
        return self._order[index] if self._order is not None else index

    def index_of(self, key: Hashable) -> int | None:
        if self._order is None:
            return super().index_of(key)
        return self._at.get(key) if isinstance(key, int) else None

    def repaint(self) -> None:
        self._ask_order()
        super().repaint()

    # --- rows ----------------------------------------------------------------------------------------------

    def refresh_rows(self) -> None:
        if self.row_count() != self._count:
            self.sync()
        self._ride()
        self.repaint()

    def _ride(self) -> None:
        """Rows are claimed in order, so the work is where as many rows are over."""
        if self.riding and self.state is not None and self._count and not self.arranged:
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
        if self._order is not None:
            return len(self._order)
        return self.state.total if self.state is not None else 0

    def row_lines(self, index: int, width: int) -> list[Line]:
        row = self._row(index)
        if row is None:
            number = (self._order[index] if self._order is not None else index) + 1
            return [[(" ", "fg"), (f"{number:>8}", "muted"), (f"   {self.glyphs.ellipsis}", "muted")]]
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
        """The names of the columns, over them; of a table that a filter has emptied, that it has."""
        if self.filter and self._order == []:
            word = row_look(FILTERS[self.filter], self.glyphs).word
            return [(f"   no row of this job is {word}; v shows others", "muted")]
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
        row = self._known(index)
        return row is not None and row.status == "failed"

    def row(self) -> JobRow | None:
        """The row under the cursor, if its page is here."""
        return self._row(self.cursor) if self.row_count() else None

    def worker(self) -> str | None:
        """Thread id of the worker of the row under the cursor."""
        row = self.row()
        return row.worker if row is not None else None

    def _known(self, index: int) -> JobRow | None:
        rows = self.view.job_rows.get(self.job or "")
        number = self._order[index] if self._order is not None else index
        return rows.rows.get(number) if rows is not None else None

    def _row(self, index: int) -> JobRow | None:
        row = self._known(index)
        if row is None and self.job is not None:
            start = index - index % PAGE
            if (key := (start, self.view.reset, self._version)) not in self._asked:
                self._asked.add(key)
                some = tuple(self._order[start : start + PAGE]) if self._order is not None else ()
                self.post_message(self.NeedRows(self.job, start, some))
        return row

    def forget(self, start: int) -> None:
        """A page did not come: it may be asked for again."""
        self._asked.discard((start, self.view.reset, self._version))

    def _took(self, row: JobRow) -> str:
        if row.started_at is None:
            return "–"
        started = datetime.fromisoformat(row.started_at)
        if row.ended_at is None:
            return text.running((self.clock.now() - started).total_seconds())
        return text.took((datetime.fromisoformat(row.ended_at) - started).total_seconds())
