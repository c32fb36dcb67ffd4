"""The sandbox, run for real. Where it cannot work these tests are skipped with its own reason."""

# ruff: noqa: ASYNC221, ASYNC240 (these tests have nothing else to do while they look at files)
from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.clock import SystemClock
from core.tools.environment import child_environment
from core.tools.process import Finished, run
from core.tools.sandbox import Mode, Sandbox, find_program
from tests.core.tools.processes import alive, gone


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    found, why = asyncio.run(Sandbox.detect(Path("/nowhere")))
    if found is None:
        pytest.skip(why)
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


async def inside(
    sandbox: Sandbox,
    script: str,
    workspace: Path,
    *,
    mode: Mode = "workspace-write",
    cwd: Path | None = None,
    hidden: Sequence[Path] = (),
    writable: Sequence[Path] = (),
) -> Finished:
    argv = sandbox.wrap(
        ["/bin/sh", "-c", script],
        mode=mode,
        cwd=cwd or workspace,
        workspace=workspace,
        hidden=hidden,
        writable=writable,
    )
    return await run(
        argv,
        cwd=Path("/"),
        env=child_environment(),
        clock=SystemClock(),
        timeout=20,
        limit=10_000,
        guard=False,
    )


async def test_the_workspace_and_temp_can_be_written(sandbox: Sandbox, workspace: Path) -> None:
    done = await inside(sandbox, "echo a > a && echo b > /tmp/b && cat a $TMPDIR/b && pwd", workspace)
    assert (done.code, done.output) == (0, f"a\nb\n{workspace}\n")
    assert (workspace / "a").read_text() == "a\n"


async def test_temp_is_private(sandbox: Sandbox, workspace: Path, tmp_path: Path) -> None:
    name = f"private-{uuid.uuid4().hex}"
    done = await inside(sandbox, f"echo x > /tmp/{name} && ls {tmp_path}", workspace)
    assert done.output == "workspace\n", "nothing of the real temp folder but the workspace"
    assert not Path("/tmp", name).exists()


async def test_nothing_outside_can_be_written(sandbox: Sandbox, workspace: Path) -> None:
    home = os.environ["HOME"]
    name = f"watchroom-test-{uuid.uuid4().hex}"
    script = f"for d in / /etc /usr /var /home {home} /opt; do touch $d/{name} 2>/dev/null && echo $d; done"
    done = await inside(sandbox, script, workspace)
    assert done.output == ""
    # What was written would be gone with the mount namespace only if it went to a private place.
    assert not [d for d in ("/", "/etc", "/usr", "/var", home) if Path(d, name).exists()]


async def test_the_kernels_settings_cannot_be_written(sandbox: Sandbox, workspace: Path) -> None:
    """Asked, never tried: a sandbox that failed this would change the machine."""
    script = "find /proc/sys /proc/irq /proc/bus /sys -type f -writable 2>/dev/null | head -3"
    done = await inside(sandbox, script, workspace)
    assert done.output == ""
    script = "grep -E '^Cap(Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v '0000000000000000$'"
    assert (await inside(sandbox, script, workspace)).output == "", "no capabilities"


async def test_read_only_writes_nothing_but_temp(sandbox: Sandbox, workspace: Path) -> None:
    done = await inside(sandbox, "touch a 2>/dev/null || echo no; touch /tmp/x", workspace, mode="read-only")
    assert (done.code, done.output) == (0, "no\n")
    assert list(workspace.iterdir()) == []


async def test_the_network_is_out_of_reach(sandbox: Sandbox, workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        # The program itself must be one that the sandbox shows: a virtual environment may lie below /tmp.
        outside = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert await outside.wait() == 0, "outside it works"
        server.accept()[0].close()
        done = await inside(sandbox, f'"{Path(sys.executable).resolve()}" -c "{script}"', workspace)
        assert done.code == 1, done.output
        assert "Error: " in done.output
        with pytest.raises(TimeoutError):
            server.accept()


async def test_sockets_of_the_machine_cannot_be_reached(sandbox: Sandbox, workspace: Path) -> None:
    done = await inside(sandbox, "ls -A /run | grep -v current-system; ls -A /var/tmp", workspace)
    assert done.output == ""


async def test_git_and_settings_of_the_workspace_are_read_only(sandbox: Sandbox, workspace: Path) -> None:
    for name in (".git", ".watchroom"):
        (workspace / name).mkdir()
        (workspace / name / "config").write_text("mine\n")
    script = "for d in .git .watchroom; do echo x > $d/config; rm -rf $d; mv $d away; done 2>/dev/null; ls -A"
    done = await inside(sandbox, script, workspace)
    assert done.output == ".git\n.watchroom\n"
    assert (workspace / ".git/config").read_text() == "mine\n"


async def test_secrets_cannot_be_read(
    sandbox: Sandbox, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.path.realpath(f"/var/{uuid.uuid4().hex}"))
    try:
        home.mkdir()
    except OSError:
        pytest.skip("needs a home outside the temp folder, which is hidden as a whole")
    try:
        (home / ".ssh").mkdir()
        (home / ".ssh/id_ed25519").write_text("canary")
        (home / ".netrc").write_text("canary")
        (home / "real-aws").mkdir()
        (home / "real-aws/credentials").write_text("canary")
        (home / ".aws").symlink_to(home / "real-aws")
        (home / "store").mkdir()
        (home / "store/db").write_text("canary")
        (home / "plain").write_text("seen\n")
        monkeypatch.setenv("HOME", str(home))
        done = await inside(
            sandbox, f"grep -rh . {home} 2>/dev/null; cat {home}/.netrc", workspace, hidden=[home / "store"]
        )
        assert "canary" not in done.output
        assert "seen" in done.output
        # The same when the workspace is the home itself.
        done = await inside(sandbox, "grep -rh . . 2>/dev/null; ls", home, hidden=[home / "store"])
        assert "canary" not in done.output
        assert "plain" in done.output
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True)


async def test_a_further_folder_can_be_writable(sandbox: Sandbox, workspace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = await inside(sandbox, f"echo x > {other}/x", workspace, writable=[other])
    assert done.code == 0
    assert (other / "x").exists()


async def test_a_folder_outside_the_workspace_is_seen_but_not_written(
    sandbox: Sandbox, workspace: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    done = await inside(sandbox, "ls; touch x 2>/dev/null || echo no", workspace, cwd=other)
    assert done.output == "file\nno\n"


@pytest.mark.parametrize("where", [".", "secret", "secret/inner"])
async def test_what_is_hidden_stays_so_wherever_a_command_runs(
    sandbox: Sandbox, workspace: Path, tmp_path: Path, where: str
) -> None:
    """Whoever lets a command run in /tmp has not handed out the engine's sockets there."""
    hidden = tmp_path / "secret"
    (hidden / "inner").mkdir(parents=True)
    (hidden / "inner/file").write_text("canary")
    script = f"cat {hidden}/inner/file; echo x > {workspace}/x"
    done = await inside(sandbox, script, workspace, cwd=tmp_path / where, hidden=[hidden])
    assert "canary" not in done.output
    if where == ".":
        assert (workspace / "x").exists()  # the workspace lies in that folder and is still its own


def test_secrets_are_those_of_the_real_home_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = tmp_path / "real"
    for name in (".ssh", ".local/share/watchroom"):
        (real / name).mkdir(parents=True)
    entry = list(pwd.getpwuid(os.getuid()))
    entry[5] = str(real)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(entry))
    monkeypatch.delenv("HOME")
    line = Sandbox("bwrap").wrap(["true"], mode="read-only", cwd=Path("/"), workspace=None)
    hidden = [line[i + 1] for i, word in enumerate(line) if word == "--tmpfs"]
    assert {str(real / ".ssh"), str(real / ".local/share/watchroom")} <= set(hidden)


async def test_other_processes_are_not_seen(sandbox: Sandbox, workspace: Path) -> None:
    done = await inside(
        sandbox, "ls -d /proc/[0-9]* | wc -l; cat /proc/1/environ | tr '\\0' '\\n'", workspace
    )
    count, *environ = done.output.splitlines()
    assert int(count) < 8
    assert not [line for line in environ if "PYTEST" in line]


async def test_even_daemons_end_with_the_command(sandbox: Sandbox, workspace: Path) -> None:
    marker = f"marker-{uuid.uuid4().hex}"
    done = await inside(sandbox, f"setsid sh -c 'sleep 1000; : {marker}' & echo started", workspace)
    assert done.output == "started\n"
    assert gone(marker)


ENGINE = """
import asyncio, sys
from pathlib import Path
from core.clock import SystemClock
from core.tools.process import run

asyncio.run(run(sys.argv[1:], cwd=Path("/"), env={"PATH": "/usr/bin:/bin"}, clock=SystemClock(),
                timeout=None, limit=100, guard=False))
"""


async def test_it_dies_with_the_engine(sandbox: Sandbox, workspace: Path) -> None:
    marker = f"marker-{uuid.uuid4().hex}"
    ready = workspace / "ready"
    os.mkfifo(ready)
    script = f"setsid sh -c 'sleep 1000; : {marker}' & echo x > ready; sleep 1000; : {marker}"
    argv = sandbox.wrap(["/bin/sh", "-c", script], mode="workspace-write", cwd=workspace, workspace=workspace)
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, *argv, cwd=Path(__file__).parents[3]
    )
    try:
        await asyncio.to_thread(ready.read_bytes)
        assert alive(marker)
    finally:
        engine.kill()
        await engine.wait()
    assert gone(marker)


def test_nothing_is_wrapped_with_the_sandbox_off() -> None:
    with pytest.raises(ValueError, match="off"):
        Sandbox("/usr/bin/bwrap").wrap(["true"], mode="off", cwd=Path("/"), workspace=None)


async def test_a_missing_bwrap_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await Sandbox.detect(Path("/nowhere")) == (None, "bubblewrap (bwrap) is not installed")


async def test_a_bwrap_that_leaves_the_system_writable_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho '/dev/sda / ext4 rw,relatime 0 0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, why = await Sandbox.detect(Path("/nowhere"))
    assert found is None
    assert why == "bubblewrap leaves / and /proc/sys writable here"


async def test_a_bwrap_that_does_not_work_is_said_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, why = await Sandbox.detect(Path("/nowhere"))
    assert found is None
    assert why == "bubblewrap does not work here: bwrap: No permissions to create new namespace"


def test_the_workspace_cannot_bring_its_own_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "bwrap"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-link"
    elsewhere.symlink_to(program.parent)
    for entry in (program.parent, elsewhere):
        monkeypatch.setenv("PATH", str(entry))
        assert find_program("bwrap", tmp_path) is None
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_program("bwrap", tmp_path / "other") == str(program)
