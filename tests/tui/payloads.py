"""What hostile text tries: sequences that a terminal would obey, and markup that a toolkit would parse."""

from __future__ import annotations

SEQUENCES = {
    "osc52": "\x1b]52;c;ZXZpbA==\x07",
    "osc8": "\x1b]8;;http://evil.example/\x1b\\click\x1b]8;;\x1b\\",
    "csi": "\x1b[6666;7777H\x1b[31337m",
    "c1": "\x9b31338m\x9d0;evil-title\x9c\x85",
    "dcs": "\x1bP+qevil-dcs\x1b\\",
    "apc": "\x1b_Gevil-apc\x1b\\",
    "bidi": "\u202egnp.exe\u202c\u2066x\u2069",
    "c0": "\x08\x08\x07\r\x0b\x0c\x7f",
}
MARKUP = "[/bold][@click=app.quit]zap[/][link=evil]ln[/link][red]"
FORBIDDEN = (
    b"ZXZpbA",
    b"\x1b]52",
    b"\x1b]8;",
    b"evil.example",
    b"6666;7777",
    b"31337",
    b"31338",
    b"\xc2\x9b",
    b"\xc2\x9d",
    b"\xc2\x85",
    b"evil-title",
    b"evil-dcs",
    b"evil-apc",
    "\u202e".encode(),
    "\u202c".encode(),
    "\u2066".encode(),
    "\u2069".encode(),
    b"\x07",
    b"\x0b",
    b"\x0c",
    b"\x7f",
)
"""Bytes that must never reach the terminal. Textual itself writes none of them."""

ALL = "".join(SEQUENCES.values()) + MARKUP
