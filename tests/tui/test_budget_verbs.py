"""Runs that their budget stops: exit code 4, the sentence, and the way on; `agent budget`."""

from __future__ import annotations

import asyncio
import csv
import re
from pathlib import Path
from typing import Any

import pytest

from core.store.jobs import JobStore
from tests.tui.engine_process import engine_with_swarm
from tests.tui.shell import Shell
from tui import exits, spent

SCRIPT = """
[[agents]]
path = "/root/job_*"
[agents.captures]
job = { in = "first", match = '^Job ID: (.+)$' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { ok = true } }
[[agents]]
path = "*"
[[agents.steps]]
text = "All of it."
"""


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    (tmp_path / "script.toml").write_text(SCRIPT)
    return Shell(tmp_path / "home", capfd, monkeypatch)


def on_script(shell: Shell) -> tuple[str, ...]:
    return "--base-url", f"scripted:{shell.home.parent / 'script.toml'}"


def way_on(text: str) -> list[str]:
    """The words after `watchroom` in the command that is named."""
    found = re.search(r"go on with: watchroom (.+)", text)
    assert found is not None, text
    return found[1].split()


def test_exec_at_its_budget(shell: Shell) -> None:
    ran = shell("exec", "go", *on_script(shell), "-c", "budget.tokens=2000")
    assert (ran.code, ran.out) == (exits.BUDGET, "")
    assert "watchroom: the budget stopped it: limit reached: budget.tokens = 2,000; 0 are spent" in ran.err
    # What it says to do next does it, in lines as in a script.
    again = shell(*way_on(ran.err), *on_script(shell), "--json")
    assert again.code == exits.OK, again.err
    assert '"All of it."' in again.out


TEAM = """
[[agents]]
path = "/root"
closing = "All of it."
[[agents.steps]]
[[agents.steps.calls]]
name = "spawn_agent"
arguments = { task_name = "one", message = "Do the one thing." }
[[agents.steps.calls]]
name = "spawn_agent"
arguments = { task_name = "two", message = "Do the other thing." }
[[agents.steps]]
[[agents.steps.calls]]
name = "wait_agent"
arguments = { targets = ["one", "two"], mode = "all" }
[[agents]]
path = "/root/*"
[[agents.steps]]
[[agents.steps.calls]]
name = "exec_command"
arguments = { cmd = "ls" }
[[agents.steps]]
[[agents.steps.calls]]
name = "exec_command"
arguments = { cmd = "pwd" }
"""


def test_what_stopped_an_earlier_run_does_not_stop_the_next(shell: Shell) -> None:
    """The root goes on and answers; that its agents were stopped before is what it was told."""
    (shell.home.parent / "script.toml").write_text(TEAM)
    ran = shell("exec", "go", *on_script(shell), "-c", "budget.tokens=20000")
    assert ran.code == exits.BUDGET, ran.err
    again = shell(*way_on(ran.err), *on_script(shell), "--plain")
    assert (again.code, again.err) == (exits.OK, "")
    assert "root says All of it." in again.out


def test_exec_for_money_without_a_price(shell: Shell) -> None:
    said = shell.refused(exits.USAGE, "exec", "go", *on_script(shell), "-c", "budget.cost=1.0")
    assert "has no price: set input and output" in said
    assert shell.stored() == (0, 0)


def test_a_job_at_its_budget_keeps_its_rows(shell: Shell, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("name\n" + "".join(f"n{n}\n" for n in range(12)))
    output = tmp_path / "out.csv"
    job = ("job", "run", rows, "--instruction", "Do {name}.", "--output", output, "--max-concurrency", "3")
    ran = shell(*job, *on_script(shell), "-c", "budget.tokens=9000")
    assert ran.code == exits.BUDGET, ran.err
    assert "the budget stopped it: limit reached: budget.tokens = 9,000" in ran.err
    assert not output.exists()
    [listed] = shell.json("job", "list")["jobs"]
    shown = shell.json("job", "show", listed["job_id"])
    done = shown["completed_items"]
    assert (shown["status"], shown["failed_items"], shown["running_items"]) == ("paused", 0, 0)
    assert 0 < done < 12
    assert shown["pending_items"] == 12 - done
    # Too little again: it pauses again, and no row has used up its one attempt.
    words = way_on(ran.err)
    less = shell(*words[:3], "-c", "budget.tokens=9100", *on_script(shell), "--json")
    assert less.code == exits.BUDGET, less.err
    again = shell(*words[:3], "-c", "budget.tokens=900000", *on_script(shell), "--json")
    assert again.code == exits.OK, again.err
    with output.open() as file:
        exported = list(csv.DictReader(file))
    assert [row["status"] for row in exported] == ["completed"] * 12
    assert {row["attempt_count"] for row in exported} == {"1"}


def test_a_job_that_is_slow_to_go_on_is_waited_for(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine accepts the resume before it has started the job again: that is not the end."""
    rows = tmp_path / "rows.csv"
    rows.write_text("name\n" + "".join(f"n{n}\n" for n in range(6)))
    output = tmp_path / "out.csv"
    job = ("job", "run", rows, "--instruction", "Do {name}.", "--output", output)
    ran = shell(*job, *on_script(shell), "-c", "budget.tokens=9000")
    assert ran.code == exits.BUDGET, ran.err
    start = JobStore.start

    async def slowly(*args: Any, **more: Any) -> Any:
        for _ in range(1000):
            await asyncio.sleep(0)
        return await start(*args, **more)

    monkeypatch.setattr(JobStore, "start", slowly)
    again = shell(*way_on(ran.err), *on_script(shell), "--json")
    assert again.code == exits.OK, again.err
    assert output.exists()


def test_the_way_on_is_enough() -> None:
    swarm = "01a1fa0d-7163-78f4-a771-5c42049dd75d"
    shared = "limit reached: budget.tokens = 3,000; 0 are spent, and its next request needs at least 10,139"
    assert spent.way_on(swarm, shared).endswith("-c budget.tokens=24000")
    own = (
        "limit reached: budget.per_agent_cost = $0.5000; /root/a has spent $0.4990, and its next request"
        " needs at least $0.0100"
    )
    assert spent.way_on(swarm, own).endswith("-c budget.per_agent_cost=1")
    assert spent.way_on(swarm, "something else").endswith("resume 01a1fa0d-7163-78f4")


def test_the_budget_of_a_running_swarm(shell: Shell) -> None:
    with engine_with_swarm(shell.home) as running:
        swarm = running["swarm"]
        shown = shell.json("agent", "budget", swarm)
        none = dict.fromkeys(("tokens", "cost", "per_agent_tokens", "per_agent_cost"))
        assert shown["budget"] == none
        assert shown["spent"]["tokens"] > 0
        assert "no limit; " in shell("agent", "budget", swarm).out
        would = shell.json("agent", "budget", swarm, "--tokens", "1.5M", "--dry-run")
        assert (would["budget"]["tokens"], would["changed"]) == (1_500_000, False)
        assert shell.json("agent", "budget", swarm)["budget"] == none
        done = shell.json("agent", "budget", swarm, "--tokens", "1.5M", "--per-agent-tokens", "90k")
        assert done["changed"] is True
        limits = {**none, "tokens": 1_500_000, "per_agent_tokens": 90_000}
        assert shell.json("agent", "budget", swarm)["budget"] == limits
        assert "of 1,500,000 tokens used" in shell("agent", "budget", swarm).out
        same = shell("agent", "budget", swarm, "--tokens", "1500000")
        assert same.lines[-1] == "nothing to do: it was so already"
        assert shell.json("agent", "budget", swarm, "--tokens", "0")["budget"]["tokens"] is None
        refused = shell("agent", "budget", swarm, "--cost", "5", "--json")
        assert refused.code == exits.ERROR
        assert "has no price" in refused.err


@pytest.mark.parametrize("wrong", [("--tokens", "-1"), ("--tokens", "$5"), ("--cost", "many"), ("--as", " ")])
def test_a_wrong_limit_is_one_sentence(shell: Shell, wrong: tuple[str, str]) -> None:
    shell.refused(exits.USAGE, "agent", "budget", "0198", f"{wrong[0]}={wrong[1]}")


def test_a_budget_of_nothing_known(shell: Shell) -> None:
    shell.refused(exits.ERROR, "agent", "budget", "0198")
