"""`watchroom attach` on a real terminal: two of them on one swarm, and one through a script called `ssh`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tui.engine_process import ROOT, engine_with_swarm
from tests.tui.terminal import Terminal
from tests.tui.test_attach import install_ssh

ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
NONE = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "ACCESSIBLE", "COLUMNS", "LINES"), "")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def running(home: Path) -> Iterator[dict[str, Any]]:
    with engine_with_swarm(home) as found:
        yield found


def watchroom(home: Path, *words: str, **env: str) -> Terminal:
    return Terminal(["-c", ENTRY, *words], **{**NONE, "WATCHROOM_HOME": str(home), **env})


def say(home: Path, *words: str) -> str:
    """One verb from another terminal; what it prints."""
    env = {**os.environ, **NONE, "WATCHROOM_HOME": str(home)}
    ran = subprocess.run(
        [sys.executable, "-c", ENTRY, *words], capture_output=True, text=True, cwd=ROOT, env=env, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def status_of(home: Path, path: str) -> str:
    line = next(line for line in say(home, "agent", "list").splitlines() if line.endswith(f" {path}"))
    return line.split("  ")[1].split()[0]


def test_two_consoles_and_a_script_on_one_swarm(home: Path, running: dict[str, Any]) -> None:
    with watchroom(home, "attach") as first, watchroom(home, "attach", running["swarm"]) as second:
        for terminal in (first, second):
            terminal.until("AGENTS  4")
            terminal.until("wait_agent")
        assert "interrupted: " in say(home, "agent", "interrupt", "/root/audit/deep", "--as", "nightly")
        for terminal in (first, second):
            terminal.until("All is well.")  # whoever waited for it went on
        assert "nightly" in next(
            line for line in say(home, "agent", "list", "--json").splitlines() if "nightly" in line
        )
        os.kill(first.pid, signal.SIGKILL)
        second.quiet()
        assert "ended" not in second.text()
        os.kill(running["pid"], signal.SIGKILL)
        second.until("ended", 5)
        assert "All is well." in second.text()  # what was shown stays


def test_a_console_over_ssh_loses_its_connection_and_not_the_swarm(
    home: Path, running: dict[str, Any], tmp_path: Path
) -> None:
    folder, log = install_ssh(tmp_path)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SSH_LOG": str(log)}
    with watchroom(home, "attach", "--ssh", "far", **env) as terminal:
        terminal.until("AGENTS  4")
        terminal.until("wait_agent")
        assert b"Authorized uses only." in terminal.raw.partition(b"\x1b[?1049h")[0]
        end_bridge(log)
        terminal.until("the connection to far", 5)
        assert status_of(home, "/root/audit/deep") == "running"
        terminal.keys("R")
        terminal.until(lambda text: "the connection to far" not in text, 10)
        say(home, "agent", "interrupt", "/root/audit/deep")
        terminal.until("All is well.")
    assert "BatchMode=yes" in log.read_text().splitlines()[-1]


def end_bridge(log: Path) -> None:
    """End the process that the script became."""
    os.kill(int(log.with_suffix(".pid").read_text()), signal.SIGKILL)
