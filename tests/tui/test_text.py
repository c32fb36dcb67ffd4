"""Cutting, wrapping and short numbers, measured in cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui import text
from tui.paint import net, paint
from tui.themes import DARK, LIGHT, palette

LINES = st.text(alphabet=st.sampled_from("ab \t漢字é…🙂"), max_size=80)


@given(LINES, st.integers(0, 40))
def test_cut_never_exceeds_its_cells(line: str, width: int) -> None:
    assert cell_len(text.cut(line, width)) <= width


@given(LINES, st.integers(0, 40), st.booleans())
def test_fit_is_exact(line: str, width: int, right: bool) -> None:
    assert cell_len(text.fit(line, width, right=right)) == width


@given(st.text(alphabet=st.sampled_from("ab \n\t漢字é🙂"), max_size=200), st.integers(2, 30))
def test_wrapped_lines_fit_and_no_letter_is_lost(body: str, width: int) -> None:
    lines = text.wrap(body, width)
    assert lines
    assert all(cell_len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(body.split())


def test_wrap_breaks_at_spaces_and_long_words_by_cells() -> None:
    assert text.wrap("one two three", 8) == ["one two", "three"]
    assert text.wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert text.wrap("漢字漢字", 5) == ["漢字", "漢字"]
    assert text.wrap("  indented", 40) == ["  indented"]
    assert text.wrap("", 10) == [""]


def test_a_megabyte_on_one_line_wraps_without_a_freeze() -> None:
    lines = text.wrap("x" * 1_000_000, 100)
    assert len(lines) == 10_000


@pytest.mark.parametrize(
    ("seconds", "age", "took"),
    [(0.83, "0s", "0.8s"), (59.9, "59s", "59.9s"), (478, "7m", "7m58s"), (7380, "2h", "2h03m")],
)
def test_times(seconds: float, age: str, took: str) -> None:
    assert text.age(seconds) == age
    assert text.took(seconds) == took


@pytest.mark.parametrize(("seconds", "words"), [(8, "8s"), (75, "1m15s"), (125, "2m05s"), (7380, "2h03m")])
def test_running_clocks(seconds: float, words: str) -> None:
    assert text.running(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (999, "999"), (4_400, "4.4k"), (9_960, "10k"), (181_200, "181k"), (2_100_000, "2.1M")],
)
def test_counts(number: int, words: str) -> None:
    assert text.count(number) == words
    assert len(text.count(number)) <= 5


@given(
    st.lists(st.tuples(st.text(max_size=30), st.sampled_from(["fg", "red+b", "amber+rb"]))),
    st.integers(1, 60),
)
def test_painted_strips_are_exact_and_hold_nothing_a_terminal_obeys(
    line: list[tuple[str, str]], width: int
) -> None:
    strip = paint(line, width, palette(DARK))
    assert cell_len(strip.text) == width == strip.cell_length
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in strip.text)


def test_the_net_keeps_markup_as_it_is() -> None:
    assert net("[/bold][@click=app.quit]x\x1b[31m\n") == "[/bold][@click=app.quit]x "


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [DARK, LIGHT])
@pytest.mark.parametrize("ground", ["bg", "panel"])
def test_every_text_colour_has_enough_contrast(theme: str, ground: str) -> None:
    colours = palette(theme).colours
    for name in ("fg", "muted", "teal", "amber", "green", "red", "violet"):
        light, dark = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
