"""Whether a command runs, is asked about, or is refused (decision 29). Decides; does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from core.tools.harmless import Asks, check
from core.tools.sandbox import Mode

Policy = Literal["untrusted", "on-request", "never"]


class Run(msgspec.Struct, frozen=True):
    sandboxed: bool


class Ask(msgspec.Struct, frozen=True):
    """An operator decides; `sandboxed` says how it runs if approved."""

    reason: str
    sandboxed: bool


class Refuse(msgspec.Struct, frozen=True):
    reason: str


NO_SANDBOX = (
    "refused: this machine has no working sandbox, so policy {policy} runs nothing; "
    "the operator can choose --approval-policy untrusted or --sandbox off"
)
NEVER_OUT = "refused: policy never does not leave the sandbox; run it without escalate"
OUTSIDE = "its folder lies outside the workspace"


def decide(
    policy: Policy,
    mode: Mode,
    sandbox_available: bool,
    command: str,
    cwd: Path,
    escalate: bool,
    *,
    workspace: Path,
    path: str,
) -> Run | Ask | Refuse:
    """What happens to `command` in `cwd` (both paths resolved). `escalate`: the model wants it to run outside
    the sandbox. `path` is the PATH it will have."""
    boxed = mode != "off" and sandbox_available
    if policy != "untrusted" and mode != "off" and not sandbox_available:
        return Refuse(NO_SANDBOX.format(policy=policy))
    if not cwd.is_relative_to(workspace):
        if policy == "never":
            return Refuse(f"refused: {OUTSIDE} and policy never does not ask")
        return Ask(OUTSIDE, boxed and not escalate)
    if boxed and escalate:
        if policy == "never":
            return Refuse(NEVER_OUT)
        return Ask("it wants to run outside the sandbox", False)
    if policy == "untrusted":
        try:
            check(command, cwd=cwd, workspace=workspace, path=path)
        except Asks as why:
            return Ask(str(why), boxed)
    return Run(boxed)
