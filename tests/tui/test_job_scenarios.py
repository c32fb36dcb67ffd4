"""Two whole jobs from the command line: `exec -` takes the task from stdin, the root maps it over a CSV, and
workers measure real files. The CSVs are checked whole, and the answer line by line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tui.shell import Ran, Shell
from tui import exits

COLUMNS = (
    *("path", "area", "job_id", "item_id", "row_index", "source_id", "status", "attempt_count"),
    *("last_error", "result_json", "reported_at", "completed_at"),
)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
AREAS = ("core", "faces", "tests", "räume, leer")


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Shell(tmp_path / "home", capfd, monkeypatch)


def asked(shell: Shell, scenario: str, task: str) -> Ran:
    words = ("--base-url", f"scripted:{scenario}", "--approval-policy", "never", "--sandbox", "off")
    return shell("exec", "-", *words, stdin=task + "\n")


def table(rows: list[tuple[str, str]]) -> None:
    with Path("in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "area"), *rows])


def check(shell: Shell, ran: Ran, rows: list[tuple[str, str]], results: list[Any]) -> None:
    """Everything that the CSV and the answer say."""
    output = Path("out.csv").resolve()
    assert ran.code == exits.OK, ran.err
    with output.open(newline="", encoding="utf-8") as file:
        header, *found = list(csv.reader(file, strict=True))
    assert tuple(header) == COLUMNS
    (job,) = shell.json("job", "list")["jobs"]
    jobs, reported, completed = zip(*((row[2], row[10], row[11]) for row in found), strict=True)
    assert set(jobs) == {job["job_id"]}
    assert all(TIME.fullmatch(time) for time in (*reported, *completed))
    assert [(*row[:2], *row[3:9], json.loads(row[9])) for row in found] == [
        (path, area, path, str(n), path, "completed", "1", "", result)
        for n, ((path, area), result) in enumerate(zip(rows, results, strict=True))
    ]
    assert (job["status"], job["completed_items"], job["failed_items"]) == ("completed", len(rows), 0)
    # The answer: where it is, then its first six lines as they are in the file.
    lines = output.read_text(encoding="utf-8").splitlines()[:6]
    assert ran.out.rstrip("\n").split("\n") == [str(output), *lines]


def test_thirty_rows_are_scored(shell: Shell) -> None:
    rows = [(f"src/file {n:02}.py", AREAS[n % 4]) for n in range(30)]
    Path("src").mkdir()
    for n, (path, _) in enumerate(rows):
        Path(path).write_text("x = 1\n" * (n * 7 % 30))
    table(rows)
    ran = asked(shell, "score-files", "Score the files of in.csv into out.csv")
    check(shell, ran, rows, [{"path": path, "score": n * 7 % 30} for n, (path, _) in enumerate(rows)])


def test_five_source_files_of_the_core_are_reviewed(shell: Shell) -> None:
    contents = {
        "core/a.py": "x = 1\n" * 3,
        "core/b.py": "# TODO: this\nx = 1\n# TODO: that, and more of it\n",
        "core/c.py": "",
        'core/it\'s "d".py': "y = 2\n" * 450,
        "core/e.py": "# TODO\n" * 12,
    }
    Path("core").mkdir()
    for path, text in contents.items():
        Path(path).write_text(text)
    rows = [(path, "core") for path in contents]
    table(rows)
    results = []
    for path, text in contents.items():
        lines = text.splitlines()
        todos = sum("TODO" in line for line in lines)
        results.append(
            {
                "path": path,
                "score": max(1, 10 - todos - len(lines) // 200),
                "rationale": f"{todos} open ends in {len(lines)} lines",
                "signals": [
                    f"{len(lines)} lines",
                    f"longest line {max(map(len, lines), default=0)}",
                    f"{todos} TODO",
                ],
            }
        )
    assert [result["score"] for result in results] == [10, 8, 10, 8, 1]
    ran = asked(shell, "review-files", "Review the files of in.csv into out.csv")
    check(shell, ran, rows, results)


def test_a_file_that_is_not_there_is_a_failed_row_and_no_made_up_one(shell: Shell) -> None:
    table([("absent.py", "core")])
    ran = asked(shell, "review-files", "Review the files of in.csv into out.csv")
    with Path("out.csv").open(newline="") as file:
        (row,) = list(csv.DictReader(file))
    assert (row["status"], row["result_json"]) == ("failed", "")
    assert row["last_error"] == "the worker ended without calling report_agent_job_result"
    assert ran.out.startswith(str(Path("out.csv").resolve()))
