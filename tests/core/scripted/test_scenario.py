from __future__ import annotations

from pathlib import Path

import pytest

from core.scripted.scenario import ScenarioError, load_scenario, parse_scenario, scenario_names


def test_by_name_and_by_path(tmp_path: Path) -> None:
    assert load_scenario("hello").name == "hello"
    file = tmp_path / "mine.toml"
    file.write_text('[[agents]]\n[[agents.steps]]\ntext = "hi"\n')
    assert load_scenario(file).agents[0].steps[0].text == "hi"
    assert load_scenario(str(file)).name == "mine"


def test_every_shipped_scenario_loads() -> None:
    names = scenario_names()
    assert {"hello", "count-lines"} <= set(names)
    for name in names:
        assert load_scenario(name).agents


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'nope'; there are: .*count-lines.*hello"):
        load_scenario("nope")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        load_scenario(tmp_path / "absent.toml")
    with pytest.raises(ScenarioError, match="Is a directory"):
        load_scenario(tmp_path)
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ScenarioError, match="larger than"):
        load_scenario(big)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match=r"binary\.toml is not TOML"):
        load_scenario(binary)


STEP = '[[agents]]\n[[agents.steps]]\ntext = "x"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "is not TOML"),
        ("titel = 'x'", "titel: unknown key"),
        ("chunk_chars = 0", "chunk_chars"),
        ('[[agents]]\npaths = "/root"', "agents.0.paths: unknown key"),
        ("[[agents]]\n[[agents.steps]]", "needs a text or calls"),
        (STEP + 'when = { last_outptu = "x" }', "last_outptu: unknown key"),
        (STEP + 'when = { last_output = "(" }', "not a regular expression"),
        (STEP + 'fault = { kind = "earthquake" }', "fault.kind"),
        (STEP + 'next = "nowhere"', "'nowhere' is not the name of a step"),
        (STEP + 'name = "end"', "'end' is not a name"),
        (STEP + 'name = "a"\n[[agents.steps]]\ntext = "y"\nname = "a"', "two steps have the name 'a'"),
        (STEP.replace('"x"', '"{who}"'), "uses {who}, which is no capture"),
        (STEP.replace('"x"', '"a { b"'), "write '{{' for a brace"),
        (STEP.replace('"x"', '"{task:hex}"'), "unknown filter 'hex'"),
        ('[[agents]]\ncaptures = { task = { match = "x" } }', "is taken or not a name"),
        ('[[agents]]\nclosing = "{job}"', "closing uses {job}"),
        ('[[agents]]\n[[agents.steps]]\ncalls = [{ name = "t", arguments = { x = ["{y}"] } }]', "uses {y}"),
        (
            '[[agents]]\n[[agents.steps]]\ncalls = [{ name = "t", arguments = { x = 2020-01-01 } }]',
            "arguments.x",
        ),
        ('[[fault]]\nkind = "cut"', "say which requests"),
        ('[[fault]]\nkind = "cut"\nrequest = 0', "fault.0.request"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, source="mine.toml")
    assert words in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
