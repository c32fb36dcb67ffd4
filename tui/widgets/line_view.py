"""LineView: the one list widget. Tree, transcript and job table are LineViews.

Rows are numbered, have a key that survives inserts, and a height in lines; only visible rows are ever
rendered, so 100,000 rows scroll like 100. Nothing is mounted per row. What is on the screen is remembered
per line: a refresh renders the visible rows again and repaints only the lines that differ.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line, paint
from tui.themes import Palette, palette

WHEEL_LINES = 3
MOVE = Binding.Group("move", compact=True)
FOLD = Binding.Group("fold", compact=True)


class LineView(ScrollView, can_focus=True):
    """Base of all lists. Subclasses give rows; owners call `sync` when rows changed, `repaint` when only
    what they show may have (a second passed, an agent moved on)."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "move", key_display="j", id="move.down", group=MOVE, tooltip="Next row"),
        Binding(
            "k,up", "move(-1)", "move", key_display="k", id="move.up", group=MOVE, tooltip="Previous row"
        ),
        Binding(
            "ctrl+d", "page(0.5)", "half page", show=False, id="move.half_down", tooltip="Half a page down"
        ),
        Binding("ctrl+u", "page(-0.5)", "half page", show=False, id="move.half_up", tooltip="Half a page up"),
        Binding("pagedown", "page(1)", "page", show=False, id="move.page_down", tooltip="A page down"),
        Binding("pageup", "page(-1)", "page", show=False, id="move.page_up", tooltip="A page up"),
        Binding("g,home", "first", "first", show=False, id="move.first", tooltip="First row"),
        Binding("G,end", "last", "last", show=False, id="move.last", tooltip="Last row; follow again"),
        Binding(
            "h,left", "fold", "fold", key_display="h", id="fold", group=FOLD, tooltip="Fold, or to parent"
        ),
        Binding("l,right", "unfold", "fold", key_display="l", id="unfold", group=FOLD, tooltip="Unfold"),
        Binding("enter", "open", "open", id="open", tooltip="Open the row under the cursor"),
    ]
    DEFAULT_CSS = """
    LineView { overflow: hidden hidden; scrollbar-size: 0 0; background: $background; }
    """
    ALLOW_SELECT = False

    ground: ClassVar[str] = "bg"
    follows: ClassVar[bool] = False
    """Whether the end is what matters: such a view follows it until the operator moves away."""
    uniform: ClassVar[bool] = True
    """Every row is one line high; then no height is measured."""

    class Moved(Message):
        """The operator moved the cursor to `key`."""

        def __init__(self, view: LineView, key: Hashable) -> None:
            super().__init__()
            self.view = view
            self.key = key

    class Opened(Message):
        """The operator opened the row `key` (enter, or a click on the row under the cursor)."""

        def __init__(self, view: LineView, key: Hashable) -> None:
            super().__init__()
            self.view = view
            self.key = key

    class Scrolled(Message):
        """What is visible changed: other rows, or the follow mode."""

        def __init__(self, view: LineView) -> None:
            super().__init__()
            self.view = view

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, LineView.Scrolled) and message.view is self.view

    def __init__(self, *, id: str | None = None, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.cursor_key: Hashable | None = None
        self.following = self.follows
        self.rows_rendered = 0
        """How many rows were rendered, ever; tests count it."""
        self._cursor = 0
        self._count = 0
        self._bottoms: list[int] = []
        self._measured_width = -1
        self._seen_last: Hashable | None = None
        self._shown: dict[int, tuple[Line, int]] = {}
        self._memo: dict[int, list[Line]] = {}

    # --- rows: what subclasses give ------------------------------------------------------------------------

    def row_count(self) -> int:
        return 0

    def row_key(self, index: int) -> Hashable:
        """A key that the row keeps when others come before it."""
        return index

    def index_of(self, key: Hashable) -> int | None:
        """Where the row is now; None when it is gone."""
        return key if isinstance(key, int) and key < self.row_count() else None

    def row_height(self, index: int, width: int) -> int:
        return 1

    def row_lines(self, index: int, width: int) -> list[Line]:
        """Exactly `row_height` lines. Column 0 is the cursor's: leave it to a blank."""
        raise NotImplementedError

    def last_row(self) -> int:
        """Index of the last row that counts as one; -1 if there is none."""
        return self._count - 1

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def palette(self) -> Palette:
        return palette(self.app.theme)

    @property
    def cursor(self) -> int:
        """Index of the row under the cursor; 0 also when there is none."""
        return self._cursor

    @property
    def below(self) -> int:
        """Rows that came below since the operator moved away from the end."""
        if self.following or self._seen_last is None:
            return 0
        seen = self.index_of(self._seen_last)
        return max(self.last_row() - seen, 0) if seen is not None else 0

    @property
    def total_lines(self) -> int:
        if self.uniform:
            return self._count
        return self._bottoms[-1] if self._bottoms else 0

    def visible_rows(self) -> range:
        """Indexes of the rows of which at least one line is visible."""
        if not self._count:
            return range(0)
        top = self.scroll_offset.y
        first = self._row_at(top)
        return range(first, self._row_at(min(top + max(self.size.height, 1), self.total_lines) - 1) + 1)

    def _top(self, index: int) -> int:
        if self.uniform:
            return index
        return self._bottoms[index - 1] if index else 0

    def _bottom(self, index: int) -> int:
        return index + 1 if self.uniform else self._bottoms[index]

    def _row_at(self, line: int) -> int:
        if self.uniform:
            return min(max(line, 0), max(self._count - 1, 0))
        return min(bisect_right(self._bottoms, line), max(self._count - 1, 0))

    # --- change --------------------------------------------------------------------------------------------

    def sync(self, changed_from: int = 0) -> None:
        """Rows from `changed_from` on changed, came or went. Keeps what the operator looks at in place."""
        self._sync(changed_from, self._place())

    def _sync(self, changed_from: int, place: tuple[Hashable, int] | None) -> None:
        self._memo.clear()
        self._measure(changed_from)
        self.set_reactive(Widget.virtual_size, Size(self.size.width, self.total_lines))
        if self.following:
            self._cursor = max(self._count - 1, 0)
        elif self.cursor_key is not None and (index := self.index_of(self.cursor_key)) is not None:
            self._cursor = index
        self._cursor = min(self._cursor, max(self._count - 1, 0))
        self.cursor_key = self.row_key(self._cursor) if self._count else None
        self._restore(place)
        self.repaint()

    def _measure(self, changed_from: int) -> None:
        width = self.size.width
        self._count = self.row_count()
        if self.uniform:
            return
        if width != self._measured_width:
            changed_from, self._measured_width = 0, width
        changed_from = min(changed_from, len(self._bottoms))
        del self._bottoms[changed_from:]
        bottom = self._bottoms[-1] if self._bottoms else 0
        for index in range(changed_from, self._count):
            bottom += self.row_height(index, width)
            self._bottoms.append(bottom)

    def _place(self) -> tuple[Hashable, int] | None:
        """The row at the top of the view and how many of its lines are above: what must stay in place."""
        top = self.scroll_offset.y
        if not self._count or (not self.uniform and not self._bottoms):
            return None
        index = self._row_at(top)
        try:
            return self._anchor_key(index), top - self._top(index)
        except (IndexError, KeyError):
            return None

    def _anchor_key(self, index: int) -> Hashable:
        """The key of a row as it was at the last sync (rows may have changed since)."""
        return self.row_key(index)

    def _restore(self, place: tuple[Hashable, int] | None) -> None:
        if self.following:
            self._scroll(self._max_scroll())
            return
        index = self.index_of(place[0]) if place is not None else None
        if place is not None and index is not None and index < self._count:
            self._scroll(self._top(index) + place[1])
        else:
            self._scroll(self.scroll_offset.y)

    def repaint(self) -> None:
        """Render the visible lines again and repaint those that differ."""
        self._memo.clear()
        for y in range(self.size.height):
            if self._shown.get(y) != self._content(y):
                self.refresh(Region(0, y, self.size.width, 1))

    def restyle(self) -> None:
        """Repaint all: the theme or the glyphs changed."""
        self._shown.clear()
        self._memo.clear()
        self.refresh()

    def _max_scroll(self) -> int:
        return max(self.total_lines - self.size.height, 0)

    def _scroll(self, line: int) -> None:
        line = min(max(line, 0), self._max_scroll())
        if line != self.scroll_offset.y:
            self.scroll_to(y=line, animate=False, force=True)
            self.post_message(self.Scrolled(self))

    # --- painting ------------------------------------------------------------------------------------------

    def _content(self, y: int) -> tuple[Line, int]:
        """The line at `y` of the view, and how it is marked: 0 plain, 1 under the cursor, 2 with focus,
        3 a further line of the row under the cursor."""
        line = y + self.scroll_offset.y
        if line >= self.total_lines:
            return [], 0
        index = self._row_at(line)
        lines = self._memo.get(index)
        if lines is None:
            lines = self._memo[index] = self.row_lines(index, self.size.width)
            self.rows_rendered += 1
        offset = line - self._top(index)
        mark = 0
        if index == self._cursor and self._cursor_shown():
            mark = 3 if offset else 2 if self.has_focus else 1
        return (lines[offset] if offset < len(lines) else []), mark

    def _cursor_shown(self) -> bool:
        return self.has_focus or not self.follows

    def render_line(self, y: int) -> Strip:
        if y == 0:
            self._memo.clear()
        content = self._shown[y] = self._content(y)
        line, mark = content
        override: Style | None = None
        ground = self.ground
        if mark == 2:
            override = self.palette.selected()
        elif mark:
            ground = "panel"
        if mark in (1, 2) and line:
            first, style = line[0]
            line = [(">", "teal+b" if mark == 1 else "fg"), (first[1:], style), *line[1:]]
        return paint(
            line, self.size.width, self.palette, ground=ground, override=override, plain=self.glyphs.plain
        )

    # --- the operator moves --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop following the end; rows that come from now on are counted as `below`."""
        if self.follows and self.following:
            self.following = False
            self._seen_last = self.row_key(self.last_row()) if self.last_row() >= 0 else None
            self.post_message(self.Scrolled(self))

    def resume(self) -> None:
        """Follow the end again."""
        if self.follows:
            self.following = True
            self._seen_last = None
        self._set_cursor(self._count - 1)
        self._scroll(self._max_scroll())
        self.post_message(self.Scrolled(self))

    def select(self, key: Hashable) -> bool:
        """Put the cursor on a row and show it. False when there is no such row."""
        index = self.index_of(key)
        if index is None:
            return False
        if index < self._count - 1:
            self.pause()
        self._set_cursor(index, tell=False)
        return True

    def _set_cursor(self, index: int, *, tell: bool = True, show: bool = True) -> None:
        index = min(max(index, 0), max(self._count - 1, 0))
        key = self.row_key(index) if self._count else None
        moved = key != self.cursor_key
        self._cursor, self.cursor_key = index, key
        if self._count and show:
            self._show_row(index)
        self.repaint()
        if moved and tell and key is not None:
            self.post_message(self.Moved(self, key))

    def _show_row(self, index: int) -> None:
        top, bottom = self._top(index), self._bottom(index)
        height = self.size.height
        if top < self.scroll_offset.y or bottom - top >= height:
            self._scroll(top)
        elif bottom > self.scroll_offset.y + height:
            self._scroll(bottom - height)

    def action_move(self, step: int) -> None:
        """One row on. A row taller than the view is read line by line before the next one comes."""
        if not self._count:
            return
        top, height = self.scroll_offset.y, self.size.height
        if step > 0 and self._bottom(self._cursor) > top + height:
            self._scroll(top + 1)
            self.repaint()
        elif step < 0 and self._top(self._cursor) < top < self._bottom(self._cursor):
            self.pause()
            self._scroll(top - 1)
            self.repaint()
        else:
            if step < 0 and self._count > 1:
                self.pause()
            self._set_cursor(self._cursor + step)

    def action_page(self, pages: float) -> None:
        """Move the view and the cursor by a share of its height."""
        if not self._count:
            return
        lines = int(self.size.height * pages) or (1 if pages > 0 else -1)
        if lines < 0:
            self.pause()
        top = self.scroll_offset.y
        at = min(max(self._top(self._cursor) - top, 0), self.size.height - 1)
        self._scroll(top + lines)
        moved = self.scroll_offset.y - top
        if abs(moved) < abs(lines):  # at the end the cursor goes on alone
            at = min(max(at + lines - moved, 0), self.size.height - 1)
        line = min(self.scroll_offset.y + at, self.total_lines - 1)
        self._set_cursor(self._row_at(line), show=False)

    def action_first(self) -> None:
        if self._count > 1:
            self.pause()
        self._set_cursor(0)
        self._scroll(0)

    def action_last(self) -> None:
        self.resume()

    def action_fold(self) -> None:
        """Subclasses fold; a flat list has nothing to fold."""

    def action_unfold(self) -> None:
        """Subclasses unfold."""

    def action_open(self) -> None:
        if self.cursor_key is not None:
            self.post_message(self.Opened(self, self.cursor_key))

    # --- events --------------------------------------------------------------------------------------------

    def on_resize(self, event: events.Resize) -> None:
        place = self._place()
        self._shown.clear()
        self._sync(0 if not self.uniform else self._count, place)
        if not self.following and self._count and self.has_focus:
            self._show_row(self._cursor)

    def on_focus(self) -> None:
        self.repaint()

    def on_blur(self) -> None:
        self.repaint()

    def _wheel(self, lines: int) -> None:
        if lines < 0 and self._max_scroll():
            self.pause()
        self._scroll(self.scroll_offset.y + lines)
        self.repaint()

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        event.prevent_default()
        self._wheel(WHEEL_LINES)

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        event.prevent_default()
        self._wheel(-WHEEL_LINES)

    def on_click(self, event: events.Click) -> None:
        line = event.y + self.scroll_offset.y
        if line >= self.total_lines:
            return
        index = self._row_at(line)
        if index == self._cursor and self._cursor_shown():
            self.action_open()
            return
        if index < self._count - 1:
            self.pause()
        self._set_cursor(index)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self._memo.clear()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._shown.clear()


def jump(view: LineView, found: Callable[[int], bool], step: int) -> bool:
    """Move the cursor to the next row after it (or before, `step` -1), round the end, for which
    `found(index)` is true. False when there is none."""
    count = view.row_count()
    for offset in range(1, count + 1):
        index = (view.cursor + step * offset) % count
        if found(index):
            if index != view.cursor or view.following:
                view.select(view.row_key(index))
                view.post_message(LineView.Moved(view, view.row_key(index)))
            return True
    return False
