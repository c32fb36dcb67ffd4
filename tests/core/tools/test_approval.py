from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tools.approval import Ask, Policy, Refuse, Run, decide
from core.tools.sandbox import Mode

WORKSPACE = Path("/nowhere/workspace")
MODES: tuple[Mode, ...] = ("read-only", "workspace-write", "off")


def decision(
    policy: Policy,
    mode: Mode = "workspace-write",
    *,
    sandbox: bool = True,
    command: str = "make",
    cwd: Path = WORKSPACE,
    escalate: bool = False,
) -> Run | Ask | Refuse:
    return decide(policy, mode, sandbox, command, cwd, escalate, workspace=WORKSPACE, path="/usr/bin")


def test_untrusted_runs_what_only_looks_and_asks_for_the_rest() -> None:
    assert decision("untrusted", command="ls -l") == Run(True)
    assert decision("untrusted", sandbox=False, command="ls -l") == Run(False)
    assert decision("untrusted", "off", command="ls -l") == Run(False)
    assert decision("untrusted") == Ask("make is not on the list of harmless commands", True)
    assert decision("untrusted", sandbox=False) == Ask("make is not on the list of harmless commands", False)
    assert decision("untrusted", escalate=True) == Ask("it wants to run outside the sandbox", False)
    assert isinstance(decision("untrusted", command="ls", escalate=True), Ask)


def test_on_request_asks_only_to_get_out() -> None:
    assert decision("on-request") == Run(True)
    assert decision("on-request", escalate=True) == Ask("it wants to run outside the sandbox", False)
    assert decision("on-request", "off") == Run(False)


def test_never_neither_asks_nor_leaves() -> None:
    assert decision("never") == Run(True)
    assert isinstance(decision("never", escalate=True), Refuse)
    assert isinstance(decision("never", cwd=Path("/etc")), Refuse)
    assert decision("never", "off") == Run(False)


@pytest.mark.parametrize("policy", ["on-request", "never"])
def test_without_a_sandbox_only_untrusted_and_an_explicit_off_run(policy: Policy) -> None:
    refused = decision(policy, sandbox=False, command="ls")
    assert isinstance(refused, Refuse)
    assert "no working sandbox" in refused.reason
    assert decision(policy, "off", sandbox=False) == Run(False)


def test_a_folder_outside_the_workspace_asks() -> None:
    for policy in ("untrusted", "on-request"):
        asked = decision(policy, command="ls", cwd=Path("/nowhere/workspace-2"))
        assert asked == Ask("its folder lies outside the workspace", True)


@given(
    st.sampled_from(["untrusted", "on-request", "never"]),
    st.sampled_from(MODES),
    st.booleans(),
    st.sampled_from(["ls", "rm -rf /", "cat a | tee b"]),
    st.sampled_from([WORKSPACE, WORKSPACE / "a", Path("/etc")]),
    st.booleans(),
)
def test_the_rules_that_always_hold(
    policy: Policy, mode: Mode, sandbox: bool, command: str, cwd: Path, escalate: bool
) -> None:
    made = decision(policy, mode, sandbox=sandbox, command=command, cwd=cwd, escalate=escalate)
    boxed = sandbox and mode != "off"
    if isinstance(made, Ask):
        assert policy != "never"
    if isinstance(made, Run) and not made.sandboxed:
        assert not boxed, "nothing leaves a sandbox without a question"
        assert policy == "untrusted" or mode == "off"
    if isinstance(made, Run | Ask) and made.sandboxed:
        assert boxed
    if isinstance(made, Run) and policy == "untrusted":
        assert command == "ls"


def test_every_combination_is_decided() -> None:
    kinds = {
        type(decision(p, m, sandbox=s, escalate=e))
        for p, m, s, e in itertools.product(("untrusted", "on-request", "never"), MODES, (0, 1), (0, 1))
    }
    assert kinds == {Run, Ask, Refuse}
