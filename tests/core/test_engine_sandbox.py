"""Swarms of several starters in one engine: each in the sandbox that its own workspace and home ask for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.channel.local import open_engine
from core.channel.setup import setup_of
from core.domain import events as e
from core.tools.sandbox import Sandbox
from tests.core.agents.scenarios import call, scenario, step
from tests.core.harness import settings_for, swarm


async def test_no_swarm_runs_in_a_sandbox_out_of_its_own_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agents could have written that program, however trusted it is for a swarm elsewhere."""
    if (await Sandbox.detect(tmp_path))[0] is None:
        pytest.skip("no bubblewrap here")
    real = Path(str(shutil.which("bwrap")))
    theirs = tmp_path / "theirs"
    elsewhere = tmp_path / "elsewhere"
    for folder in (theirs, elsewhere):
        folder.mkdir()
    program = theirs / "bwrap"
    program.write_text(f'#!/bin/sh\necho used >> {tmp_path}/used\nexec {real} "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{theirs}:{real.parent}:/usr/bin:/bin")
    script = scenario({"/root": [step(call("exec_command", cmd="echo $((6 * 7))")), step(text="done")]})
    settings = settings_for(tmp_path, script, approval_policy="never")
    uses = []
    async with open_engine(settings) as client:
        for cwd in (elsewhere, theirs):
            (tmp_path / "used").write_text("")
            async with swarm(client, cwd=str(cwd)) as own:
                await own.quiet()
                assert ["42" in result.text for result in own.of(e.ToolResult)] == [True]
                assert own.state.sandboxed
            uses.append((tmp_path / "used").read_text().count("used"))
    assert uses == [2, 0]  # tried out and run; then not touched


async def test_the_starters_own_secrets_are_hidden(tmp_path: Path) -> None:
    if (await Sandbox.detect(tmp_path))[0] is None:
        pytest.skip("no bubblewrap here")
    home = tmp_path / "starter"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text("canary")
    (home / "plain").write_text("seen")
    cmd = f"cat {home}/plain {home}/.aws/credentials"
    script = scenario({"/root": [step(call("exec_command", cmd=cmd)), step(text="done")]})
    settings = settings_for(tmp_path, script, approval_policy="never")
    setup = setup_of(settings, {"HOME": str(home)})
    async with open_engine(settings) as client, swarm(client, cwd=str(home), setup=setup) as own:
        await own.quiet()
        (result,) = own.of(e.ToolResult)
    assert "seen" in result.text
    assert "canary" not in result.text
