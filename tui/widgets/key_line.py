"""KeyLine: the keys that act now, from the live bindings; for a moment, what just happened."""

from __future__ import annotations

from textual.binding import Binding
from textual.screen import Screen

from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line, width_of
from tui.widgets.painted import Painted

SHORT = {"move": "", "fold": " ", "interrupt": "int", "message": "msg", "error": "err"}
"""Labels for a terminal that has no room for the whole words."""


def key_name(binding: Binding) -> str:
    """How a key is written for people."""
    if binding.key_display:
        return binding.key_display
    names = {"question_mark": "?", "exclamation_mark": "!", "escape": "esc", "slash": "/"}
    return names.get(binding.key, binding.key)


def live_bindings(screen: Screen[object]) -> list[Binding]:
    """The bindings that act now, each action once, the focused widget's first."""
    found: dict[str, Binding] = {}
    for active in screen.active_bindings.values():
        if active.enabled:
            found.setdefault(active.binding.action, active.binding)
    return list(found.values())


class KeyLine(Painted):
    """Keys in the order of their bindings; what does not fit is in the help."""

    def __init__(self, *, id: str | None = None, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.toast = ""
        self.toast_style = "fg"

    def say(self, words: str, style: str = "fg") -> None:
        """Show one line instead of the keys, until `hush`."""
        self.toast, self.toast_style = text.one_line(words), style
        self.repaint()

    def hush(self) -> None:
        if self.toast:
            self.toast = ""
            self.repaint()

    def lines(self, width: int) -> list[Line]:
        if self.toast:
            return [[(" ", "fg"), (text.cut(self.toast, width - 2), self.toast_style)]]
        short = SHORT if width < 130 else {}
        groups: dict[str, list[str]] = {}
        for binding in live_bindings(self.screen):
            if binding.show and binding.description:
                label = binding.group.description if binding.group is not None else binding.description
                groups.setdefault(short.get(label, label), []).append(key_name(binding))
        fixed = [(label, groups.pop(label)) for label in ("help", "quit") if label in groups]
        tail = self._cells(fixed)
        line: Line = [(" ", "fg")]
        for cells in (self._cells([entry]) for entry in groups.items()):
            if width_of(line) + width_of(cells) + width_of(tail) <= width:
                line += cells
        return [[*line, *tail]]

    @staticmethod
    def _cells(entries: list[tuple[str, list[str]]]) -> Line:
        line: Line = []
        for label, keys in entries:
            line += [("/".join(sorted(keys)), "fg"), (f" {label}  " if label.strip() else "  ", "muted")]
        return line
