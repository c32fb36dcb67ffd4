"""The list of harmless commands, example by example, and its reader checked against the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.tools.harmless import Asks, check
from core.tools.shellwords import Unreadable, read

PATH = "/usr/bin:/bin"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with links out of it, secrets, and names made to be taken for options."""
    root = tmp_path_factory.mktemp("tree")
    workspace = root / "workspace"
    (workspace / "src/deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "src/x.py", "src/deep/y.py", ".env", ".env.example", "key.pem"):
        (workspace / name).write_text("text\n")
    (root / "outside").mkdir()
    (root / "outside/secret").write_text("secret\n")
    (workspace / "out").symlink_to(root / "outside")
    (workspace / "links").mkdir()
    (workspace / "links/one").symlink_to(root / "outside/secret")
    (workspace / "traps").mkdir()
    (workspace / "traps/-o.trap").touch()
    (workspace / "inner").symlink_to(workspace / "src/deep")
    return workspace


def harmless(command: str, workspace: Path) -> bool:
    try:
        check(command, cwd=workspace, workspace=workspace, path=PATH)
    except Asks:
        return False
    return True


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "ls -la src",
        "ls\nls src\n",
        "pwd; ls;",
        "cat a.txt src/x.py",
        "head -20 a.txt",
        "head -n 20 a.txt | tail -5",
        "wc -l *.txt",
        "wc -l src/*.py src/deep/?.py",
        "cd src && wc -l *.py",
        "cat /dev/null",
        "grep -rn 'def .*(self)' src",
        "grep -rn --include=*.py -e api src",
        "grep -rn /api src",
        "grep '/etc/passwd' a.txt",
        'grep "a b" a.txt',
        "grep 'cost: $5 `x`' a.txt",
        "rg -n --glob '*.py' foo src",
        "find . -name '*.py' -type f -not -path './src/*' | sort | uniq -c | sort -rn | head",
        "find src \\( -name a -o -name b \\) -print",
        "sort -t, -k2 a.txt 2>/dev/null",
        "cat a.txt 2>&1 | wc -c",
        "ls missing >/dev/null 2>&1 || echo missing",
        "echo 'a > b; rm -rf / & $(x)'",
        "echo a\\ b\\;c",
        "test -f a.txt && echo yes",
        "[ -d src ] && echo yes",
        "[ 3 -gt -2 ]",
        "cut -d, -f1 a.txt",
        "tr a-z A-Z",
        "uniq a.txt",
        "stat -c %s a.txt",
        "du -sh src",
        "df -h",
        "date +%Y-%m-%d",
        "date -u",
        "cat .env.example",
        "cat inner/y.py",
        "ls /usr/share",
        "git status --short",
        "git log",
        "git log --oneline -5 -- src",
        "git log --format='%h %an %s' HEAD~3..HEAD",
        "git diff HEAD~1 --stat",
        "git show HEAD:src/x.py",
        "git branch -a",
        "git ls-files src",
        "git blame -L 1,5 src/x.py",
        "true",
        "which python3",
    ],
)
def test_what_only_looks_runs(command: str, tree: Path) -> None:
    check(command, cwd=tree, workspace=tree, path=PATH)


@pytest.mark.parametrize(
    "command",
    [
        # beyond the grammar
        "",
        " ",
        "# nothing",
        "ls # x",
        "ls &",
        "ls & rm a",
        "ls |& cat",
        "ls &> x",
        "ls > x",
        "ls >> x",
        "cat < a",
        "cat << E\nE",
        "ls >&3",
        "ls 3>/dev/null",
        "ls x2>/dev/null/y",
        "ls >/dev/nullx",
        "echo $HOME",
        'echo "$HOME"',
        "echo `id`",
        "echo $(id)",
        'echo "`id`"',
        "echo ${x}",
        "echo $'a'",
        "(ls)",
        "{ ls; }",
        "ls; ; ls",
        "ls;;",
        "; ls",
        "ls &&",
        "&& ls",
        "ls || ",
        "| ls",
        "ls |",
        "! ls",
        "if true; then ls; fi",
        "time ls",
        "exec ls",
        "eval ls",
        "A=b ls",
        "A=b",
        "ls {a,b}",
        "cat <(ls)",
        "echo ~",
        "ls ~root",
        "ls 'a",
        'ls "a',
        "ls a\\",
        "ls a\\\nb",
        "ls\rrm a",
        "ls\x1b[2K",
        "ls \u202e",
        "ls\u00a0a",
        "ls [ab]*",
        "ls @(a)",
        "function ls",
        "\\\nls",
        "ls\x00",
        # a second command behind the first
        "echo a\nrm b",
        "ls; rm a",
        "ls && rm a",
        "ls || rm a",
        "ls | xargs rm",
        "ls | tee a",
        "echo a;rm b",
        "echo a|sh",
        # not on the list
        "rm a",
        "mv a b",
        "cp a b",
        "touch a",
        "mkdir a",
        "chmod +x a",
        "ln -s a b",
        "sed -n 1p a",
        "awk 1 a",
        "env ls",
        "xargs ls",
        "python3 -c 1",
        "perl -e 1",
        "tar tf a",
        "curl x",
        "sh -c ls",
        "bash",
        "tee a",
        "dd if=a",
        "./ls",
        "/bin/ls",
        "command ls",
        "builtin echo a",
        "sudo ls",
        "printf -v 'a[$(id)]' x",
        "hostname x",
        "less a",
        "vi a",
        # options that write or run
        "find . -delete",
        "find . -exec rm {} +",
        "find . -execdir id ';'",
        "find . -ok id ';'",
        "find . -fprint a",
        "find . -fprintf a x",
        "find . -fls a",
        "find . -files0-from a",
        "find -L .",
        "sort -o a b",
        "sort -oa b",
        "sort -uo a b",
        "sort --output=a b",
        "sort --outp=a b",
        "sort --compress-program=sh a",
        "sort -T x a",
        "sort --files0-from=a",
        "uniq a b",
        "rg --pre sh x",
        "rg --pre=sh x",
        "rg -z x",
        "rg --hostname-bin=sh x",
        "rg -f a x",
        "grep -f a b",
        "grep -R x .",
        "wc --files0-from=a.txt",
        "du --files0-from=a",
        "du -X a",
        "date -s 1",
        "date --set=1",
        "date 010100002030",
        "date -I 010100002030",
        "date -f a",
        "file -C -m a",
        "file -f a",
        "diff -r a b",
        "md5sum -c a",
        "test -v 'a[$(id)]'",
        "[ -v 'a[0]' ]",
        "[ -R x ]",
        "test 'a[0]' -eq 1",
        "[ a",
        # git
        "git",
        "git commit -m x",
        "git -c core.pager=sh log",
        "git -C / status",
        "git --git-dir=/x status",
        "git diff --output=a",
        "git diff --ext-diff",
        "git log --outp=a",
        "git diff -Oa",
        "git branch new",
        "git branch -d x",
        "git branch -D x",
        "git branch -m x",
        "git branch --edit-description",
        "git tag v1",
        "git config --get x",
        "git remote -v",
        "git stash",
        "git checkout .",
        "git fetch",
        "git grep -O x",
        "git show --format=%GK",
        "git log --pretty='%G?'",
        "git status | sh",
        "git log --show-signature",
        "git diff --no-index /dev/null /etc/shadow",
        "git blame --contents /etc/shadow a",
        "git rev-parse --parseopt",
        # files that are nobody's business
        "cat ../x",
        "cat /etc/shadow",
        "cat /proc/self/environ",
        "cat /proc/1/environ",
        "cat out/secret",
        "ls out",
        "cat links/one",
        "cat links/*",
        "cat */secret",
        "grep -r x /",
        "grep -e x /etc/shadow",
        "grep -ex /etc/shadow",
        "grep x a.txt /etc/shadow",
        "grep --regexp=x /etc/shadow",
        "cat -- /etc/shadow",
        "head -n /etc/shadow",
        "cat .env",
        "cat .en*",
        "cat ./.env",
        "cat *.pem",
        "cat key.pem",
        "cat src/../.env",
        "git show HEAD:.env",
        "cat .git/config",
        "wc .ssh/id_rsa",
        "cat .*/x",
        "ls .*",
        "cat src/../../outside/secret",
        "find / -name x",
        "find .. -name x",
        "find out -name x",
        "diff a.txt ../x",
        "stat /root",
        "du /home",
        "sort traps/../../x",
        "cd .. && cat x",
        "cd / && ls",
        "cd && ls",
        "cd - && ls",
        "cd out && cat secret",
        "cd inner && cat ../../../../x",
        "cd src; cat ../../outside/secret",
        "cd missing; cat ../outside/secret",
        "cd inner/.. && ls",
        "cd src | cat ../../x",
        # names that become options
        "cd traps && sort *",
        "cd traps; sort *",
        "sort -u -- a.txt; cd traps; sort *.trap",
    ],
)
def test_everything_else_asks(command: str, tree: Path) -> None:
    with pytest.raises(Asks) as why:
        check(command, cwd=tree, workspace=tree, path=PATH)
    assert str(why.value)


def test_a_program_of_the_workspace_asks(tree: Path) -> None:
    fake = tree / "bin" / "ls"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    with pytest.raises(Asks, match="a program of the workspace"):
        check("ls", cwd=tree, workspace=tree, path=f"{fake.parent}:{PATH}")
    check("echo a", cwd=tree, workspace=tree, path=f"{fake.parent}:{PATH}")


WORDS = [
    "ls",
    "cat",
    "grep",
    "echo",
    "a.txt",
    "src",
    "-n",
    "*",
    "*.txt",
    "sort",
    "-o",
    "x",
    "cd",
    "rm",
    "''",
    '""',
]
GLUE = [
    " ",
    "  ",
    "\t",
    "\n",
    ";",
    "&&",
    "||",
    "|",
    "&",
    ">",
    ">>",
    "<",
    "2>&1",
    ">/dev/null",
    "2>/dev/null",
    "$x",
    "$(id)",
    "`id`",
    "'",
    '"',
    "\\",
    "\\\n",
    "#",
    "!",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "~",
    "=",
    "?",
    "$'",
    "<<E",
    "&>",
    "|&",
    "\r",
    "é",
]
scripts = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(GLUE)), max_size=14).map("".join)
quoted = st.text(st.sampled_from("ab $`'\"\\;&|\n*"), max_size=8)
spaced = st.lists(st.one_of(st.sampled_from(WORDS + GLUE), quoted), max_size=12).map(" ".join)

RECORDER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" > "$WATCHROOM_RECORD/$$"
"""
"""One file per process: those of a pipeline write at the same time."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose programs write down how they were called, an empty one to run in, and a record."""
    stage = tmp_path_factory.mktemp("stage")
    (stage / "bin").mkdir()
    (stage / "work").mkdir()
    for name in ("ls", "cat", "grep", "sort", "rm", "id", "x"):
        program = stage / "bin" / name
        program.write_text(RECORDER)
        program.chmod(0o755)
    return stage


def called(shell: str, command: str, stage: Path) -> list[list[str]]:
    """The programs that `shell` really runs for `command`."""
    record = stage / "record"
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir()
    subprocess.run(
        [shell, "-c", command],
        cwd=stage / "work",
        env={"PATH": str(stage / "bin"), "WATCHROOM_RECORD": str(record), "HOME": "/", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
    )
    return [entry.read_text().split("\0")[:-1] for entry in record.iterdir()]


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(st.one_of(scripts, spaced), st.sampled_from(["/bin/sh", "/bin/bash"]))
@example("ls a|cat 2>&1", "/bin/sh")
@example("! ls", "/bin/sh")
@example("time ls", "/bin/bash")
@example('echo a\nls \'x y\' "a\\"b" c\\ d', "/bin/bash")
@example("ls '' \"\" || cat a;grep b\n", "/bin/sh")
def test_the_reader_reads_as_the_shells_do(stage: Path, command: str, shell: str) -> None:
    """Where it reads a command at all, the shell runs no program and no argument that it did not read."""
    if not os.access(shell, os.X_OK):
        pytest.skip(f"no {shell} here")
    try:
        parts = read(command)
    except Unreadable:
        return
    expected = [[word.text for word in part.words] for part in parts]
    for argv in called(shell, command, stage):
        assert argv in expected
    assert list((stage / "work").iterdir()) == [], "nothing was written"


@settings(max_examples=400, deadline=None)
@given(st.one_of(scripts, spaced))
def test_what_is_judged_harmless_runs_nothing_else(stage: Path, tree: Path, command: str) -> None:
    if not harmless(command, tree):
        return
    programs = {part.words[0].text for part in read(command)}
    assert programs <= {"ls", "cat", "grep", "echo", "sort", "cd", "["}
    for argv in called("/bin/sh", command, stage):
        assert argv[0] in programs
        assert not (argv[0] == "sort" and "-o" in argv)


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parts = read(text)
    except Unreadable:
        return
    assert parts
    assert all(part.words for part in parts)


@given(st.text(st.sampled_from("ab $`'\"\\;&|\n*<>(){}~#!="), min_size=1, max_size=20))
def test_single_quotes_quote_everything(text: str) -> None:
    text = text.replace("'", "")
    (part,) = read(f"echo '{text}'")
    assert [word.text for word in part.words] == ["echo", text]
    assert not part.words[1].glob
