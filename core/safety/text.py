"""Text from models, tools, files and servers is data: what could drive a terminal is taken out.

`clean` is used where text enters the view, field by field, before fields are joined (decision 48).
Escape sequences go whole (ECMA-48: CSI, OSC, DCS, SOS, PM, APC, in 7-bit and 8-bit form), then single control
characters except newline and tab, bidirectional controls, and the invisible tag block. An unterminated
sequence loses only its introducer, so that no text disappears with it. A sequence's body ends at the next
introducer of any kind: looking for its end never reads a character twice, however many have none.
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]+[0-~]"
    r"|\x1b[0-~]?"
)
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    + _BIDI
    + "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"\s+")


def is_clean(text: str) -> bool:
    """Whether `clean` would return `text` unchanged."""
    # What Python calls printable is never unsafe, and that question is answered several times faster.
    return text.isprintable() or _UNSAFE.search(text) is None


def clean(text: str) -> str:
    """`text` without anything a terminal would obey. Newlines and tabs stay; other breaks become \\n."""
    if is_clean(text):
        return text
    text = _SEQUENCE.sub("", text)
    text = _BREAKS.sub("\n", text)
    text = _SURROGATE.sub("\ufffd", text)
    return _UNSAFE.sub("", text)


def reveal(text: str) -> str:
    """`text` with every character that `clean` would remove spelled out as \\u{...}: for showing exactly what
    somebody is asked to allow. Newlines and tabs stay."""
    return _UNSAFE.sub(lambda match: f"\\u{{{ord(match.group()):x}}}", text)


def clean_line(text: str) -> str:
    """`clean`, on one line: every run of white space is one space."""
    return _SPACES.sub(" ", clean(text)).strip()


def shorten(text: str, limit: int) -> str:
    """The first `limit` characters, the last of them an ellipsis if something was left out."""
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def head_and_tail(text: str, limit: int) -> str:
    """At most about `limit` characters of `text`: its head and tail, and between them how much is missing."""
    if len(text) <= limit:
        return text
    half = limit // 2
    missing = len(text) - 2 * half
    return f"{text[:half]}\n… {missing} characters left out …\n{text[len(text) - half :]}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st …"""
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def size_of(count: int) -> str:
    """A number of bytes for people: 40 kB, 1.2 MB."""
    if count < 1_000:
        return f"{count} B"
    if count < 999_500:
        return f"{count / 1_000:.0f} kB"
    return f"{count / 1_000_000:.1f} MB"
