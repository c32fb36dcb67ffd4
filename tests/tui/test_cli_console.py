"""The console's verb on a real terminal: what it needs, what it offers, how signals leave the terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.terminal import Terminal
from tui import cli, exits

ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose engine is ended, whatever the test did."""
    folder = tmp_path / "home"
    yield folder
    if folder.exists():
        assert cli.main(["stop", "--home", str(folder)]) == exits.OK


def watchroom(home: Path, *args: str, **env: str) -> Terminal:
    none = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "ACCESSIBLE", "COLUMNS", "LINES"), "")
    folders = {"WATCHROOM_HOME": str(home), "TMPDIR": str(home.parent)}
    return Terminal(["-c", ENTRY, *args], **{**none, **folders, **env})


def shown(terminal: Terminal) -> str:
    return "\n".join(line.rstrip() for line in terminal.screen.display).strip()


def test_without_a_model_the_demo_is_offered_and_ctrl_c_leaves(home: Path) -> None:
    with watchroom(home, "fix it") as terminal:
        terminal.until("Ctrl-C to leave")
        assert "--model NAME" in shown(terminal)
        assert str(home / "config.toml") in shown(terminal).replace("\n", "")
        os.write(terminal.fd, b"\x03")
        assert terminal.wait() == 130
    assert b"Traceback" not in terminal.raw
    assert ALTERNATE not in terminal.raw
    assert not home.exists()


def test_end_of_input_is_no_for_the_demo(home: Path) -> None:
    with watchroom(home) as terminal:
        terminal.until("Ctrl-C to leave")
        os.write(terminal.fd, b"\x04")
        assert terminal.wait() == exits.USAGE


def test_enter_opens_the_demo(home: Path) -> None:
    with watchroom(home) as terminal:
        terminal.until("Ctrl-C to leave")
        os.write(terminal.fd, b"\r")
        terminal.until("AGENTS")
        assert ALTERNATE in terminal.raw


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_without_a_screen_is_told_what_to_use(home: Path, term: str) -> None:
    with watchroom(home, "demo", TERM=term) as terminal:
        terminal.until("watchroom demo --plain")
        assert terminal.wait() == exits.USAGE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_terminal_back_and_says_what_is_kept(home: Path, signum: signal.Signals) -> None:
    with watchroom(home, "demo") as terminal:
        terminal.until("running")
        os.kill(terminal.pid, signum)
        assert terminal.wait() == 128 + signum
    assert terminal.raw.count(ALTERNATE) == terminal.raw.count(BACK) == 1
    assert b"Traceback" not in terminal.raw
    tail = terminal.raw.rsplit(BACK, 1)[1]
    assert b"the engine goes on\r\ncome back with: watchroom attach " in tail
    (folder,) = home.parent.glob("watchroom-demo-*")  # the swarm goes on in it
    assert str(folder).encode() in tail
