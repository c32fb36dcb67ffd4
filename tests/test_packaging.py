"""The wheel: what it carries, and that it works outside the checkout, beside folders named like ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from core.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


def run(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}, **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=55,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert build.returncode == 0, build.stderr[-2000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files and nothing else of ours, unpacked as an installer lays them out."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder that has packages named like ours, each of which breaks whoever imports it."""
    for name in ("core", "tui", "assets", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name}')\n")
    return tmp_path


def watchroom(site: Path, cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The installed command. Isolated from the checkout: -P as a console script has it, the wheel's files
    first, then the dependencies of the environment that runs the tests."""
    entry = re.search(
        r"^watchroom = (\S+):(\S+)$", next(site.glob("*.dist-info/entry_points.txt")).read_text(), re.M
    )
    assert entry is not None
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from {entry[1]} import {entry[2]}; "
        f"import core; assert core.__file__.startswith({str(site)!r}), core.__file__; sys.exit({entry[2]}())"
    )
    return run(sys.executable, "-P", "-c", script, *args, cwd=cwd, **env)


def test_the_wheel_carries_code_and_data_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"watchroom-{VERSION}.dist-info/METADATA").decode()
    tracked = {
        str(path.relative_to(ROOT))
        for room in ("core", "tui", "assets")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tracked <= names
    assert {Path(name).suffix for name in tracked} >= {".py", ".tcss", ".toml", ".csv"}
    assert not [name for name in names if name.startswith(("tests/", ".ci/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: MIT" in metadata


def test_the_installed_version(site: Path, elsewhere: Path) -> None:
    shown = watchroom(site, elsewhere, "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"watchroom {VERSION}\n", "")


def test_the_installed_demo_runs_from_a_folder_with_packages_of_its_own(site: Path, elsewhere: Path) -> None:
    home = elsewhere / "home"
    demo = watchroom(site, elsewhere, "demo", "--plain", WATCHROOM_HOME=str(home))
    assert demo.returncode == 0, demo.stdout[-2000:] + demo.stderr[-2000:]
    assert "root completed" in demo.stdout
    assert len(set(re.findall(r"^\S+ (\S+) spawned by", demo.stdout, re.M))) >= 4
    listed = watchroom(site, elsewhere, "session", "list", WATCHROOM_HOME=str(home))
    assert listed.returncode == 0
    assert "demo" in listed.stdout
    assert sorted(path.name for path in elsewhere.iterdir()) == ["assets", "core", "home", "tests", "tui"]


# --- the pins --------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([a-z0-9_.-]+)==([^\s;\\]+)", text, re.M))


def test_the_lock_pins_every_requirement_by_hash_and_names_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~ \[]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= set(pins())
    assert not re.search(r"://|^\s*-[^-]|--(index|extra|find)|\bfile:| @ |/", text, re.M)
    entries = re.split(r"^(?=[a-z])", text, flags=re.M)
    assert all("--hash=sha256:" in entry for entry in entries if entry.strip())


def test_the_pins_satisfy_the_ranges() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins()[requirement.name]), line


# --- the two commands ------------------------------------------------------------------------------------


def readme_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_begins_with_two_commands_that_stand_alone() -> None:
    first_screen = (ROOT / "README.md").read_text().split("\n## ", 1)[0]
    assert first_screen.count("```sh") == 2
    demo, tests = readme_blocks()[:2]
    assert demo.strip().endswith("watchroom demo")
    assert tests.strip().endswith("pytest")
    assert [block for block in readme_blocks() if "pytest" in block] == [tests]
    for block in (demo, tests):
        command = block.replace("\\\n", " ").strip()
        assert "\n" not in command
        assert "--require-hashes -r requirements.lock" in command
        assert "--no-build-isolation --no-deps -e ." in command
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    for step in ("README.md", "ruff check", "ruff format --check", "mypy", "lint-imports", "-m build"):
        assert step in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
