"""`watchroom engine` and `watchroom stop`, as real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import pytest

from core.channel import directory
from core.channel.launch import home_engine
from core.channel.setup import setup_of
from core.config import Settings
from core.domain.commands import StartSwarm
from core.store.locks import held, owned_swarms
from tests.core.channel import homes
from tests.core.harness import Watched
from tests.tui.shell import Shell
from tests.tui.terminal import ROOT, Terminal
from tui import exits, run_engine

MAIN = "from tui.cli import main; raise SystemExit(main())"
OTHER_VERSION = f"import core.version; core.version.VERSION = '9.9.9'; {MAIN}"
SILENT = (
    "import signal, sys; from pathlib import Path; from core.channel import directory\n"
    "from tests.core.channel import homes; home = Path(sys.argv[1])\n"
    "kept = directory.claim(home), directory.announce(home, homes.record(socket=sys.argv[2]))\n"
    "print('here', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = homes.home_at(tmp_path)
    yield settings
    homes.end_engines(settings.home)


@pytest.fixture
def shell(settings: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(settings.home, capfd, monkeypatch)


class Engine(subprocess.Popen[str]):
    @cached_property
    def first(self) -> str:
        """The line that it says once it is ready, or cannot be."""
        assert self.stderr is not None
        return self.stderr.readline()


@contextmanager
def engine(home: Path, script: str = MAIN, *words: str, gate: int | None = None) -> Iterator[Engine]:
    """`watchroom engine` in the foreground; its first line has come, unless it stands at a gate."""
    with Engine(
        [sys.executable, "-c", script, "engine", "--home", str(home), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        pass_fds=() if gate is None else (gate,),
    ) as child:
        try:
            assert gate is not None or child.first
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def start_swarm(settings: Settings, title: str = "endless") -> str:
    """A swarm that never ends, in the home's background engine; its root has a turn."""

    async def start() -> str:
        async with home_engine(settings) as client:
            command = StartSwarm(task="go", title=title, cwd=str(settings.cwd), setup=setup_of(settings))
            reply = await client.send(command)
            assert reply.ok, reply.error
            watched = Watched(client, reply.value["swarm"], reply.value["thread"])
            following = asyncio.create_task(watched.follow())
            await watched.until(lambda state: state.agents[watched.root].status == "running")
            following.cancel()
            await asyncio.wait({following})
            return watched.swarm

    return asyncio.run(start())


# --- engine ----------------------------------------------------------------------------------------------


def test_in_the_foreground_it_says_one_line_and_logs_the_rest(settings: Settings, shell: Shell) -> None:
    with engine(settings.home) as child:
        (record,) = directory.living(settings.home)
        assert record.pid == child.pid
        assert child.first.startswith(f"watchroom: the engine of {settings.home} listens at ")
        assert record.socket in child.first
        ran = shell("stop")
        assert (ran.code, ran.err) == (exits.OK, "")
        assert ran.out == f"the engine (process {child.pid}) has stopped; nothing was running\n"
        assert child.communicate(timeout=20) == ("", "")
        assert child.returncode == exits.OK
    logged = [json.loads(line) for line in (settings.logs / "engine.log").read_text().splitlines()]
    assert [entry["message"].split()[-1] for entry in logged] == [record.socket, "stopped"]
    assert not Path(record.socket).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(settings: Settings, signum: signal.Signals) -> None:
    with engine(settings.home) as child:
        (record,) = directory.living(settings.home)
        child.send_signal(signum)
        assert child.communicate(timeout=20) == ("", "")
        assert child.returncode == 128 + signum
    assert not Path(record.socket).exists()
    assert list((settings.home / "engines").iterdir()) == []


def test_a_second_one_is_refused_with_a_sentence(settings: Settings, shell: Shell) -> None:
    with engine(settings.home) as child:
        said = shell.refused(exits.ERROR, "engine")
        assert said.startswith(f"watchroom: an engine of this home runs already (process {child.pid})")
        assert child.poll() is None


def test_those_that_start_in_the_same_moment_are_one(settings: Settings) -> None:
    """Their interpreters and imports are there; then the gate, a pipe, opens for all at once."""
    gate, opener = os.pipe()
    script = f"import os, core.channel.host, tui.run_engine; os.read({gate}, 1); {MAIN}"
    with ExitStack() as stack:
        children = [stack.enter_context(engine(settings.home, script, gate=gate)) for _ in range(4)]
        os.close(gate)
        os.close(opener)
        said = {child.pid: child.first for child in children}
        (record,) = directory.living(settings.home)
        assert f"listens at {record.socket}" in said.pop(record.pid)
        assert len(said) == 3
        assert all(f"runs already (process {record.pid})" in text for text in said.values())
        codes = [child.wait(20) for child in children if child.pid != record.pid]
        assert codes == [exits.ERROR] * 3


def test_a_home_that_cannot_be_used_is_one_sentence(tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened" in shell.refused(exits.ERROR, "engine", "-c", f"store.dir={tmp_path}/file/x")


def test_idle_seconds_is_a_setting(settings: Settings) -> None:
    with engine(settings.home, MAIN, "-c", "engine.idle_seconds=0.2") as child:
        assert child.communicate(timeout=20) == ("", "")
        assert child.returncode == exits.OK
    assert "no client for 0.2 seconds" in (settings.logs / "engine.log").read_text()


def test_a_background_engine_never_touches_the_terminal_and_survives_it(settings: Settings) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from core.channel.launch import home_engine; from core.domain.commands import StartSwarm\n"
        "from core.channel.setup import setup_of; from core.config import load_settings\n"
        "settings = load_settings(home=sys.argv[1], cwd='/', environ={}, options={'base_url': sys.argv[2]})\n"
        "async def main():\n"
        "    async with home_engine(settings) as client:\n"
        "        reply = await client.send(StartSwarm(task='go', cwd='/', setup=setup_of(settings)))\n"
        "        assert reply.ok, reply.error\n"
        "        print('started', client.engine.pid, flush=True)\n"
        "        sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    with Terminal(["-c", script, str(settings.home), settings.base_url]) as terminal:
        terminal.until("started")
        terminal.quiet()
        said = terminal.raw.decode().split()
        (record,) = directory.living(settings.home)
    assert said == ["started", str(record.pid)]
    # The terminal is gone, and its process was killed.
    assert directory.background(settings.home) == record
    assert len(owned_swarms(settings.home)) == 1
    assert (settings.logs / "engine.err").read_text() == ""


# --- stop ------------------------------------------------------------------------------------------------


def test_without_an_engine_there_is_nothing_to_stop(shell: Shell) -> None:
    ran = shell("stop")
    assert (ran.code, ran.out, ran.err) == (exits.OK, "no background engine runs in this home\n", "")
    assert shell.json("stop") == {"stopped": False, "pid": None, "how": None, "interrupted": []}


def test_an_engine_of_a_verb_is_named_and_left_alone(settings: Settings, shell: Shell) -> None:
    announcement = directory.announce(settings.home, homes.record(kind="exec"))
    ran = shell("stop")
    assert f"process {os.getpid()} (exec) runs an engine of its own" in ran.out
    assert ran.code == exits.OK
    announcement.close()


def test_stopping_says_what_was_interrupted_and_records_it(settings: Settings, shell: Shell) -> None:
    swarm = start_swarm(settings)
    pid = directory.living(settings.home)[0].pid
    assert shell.json("stop") == {
        "stopped": True,
        "pid": pid,
        "how": "asked",
        "interrupted": [{"swarm": swarm, "title": "endless", "running": 1}],
    }
    assert directory.living(settings.home) == []
    assert owned_swarms(settings.home) == set()
    assert not held(settings.home / "engine.lock")
    (session,) = shell.json("session", "list")["sessions"]
    assert session["status"] == "interrupted"
    swarm = start_swarm(settings, "again\x1b[2J")
    ran = shell("stop")
    assert f"interrupted: again ({swarm[:18]}); to go on: watchroom resume {swarm[:18]}\n" in ran.out


def test_an_engine_of_another_version_is_ended_by_a_signal(settings: Settings, shell: Shell) -> None:
    with engine(settings.home, OTHER_VERSION) as child:
        assert directory.living(settings.home)[0].version == "9.9.9"
        ran = shell("stop", "--json")
        assert ran.code == exits.OK
        assert json.loads(ran.out) == {
            "stopped": True,
            "pid": child.pid,
            "how": "signal",
            "interrupted": None,
        }
        assert child.communicate(timeout=20) == ("", "")
        assert child.returncode == 128 + signal.SIGTERM


def test_an_engine_that_cannot_be_reached_is_ended_by_a_signal(
    settings: Settings, shell: Shell, tmp_path: Path
) -> None:
    with homes.process(SILENT, settings.home, tmp_path / "nothing") as child:
        assert homes.line(child) == "here"
        ran = shell("stop")
        assert ran.code == exits.OK
        assert f"process {child.pid}) was ended by a signal: no engine listens at" in ran.out
        assert child.wait(20) == -signal.SIGTERM


def test_one_that_does_not_end_is_said_to_run_still(
    settings: Settings, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_engine, "STOP_SECONDS", 0.3)
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SILENT}"
    before = signal.getsignal(signal.SIGALRM)
    with homes.process(deaf, settings.home, tmp_path / "nothing") as child:
        assert homes.line(child) == "here"
        said = shell.refused(exits.ERROR, "stop")
        assert f"(process {child.pid}) was told to stop and still runs after 0.3 seconds" in said
        assert child.poll() is None
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError, exits.ERROR, "(process {pid}) belongs to another user: no engine listens"),
        (ProcessLookupError, exits.OK, "was ended by a signal"),
    ],
)
def test_an_engine_that_takes_no_signal(
    settings: Settings,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    error: type[OSError],
    code: int,
    said: str,
) -> None:
    def kill(pid: int, signum: int) -> None:
        raise error

    announcement = directory.announce(settings.home, homes.record())
    monkeypatch.setattr(os, "kill", kill)
    ran = shell("stop")
    assert ran.code == code
    assert said.format(pid=os.getpid()) in ran.out + ran.err
    announcement.close()


def test_an_engine_of_another_machine_is_not_signalled(
    settings: Settings, shell: Shell, tmp_path: Path
) -> None:
    """Its process number means somebody else here: this test, if it were used."""
    there = homes.record(host="elsewhere", socket=str(tmp_path / "nothing"))
    announcement = directory.announce(settings.home, there)
    assert "runs on elsewhere" in shell.refused(exits.ERROR, "stop")
    announcement.close()


def test_a_record_without_a_lock_is_not_signalled(settings: Settings, shell: Shell) -> None:
    """As in a home that was copied: the number in it is some other process by now."""
    mine = homes.record()
    directory.announce(settings.home, mine).close()
    (settings.home / "engines" / f"{mine.engine}.json").write_bytes(msgspec.json.encode(mine))
    ran = shell("stop")
    assert (ran.code, ran.out) == (exits.OK, "no background engine runs in this home\n")


def test_python_m_tui_is_the_same_command() -> None:
    argv = [sys.executable, "-m", "tui", "--version"]
    assert subprocess.check_output(argv, text=True, cwd=ROOT).startswith("watchroom ")
