"""Help: every key that acts, made from the bindings that are live where it was opened."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from tui import text
from tui.glyphs import STYLES, UNICODE, Glyphs
from tui.paint import Line
from tui.widgets.key_line import key_table
from tui.widgets.line_view import LineView

WORDS = {
    "queued": "queued or starting",
    "running": "running",
    "waiting": "waits for agents, a job, the server, budget",
    "asks": "needs you: approve or deny",
    "done": "completed",
    "failed": "failed",
    "stopped": "interrupted",
    "closed": "closed",
    "lost": "silent for two minutes, or lost",
}
NOTES = (
    "Single letters act while a pane has the focus. m or c leads to the line below,",
    "enter there sends, esc leads back. esc never interrupts an agent.",
    "A pane that follows its end says FOLLOW; moving up pauses it, G or f follows again.",
    "h and l fold and unfold a call; a second l shows everything it printed.",
)


class HelpList(LineView):
    """The help as rows: keys, glyphs, notes."""

    ground = "panel"

    def __init__(self, bindings: list[Binding], glyphs: Glyphs) -> None:
        super().__init__(id="help", glyphs=glyphs)
        self._keys = bindings
        self._rows: list[Line] = []

    def on_mount(self) -> None:
        self._rows = self._build()
        self.sync()

    def _build(self) -> list[Line]:
        rows: list[Line] = [[], [("  KEYS", "teal+b")]]
        rows += [
            [("  ", "fg"), (text.fit(keys, 18), "fg+b"), (words, "fg")]
            for keys, words in key_table(self._keys)
        ]
        rows += [[], [("  STATES", "teal+b")]]
        for name, words in WORDS.items():
            style = STYLES[name].replace("+rb", "+b")
            rows.append([("  ", "fg"), (text.fit(self.glyphs.states[name], 18), style), (words, "fg")])
        rows += [[], [("  HOW IT WORKS", "teal+b")]]
        rows += [[("  ", "fg"), (note, "muted")] for note in NOTES]
        return [*rows, []]

    def _cursor_shown(self) -> bool:
        return False

    def action_move(self, step: int) -> None:
        """Read on: there is nothing to select."""
        self._wheel(step)

    def row_count(self) -> int:
        return len(self._rows)

    def row_lines(self, index: int, width: int) -> list[Line]:
        return [self._rows[index]]


class HelpScreen(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "back", key_display="esc", id="help.leave"),
    ]

    def __init__(self, bindings: list[Binding], glyphs: Glyphs = UNICODE) -> None:
        super().__init__()
        self.list = HelpList(bindings, glyphs)

    def compose(self) -> ComposeResult:
        yield self.list

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(None)
