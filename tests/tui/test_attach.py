"""`watchroom attach` and `bridge`: which swarm, through which engine, also through a script called `ssh`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from core.channel import bridge
from core.channel.client import Client, ClientError
from core.domain.commands import ListSwarms, Snapshot
from tests.clock import FakeClock, settle
from tests.tui.engine_process import ROOT, STILL, engine_with_swarm
from tests.tui.shell import Shell
from tui import exits, run_console
from tui.farewell import short_id

SSH = """#!/bin/sh
echo "$@" >> "$FAKE_SSH_LOG"
echo "Authorized uses only." >&2
while [ "$1" != "--" ]; do shift; done
shift
[ "$1" = "unreachable" ] && { echo "ssh: connect to host unreachable: No route to host" >&2; exit 255; }
[ "$1" = "bare" ] && exit 127
[ "$1" = "chatty" ] && { yes "welcome" | head -c 70000; exec cat > /dev/null; }
[ "$1" = "silent" ] && exec cat > /dev/null
[ "$1" = "noisy" ] && yes "debug1: noise" | head -c 300000 >&2
[ "$1" = "greeting" ] && echo "Last login: yesterday
watchroom-bridge"
echo $$ > "${FAKE_SSH_LOG%.log}.pid"
exec sh -c "exec $2"
"""


class Opened:
    """What stands in for the console: it asks the engine what it runs, and looks at the swarm."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.engine_kind = ""
        self.swarms: list[str] = []
        self.statuses: dict[str, str] = {}
        self.times = 1

    def __call__(self, settings: Any, start: str, connect: Any = None, **_: Any) -> int:
        self.calls.append(start)
        for _ in range(self.times):
            asyncio.run(self._look(connect(settings), start))
        return exits.OK

    async def _look(self, connecting: AbstractAsyncContextManager[Client], swarm: str) -> None:
        async with connecting as client:
            self.engine_kind = client.engine.kind
            reply = await client.send(ListSwarms())
            self.swarms = [found["swarm"] for found in reply.value["swarms"]]
            async with client.subscribe(swarm) as feed:
                async for item in feed:
                    if isinstance(item, Snapshot):
                        self.statuses = {agent.path: agent.status for agent in item.state.agents.values()}
                        return


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", capfd, monkeypatch)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    monkeypatch.setattr(run_console, "open_console", opened)
    monkeypatch.setattr("tui.setup.terminal", lambda: None)
    return opened


def install_ssh(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with an `ssh` that runs the command here, where `watchroom` is this one; its log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(SSH)
    run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tui.cli import main; sys.exit(main())"
    (folder / "watchroom").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{run}" "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder, tmp_path / "ssh.log"


@pytest.fixture
def ssh_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, log = install_ssh(tmp_path)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SSH_LOG", str(log))
    return log


# --- which swarm -----------------------------------------------------------------------------------------


def test_without_an_id_the_newest_swarm_that_runs(shell: Shell, console: Opened) -> None:
    with engine_with_swarm(shell.home) as older, engine_with_swarm(shell.home, "job") as newer:
        assert shell("attach").code == exits.OK
        assert (console.calls, console.engine_kind) == ([newer["swarm"]], "job")
        assert console.swarms == [newer["swarm"]]
        assert console.statuses == STILL
        assert shell("attach", older["swarm"]).code == exits.OK
        assert (console.calls[-1], console.engine_kind) == (older["swarm"], "exec")
        child = shell.json("agent", "list", older["swarm"])["agents"][2]["thread"]
        assert shell("attach", child).code == exits.OK
        assert console.calls[-1] == older["swarm"]


def test_the_background_engines_swarm_comes_before_others(shell: Shell, console: Opened) -> None:
    with (
        engine_with_swarm(shell.home, "background") as mine,
        engine_with_swarm(shell.home, "exec") as newer,
    ):
        assert shell("attach").code == exits.OK
        assert console.calls == [mine["swarm"]]
        assert shell("attach", newer["swarm"]).code == exits.OK
        assert console.calls[-1] == newer["swarm"]


def test_where_nothing_runs_it_says_how_to_go_on(shell: Shell, console: Opened) -> None:
    assert "start a swarm" in shell.refused(exits.ERROR, "attach")
    with engine_with_swarm(shell.home) as ended:
        pass
    for words in ((), (ended["swarm"],)):
        said = shell.refused(exits.ERROR, "attach", *words)
        assert f"watchroom resume {short_id(ended['swarm'])}" in said
    assert "there is no session or agent" in shell.refused(exits.ERROR, "attach", "0000")
    assert console.calls == []


def test_what_attach_cannot_do(shell: Shell, console: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "agent list --json" in shell.refused(exits.USAGE, "attach", "--json")
    assert "--plain" in shell.refused(exits.USAGE, "attach", "--plain")
    assert "is not the id" in shell.refused(exits.USAGE, "attach", "a b;c")
    for host in ("-oProxyCommand=x", ""):
        assert "--ssh needs the name of a host" in shell.refused(exits.USAGE, "attach", f"--ssh={host}")
    monkeypatch.undo()


# --- over ssh --------------------------------------------------------------------------------------------


def test_over_ssh_the_other_side_chooses_and_its_greeting_is_passed_over(
    shell: Shell, console: Opened, ssh_log: Path
) -> None:
    console.times = 2  # the second time it connects again
    with engine_with_swarm(shell.home) as running:
        ran = shell("attach", "--ssh", "greeting", "--home", str(shell.home))
        assert (ran.code, ran.out) == (exits.OK, "")
        assert "Authorized uses only." in ran.err
        assert console.calls == [running["swarm"]]
        assert (console.swarms, console.statuses) == ([running["swarm"]], STILL)
    first, again = ssh_log.read_text().splitlines()
    assert first.endswith(f"-- greeting watchroom bridge --home {shell.home}")
    assert first.startswith("-T ")
    assert "BatchMode" not in first
    assert "-o BatchMode=yes -- greeting" in again
    assert again.endswith(f" {running['swarm']}")


def test_over_ssh_with_an_id(shell: Shell, console: Opened, ssh_log: Path) -> None:
    with engine_with_swarm(shell.home) as older, engine_with_swarm(shell.home):
        assert shell("attach", older["swarm"], "--ssh", "host").code == exits.OK
        assert (console.calls, console.statuses) == ([older["swarm"]], STILL)
    ran = shell("attach", older["swarm"], "--ssh", "host")
    assert ran.code == exits.ERROR
    assert f"watchroom resume {short_id(older['swarm'])}" in ran.err
    assert ran.err.splitlines()[-1] == "watchroom: nothing to attach to on host"


def test_over_ssh_much_on_standard_error_holds_nothing_up(
    shell: Shell, console: Opened, ssh_log: Path
) -> None:
    console.times = 2
    with engine_with_swarm(shell.home):
        assert shell("attach", "--ssh", "noisy").code == exits.OK
        assert console.statuses == STILL


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unreachable", "no connection to unreachable: ssh ended with exit code 255"),
        ("bare", "watchroom was not found on bare"),
        ("chatty", "chatty answers, but not as a Watchroom does"),
    ],
)
def test_over_ssh_what_can_go_wrong(
    shell: Shell, console: Opened, ssh_log: Path, host: str, said: str
) -> None:
    ran = shell("attach", "--ssh", host)
    assert (ran.code, ran.out) == (exits.ERROR, "")
    assert said in ran.err.splitlines()[-1]
    assert console.calls == []


async def test_connecting_again_asks_nothing_and_says_why_not(ssh_log: Path) -> None:
    with pytest.raises(ClientError, match="unreachable: ssh: connect to host unreachable: No route to host"):
        await bridge.redial("unreachable")
    with pytest.raises(ClientError, match="not the name of a host"):
        await bridge.redial("-oProxyCommand=x")


async def test_a_host_that_says_nothing_is_given_up(ssh_log: Path) -> None:
    clock = FakeClock()
    dialing = asyncio.create_task(bridge.redial("silent", clock=clock))
    await settle()
    await clock.advance(bridge.REDIAL_SECONDS + 1)
    with pytest.raises(ClientError, match="silent did not answer within 30 s"):
        await dialing


# --- the bridge ------------------------------------------------------------------------------------------


@pytest.fixture
def running(shell: Shell) -> Iterator[dict[str, Any]]:
    with engine_with_swarm(shell.home) as found:
        yield found


def started(shell: Shell, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from tui.cli import main; raise SystemExit(main())", "bridge", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


def test_the_bridge_says_its_line_and_ends_with_its_input(shell: Shell, running: dict[str, Any]) -> None:
    process = started(shell)
    assert process.stdout is not None
    assert process.stdout.readline() == bridge.MARKER + running["swarm"].encode() + b"\n"
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (exits.OK, b"", b"")


def test_the_bridge_ends_with_its_engine(shell: Shell, running: dict[str, Any]) -> None:
    process = started(shell, running["swarm"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith(bridge.MARKER)
    os.kill(running["pid"], signal.SIGKILL)
    assert process.wait(timeout=20) == exits.OK
    process.communicate()


def test_a_bridge_to_nothing_is_one_sentence(shell: Shell) -> None:
    process = started(shell)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (exits.ERROR, b"")
    assert err.startswith(b"watchroom: nothing runs here")


def test_the_pump_carries_every_byte_both_ways(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(5_000_000)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def echo() -> None:
            with listening.accept()[0] as peer:
                while chunk := peer.recv(7000):
                    peer.sendall(chunk)

        (from_us, to_pump), (from_pump, pumped) = os.pipe(), os.pipe()

        def pump() -> None:
            bridge.pump(path, "swarm-1", from_us, pumped)
            os.close(pumped)

        got = b""
        with ThreadPoolExecutor() as pool, open(from_pump, "rb") as back:
            running = [pool.submit(work) for work in (echo, pump)]
            assert back.readline() == bridge.MARKER + b"swarm-1\n"
            with open(to_pump, "wb") as pipe:
                sending = pool.submit(pipe.write, data)
                got = back.read(len(data))
                sending.result(20)
            for work in running:
                work.result(20)
            os.close(from_us)
    assert got == data


def test_the_bridge_loads_nothing_heavy() -> None:
    heavy = ("textual", "core.engine", "core.agents", "httpx", "aiohttp", "polars", "rich")
    script = (
        "import sys, tui.run_attach, core.channel.bridge;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=20, check=True
    )
    assert ran.stdout == "[]\n"
