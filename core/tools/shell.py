"""`exec_command`: a shell command of an agent, under the swarm's policy and sandbox."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from core.safety.text import clean, clean_line, is_clean, reveal, shorten
from core.tools.approval import Ask, Policy, Refuse, decide
from core.tools.base import MAX_OUTPUT_CHARS, Tool, ToolArgs, ToolContext, ToolError, ToolOutput
from core.tools.environment import child_environment
from core.tools.process import Finished, StartError, run
from core.tools.sandbox import Mode, Sandbox

HEADER_ROOM = 1_000
MAX_COMMAND_BYTES = 100_000
"""Linux takes at most 128 KiB for one argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellPolicy:
    """What the swarm allows. `hidden`: folders no command in the sandbox may read (the store's home)."""

    approval_policy: Policy
    mode: Mode
    sandbox: Sandbox | None
    workspace: Path
    hidden: tuple[Path, ...] = ()
    environment: Mapping[str, str] | None = None
    """Where commands get their environment from, in part; None: this process's."""


class ExecArgs(ToolArgs):
    cmd: str = Field(description="The shell command, as for `sh -c`.", min_length=1)
    workdir: str | None = Field(
        default=None, description="Folder to run in, relative to the workspace. Default: the workspace."
    )
    timeout_ms: int = Field(
        default=120_000, ge=1, le=1_800_000, description="The command is ended after this many milliseconds."
    )
    max_output_chars: int = Field(
        default=16_000,
        ge=200,
        le=MAX_OUTPUT_CHARS - HEADER_ROOM,
        description="Output to return; of more, the beginning and the end are kept.",
    )
    escalate: bool = Field(
        default=False,
        description="Ask the operator to run it outside the sandbox (network, writing elsewhere).",
    )
    justification: str | None = Field(
        default=None, max_length=1_000, description="One sentence for the operator: why this is needed."
    )


class ExecCommand(Tool):
    """Runs a command and returns its exit code, time and output."""

    name: ClassVar[str] = "exec_command"
    description: ClassVar[str] = (
        "Run a shell command in the workspace and return its exit code and output (stdout and stderr "
        "together). It gets no input and no terminal. It may run in a sandbox: no network, writing only in "
        "the workspace and /tmp, and nothing in /tmp outlives the command. It may need the operator's "
        "approval. Processes that it leaves behind are ended with it."
    )
    Args: ClassVar[type[ToolArgs]] = ExecArgs
    category: ClassVar[str] = "exec"
    parallel: ClassVar[bool] = True
    timeout: float | None = None
    """Bounds itself: the command by timeout_ms, a question by its operator."""

    def __init__(self, policy: ShellPolicy) -> None:
        self._policy = policy
        self._workspace = policy.workspace.resolve()
        self._shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"

    def brief(self, args: Mapping[str, Any]) -> str:
        return shorten(clean_line(reveal(str(args.get("cmd", "")))), 120)

    async def run(self, args: ExecArgs, ctx: ToolContext) -> ToolOutput:
        """Status ok for exit code 0, error for any other end, refused when policy or operator say no."""
        _check_command(args.cmd)
        cwd = self._folder(args.workdir, ctx.cwd)
        policy = self._policy
        env = child_environment(policy.environment)
        decision = decide(
            policy.approval_policy,
            policy.mode,
            policy.sandbox is not None,
            args.cmd,
            cwd,
            args.escalate,
            workspace=self._workspace,
            path=env["PATH"],
        )
        if isinstance(decision, Refuse):
            return ToolOutput(text=decision.reason, status="refused")
        argv = [self._shell, "-c", args.cmd]
        if isinstance(decision, Ask):
            reason = decision.reason
            if args.justification:
                reason += f"; the agent says: {clean_line(args.justification)}"
            # What was asked must be what is seen: characters that would not show are spelled out.
            shown = reveal(args.cmd)
            verdict = await ctx.approve(
                command=shown, argv=[*argv[:-1], shown], cwd=cwd, reason=shorten(reason, 600)
            )
            if not verdict.approved:
                return ToolOutput(text=f"not run: {verdict.reason or 'denied'}", status="refused")
            cwd = self._unmoved(args.workdir, ctx.cwd, cwd)
        finished = await self._execute(argv, cwd, env, args, ctx, decision.sandboxed)
        return _output(finished, args, policy.mode if decision.sandboxed else "off")

    async def _execute(
        self,
        argv: list[str],
        cwd: Path,
        env: Mapping[str, str],
        args: ExecArgs,
        ctx: ToolContext,
        sandboxed: bool,
    ) -> Finished:
        policy = self._policy
        if sandboxed and policy.sandbox is not None:
            argv = policy.sandbox.wrap(
                argv, mode=policy.mode, cwd=cwd, workspace=self._workspace, hidden=policy.hidden
            )
        try:
            return await run(
                argv,
                cwd=cwd,
                env=env,
                clock=ctx.clock,
                timeout=args.timeout_ms / 1000,
                limit=args.max_output_chars,
                guard=not sandboxed,
            )
        except StartError as error:
            raise ToolError(str(error)) from None

    def _folder(self, workdir: str | None, base: Path) -> Path:
        try:
            folder = (base / (workdir or ".")).resolve()
            found = folder.is_dir()
        except (OSError, ValueError, RuntimeError):
            found = False  # a name no file can have, or a loop of links: reported like a missing one
        if not found:
            raise ToolError(f"workdir {reveal(shorten(workdir or str(base), 200))!r} is not a folder")
        return folder

    def _unmoved(self, workdir: str | None, base: Path, approved: Path) -> Path:
        """The approved folder, if the name still leads there: links may change while an operator thinks."""
        if self._folder(workdir, base) != approved:
            raise ToolError("the folder changed while the command waited for approval; it was not run")
        return approved


def _check_command(cmd: str) -> None:
    size = len(cmd.encode())
    if "\0" in cmd:
        raise ToolError("cmd holds a NUL character")
    if not cmd.strip():
        raise ToolError("cmd is empty")
    if size > MAX_COMMAND_BYTES:
        raise ToolError(f"cmd has {size} bytes, more than {MAX_COMMAND_BYTES}; put it into a file")


def _output(finished: Finished, args: ExecArgs, mode: Mode) -> ToolOutput:
    """The call's text: how it ended, then what it wrote, without what would drive a terminal."""
    if finished.timed_out:
        head = [f"Timed out after {args.timeout_ms / 1000:g} s and was ended"]
    else:
        head = [f"Exit code: {finished.code}{_signal_name(finished.code)}"]
    failed = finished.timed_out or finished.code != 0
    head.append(f"Wall time: {finished.seconds:.3f} s")
    if finished.leftovers and not finished.timed_out:
        head.append("Processes it left running were ended")
    if failed and mode != "off":
        head.append(f"Sandbox: {mode}, no network")
    output = finished.output if is_clean(finished.output) else clean(finished.output)
    text = "\n".join([*head, "Output:", output])
    return ToolOutput(text=text, status="error" if failed else "ok")


def _signal_name(code: int) -> str:
    if code >= 0:
        return ""
    try:
        return f" ({signal.Signals(-code).name})"
    except ValueError:
        return ""
