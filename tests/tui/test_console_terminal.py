"""The console on a real pty: what reaches the terminal, byte by byte."""

from __future__ import annotations

import re

import pytest

from tests.tui.payloads import FORBIDDEN, MARKUP
from tests.tui.terminal import Terminal

POINTER = re.compile(rb"\x1b\]22;[a-z]+\x07")
"""The shape of the mouse pointer: the one OSC sequence that Textual writes."""
APP = ["-m", "tests.tui.pty_app"]


@pytest.mark.parametrize(("width", "height"), [(160, 45), (80, 24)])
def test_hostile_text_never_reaches_the_terminal(width: int, height: int) -> None:
    """Every widget shows text that holds escape sequences and markup: tree, transcript folded and unfolded,
    job table, bar, head, peek, composer with a paste, toast, both questions, help."""
    seen = ""
    with Terminal([*APP, "hostile"], width=width, height=height) as terminal:
        terminal.until("needs you" if width >= 100 else "approve")
        terminal.quiet()
        seen += terminal.text()
        for keys in [*"2gl", *"\x04" * 6, *"lGkll1jhlJjj", "\x1b", "1"]:
            terminal.keys(keys)
            seen += terminal.text()
        for keys in ("g", "i", "\x1b", "x", "\x1b", "a", "?", "j", "\x1b"):
            terminal.keys(keys)
            seen += terminal.text()
        terminal.keys(f"m\x1b[200~paste \x9b31338m\u202e\x07\x7f{MARKUP}\nmore\x1b[201~")
        terminal.until("paste ")
        terminal.until("more")
        terminal.keys("\x1b")
        terminal.keys("\x11")
        seen += terminal.text()
        terminal.keys("\x11")
        assert terminal.wait() == 0
        written = POINTER.sub(b"", terminal.raw)
    for payload in FORBIDDEN:
        assert payload not in written, payload
    of_size = ("task ",) if width >= 100 else ("last: stream",)
    for words in ("answer", "brief", "result", "command", "label", "stream", "title", "error", *of_size):
        assert words in seen, words
    assert "[/bold][@click=app.quit]zap[/]" in seen
    assert "Quit?" in seen


def test_nothing_is_written_while_nothing_moves() -> None:
    with Terminal([*APP, "idle"]) as terminal:
        terminal.until("0 live")
        terminal.quiet(0.5)
        assert terminal.read(2.2) == b""
        terminal.keys("\x11")
        assert terminal.wait() == 0


def test_no_color_writes_no_colour() -> None:
    with Terminal([*APP, "hostile"], NO_COLOR="1") as terminal:
        terminal.until("needs you")
        terminal.keys("j")
        terminal.keys("?")
        assert b"38;2;" not in terminal.raw
        assert b"48;2;" not in terminal.raw
        assert b"38;5;" not in terminal.raw
