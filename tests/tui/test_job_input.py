"""What `watchroom job run` takes as rows besides a CSV file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tui import cli, exits


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("1\n2\n")
    (tmp_path / "src/b.py").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"path": "x", "n": 007.5}\n'.replace("007.5", "7.50"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WATCHROOM_HOME", str(tmp_path / "home"))


def dry(capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, Any]:
    command = ["job", "run", *given, "--instruction", "Look at {path}", "--dry-run", "--json"]
    assert cli.main(command) == exits.OK
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_files_of_a_pattern(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = dry(capsys, "--glob", "src/*.py")
    assert (found["rows"], found["columns"]) == (2, ["path", "name", "size"])
    assert "\nLook at src/a.py\n" in found["first"]
    # Where the agents work elsewhere, the rows name files that they find.
    assert f"\nLook at {tmp_path}/src/a.py\n" in dry(capsys, "--glob", "src/*.py", "-C", "src")["first"]


def test_json_lines_by_their_ending(capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, "rows.jsonl")
    assert (found["rows"], found["columns"]) == (1, ["path", "n"])
    assert '"n": "7.50"' in found["first"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "give exactly one of INPUT and --glob"),
        (["rows.jsonl", "--glob", "*"], "give exactly one of INPUT and --glob"),
        (["--glob", "src/*.rs"], "no file matches 'src/*.rs'"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], given: list[str], sentence: str) -> None:
    assert cli.main(["job", "run", *given, "--instruction", "x", "--dry-run"]) == exits.USAGE
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
    assert said.err.count("\n") == 1
