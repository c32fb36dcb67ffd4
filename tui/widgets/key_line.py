"""KeyLine: the keys that act now, from the live bindings; for a moment, what just happened."""

from __future__ import annotations

from typing import Any

from textual.binding import Binding
from textual.screen import Screen

from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line, width_of
from tui.widgets.painted import Painted

SHORT = {"move": "", "fold": " ", "interrupt": "int", "message": "msg", "error": "err"}
"""Labels for a terminal that has no room for the whole words."""

ALWAYS = ("start again", "help", "quit")
"""Labels that are never left out."""


def key_name(binding: Binding) -> str:
    """How a key is written for people."""
    if binding.key_display:
        return binding.key_display
    return NAMES.get(binding.key, binding.key)


def live_bindings(screen: Screen[Any]) -> list[Binding]:
    """The bindings that act now, the focused widget's first; those of the toolkit itself have no id."""
    active = screen.active_bindings.values()
    return [entry.binding for entry in active if entry.enabled and entry.binding.id is not None]


NAMES = {
    "question_mark": "?",
    "exclamation_mark": "!",
    "escape": "esc",
    "down": "↓",
    "up": "↑",
    "left": "←",
    "right": "→",
    "pagedown": "pgdn",
    "pageup": "pgup",
}


def key_table(bindings: list[Binding]) -> list[tuple[str, str]]:
    """All keys of each action, and what it does, in the order of the bindings."""
    keys: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    for binding in bindings:
        name = str(binding.id)
        keys.setdefault(name, []).append(NAMES.get(binding.key, binding.key))
        words[name] = binding.tooltip or binding.description
    return [("  ".join(sorted(keys[name], key=len)), words[name]) for name in keys if words[name]]


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
                keys = groups.setdefault(short.get(label, label), [])
                if key_name(binding) not in keys:
                    keys.append(key_name(binding))
        fixed: list[tuple[str, list[str]]] = [
            (label, groups.pop(label)) for label in ALWAYS if label in groups
        ]
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
