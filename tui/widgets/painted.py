"""Painted: a widget of a few lines that paints spans and repaints only the lines that changed."""

from __future__ import annotations

from textual import events
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line, paint
from tui.themes import Palette, palette


class Painted(Widget):
    """Subclasses give `lines(width)`; owners call `repaint` when what they show may have changed."""

    ALLOW_SELECT = False
    ground = "bg"

    def __init__(
        self, *, id: str | None = None, classes: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.glyphs = glyphs
        self._shown: list[Line] = []

    @property
    def palette(self) -> Palette:
        return palette(self.app.theme)

    def lines(self, width: int) -> list[Line]:
        raise NotImplementedError

    def repaint(self) -> None:
        """Repaint the lines that differ from what is on the screen."""
        if not self.is_mounted or not self.size.width:
            return
        old, self._shown = self._shown, self.lines(self.size.width)
        for y in range(self.size.height):
            if self._line(old, y) != self._line(self._shown, y):
                self.refresh(Region(0, y, self.size.width, 1))

    def restyle(self) -> None:
        """Repaint all: the theme or the glyphs changed."""
        self._shown = self.lines(self.size.width) if self.size.width else []
        self.refresh()

    @staticmethod
    def _line(lines: list[Line], y: int) -> Line:
        return lines[y] if y < len(lines) else []

    def on_resize(self, event: events.Resize) -> None:
        self._shown = self.lines(event.size.width)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if not self._shown:
            self._shown = self.lines(self.size.width)
        return paint(
            self._line(self._shown, y),
            self.size.width,
            self.palette,
            ground=self.ground,
            plain=self.glyphs.plain,
        )
