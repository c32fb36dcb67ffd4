from __future__ import annotations

import re
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.safety import text as module
from core.safety.text import clean, clean_line, head_and_tail, is_clean, reveal, shorten

INTRODUCERS = ["\x1b", "\x1b[", "\x9b", "\x1b]", "\x9d", "\x1bP", "\x90", "\x1bX", "\x98", "\x1b^", "\x9e"]
INTRODUCERS += ["\x1b_", "\x9f", "\x1b(", "\x1b#"]
PIECES = [
    *INTRODUCERS,
    "\x07",
    "\x1b\\",
    "\x9c",
    "0",
    ";",
    "m",
    " ",
    "?25h",
    "52;c;",
    "text",
    "\r",
    "\n",
    "é",
]
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
hostile = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
anything = st.one_of(hostile, st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "L"])))


def drives_a_terminal(char: str) -> bool:
    code = ord(char)
    control = (code < 32 and char not in "\n\t") or 0x7F <= code <= 0x9F
    return control or char in BIDI or char in "\u2028\u2029" or 0xD800 <= code <= 0xDFFF


@given(anything)
@example("\x1b]0;title\x1b")
@example("\x1b\x1b[[31m")
def test_nothing_that_drives_a_terminal_is_left(text: str) -> None:
    cleaned = clean(text)
    assert not [c for c in cleaned if drives_a_terminal(c)]
    assert is_clean(cleaned)
    assert clean(cleaned) == cleaned
    cleaned.encode()


@given(anything)
def test_is_clean_means_that_clean_changes_nothing(text: str) -> None:
    assert is_clean(text) == (clean(text) == text)


@pytest.mark.parametrize(
    "text",
    [
        "plain, with\ttab and\nnewline",
        "👩‍👩‍👧 🏳️‍🌈 👍🏽 1️⃣",
        "漢字とかな 한국어",
        "مرحبا بالعالم",
        "שלום",
        "नमस्ते ক্ষ",
        "e\u0301 a\u0308\u0323",
        "می\u200cخواهم",
        "[/bold] [@click=app.quit] \\[x]",
        "soft\u00adhyphen",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert clean(text) is text


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_letters_marks_digits_and_signs_are_unchanged(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b[?1049h\x1b[2J", ""),
        ("a\x1b]52;c;c2VjcmV0\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
        ("a\x9d0;title\x9cb", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1b_app\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", "abcd"),
        ("a\x1b(0b\x1bcd", "abd"),
        ("a\x1b]0;never ended", "a0;never ended"),
        ("a\x1b[31", "a31"),
        ("a\x1b", "a"),
        ("one\r\ntwo\rthree\x0cfour\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("user\u202egnp.exe", "usergnp.exe"),
        ("hi\U000e0068\U000e0069", "hi"),
        ("\ud800", "\ufffd"),
        ("\ufeffbom", "bom"),
    ],
)
def test_sequences_go_whole_and_text_stays(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text(st.characters(categories=["L", "N"])), st.sampled_from(INTRODUCERS[3:13]))
def test_an_unterminated_string_sequence_takes_no_text_with_it(text: str, introducer: str) -> None:
    assert clean(introducer + text) == text


class Counting:
    """A regular expression's work, counted: how far matches at each introducer had to read."""

    @staticmethod
    def read(pattern: re.Pattern[str], text: str) -> int:
        body = re.compile(r"[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f]*")
        total = 0
        for match in re.finditer(r"\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]", text):
            found: Any = body.match(text, match.end())
            total += len(found.group()) + 1
        assert body.pattern in pattern.pattern, "the body this counts is the one in use"
        return total


@given(st.lists(st.sampled_from([*INTRODUCERS, "text", ";"]), max_size=200).map("".join))
def test_looking_for_an_end_reads_no_character_twice(text: str) -> None:
    assert Counting.read(module._SEQUENCE, text) <= 2 * len(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "introducer", [*INTRODUCERS, "\x1b[0", "\x1b] ", "\x9d\x1b", "\x1b ", "\x9bx\x1b[;;;"]
)
def test_a_hundred_thousand_unterminated_sequences_are_no_work(introducer: str) -> None:
    """Quadratic work on these 100 000 to 500 000 characters would take minutes."""
    assert is_clean(clean(introducer * 100_000))


@given(anything)
def test_one_line_is_one_line(text: str) -> None:
    line = clean_line(text)
    assert "\n" not in line
    assert "\t" not in line
    assert line == line.strip()
    assert is_clean(line)


@given(anything)
def test_revealed_text_is_clean_and_hides_nothing(text: str) -> None:
    shown = reveal(text)
    assert is_clean(shown)
    if is_clean(text):
        assert shown == text
    else:
        assert len(shown) > len(text)


def test_reveal_spells_out() -> None:
    assert reveal("rm x\r\x1b[2Kls \u202e") == "rm x\\u{d}\\u{1b}[2Kls \\u{202e}"


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_shorten_keeps_the_limit(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= limit
    assert short == text or (short[-1] == "…" and text.startswith(short[:-1]))


@given(st.text(min_size=1), st.integers(min_value=2, max_value=50))
def test_head_and_tail_accounts_for_every_character(text: str, limit: int) -> None:
    kept = head_and_tail(text, limit)
    if len(text) <= limit:
        assert kept == text
    else:
        half = limit // 2
        missing = len(text) - 2 * half
        assert kept == f"{text[:half]}\n… {missing} characters left out …\n{text[-half:]}"


def test_no_category_of_control_is_forgotten() -> None:
    left = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) == "Cc" and is_clean(chr(c))]
    assert left == ["\t", "\n"]
