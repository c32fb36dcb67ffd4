"""The console and the home's background engine, both real: leaving, crashes on either side, coming back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.channel import directory
from tests.tui.terminal import ROOT, Terminal
from tui import exits

ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
NONE = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "ACCESSIBLE", "COLUMNS", "LINES"), "")
GATED = """
title = "gated"
[[agents]]
path = "*"
[[agents.steps]]
text = "I wait at the gate."
calls = [{ name = "exec_command", arguments = { cmd = "cat FOLDER/gate", timeout_ms = 600000 } }]
[[agents.steps]]
text = "The gate was opened."
"""
FREE = ("--sandbox", "off", "--approval-policy", "never")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose engine is ended, whatever the test did."""
    folder = tmp_path / "home"
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "gated.toml").write_text(GATED.replace("FOLDER", str(tmp_path)))
    try:
        yield folder
    finally:
        ran = run(folder, "stop")
        assert ran.returncode == 0, ran.stderr
        assert directory.living(folder) == []


def environment(home: Path) -> dict[str, str]:
    return {**NONE, "WATCHROOM_HOME": str(home), "TMPDIR": str(home.parent)}


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words],
        env={**os.environ, **environment(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=40,
    )


def watchroom(home: Path, *words: str, entry: str = ENTRY) -> Terminal:
    return Terminal(["-c", entry, *words], **environment(home))


def model(home: Path) -> tuple[str, ...]:
    return ("--base-url", f"scripted:{home.parent / 'gated.toml'}", *FREE)


def at_the_gate(terminal: Terminal) -> None:
    """The agent's command runs and will not end before `open_gate`."""
    terminal.until("I wait at the gate.")
    terminal.until("cat ")


def open_gate(home: Path) -> None:
    (home.parent / "gate").write_text("open\n")


def engine(home: Path) -> int:
    record = directory.background(home)
    assert record is not None
    return record.pid


def sessions(home: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run(home, "session", "list", "--json").stdout)["sessions"]
    return found


def last_line(terminal: Terminal) -> str:
    """What is on the terminal behind the full screen."""
    return terminal.raw.rsplit(BACK, 1)[1].decode()


def test_leaving_lets_the_engine_go_on_and_attach_comes_back(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        terminal.keys("\x11")
        terminal.until("goes on without this console")
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
        said = last_line(terminal)
    assert "1 running; the engine goes on" in said
    found = re.search(r"watchroom (attach [0-9a-f-]+)\s", said)
    assert found is not None
    pid = engine(home)
    with watchroom(home, *found[1].split()) as terminal:
        at_the_gate(terminal)
        open_gate(home)
        terminal.until("The gate was opened.")
        terminal.until("done")
        assert engine(home) == pid
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
        assert "1 completed" in last_line(terminal)


def test_s_stops_the_engine_and_resume_goes_on(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        terminal.keys("\x11")
        terminal.until("stop the engine")
        terminal.keys("s")
        assert terminal.wait() == exits.OK
        said = last_line(terminal)
    assert "1 interrupted; the engine was stopped" in said
    assert directory.living(home) == []
    assert sessions(home)[0]["status"] == "interrupted"
    with watchroom(home, "resume", *model(home)) as terminal:
        terminal.until("The gate was opened.")  # the scenario's second step
        terminal.until("the engine was stopped")
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
    assert sessions(home)[0]["status"] == "completed"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_console_that_is_killed_changes_nothing_for_the_swarm(home: Path, signum: signal.Signals) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        pid = engine(home)
        os.kill(terminal.pid, signum)
        ended = terminal.wait()
        if signum == signal.SIGKILL:
            assert ended == -signum
        else:
            assert ended == 128 + signum
            assert terminal.raw.count(ALTERNATE) == terminal.raw.count(BACK) == 1
            assert "the engine goes on" in last_line(terminal)
            assert b"Traceback" not in terminal.raw
    assert engine(home) == pid
    assert sessions(home)[0]["status"] == "running"
    with watchroom(home, "attach") as terminal:
        at_the_gate(terminal)
        open_gate(home)
        terminal.until("The gate was opened.")


def test_a_terminal_that_goes_away_changes_nothing_for_the_swarm(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        pid = engine(home)
        spare, terminal.fd = terminal.fd, os.open(os.devnull, os.O_RDWR)
        os.close(spare)  # the last descriptor of this side: the kernel hangs up
        assert os.WIFEXITED(os.waitpid(terminal.pid, 0)[1])
        terminal.status = 0
    assert engine(home) == pid
    open_gate(home)
    with watchroom(home, "attach") as terminal:
        terminal.until("The gate was opened.")


def test_an_engine_that_is_killed_is_noticed_at_once_and_R_resumes(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        pid = engine(home)
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        terminal.until("ended", 5)
        noticed = time.monotonic() - start
        terminal.until("R start")
        assert "I wait at the gate." in terminal.text()
        terminal.keys("m")
        terminal.keys("still there\r")
        terminal.until("still there")
        terminal.keys("\x1b")
        terminal.keys("R")
        terminal.until("The gate was opened.")
        terminal.until("the process ended")
        assert "still there" in terminal.text()  # the draft
        assert engine(home) != pid
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
    assert noticed < 1.0
    assert sessions(home)[0]["status"] == "completed"


def test_both_are_killed_and_resume_goes_on(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        os.kill(engine(home), signal.SIGKILL)
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.wait()
    assert sessions(home)[0]["status"] == "interrupted"
    ran = run(home, "resume", "--plain", *model(home))
    assert ran.returncode == exits.OK, ran.stderr
    lines = ran.stdout.splitlines()
    assert not any("swarm started" in line for line in lines)  # only what came after
    assert "The gate was opened." in ran.stdout
    assert lines[-1].endswith("root completed")


def test_the_console_never_loads_the_engine(home: Path) -> None:
    listing = home.parent / "modules"
    entry = (
        "import sys, atexit\n"
        f"atexit.register(lambda: open({str(listing)!r}, 'w').write(' '.join(sys.modules)))\n" + ENTRY
    )
    with watchroom(home, "open it", *model(home), entry=entry) as terminal:
        at_the_gate(terminal)
        open_gate(home)
        terminal.until("The gate was opened.")
        terminal.until("done")
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
    loaded = set(listing.read_text().split())
    assert "tui.app" in loaded
    heavy = {"httpx", "aiohttp", "polars", "aiosqlite", "core.engine", "core.agents", "core.scripted"}
    assert loaded & heavy == set()


def test_the_demo_keeps_its_folder_while_it_goes_on(home: Path) -> None:
    with watchroom(home, "demo") as terminal:
        terminal.until("running")
        (folder,) = home.parent.glob("watchroom-demo-*")
        terminal.keys("\x11")
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
        assert f"its files stay in {folder}" in last_line(terminal)
    assert (folder / "demo" / "README.md").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_demo_that_is_not_kept_ends_with_its_console(home: Path) -> None:
    home.mkdir(mode=0o500)
    with watchroom(home, "demo") as terminal:
        terminal.until("running")
        terminal.keys("\x11")
        terminal.until("will be interrupted")
        terminal.keys("\x11")
        assert terminal.wait() == exits.OK
    assert not list(home.parent.glob("watchroom-*"))


@pytest.fixture
def an_exec(home: Path) -> Iterator[subprocess.Popen[str]]:
    """`watchroom exec` at the gate."""
    with verb(home, "exec", "open it", *model(home)) as process:
        assert process.stderr is not None
        assert "swarm started" in process.stderr.readline()
        yield process


def test_an_exec_can_be_watched_while_it_runs(home: Path, an_exec: subprocess.Popen[str]) -> None:
    with watchroom(home, "attach") as terminal:
        at_the_gate(terminal)
        terminal.keys("\x11")
        terminal.until("goes on without this console")
        assert "stop the engine" not in terminal.text()  # it belongs to exec
        terminal.keys("\x1b")
        open_gate(home)
        terminal.until("The gate was opened.")
        terminal.until("ended")
        out, _ = an_exec.communicate(timeout=20)
        assert (an_exec.returncode, out) == (exits.OK, "The gate was opened.\n")
        terminal.keys("\x11")
        terminal.wait()


COUNTS = """
[[agents]]
path = "*/job_*"
[agents.captures]
job = { in = "first", match = '^Job ID: (.+)$' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { ok = true } }
[[agents]]
path = "/root"
[[agents.steps]]
text = "beside"
"""


def test_an_exec_and_a_job_run_work_beside_a_consoles_engine(home: Path) -> None:
    """Three engines in three processes, one store; each ends what is its own."""
    (home.parent / "counts.toml").write_text(COUNTS)
    (home.parent / "rows.csv").write_text("name\n" + "".join(f"{n}\n" for n in range(40)))
    out = home.parent / "out.csv"
    words = ("--base-url", f"scripted:{home.parent / 'counts.toml'}", *FREE)
    job = ("job", "run", str(home.parent / "rows.csv"), "--instruction", "Do {name}.", "--output", str(out))
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        pid = engine(home)
        with (
            verb(home, *job, *words, "--json") as counting,
            verb(home, "exec", "go", *words) as one,
            verb(home, "exec", "go", *words) as two,
        ):
            for process in (one, two):
                assert (process.communicate(timeout=30)[0], process.returncode) == ("beside\n", exits.OK)
            ended = json.loads(counting.communicate(timeout=30)[0])
        assert (ended["status"], ended["completed_items"]) == ("completed", 40)
        assert len(out.read_text().splitlines()) == 41
        assert sorted(str(session["status"]) for session in sessions(home)) == [*["completed"] * 3, "running"]
        assert [record.pid for record in directory.living(home)] == [pid]
        open_gate(home)
        terminal.until("The gate was opened.")
    assert run(home, "doctor", *words).returncode == exits.OK


@contextmanager
def verb(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of its own that runs beside this test, and not longer."""
    with subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words],
        env={**os.environ, **environment(home)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_resume_of_a_swarm_that_runs_attaches_or_says_who_has_it(home: Path) -> None:
    with watchroom(home, "open it", *model(home)) as terminal:
        at_the_gate(terminal)
        ran = run(home, "resume", "--plain", *model(home))
        assert (ran.returncode, ran.stdout) == (exits.ERROR, "")
        assert f"background engine, process {engine(home)}" in ran.stderr
        assert ran.stderr.count("\n") == 1
        with watchroom(home, "resume", *model(home)) as second:
            at_the_gate(second)
            open_gate(home)
            second.until("The gate was opened.")
        terminal.until("The gate was opened.")


def test_resume_without_anything_to_resume_is_one_sentence(home: Path) -> None:
    for words in (("resume",), ("resume", "nope")):
        ran = run(home, *words, *model(home))
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (exits.ERROR, "", 1), ran.stderr
        assert "Traceback" not in ran.stderr


def test_what_began_scripted_stays_scripted_for_whoever_goes_on(home: Path) -> None:
    """No model is set here, as for somebody who only tried the demo."""
    with watchroom(home, "open it", *model(home)) as first:
        at_the_gate(first)
        first.keys("\x11")
        first.keys("\x11")
        assert first.wait() == exits.OK
    with watchroom(home, "attach") as second:
        at_the_gate(second)
        os.kill(engine(home), signal.SIGKILL)
        second.until("ended", 5)
        second.keys("R")
        second.until("The gate was opened.")
        second.keys("\x11")
        assert second.wait() == exits.OK
