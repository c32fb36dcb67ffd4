"""The verbs on the real engine with the scripted model, as a user runs them: one process per command."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.domain import events as e
from tests.tui.test_cli import ROOT, watchroom
from tui import exits

SLOW = """
title = "slow"
[[agents]]
path = "*"
[[agents.steps]]
text = "I run something long."
calls = [{ name = "exec_command", arguments = { cmd = "tail -f FOLDER/forever > FOLDER/up & wait" } }]
"""
REFUSED = """
title = "refused"
[[agents]]
path = "*"
[[agents.steps]]
text = "never said"
fault = { kind = "unauthorized" }
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"WATCHROOM_HOME": str(tmp_path / "home")}


def test_exec_answers_and_can_be_read_again(env: dict[str, str]) -> None:
    ran = watchroom("exec", "-", "--base-url", "scripted:hello", env=env, stdin="good morning\n")
    assert ran.returncode == exits.OK
    assert "good morning" in ran.stdout
    assert ran.stdout.endswith(".\n")
    (session,) = json.loads(watchroom("session", "list", "--json", env=env).stdout)["sessions"]
    assert (session["status"], session["agents"], session["title"]) == ("completed", 1, "good morning")
    prefix = session["thread"][:30]
    shown = json.loads(watchroom("session", "show", prefix, "--json", env=env).stdout)
    assert [row["text"].strip() for row in shown["rows"] if row["role"] == "user"] == ["good morning"]
    assert shown["rows"][-1]["text"].strip() == ran.stdout.strip()
    text = watchroom("session", "show", prefix, env=env).stdout
    assert "good morning" in text
    tree = watchroom("session", "tree", session["thread"], env=env).stdout.splitlines()
    columns = ["agent", "status", "waiting", "tokens", "cost", "model", "thread", "path"]
    assert tree[0].split() == columns
    assert tree[1].split()[0:2] == ["root", "completed"]
    listed = watchroom("session", "list", env=env).stdout.splitlines()
    short = listed[1].split()[0]  # ids are cut to what tells them apart, and are taken like that
    assert watchroom("session", "tree", short, env=env).stdout.splitlines() == tree


def test_exec_json_is_the_journal(env: dict[str, str]) -> None:
    ran = watchroom("exec", "--json", "hi", "--base-url", "scripted:hello", env=env)
    assert (ran.returncode, ran.stderr) == (exits.OK, "")
    events = [e.decode(line) for line in ran.stdout.splitlines()]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert isinstance(events[0], e.SwarmStarted)
    assert any(isinstance(event, e.TurnCompleted) for event in events)


def test_the_servers_refusal_reaches_the_user(env: dict[str, str], tmp_path: Path) -> None:
    scenario = tmp_path / "refused.toml"
    scenario.write_text(REFUSED)
    ran = watchroom("exec", "hi", "--base-url", f"scripted:{scenario}", env=env)
    assert (ran.returncode, ran.stdout) == (exits.ERROR, "")
    assert "401" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_unreachable_server_is_named(env: dict[str, str]) -> None:
    words = ("exec", "hi", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "127.0.0.1:9" in line and "retry" in line:
                break
        else:
            pytest.fail("it never said that it tries again")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=20) == 130
    assert "Traceback" not in rest


def test_a_job_over_real_files_can_be_checked_by_hand(env: dict[str, str], tmp_path: Path) -> None:
    sizes = {"a.txt": 3, "b.txt": 0, "c d.txt": 17}
    for name, lines in sizes.items():
        (tmp_path / name).write_text("x\n" * lines)
    table = tmp_path / "files.csv"
    table.write_text("path\n" + "".join(f"{name}\n" for name in [*sizes, "missing.txt"]))
    out = tmp_path / "out.csv"
    words = ("job", "run", str(table), "--instruction", "Count the lines of {path}.", "--output", str(out))
    ran = watchroom(
        *words, "--base-url", "scripted:count-lines", "-C", str(tmp_path), "--id-column", "path", env=env
    )
    assert ran.returncode == exits.FAILED_ROWS, ran.stderr
    assert ran.stdout == f"{out}\n"
    with out.open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    for name, lines in sizes.items():
        assert json.loads(rows[name]["result_json"]) == {"lines": lines}
    assert rows["missing.txt"]["status"] == "failed"
    found = re.search(r"watchroom job show (\w+)", ran.stderr)
    assert found is not None
    job = json.loads(watchroom("job", "show", found[1], "--json", env=env).stdout)
    assert (job["completed_items"], job["failed_items"], job["status"]) == (3, 1, "completed")
    assert [failure["item_id"] for failure in job["failed_item_errors"]] == ["missing.txt"]
    assert "missing.txt" in watchroom("job", "show", found[1], env=env).stdout
    assert found[1] in watchroom("job", "list", env=env).stdout


def test_job_run_json_ends_with_the_object_of_job_show(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n")
    (tmp_path / "in.csv").write_text("path\na.txt\n")
    words = (
        "job",
        "run",
        str(tmp_path / "in.csv"),
        "--instruction",
        "Count {path}.",
        "--json",
        "--no-export",
    )
    ran = watchroom(*words, "--base-url", "scripted:count-lines", "-C", str(tmp_path), env=env)
    assert ran.returncode == exits.OK, ran.stderr
    job = json.loads(ran.stdout)
    assert job["completed_items"] == 1
    assert json.loads(watchroom("job", "show", job["job_id"], "--json", env=env).stdout) == job
    assert not list(tmp_path.glob("*agent-job*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_agents_run_and_keeps_the_record(
    env: dict[str, str], tmp_path: Path, signum: signal.Signals
) -> None:
    scenario = tmp_path / "slow.toml"
    scenario.write_text(SLOW.replace("FOLDER", str(tmp_path)))
    (tmp_path / "forever").write_text("up\n")
    os.mkfifo(tmp_path / "up")
    words = (
        "exec",
        "--json",
        "x",
        "--base-url",
        f"scripted:{scenario}",
        "--sandbox",
        "off",
        "--approval-policy",
        "never",
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
        (tmp_path / "up").open() as pipe,
    ):  # opens once the command has
        assert pipe.readline() == "up\n"
        assert len(running(tmp_path)) == 1
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err
    thread = next(event.agent for event in map(e.decode, out.splitlines()) if event.agent)
    assert f"watchroom session show {thread}" in err
    assert running(tmp_path) == []
    (session,) = json.loads(watchroom("session", "list", "--json", env=env).stdout)["sessions"]
    assert session["status"] == "interrupted"


def running(folder: Path) -> list[str]:
    """The processes that follow the folder's endless file, whoever is their parent by now."""
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"tail -f {folder}")]


def test_what_is_not_there_is_one_sentence(env: dict[str, str]) -> None:
    for words in (("session", "show", "nope"), ("session", "tree", "nope"), ("job", "show", "nope")):
        ran = watchroom(*words, env=env)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (exits.ERROR, "", 1)
        assert "nope" in ran.stderr
    assert watchroom("session", "list", env=env).stderr.startswith("no swarms yet")
    assert watchroom("job", "list", env=env).stderr == "no jobs yet\n"


def test_the_scripted_server_serves_until_it_is_stopped(env: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from tui.cli import main; sys.exit(main())",
            "scripted-server",
            "--scenario",
            "hello",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        base_url = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", base_url)
        port = base_url.rsplit(":", 1)[1].split("/")[0]
        ran = watchroom("exec", "over the wire", "--base-url", base_url, "--model", "m", env=env)
        assert (ran.returncode, "over the wire" in ran.stdout) == (exits.OK, True), ran.stderr
        taken = watchroom("scripted-server", "--port", port, "--scenario", "hello", env=env)
        assert taken.returncode == exits.ERROR
        assert f"port {port}" in taken.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 143
        assert server.stderr is not None
        assert server.stderr.read() == ""


FAMILY = """
title = "family"
[[agents]]
path = "/root"
[[agents.steps]]
text = "I send one ahead."
calls = [{ name = "spawn_agent", arguments = { task_name = "look", message = "Look around." } }]
[[agents.steps]]
text = "I wait."
calls = [{ name = "wait_agent", arguments = { targets = ["look"], mode = "all" } }]
[[agents.steps]]
text = "All is well."
[[agents]]
path = "*"
[[agents.steps]]
text = "Nothing to see."
"""


def test_people_read_nicknames_and_scripts_read_ids(env: dict[str, str], tmp_path: Path) -> None:
    scenario = tmp_path / "family.toml"
    scenario.write_text(FAMILY)
    assert watchroom("exec", "go", "--base-url", f"scripted:{scenario}", env=env).returncode == exits.OK
    (session,) = json.loads(watchroom("session", "list", "--json", env=env).stdout)["sessions"]
    tree = json.loads(watchroom("session", "tree", session["thread"], "--json", env=env).stdout)
    child = tree["agents"][1]
    shown = watchroom("session", "show", session["thread"], env=env).stdout
    assert child["thread"] not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["┆", "spawned", child["nickname"], "/root/look"] in lines
    assert ["┆", "completed", child["nickname"], "Nothing", "to", "see."] in lines
    speakers = [words[1] for words in lines if len(words) == 2 and words[0][2:3] == ":"]
    assert speakers == ["operator", "root", "root", child["nickname"], "root"]
    data = json.loads(watchroom("session", "show", session["thread"], "--json", env=env).stdout)
    assert {event["agent"] for call in data["calls"] for event in call["events"]} == {child["thread"]}
    plain = watchroom("session", "tree", session["thread"], env={**env, "PYTHONIOENCODING": "ascii"}).stdout
    assert f"\n: {child['nickname']}" in plain


def test_job_show_has_the_tokens_and_a_time_to_read(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n")
    (tmp_path / "in.csv").write_text("path\na.txt\n")
    words = (
        "job",
        "run",
        str(tmp_path / "in.csv"),
        "--instruction",
        "Count {path}.",
        "--name",
        "one",
        "--json",
    )
    ran = watchroom(*words, "--base-url", "scripted:count-lines", "-C", str(tmp_path), env=env)
    total = json.loads(ran.stdout)["tokens"]["total"]
    shown = watchroom("job", "show", "one", env=env).stdout
    assert re.search(rf"^tokens +{total}$", shown, re.MULTILINE)
    assert re.search(r"^created at +\d{4}-\d\d-\d\d \d\d:\d\d$", shown, re.MULTILINE)
