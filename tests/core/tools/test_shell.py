from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from core.tools.base import MAX_OUTPUT_CHARS, ToolError, ToolOutput, Verdict, parse_args
from core.tools.sandbox import Sandbox
from core.tools.shell import ExecArgs, ExecCommand, ShellPolicy
from tests.clock import FakeClock, settle
from tests.core.tools.context import FakeContext
from tests.core.tools.processes import alive, gone


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    found, why = asyncio.run(Sandbox.detect(Path("/nowhere")))
    if found is None:
        pytest.skip(why)
    return found


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return FakeContext(cwd=workspace)


def tool(context: FakeContext, **policy: Any) -> ExecCommand:
    settings = {"approval_policy": "never", "mode": "off", "sandbox": None} | policy
    return ExecCommand(ShellPolicy(workspace=context.cwd, **settings))


async def execute(
    context: FakeContext, cmd: str, *, policy: dict[str, Any] | None = None, **args: Any
) -> ToolOutput:
    return await tool(context, **(policy or {})).run(ExecArgs(cmd=cmd, **args), context)


async def test_a_command_that_succeeds(context: FakeContext) -> None:
    output = await execute(context, "echo out; echo err >&2")
    head, text = output.text.split("\nOutput:\n")
    assert (output.status, output.recorded, text) == ("ok", False, "out\nerr\n")
    assert head.startswith("Exit code: 0\nWall time: ")
    assert context.emitted == [], "the one result event is the output itself"
    assert context.asked == []


async def test_a_command_that_fails_keeps_its_output(context: FakeContext) -> None:
    output = await execute(context, "echo why; exit 3")
    assert output.status == "error"
    assert output.text.startswith("Exit code: 3\n")
    assert output.text.endswith("Output:\nwhy\n")


async def test_a_signal_is_named(context: FakeContext) -> None:
    assert (await execute(context, "kill -SEGV $$")).text.startswith("Exit code: -11 (SIGSEGV)\n")


async def test_it_runs_in_the_workspace_or_below(context: FakeContext) -> None:
    (context.cwd / "sub").mkdir()
    assert (await execute(context, "pwd")).text.endswith(f"\n{context.cwd}\n")
    assert (await execute(context, "pwd", workdir="sub")).text.endswith(f"\n{context.cwd / 'sub'}\n")


async def test_its_environment_holds_no_key(context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert "canary" not in (await execute(context, "env")).text


async def test_long_output_keeps_its_ends(context: FakeContext) -> None:
    output = await execute(context, "echo first; yes | head -c 1000000; echo last", max_output_chars=1000)
    assert "Output:\nfirst\n" in output.text
    assert output.text.endswith("last\n")
    assert "bytes left out" in output.text
    assert len(output.text) < 1200


async def test_output_fits_what_a_call_may_hold(context: FakeContext) -> None:
    output = await execute(
        context, "head -c 100000 /dev/zero | tr '\\0' x; exit 1", max_output_chars=MAX_OUTPUT_CHARS - 1000
    )
    assert len(output.text) <= MAX_OUTPUT_CHARS


async def test_output_drives_no_terminal(context: FakeContext) -> None:
    output = await execute(context, r"printf 'a\033]52;c;eA==\007b\033[31mc\000d'")
    assert output.text.endswith("Output:\nabcd")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_flood_ends_with_its_time(context: FakeContext) -> None:
    marker = f"marker-{uuid.uuid4().hex}"
    context.clock = clock = FakeClock()
    task = asyncio.ensure_future(execute(context, f"yes {marker} | cat & yes {marker}", timeout_ms=1500))
    while not clock.sleeping:
        await settle()
    await clock.advance(1.5)
    output = await task
    assert output.status == "error"
    assert output.text.startswith("Timed out after 1.5 s and was ended\n")
    assert gone(marker)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_tree_that_forks_on_ends_whole(context: FakeContext, tmp_path: Path) -> None:
    """Each process starts two more, to a depth of five, and none ends by itself."""
    marker = f"marker-{uuid.uuid4().hex}"
    script = tmp_path / "workspace" / "forks"
    script.write_text(
        '[ "$1" -gt 5 ] || { sh forks $(($1 + 1)) $2 & sh forks $(($1 + 1)) $2 & }\nsleep 1000\n'
    )
    context.clock = clock = FakeClock()
    task = asyncio.ensure_future(execute(context, f"sh forks 1 {marker}", timeout_ms=1000))
    while len(alive(marker)) < 40:
        await asyncio.to_thread(os.sched_yield)
    assert clock.sleeping
    await clock.advance(1)
    assert (await task).status == "error"
    assert gone(marker)


async def test_leftovers_are_told(context: FakeContext) -> None:
    output = await execute(context, "sleep 1000 >/dev/null 2>&1 & echo started")
    assert output.status == "ok"
    assert "Processes it left running were ended" in output.text


@pytest.mark.parametrize(
    ("cmd", "problem"),
    [
        ("   ", "empty"),
        ("echo \0", "NUL"),
        ("x" * 200_000, "200000 bytes"),
    ],
)
async def test_a_command_no_shell_can_get_is_one_sentence(
    context: FakeContext, cmd: str, problem: str
) -> None:
    with pytest.raises(ToolError, match=problem):
        await execute(context, cmd)


@pytest.mark.parametrize("workdir", ["missing", "file", "loop", "a\0b", "x" * 5000])
async def test_a_folder_that_is_none_is_one_sentence(context: FakeContext, workdir: str) -> None:
    (context.cwd / "file").touch()
    (context.cwd / "loop").symlink_to("loop")
    with pytest.raises(ToolError, match="is not a folder"):
        await execute(context, "ls", workdir=workdir)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"cmd": ""}',
        "{}",
        '{"cmd": "ls", "timeout_ms": 0}',
        '{"cmd": "ls", "timeout_ms": 1800001}',
        '{"cmd": "ls", "x": 1}',
    ],
)
def test_wrong_arguments_are_refused(context: FakeContext, arguments: str) -> None:
    with pytest.raises(ToolError, match="exec_command was called with wrong arguments"):
        parse_args(tool(context), arguments)


def test_its_brief_is_the_command_on_one_line(context: FakeContext) -> None:
    assert tool(context).brief({"cmd": "ls -l |\n  wc", "timeout_ms": 5}) == "ls -l | wc"
    assert "\x1b" not in tool(context).brief({"cmd": "ls \x1b[2K"})
    assert tool(context).brief({}) == ""


UNTRUSTED = {"approval_policy": "untrusted"}


async def test_what_needs_approval_is_asked_exactly(context: FakeContext) -> None:
    output = await execute(context, "touch made", policy=UNTRUSTED, justification="to try\nit")
    assert output.status == "ok"
    assert (context.cwd / "made").exists()
    (asked,) = context.asked
    assert asked["command"] == "touch made"
    assert asked["argv"][1:] == ["-c", "touch made"]
    assert asked["cwd"] == context.cwd
    assert asked["reason"] == "touch is not on the list of harmless commands; the agent says: to try it"


async def test_what_was_denied_does_not_run(context: FakeContext) -> None:
    context.verdict = Verdict(approved=False, by="operator", reason="denied by the operator")
    output = await execute(context, "touch made", policy=UNTRUSTED)
    assert (output.status, output.text) == ("refused", "not run: denied by the operator")
    assert not (context.cwd / "made").exists()


async def test_what_only_looks_is_not_asked(context: FakeContext) -> None:
    (context.cwd / "a").touch()
    output = await execute(context, "ls | wc -l", policy=UNTRUSTED)
    assert output.text.endswith("Output:\n1\n")
    assert context.asked == []


async def test_hidden_characters_are_spelled_out_in_the_question(context: FakeContext) -> None:
    context.verdict = Verdict(approved=False)
    await execute(context, "rm -rf x\r\x1b[2Kls", policy=UNTRUSTED)
    assert context.asked[0]["command"] == "rm -rf x\\u{d}\\u{1b}[2Kls"


async def test_a_folder_outside_asks_whatever_its_name(context: FakeContext, tmp_path: Path) -> None:
    (context.cwd / "link").symlink_to(tmp_path)
    context.verdict = Verdict(approved=False)
    for workdir in ("..", "link", str(tmp_path)):
        output = await execute(context, "ls", policy=UNTRUSTED, workdir=workdir)
        assert output.status == "refused"
        assert context.asked[-1]["cwd"] == tmp_path
        assert context.asked[-1]["reason"] == "its folder lies outside the workspace"
    output = await execute(context, "ls", workdir="..")
    assert output.status == "refused"
    assert len(context.asked) == 3, "policy never does not ask"


async def test_a_folder_that_moved_while_it_was_asked_is_not_used(
    context: FakeContext, tmp_path: Path
) -> None:
    (context.cwd / "good").mkdir()
    (context.cwd / "dir").symlink_to("good")

    class Swapping(FakeContext):
        async def approve(self, **question: Any) -> Verdict:
            (self.cwd / "dir").unlink()
            (self.cwd / "dir").symlink_to(tmp_path)
            return Verdict(approved=True)

    with pytest.raises(ToolError, match="changed while"):
        await execute(Swapping(cwd=context.cwd), "touch made", policy=UNTRUSTED, workdir="dir")
    assert not (tmp_path / "made").exists()


async def test_no_sandbox_means_no_run(context: FakeContext) -> None:
    output = await execute(context, "ls", policy={"mode": "workspace-write"})
    assert output.status == "refused"
    assert "no working sandbox" in output.text


async def test_in_the_sandbox(context: FakeContext, sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    policy = {"mode": "workspace-write", "sandbox": sandbox, "hidden": (tmp_path / "store",)}
    output = await execute(context, "echo in > made && cat made", policy=policy)
    assert (output.status, output.text.endswith("Output:\nin\n")) == ("ok", True)
    output = await execute(context, f"touch {tmp_path}/made /usr/made", policy=policy)
    assert output.status == "error"
    assert "Sandbox: workspace-write, no network" in output.text
    assert not (tmp_path / "made").exists()
    output = await execute(context, "touch x", policy=policy | {"mode": "read-only"})
    assert "Sandbox: read-only, no network" in output.text


async def test_out_of_the_sandbox_only_when_approved(
    context: FakeContext, sandbox: Sandbox, tmp_path: Path
) -> None:
    policy = {"approval_policy": "on-request", "mode": "workspace-write", "sandbox": sandbox}
    context.verdict = Verdict(approved=False, reason="no")
    output = await execute(context, f"touch {tmp_path}/made", policy=policy, escalate=True)
    assert (output.status, (tmp_path / "made").exists()) == ("refused", False)
    context.verdict = Verdict(approved=True)
    output = await execute(context, f"touch {tmp_path}/made", policy=policy, escalate=True)
    assert (output.status, (tmp_path / "made").exists()) == ("ok", True)
    assert len(context.asked) == 2
    output = await execute(context, "ls", policy=policy | {"approval_policy": "never"}, escalate=True)
    assert output.status == "refused"
    assert len(context.asked) == 2
