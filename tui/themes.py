"""The two themes: calm green-black (or paper), one warm amber. Text has at least 4.5:1 on its ground.

Teal moves, amber calls, everything settled goes quiet.
"""

from __future__ import annotations

from functools import cache

from rich.color import Color
from rich.style import Style
from textual.theme import Theme

DARK = "watchroom"
LIGHT = "watchroom-light"

_COLOURS: dict[str, dict[str, str]] = {
    DARK: {
        "bg": "#0f1414",
        "panel": "#161d1c",
        "fg": "#d7dedb",
        "muted": "#8a9894",
        "faint": "#33413e",
        "teal": "#5cc8c8",
        "amber": "#e8b04b",
        "green": "#8fbf7f",
        "red": "#f0736a",
        "violet": "#8f8aa8",
    },
    LIGHT: {
        "bg": "#faf7f0",
        "panel": "#f0ebdf",
        "fg": "#22302d",
        "muted": "#5d6b67",
        "faint": "#cfc8b8",
        "teal": "#00686b",
        "amber": "#8a5a00",
        "green": "#2f6b2a",
        "red": "#b3261e",
        "violet": "#5a5480",
    },
}

_FLAGS = {"b": "bold", "i": "italic", "r": "reverse", "d": "dim", "u": "underline"}


class Palette:
    """Rich styles by name: a colour, then flags after `+`: "teal", "red+b", "muted+i", "amber+rb".

    Only for painting; `bg` is the ground of every style, so that a strip needs nothing from its widget.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.colours = _COLOURS[name]
        self._styles: dict[tuple[str, str], Style] = {}

    def style(self, name: str, ground: str = "bg") -> Style:
        """The style called `name`; an unknown colour is a KeyError (a bug, not an input)."""
        key = (name, ground)
        style = self._styles.get(key)
        if style is None:
            colour, _, flags = name.partition("+")
            style = Style(
                color=Color.parse(self.colours[colour or "fg"]),
                bgcolor=Color.parse(self.colours[ground]),
            )
            if flags:
                style += Style.parse(" ".join(_FLAGS[flag] for flag in flags))
            self._styles[key] = style
        return style

    def selected(self) -> Style:
        """The focused row: one reversed colour, so that it also reads without colour."""
        return self.style("fg+r")


@cache
def palette(theme: str) -> Palette:
    """The palette of a theme; any theme that is not ours is painted in the dark one."""
    return Palette(theme if theme in _COLOURS else DARK)


def themes() -> list[Theme]:
    """The themes to register with the app."""
    return [_theme(DARK, dark=True), _theme(LIGHT, dark=False)]


def _theme(name: str, *, dark: bool) -> Theme:
    colours = _COLOURS[name]
    return Theme(
        name=name,
        dark=dark,
        primary=colours["teal"],
        secondary=colours["violet"],
        accent=colours["amber"],
        warning=colours["amber"],
        error=colours["red"],
        success=colours["green"],
        foreground=colours["fg"],
        background=colours["bg"],
        surface=colours["bg"],
        panel=colours["panel"],
        text_alpha=1.0,
        variables={
            "muted": colours["muted"],
            "faint": colours["faint"],
            "input-cursor-background": colours["fg"],
            "input-cursor-foreground": colours["bg"],
            "input-selection-background": colours["faint"],
        },
    )
