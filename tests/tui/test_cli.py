from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.version import VERSION
from tui import cli, exits

ROOT = Path(cli.__file__).resolve().parent.parent
HEAVY = ("textual", "rich", "httpx", "aiohttp", "polars", "pydantic", "aiosqlite", "msgspec", "asyncio")


def watchroom(
    *args: str, env: dict[str, str] | None = None, stdin: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, not on a terminal."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())", *args],
        capture_output=True,
        text=True,
        input=stdin if stdin is not None else "",
        timeout=50,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "", **(env or {})},
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATCHROOM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("ACCESSIBLE", raising=False)
    return tmp_path / "home"


# --- light -----------------------------------------------------------------------------------------------


LIGHT = (("--version",), ("--help",), ("exec", "--help"), ("job", "run", "--help"), ("completion", "bash"))


@pytest.mark.parametrize("words", LIGHT)
def test_version_and_help_load_nothing_heavy(words: tuple[str, ...]) -> None:
    script = (
        "import sys; from tui.cli import main; code = main();"
        f"print([m for m in {HEAVY!r} if m in sys.modules], code, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stderr.strip() == "[] 0"


def test_version() -> None:
    run = watchroom("--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"watchroom {VERSION}\n", "")


@pytest.mark.parametrize("name", sorted(cli.VERBS))
def test_every_help_shows_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    assert cli.main([*name.split(), "--help"]) == exits.OK
    shown = capsys.readouterr().out
    example = shown.rstrip().rsplit("example:\n", 1)[1].strip()
    words = shlex.split(example.split(" > ")[0])
    assert words[0] == "watchroom"
    verb, rest = cli.find_verb(words[1:])
    assert verb == name
    cli.parser_of(verb).parse_args(rest)
    for flags, _ in cli.COMMON:
        assert (f"{flags[0]} " in shown) == (flags[0] in cli.VERBS[name].options or flags[0] in rest), flags


def test_a_verb_takes_options_that_do_not_matter_to_it_and_its_help_is_silent_about_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb, rest = cli.find_verb(["--model", "m", "session", "list", "--sandbox", "off", "--plain"])
    assert cli.parser_of(verb).parse_args(rest).model == "m"
    assert cli.main(["session", "show", "--help"]) == exits.OK
    shown = capsys.readouterr().out
    assert "--home DIR" in shown
    for flag in ("--model", "--sandbox", "--full-auto", "--progress", "--plain"):
        assert flag not in shown


def test_the_manuals_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == exits.OK
    shown = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert (f"\n  {name} " in shown) != verb.hidden or not name
    assert cli.main(["job", "--help"]) == exits.OK
    assert "{cancel,export,list,pause,resume,retry,rows,run,set,show,skip}" in capsys.readouterr().out


def test_the_help_of_job_run_is_its_manual(capsys: pytest.CaptureFixture[str]) -> None:
    from core.jobs.table import EXPORT_COLUMNS

    assert cli.main(["job", "run", "--help"]) == exits.OK
    shown = capsys.readouterr().out
    assert " ".join(EXPORT_COLUMNS) in shown
    for part in ("input", "instruction", "rows", "result", "output", "later", "exit codes"):
        assert f"\n{part}: " in shown
    told = shown.partition("exit codes: ")[2].replace("\n", " ")
    for code in (exits.OK, exits.ERROR, exits.USAGE, exits.FAILED_ROWS, exits.BUDGET, exits.QUOTA, 130, 143):
        assert f" {code} " in f" {told} "
    for verb in (name.split()[1] for name in cli.VERBS if name.startswith("job ")):
        assert f"{verb}" in shown.partition("\nlater: ")[2] or verb == "run"
    assert shown.isascii()


# --- which verb ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "verb", "rest"),
    [
        ([], "", []),
        (["fix it"], "", ["fix it"]),
        (["--model", "exec", "fix it"], "", ["--model", "exec", "fix it"]),
        (["exec", "do"], "exec", ["do"]),
        (["--model", "m", "exec", "--json", "do"], "exec", ["--model", "m", "--json", "do"]),
        (["--model=m", "exec", "do"], "exec", ["--model=m", "do"]),
        (["-c", "a=1", "job", "-C", "d", "run", "x"], "job run", ["-c", "a=1", "-C", "d", "x"]),
        (["exec", "-"], "exec", ["-"]),
        (["exec", "demo"], "exec", ["demo"]),
        (["--", "exec"], "", ["--", "exec"]),
        (["session", "list", "--json"], "session list", ["--json"]),
    ],
)
def test_the_verb_may_stand_among_the_options(argv: list[str], verb: str, rest: list[str]) -> None:
    assert cli.find_verb(argv) == (verb, rest)


def test_common_options_count_before_and_after_the_verb() -> None:
    verb, rest = cli.find_verb(["-c", "a=1", "--model", "m", "exec", "-c", "b=2", "do", "--home", "h"])
    args = cli.parser_of(verb).parse_args(rest)
    assert (args.values, args.model, args.home, args.task) == (["a=1", "b=2"], "m", "h", "do")
    again = cli.parser_of("exec").parse_args(["do"])
    assert again.values == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["watch"], "no verb 'watch'"),
        (["doctr", "--json"], "did you mean doctor?"),
        (["agent"], "agent needs one of budget, close, compact, interrupt, list, resume, send after it"),
        (["agent", "iris"], "not 'iris'"),
        (["agent", "interrupt"], "AGENT"),
        (["agent", "send", "iris"], "TEXT"),
        (["agent", "list", "--status", "asleep"], "--status"),
        (["completion", "tcsh"], "SHELL"),
        (["agent", "send", "iris", "two", "words"], "a text of several words goes into quotes"),
        (["stop", "--home", ""], "--home needs the name of a folder"),
        (["exec", "task", "-C", ""], "-C needs the name of a folder"),
        (["engine", "now"], "unrecognized arguments: now"),
        (["jobs"], "did you mean job?"),
        (["sesion", "list"], "did you mean session?"),
        (["help"], "did you mean --help?"),
        (["job"], "job needs one of cancel, export, list, pause"),
        (["job", "go", "x"], "show, skip after it, not 'go'"),
        (["job", "ru\x1b[31mn"], "not 'run'"),
        (["exec"], "TASK"),
        (["exec", "a", "b"], "unrecognized arguments: b"),
        (["exec", "a", "--\x1b]0;x\x07evil"], "--evil"),
        (["exec", "a", "--mod", "m"], "unrecognized arguments: --mod m"),
        (["exec", "a", "--sandbox", "none"], "--sandbox"),
        (["job", "run", "x.csv"], "--instruction"),
        (["job", "run", "x.csv", "--instruction", "i", "--max-attempts", "0"], "1 or more"),
        (["job", "run", "x.csv", "--instruction", "i", "--max-runtime", "-1"], "seconds above 0"),
        (["job", "run", "x.csv", "--instruction", "i", "--max-runtime", "nan"], "seconds above 0"),
        (["scripted-server", "--port", "70000"], "from 0 to 65535"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == exits.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("watchroom: ")
    assert said in shown.err
    assert "\x1b" not in shown.err


@given(st.lists(st.sampled_from(["exec", "job", "run", "-c", "--", "-", "--model", "--json", "x", "", "-x"])))
def test_any_words_name_a_verb_or_are_refused(words: list[str]) -> None:
    try:
        verb, rest = cli.find_verb(words)
    except (exits.Quit, SystemExit):
        return
    assert len(rest) == len(words) - len(verb.split())


# --- bad input, from outside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "this is not a terminal: use watchroom exec"),
        (("fix it",), "this is not a terminal"),
        (("demo",), "watchroom demo --plain"),
        (("--plain",), "watchroom --plain TASK"),
        (("--json", "x"), "watchroom exec --json"),
        (("",), "the task is empty"),
        (("exec", "x"), "no model is set"),
        (("exec", "x", "--model", "m"), "OPENAI_API_KEY"),
        (("exec", " ", "--base-url", "scripted:hello"), "the task is empty"),
        (("exec", "x", "--base-url", "nonsense"), "the base URL nonsense"),
        (("exec", "x", "--base-url", "scripted:nope"), "nope"),
        (("exec", "x", "-c", "agents.max_dept=1"), "did you mean max_depth?"),
        (("exec", "x", "--cd", "/nowhere"), "/nowhere is not a folder"),
        (("exec", "x", "--config", "/nowhere.toml"), "/nowhere.toml does not exist"),
        (("find", "the bugs"), "a task of several words goes into quotes"),
        (("exec", "x", "-c", "view.theme=pink"), "'dark' or 'light', not 'pink'"),
        (("exec", "x", "--full-auto", "--sandbox", "off"), "--full-auto"),
        (("scripted-server", "--scenario", "nope"), "nope"),
        (("job", "run", "x", "--instruction", "@/none.txt"), "/none.txt cannot be read"),
        (("job", "run", "x", "--instruction", "i", "--schema", "/none.json"), "/none.json cannot be read"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_stores_nothing(
    home: Path, args: tuple[str, ...], said: str
) -> None:
    run = watchroom(*args, env={"WATCHROOM_HOME": str(home), "TERM": "xterm"})
    assert run.returncode == exits.USAGE
    assert run.stdout == ""
    assert said in run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("watchroom: ")
    assert not list(home.glob("*.db"))


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (None, (), "there is no file"),
        ("", (), "is empty"),
        ("a,a\n1,2\n", (), "is the name of column 1 already"),
        ("path\nx\n", ("--instruction", "{nope}"), "{nope}"),
        ("path\nx\n", ("--id-column", "nope"), "'nope'"),
    ],
)
def test_bad_input_of_a_job_is_refused_before_anything_of_it_is_stored(
    home: Path, tmp_path: Path, text: str | None, options: tuple[str, ...], said: str
) -> None:
    table = tmp_path / "in.csv"
    if text is not None:
        table.write_text(text)
    env = {"WATCHROOM_HOME": str(home)}
    words = ("job", "run", str(table), "--instruction", "i", "--base-url", "scripted:hello", *options)
    run = watchroom(*words, env=env)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (exits.USAGE, "", 1)
    assert said in run.stderr
    assert json.loads(watchroom("session", "list", "--json", env=env).stdout) == {"sessions": []}
    assert json.loads(watchroom("job", "list", "--json", env=env).stdout) == {"jobs": []}
    assert not list(tmp_path.glob("*.agent-job-*"))


def test_the_task_may_come_from_stdin_and_must_be_text(home: Path) -> None:
    run = watchroom("exec", "-", "--base-url", "scripted:hello", stdin="  \n")
    assert (run.returncode, run.stderr.count("\n")) == (exits.USAGE, 1)
    assert "the task is empty" in run.stderr


def test_a_broken_settings_file_names_file_and_line(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text('model = "m"\nsandbox = "none"\n')
    run = watchroom("exec", "x", env={"WATCHROOM_HOME": str(home)})
    assert run.returncode == exits.USAGE
    assert f"{home}/config.toml, line 2" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_dry_run_shows_row_one_and_stores_nothing(home: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("path,area\na.py,core\n,\nb.py,tui\n")
    args = ("job", "run", str(table), "--instruction", "Count {path}.", "--dry-run")
    run = watchroom(*args, env={"WATCHROOM_HOME": str(home)})
    assert (run.returncode, run.stderr) == (0, "")
    assert "2 rows (1 blank rows left out)" in run.stdout
    assert "Count a.py." in run.stdout
    assert not home.exists()
    wrong = watchroom("job", "run", str(table), "--instruction", "{nope}", "--dry-run")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (exits.USAGE, 1)
    assert "nope" in wrong.stderr


@pytest.mark.parametrize("name", ["BrokenPipe", "ConfigError", "unforeseen"])
def test_errors_of_a_verb_become_exit_codes(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from core.channel.client import ClientError
    from core.config import ConfigError

    def fails(_: object) -> int:
        if name == "BrokenPipe":
            raise BrokenPipeError
        if name == "ConfigError":
            try:
                raise ConfigError("it is wrong")
            except ConfigError as cause:
                raise ExceptionGroup("two", [ClientError("it is wrong"), ClientError("again")]) from cause
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_load", lambda _: fails)
    monkeypatch.setattr(cli, "_drop_stdout", lambda: None)
    if name == "unforeseen":
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main(["exec", "x"])
    elif name == "BrokenPipe":
        assert cli.main(["exec", "x"]) == exits.PIPE
        assert capfd.readouterr().err == ""
    else:
        assert cli.main(["exec", "x"]) == exits.ERROR
        assert capfd.readouterr().err == "watchroom: it is wrong\n"


def test_an_error_with_the_users_word_behind_it_is_usage() -> None:
    from core.channel.client import ClientError
    from core.config import ConfigError

    error = ClientError("the engine cannot start: no such thing")
    error.__cause__ = ConfigError("no such thing")
    assert cli._foreseen(error) == ("the engine cannot start: no such thing", exits.USAGE)
    assert cli._foreseen(ExceptionGroup("g", [error, ValueError()])) is None
    assert cli._foreseen(OSError("x")) is None


# --- streams that are not there ---------------------------------------------------------------------------


def through_a_shell(words: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`words` with redirections; W stands for the command."""
    script = (
        f'W() {{ "{sys.executable}" -c "import sys; from tui.cli import main; sys.exit(main())" "$@"; }}; '
    )
    return subprocess.run(
        ["/bin/sh", "-c", script + words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WATCHROOM_HOME": str(home), "OPENAI_API_KEY": "", **env},
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("W <&-", exits.USAGE, "this is not a terminal"),
        ("W demo <&-", exits.USAGE, "this is not a terminal"),
        ("W exec - --base-url scripted:hello <&-", exits.USAGE, "the task is empty"),
        ("W exec hi --base-url scripted:hello >&- <&-", exits.OK, "root completed"),
        ("W exec hi --base-url scripted:hello >/dev/full", exits.ERROR, "cannot be written: No space left"),
        ("W exec --json hi --base-url scripted:hello >/dev/full", exits.ERROR, "cannot be written"),
        ("W session list --json >/dev/full", exits.ERROR, "cannot be written"),
    ],
)
def test_a_closed_or_full_stream_is_no_traceback(home: Path, words: str, code: int, said: str) -> None:
    if "/dev/full" in words and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    run = through_a_shell(words, home)
    assert run.returncode == code
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


def test_a_closed_stderr_costs_the_answer_nothing_and_no_file_takes_its_number(home: Path) -> None:
    run = through_a_shell("W exec hi --base-url scripted:hello 2>&-", home)
    assert (run.returncode, "You asked:" in run.stdout) == (exits.OK, True)
    listed = json.loads(watchroom("session", "list", "--json", env={"WATCHROOM_HOME": str(home)}).stdout)
    assert [session["status"] for session in listed["sessions"]] == ["completed"]


def test_a_stream_without_unicode_gets_plain_marks_and_json_stays_utf8(home: Path) -> None:
    env = {"WATCHROOM_HOME": str(home), "PYTHONIOENCODING": "ascii"}
    assert (
        watchroom("exec", "grüß dich", "--base-url", "scripted:hello", env=env).stdout.count("gr?? dich") == 1
    )
    listed = watchroom("session", "list", "--json", env=env)
    (session,) = json.loads(listed.stdout)["sessions"]
    assert session["title"] == "grüß dich"
    assert "gr?? dich" in watchroom("session", "show", session["thread"], env=env).stdout
