"""Transcript: one agent's history. Calls fold and unfold to their result events; the end is followed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from datetime import datetime, tzinfo
from typing import ClassVar

from textual.message import Message

from core.clock import Clock
from core.domain.state import AgentState
from core.view.swarm import SwarmView
from core.view.transcript import Row
from core.view.transcript import Transcript as Rows
from tui.glyphs import UNICODE, Glyphs, agent_look
from tui.paint import Line
from tui.widgets.bars import why
from tui.widgets.line_view import LineView
from tui.widgets.transcript_lines import FOLDED, FULL, OPEN, Setting, default_fold, message_lines, row_lines

STREAM = "stream"
"""Key of the last row while an answer is being written."""
STREAM_CHARS = 8_000


class Transcript(LineView):
    """Keys are the seq of a row. `show` says whose rows of the view, `refresh_rows` that they changed."""

    follows: ClassVar[bool] = True
    uniform: ClassVar[bool] = False

    class NeedOlder(Message):
        """The operator is near the first loaded row and older ones exist."""

    def __init__(
        self,
        view: SwarmView,
        clock: Clock,
        tz: tzinfo | None = None,
        *,
        id: str | None = None,
        glyphs: Glyphs = UNICODE,
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.tz = tz
        self.thread: str | None = None
        self.folds: dict[tuple[str, int], int] = {}
        self._keys: list[int] = []
        self._stream = ""
        self._kept: Rows | None = None
        """The rows on show: after a new snapshot they stay until the view has them again."""

    @property
    def rows(self) -> Rows | None:
        """The rows on show, None while none are loaded."""
        rows = self.view.transcripts.get(self.thread) if self.thread is not None else None
        return rows if rows is not None else self._kept

    def show(self, thread: str) -> None:
        """Show another agent's transcript, at its end."""
        if thread == self.thread:
            return
        self.thread = thread
        self.cursor_key = None
        self.following = True
        self._seen_last = None
        self._reload()

    def _reload(self) -> None:
        self._kept = self.view.transcripts.get(self.thread or "")
        if (rows := self._kept) is not None:
            rows.take_changed()
        self._keys.clear()
        self._bottoms.clear()
        self._load(0, None)

    def refresh_rows(self) -> None:
        """Take over what changed in the rows on show."""
        rows = self.rows
        if rows is None:
            if self._keys or self._stream:
                self._reload()
            else:
                self.repaint()
            return
        changed = rows.take_changed()
        if rows is not self._kept:
            self._kept, changed = rows, 0
        stream = self._streaming()
        if changed is None and stream == self._stream:
            self.repaint()
            return
        place = self._place()  # of the rows as they were
        self._load(len(self._keys) if changed is None else changed, place)

    def _load(self, changed: int, place: tuple[Hashable, int] | None) -> None:
        rows = self.rows
        self._stream = self._streaming()
        changed = min(changed, len(self._keys))
        del self._keys[changed:]
        if rows is not None:
            self._keys.extend(row.seq for row in rows.rows[changed:])
        self._sync(changed, place)
        self._ask_for_older()

    def _streaming(self) -> str:
        """The end of what is being written; a long answer is shown whole once it is complete."""
        return self.view.streaming.get(self.thread or "", "")[-STREAM_CHARS:]

    # --- rows ----------------------------------------------------------------------------------------------

    def row_count(self) -> int:
        return len(self._keys) + bool(self._stream)

    def row_key(self, index: int) -> Hashable:
        return self._keys[index] if index < len(self._keys) else STREAM

    def index_of(self, key: Hashable) -> int | None:
        if not isinstance(key, int):
            return len(self._keys) if key == STREAM and self._stream else None
        index = bisect_left(self._keys, key)
        return index if index < len(self._keys) and self._keys[index] == key else None

    def row_height(self, index: int, width: int) -> int:
        return len(self.row_lines(index, width))

    def row_lines(self, index: int, width: int) -> list[Line]:
        setting = self._setting(width)
        if index >= len(self._keys):
            return message_lines("", setting.agent, "teal", self._stream, "fg", setting)
        rows = self.rows
        if rows is None or index >= len(rows.rows):
            return [[]]
        row = rows.rows[index]
        return row_lines(row, setting, self.folds.get(self._fold_key(row)), self.clock.now())

    def _setting(self, width: int) -> Setting:
        agent = self.view.agent(self.thread)
        return Setting(
            width=width,
            glyphs=self.glyphs,
            time=self._time,
            name=self.view.name_of,
            agent=agent.nickname if agent is not None else "",
            asked=self._asked(agent),
        )

    def _asked(self, agent: AgentState | None) -> frozenset[str]:
        if agent is None or not agent.asks:
            return frozenset()
        open_ones = self.view.state.approvals.values()
        return frozenset(one.call for one in open_ones if one.thread == agent.thread)

    def _content(self, y: int) -> tuple[Line, int]:
        if self.row_count():
            return super()._content(y)
        lines = self._before(self.size.width)
        return (lines[y] if y < len(lines) else []), 0

    def _before(self, width: int) -> list[Line]:
        """Instead of rows, for an agent that has not begun: its task, and in full why it does not begin."""
        agent = self.view.agent(self.thread)
        if agent is None or not (agent.status == "pending_init" or agent.start_failed):
            return []
        setting, now = self._setting(width), self.clock.now()
        look = agent_look(agent, now, self.glyphs)
        style = look.style.replace("+rb", "+b")
        said = why(self.view, agent, now)
        lines = message_lines("", "task", "muted", agent.task, "fg", setting)
        return lines + message_lines("", f"{look.glyph} {look.word}", style, said, style, setting)

    def _time(self, at: datetime) -> str:
        return at.astimezone(self.tz).strftime("%H:%M:%S")

    def _fold_key(self, row: Row) -> tuple[str, int]:
        return (self.thread or "", row.seq)

    def last_row(self) -> int:
        """The answer being written is not a row yet."""
        return len(self._keys) - 1

    def loaded(self) -> int:
        """Rows that are loaded, without the one being written."""
        return len(self._keys)

    def failed(self, index: int) -> bool:
        """Whether a row is an error: a failed or refused call, a notice that says so."""
        rows = self.rows
        if rows is None or index >= len(rows.rows):
            return False
        row = rows.rows[index]
        if row.call is not None:
            return row.call.status in ("error", "refused")
        return row.role == "notice" and row.level == "error"

    # --- moves ---------------------------------------------------------------------------------------------

    def _row_here(self) -> Row | None:
        rows = self.rows
        return rows.rows[self.cursor] if rows is not None and self.cursor < len(self._keys) else None

    def _turn(self, row: Row, fold: int) -> None:
        place = self._place()
        self.pause()
        self.folds[self._fold_key(row)] = fold
        self._sync(self.cursor, place)
        self._show_row(self.cursor)
        self.repaint()

    def _fold_of(self, row: Row) -> int:
        fold = self.folds.get(self._fold_key(row))
        if fold is not None:
            return fold
        return default_fold(row.call) if row.call is not None else FOLDED

    @staticmethod
    def _most(row: Row) -> int:
        """How far a row unfolds; a message does not."""
        if row.call is not None:
            return FULL
        return OPEN if row.folds else FOLDED

    def action_fold(self) -> None:
        """Fold one step: from everything to some lines per event, then to the summary."""
        row = self._row_here()
        if row is not None and self._most(row) and (fold := self._fold_of(row)) > FOLDED:
            self._turn(row, fold - 1)

    def action_unfold(self) -> None:
        """Unfold one step; the second shows the events' whole text."""
        row = self._row_here()
        if row is not None and (fold := self._fold_of(row)) < self._most(row):
            self._turn(row, fold + 1)

    def action_open(self) -> None:
        """Unfold a folded row, fold an unfolded one."""
        row = self._row_here()
        if row is not None and self._most(row):
            self._turn(row, OPEN if self._fold_of(row) == FOLDED else FOLDED)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._ask_for_older()

    def _ask_for_older(self) -> None:
        rows = self.rows
        near = not self.following or self._max_scroll() == 0
        if rows is not None and rows.more and near and self.scroll_offset.y < max(self.size.height, 1):
            self.post_message(self.NeedOlder())
