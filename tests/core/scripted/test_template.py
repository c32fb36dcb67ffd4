from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.scripted.template import Missing, Template, fill, names_in

VALUES: dict[str, Any] = {"a": "x y", "n": "42", "j": '{"k": [1]}', "typed": {"k": 2}, "quote": "it's; rm"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{a}!", "x y!"),
        ("{{a}} {{{a}}}", "{a} {x y}"),
        ("awk '{{print $1}}'", "awk '{print $1}'"),
        ("{n:int}", 42),
        ("n={n:int}", "n=42"),
        ("{j:json}", {"k": [1]}),
        ("j={j:json}", 'j={"k": [1]}'),
        ("{typed:json}", {"k": 2}),
        ("{typed}", '{"k": 2}'),
        ("cat {quote:sh}", "cat " + shlex.quote("it's; rm")),
    ],
)
def test_leaves(text: str, expected: Any) -> None:
    assert Template(text).leaf(VALUES.__getitem__) == expected


def test_a_value_is_not_a_template() -> None:
    assert Template("{a}{b}").text({"a": "{b}", "b": "2"}.__getitem__) == "{b}2"


@pytest.mark.parametrize("text", ["{", "}", "{}", "{a", "a}", "{a:}", "{A}", "{a:float}", "{a b}", "{{}"])
def test_what_is_no_placeholder_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"single|unknown filter"):
        Template(text)


@pytest.mark.parametrize(
    ("text", "why"), [("{a:int}", "whole number"), ("{a:json}", "not JSON"), ("x{a:int}", "whole")]
)
def test_values_of_the_wrong_kind(text: str, why: str) -> None:
    with pytest.raises(Missing, match=why):
        Template(text).leaf(VALUES.__getitem__)


def test_every_string_leaf_is_filled_and_keys_stay() -> None:
    node = {"{a}": ["{a}", {"deep": "{n:int}"}], "other": 7, "none": None}
    assert fill(node, VALUES.__getitem__) == {"{a}": ["x y", {"deep": 42}], "other": 7, "none": None}
    assert names_in(node) == {"a", "n"}


@given(st.text())
def test_doubled_braces_give_any_text_back(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert Template(escaped).text(VALUES.__getitem__) == text


@given(st.text())
def test_sh_is_one_word_to_a_shell(text: str) -> None:
    assert shlex.split(Template("{x:sh}").text({"x": text}.__getitem__)) == [text]
