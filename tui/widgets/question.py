"""QuestionBar: the one question to the operator that wants a typed answer, in the composer's row."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input

from core.safety.text import clean_line
from core.view import budget
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line
from tui.widgets.painted import Painted

LEAST_FIELD = 12
"""Cells that the field keeps beside a long question."""


class QuestionLabel(Painted):
    """What is asked."""

    ground = "panel"
    words = ""

    def lines(self, width: int) -> list[Line]:
        return [[(self.words, "amber+b")]]


class AnswerField(Input):
    """One line. What it was opened with is selected: typing replaces it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "set", id="question.answer", tooltip="Answer the question"),
        Binding("escape", "leave", "back", key_display="esc", id="question.leave", tooltip="Change nothing"),
    ]

    class Left(Message):
        """The operator changes nothing."""

    def __init__(self) -> None:
        super().__init__(compact=True)
        self.cursor_blink = False

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        super()._on_paste(events.Paste(clean_line(event.text)))

    def action_leave(self) -> None:
        self.post_message(self.Left())


class QuestionBar(Horizontal):
    """Asks for a new limit of the budget. `open` shows it and fills the field; the owner moves the focus."""

    def __init__(self, view: SwarmView, *, id: str | None = None, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(id=id)
        self.view = view
        self.glyphs = glyphs
        self.label = QuestionLabel(glyphs=glyphs)
        self.field = AnswerField()
        self.limit: budget.Limit | None = None
        """What the question is about: a bare number is of its kind."""

    def compose(self) -> ComposeResult:
        yield self.label
        yield self.field

    def open(self) -> None:
        self.limit = budget.binding(self.view.state)
        self.display = True
        self.field.value = self.limit.proposal() if self.limit is not None else ""
        self.field.cursor_position = len(self.field.value)
        self.field.selection = type(self.field.selection)(0, len(self.field.value))
        self.fit()

    def fit(self) -> None:
        """Give the question the cells that it needs, and the field the rest."""
        width = max(self.app.size.width, 20)
        long, short = self._words()
        words = long if cell_len(long) + LEAST_FIELD <= width else short
        self.label.words = text.cut(words, width - LEAST_FIELD)
        self.label.styles.width = cell_len(self.label.words)
        self.label.restyle()

    def _words(self) -> tuple[str, str]:
        prompt = f"{self.glyphs.prompt} "
        if self.limit is None:
            return f" no budget is set; limit of tokens or $ {prompt}", f" no budget; set one {prompt}"
        used = text.count(int(self.limit.used)), text.count(int(self.limit.limit))
        if self.limit.money:
            used = self.limit.amount(self.limit.used), self.limit.amount(self.limit.limit)
        return (
            f" budget {self.limit.words()}; new limit {prompt}",
            f" {used[0]}/{used[1]}, new limit {prompt}",
        )
