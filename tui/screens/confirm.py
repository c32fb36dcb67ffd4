"""The one modal question: what exactly will be stopped. It never defaults to the wider choice."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line
from tui.widgets.painted import Painted

Choice = tuple[str, str, str]
"""The key to press, what it does in words, and the answer that the screen returns."""


class Question(Painted):
    """The question, what it is about, and the keys."""

    ground = "panel"

    def __init__(self, title: str, about: str, choices: list[Choice], glyphs: Glyphs) -> None:
        super().__init__(id="question", glyphs=glyphs)
        self.question_title = title
        self.about = about
        self.choices = choices

    def lines(self, width: int) -> list[Line]:
        lines: list[Line] = [[]]
        lines += [[("  ", "fg"), (part, "amber+b")] for part in text.wrap(self.question_title, width - 4)]
        if self.about:
            about = text.wrap(self.about, width - 4)
            lines += [[("  ", "fg"), (part, "fg")] for part in about[:6]]
            if len(about) > 6:
                lines.append([(f"  {self.glyphs.ellipsis} and more", "muted")])
        lines.append([])
        for key, words, _ in self.choices:
            lines.append([("  ", "fg"), (f"{key:>6}", "fg+b"), (f"  {words}", "fg")])
        lines.append([("  ", "fg"), ("   esc", "fg+b"), ("  leave everything as it is", "muted")])
        lines.append([])
        return lines


class ConfirmScope(ModalScreen[str | None]):
    """Returns the chosen answer, None when the operator backs out. Any other key does nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss_none", "back", key_display="esc", id="confirm.leave")
    ]

    def __init__(self, title: str, about: str, choices: list[Choice], glyphs: Glyphs = UNICODE) -> None:
        super().__init__()
        self.question = Question(text.one_line(title), text.one_line(about), choices, glyphs)

    def compose(self) -> ComposeResult:
        yield self.question

    def on_mount(self) -> None:
        self._fit(self.app.size.width)

    def on_resize(self, event: events.Resize) -> None:
        self._fit(event.size.width)

    def _fit(self, width: int) -> None:
        width = min(72, max(width - 4, 20))
        self.question.styles.width = width
        self.question.styles.height = len(self.question.lines(width))

    def on_key(self, event: events.Key) -> None:
        for key, _, answer in self.question.choices:
            if event.key == key or event.character == key:
                event.stop()
                self._answer(answer)
                return

    def action_dismiss_none(self) -> None:
        self._answer(None)

    def _answer(self, answer: str | None) -> None:
        """Once: further keys may have been typed before the first one closed the question."""
        if self.is_current:
            self.dismiss(answer)
