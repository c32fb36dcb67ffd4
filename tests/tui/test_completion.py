"""`watchroom completion`: what bash offers, run for real; the same verbs and options for zsh and fish."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tui import cli, exits, run_completion

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_watchroom
printf '%s\\n' "${COMPREPLY[@]}"
"""
JOB_VERBS = "run list show rows resume pause cancel retry skip set export"
FLAGS = {flag for flags, _ in cli.COMMON for flag in flags}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "watchroom.bash"
    path.write_text(run_completion.bash(run_completion.known()))
    return path


def offers(script: Path, line: str, cwd: Path, **env: str) -> list[str]:
    """What bash offers for a command line; its last word is the one being typed ('' after a blank)."""
    words = shlex.split(line)
    asked = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **env},
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    return asked.stdout.split("\n")[:-1] if asked.stdout != "\n" else []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("watchroom j", ["job"]),
        ("watchroom job ''", JOB_VERBS.split()),
        ("watchroom --json agent ''", ["list", "interrupt", "close", "resume", "send", "budget", "compact"]),
        ("watchroom --model job ex", ["exec"]),  # the value of an option is no verb
        ("watchroom --model", ["--model"]),
        ("watchroom --model ''", []),
        ("watchroom --sandbox ''", ["read-only", "workspace-write", "off"]),
        ("watchroom exec --sandbox = re", ["read-only"]),  # as bash splits --sandbox=re
        ("watchroom exec --sandbox =", ["read-only", "workspace-write", "off"]),
        ("watchroom job run --max-r", ["--max-runtime"]),
        ("watchroom session show --mod", []),  # no model matters to it
        ("watchroom agent list --status i", ["idle", "interrupted"]),
        ("watchroom job rows --status ''", ["pending", "running", "completed", "failed", "skipped"]),
        ("watchroom job export --format ''", ["csv", "jsonl", "parquet"]),
        ("watchroom completion ''", ["bash", "zsh", "fish"]),
        ("watchroom bri", []),
        ("watchroom nonsense ''", []),
        ("watchroom -- e", []),
        ("watchroom exec -- --mod", []),
        ("watchroom job run in", ["in put.csv", "inner"]),
        ("watchroom job run --output in", ["in put.csv", "inner"]),
        ("watchroom engine --home i", ["inner"]),
        ("watchroom exec --api-key-env MY_", ["MY_KEY"]),
        ("watchroom agent send in", []),
    ],
)
def test_bash_offers(script: Path, tmp_path: Path, line: str, expected: list[str]) -> None:
    (tmp_path / "in put.csv").touch()
    (tmp_path / "inner").mkdir()
    assert sorted(offers(script, line, tmp_path, MY_KEY="secret")) == sorted(expected)


@pytest.mark.parametrize("name", [name for name, verb in cli.VERBS.items() if not verb.hidden])
def test_bash_offers_every_option_of_every_verb(script: Path, tmp_path: Path, name: str) -> None:
    found = set(offers(script, f"watchroom {name} --", tmp_path))
    options = cli.VERBS[name].options
    assert found & FLAGS == {flag for flag in FLAGS if flag in options and flag.startswith("--")} | (
        {"--cd"} if "-C" in options else set()
    )
    assert "--help" in found
    assert not found & {"--background", "--ready-fd"}
    parser = cli.parser_of(name)
    for flag in found - {"--help", "--version"}:
        assert f"{flag} " in parser.format_help() or f"{flag}\n" in parser.format_help()


def test_a_file_name_never_runs_anything(script: Path, tmp_path: Path) -> None:
    (tmp_path / "$(touch pwned)").touch()
    (tmp_path / "`touch pwned`").touch()
    assert len(offers(script, "watchroom job run ''", tmp_path)) == 2
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_verb_prints_a_script_that_the_shell_can_parse(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["completion", shell]) == exits.OK
    shown = capsys.readouterr().out
    assert shown.endswith("\n")
    for name, verb in cli.VERBS.items():
        assert verb.hidden or all(word in shown for word in name.split())
    assert "bridge" not in shown
    assert "--approval-policy" in shown or "-l approval-policy" in shown
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(shown)
    parsed = subprocess.run([program, "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert (parsed.returncode, parsed.stderr) == (0, "")
