"""The scenarios that are shipped, played with real commands."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from core.jobs.prompt import first_message
from core.scripted.scenario import load_scenario
from tests.core.scripted.talk import Item, Talk

JOB = "1f2e3d4c-0000-4000-8000-000000000000"


def worker(item: str, row: dict[str, str]) -> str:
    return first_message(job=JOB, item=item, instruction="Count the lines.", row=row, schema=None)


class Tools:
    """exec_command, for real; and the report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[Item] = []

    def __call__(self, call: Item) -> str:
        arguments = json.loads(call["arguments"])
        if call["name"] == "report_agent_job_result":
            self.reports.append(arguments)
            return "accepted"
        assert call["name"] == "exec_command"
        ended = subprocess.run(
            ["/bin/sh", "-c", arguments["cmd"]], cwd=self.folder, capture_output=True, text=True, check=False
        )
        return f"Exit code: {ended.returncode}\nWall time: 0.002 s\nOutput:\n{ended.stdout}{ended.stderr}"


@pytest.mark.parametrize(("name", "lines"), [("plain.txt", 3), ('it\'s; a "file".txt', 12), ("-n ü.txt", 0)])
@pytest.mark.parametrize("column", ["path", "file"])
async def test_count_lines_reports_what_wc_measured(
    tmp_path: Path, name: str, lines: int, column: str
) -> None:
    (tmp_path / name).write_text("x\n" * lines)
    tools = Tools(tmp_path)
    talk = Talk(load_scenario("count-lines"), path="/root/job_1f2e3d4c_7")
    row = {"id": "7", column: name, "note": 'a "path" of sorts'}
    assert await talk.run(worker("row 7", row), tools) == "My row is done."
    assert tools.reports == [
        {
            "job_id": JOB,
            "item_id": "row 7",
            "result": {"lines": lines},
        }
    ]


async def test_count_lines_reports_nothing_without_a_number(tmp_path: Path) -> None:
    tools = Tools(tmp_path)
    talk = Talk(load_scenario("count-lines"), path="/root/job_1f2e3d4c_7")
    text = await talk.run(worker("7", {"path": "absent.txt"}), tools)
    assert text.startswith("No line count: ")
    assert "absent.txt" in text
    assert tools.reports == []


async def test_count_lines_without_a_path_says_so(tmp_path: Path) -> None:
    tools = Tools(tmp_path)
    talk = Talk(load_scenario("count-lines"), path="/root/job_1f2e3d4c_7")
    assert "no path in its first" in await talk.run(worker("7", {"name": "x"}), tools)
    assert tools.reports == []


async def test_count_lines_has_a_word_for_others() -> None:
    assert "worker of a job" in await Talk(load_scenario("count-lines")).run("hello", str)


async def test_hello_repeats_the_task() -> None:
    assert "\nWhat is {this}?\n" in await Talk(load_scenario("hello")).run("What is {this}?", str)
