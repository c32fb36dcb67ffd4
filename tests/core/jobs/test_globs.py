from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.jobs.errors import JobInputError
from core.jobs.globs import find_files, read_glob
from tests.core.jobs.room import Room, read_output

FILES = [
    "readme.md",
    "src/a.py",
    "src/b.py",
    "src/c.txt",
    "src/deep/a.py",
    "src/deep/deeper/d.py",
    "src/deep/.hidden.py",
    "src/.venv/lib/x.py",
    "other/e.py",
    ".git/config",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * number)
    return tmp_path


def paths(tree: Path, pattern: str, *, inside: bool = False) -> list[str]:
    return [found.path for found in find_files(pattern, tree, inside=inside)]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("src/**/*.py", ["src/a.py", "src/b.py", "src/deep/a.py", "src/deep/deeper/d.py"]),
        ("**/a.py", ["src/a.py", "src/deep/a.py"]),
        ("src/*.py", ["src/a.py", "src/b.py"]),
        ("./src//[!a].p?", ["src/b.py"]),
        ("src/*", ["src/a.py", "src/b.py", "src/c.txt"]),
        ("src/c.txt", ["src/c.txt"]),
        ("src/deep/.*", ["src/deep/.hidden.py"]),
        ("src/.venv/**", ["src/.venv/lib/x.py"]),
        ("**/**/deeper/**/**", ["src/deep/deeper/d.py"]),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str], inside: bool) -> None:
    assert paths(tree, pattern, inside=inside) == expected


def test_the_rows(tree: Path) -> None:
    table = read_glob("src/*.py", tree, id_column="path")
    assert table.headers == ["path", "name", "size"]
    assert [(row.item, row.values) for row in table.rows] == [
        ("src/a.py", ["src/a.py", "a.py", "1"]),
        ("src/b.py", ["src/b.py", "b.py", "2"]),
    ]


def test_absolute_and_upward_patterns_are_for_operators(tree: Path) -> None:
    assert paths(tree / "other", "../src/*.py") == ["../src/a.py", "../src/b.py"]
    assert paths(tree / "other", f"{tree}/src/*.py") == [f"{tree}/src/a.py", f"{tree}/src/b.py"]
    for pattern in ("../src/*.py", f"{tree}/src/*.py", "/*", "*/../../*", "src/.."):
        with pytest.raises(JobInputError, match="leads out of the workspace"):
            find_files(pattern, tree / "other", inside=True)
    with pytest.raises(JobInputError, match="behind a wildcard"):
        find_files("*/../x", tree)


def test_links_do_not_lead_out_or_round(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.py").write_text("s")
    (tree / "src/out").symlink_to(outside)
    (tree / "src/out.py").symlink_to(outside / "secret.py")
    (tree / "src/in.py").symlink_to("deep/a.py")
    (tree / "src/round").symlink_to(tree)
    (tree / "src/dead.py").symlink_to("nowhere")
    os.mkfifo(tree / "src/pipe.py")
    for inside in (False, True):
        found = paths(tree, "src/**/*.py", inside=inside)
        assert found == ["src/a.py", "src/b.py", "src/deep/a.py", "src/deep/deeper/d.py", "src/in.py"]
    # Only where an operator names the link itself as the place to search.
    assert paths(tree, "src/out/*.py") == ["src/out/secret.py"]
    with pytest.raises(JobInputError, match="no file matches"):
        find_files("src/out/*.py", tree, inside=True)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("", "is not a pattern"),
        ("a\0b", "is not a pattern"),
        ("*" * 1001, "is not a pattern"),
        ("src/", "names folders"),
        ("*.rs", "no file matches '*.rs' in"),
        ("nowhere/*.py", "cannot be read: No such file or directory"),
        ("readme.md/*", "cannot be read: Not a directory"),
        ("\x1b[31m*", "no file matches"),
    ],
)
def test_one_sentence(tree: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(JobInputError) as caught:
        find_files(pattern, tree)
    assert sentence in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_text(tree: Path) -> None:
    try:
        (tree / os.fsdecode(b"bad\xff.py")).write_text("")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(JobInputError, match=r"the name of the file bad\?\.py is not UTF-8"):
        find_files("*.py", tree)


def test_many_wildcards_cost_no_time(tree: Path) -> None:
    (tree / ("a" * 200)).write_text("")
    with pytest.raises(JobInputError, match="no file matches"):
        find_files("**/" * 60 + "*a" * 100 + "b", tree)


NAMES = st.sampled_from(["a", "b", ".a", "ab"])
PARTS = st.sampled_from(["**", "*", "a", "b", "a*", "?", "[ab]", ".*", ".a", "**b", "[!a]*"])


@settings(deadline=None)  # a disk may be busy
@given(
    files=st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=8),
    pattern=st.lists(PARTS, min_size=1, max_size=4),
)
def test_the_same_files_as_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], pattern: list[str]
) -> None:
    base = tmp_path_factory.getbasetemp() / "globs"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    for parts in files:
        path = base.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            continue  # one file is the folder of another
    asked = "/".join(pattern)
    try:
        found = paths(base, asked, inside=True)
    except JobInputError:
        found = []
    expected = {name for name in glob.glob(asked, root_dir=base, recursive=True) if (base / name).is_file()}
    assert found == sorted(expected)


@given(pattern=st.text(st.sampled_from("[]!-*?a&|~^\\/. \n"), max_size=12))
@settings(deadline=None)  # a disk may be busy
def test_any_text_is_a_pattern_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, pattern: str
) -> None:
    base = tmp_path_factory.getbasetemp() / "any"
    base.mkdir(exist_ok=True)
    (base / "a").touch()
    try:
        found: list[str] | str = paths(base, pattern, inside=True)
    except JobInputError as error:
        found = str(error)
    assert found == ["a"] or (isinstance(found, str) and "\n" not in found)


async def test_a_job_over_the_files_of_a_folder(room: Room) -> None:
    for name in ("src/a.py", "src/deep/b.py", "src/c.txt"):
        (room.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (room.folder / name).write_text("12345")
    asked = {"input_path": "", "glob": "src/**/*.py", "instruction": "Look at {path}"}
    summary = await room.run(**asked, max_concurrency=1)
    assert [worker.message.split("\n\n")[1] for worker in room.workers] == [
        "Look at src/a.py",
        "Look at src/deep/b.py",
    ]
    output = Path(summary["output_csv_path"])
    assert output == room.folder / "src" / f"files.agent-job-{summary['job_id'][:8]}.csv"
    rows = read_output(output)
    assert [[row["path"], row["name"], row["size"], row["status"]] for row in rows] == [
        ["src/a.py", "a.py", "5", "completed"],
        ["src/deep/b.py", "b.py", "5", "completed"],
    ]
    with pytest.raises(ExceptionGroup) as caught:
        await room.run(**asked, output_path="src/a.py")
    assert caught.group_contains(JobInputError, match="one of the input's files")
    with pytest.raises(ExceptionGroup) as caught:
        await room.run(**(asked | {"input_path": "in.csv"}))
    assert caught.group_contains(JobInputError, match="not both")
