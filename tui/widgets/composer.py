"""Composer: the line to type to an agent. Enter sends; a paste of several lines stays as it is."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from core.safety.text import clean
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line
from tui.widgets.painted import Painted

MAX_LINES = 5


class ComposerLabel(Painted):
    """Who will get what is typed."""

    ground = "panel"

    def __init__(self, view: SwarmView, *, id: str | None = None, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.target: str | None = None
        self.active = False

    def label(self) -> str:
        name = self.view.name_of(self.target) if self.target else "root"
        return f" {self.glyphs.prompt} to {text.cut(text.one_line(name), 16)}  "

    def lines(self, width: int) -> list[Line]:
        return [[(self.label(), "teal+b" if self.active else "muted")]]


class Composer(TextArea):
    """A text area of one to five lines. It holds only the operator's own text, cleaned when pasted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "send", id="composer.send", tooltip="Send the message"),
        Binding(
            "ctrl+j,shift+enter",
            "newline",
            "new line",
            key_display="ctrl+j",
            id="composer.newline",
            tooltip="A new line in the message",
        ),
        Binding(
            "escape", "leave", "back", key_display="esc", id="composer.leave", tooltip="Back to the panes"
        ),
    ]

    class Submitted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Left(Message):
        """The operator went back to the panes; what was typed stays."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            compact=True,
            highlight_cursor_line=False,
        )
        self.cursor_blink = False

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.prevent_default()  # the binding sends; the base class would insert a line break

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        await super()._on_paste(events.Paste(clean(event.text)))

    def action_submit(self) -> None:
        words = self.text.strip()
        if words:
            self.clear()
            self.post_message(self.Submitted(words))

    def action_newline(self) -> None:
        self.insert("\n")

    def action_leave(self) -> None:
        self.post_message(self.Left())
