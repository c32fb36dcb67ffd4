"""Headless runs against a small engine: what is said where, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.domain import events as e
from core.domain.commands import Decide, Reply, RunJob, StartSwarm
from core.safety.text import is_clean
from tests.tui import cli_story as story
from tests.tui.cli_client import JOB, ROOT, FakeEngine
from tui import cli, exits, headless, run_job, setup

ROOT_FOLDER = Path(cli.__file__).resolve().parent.parent
COMMAND = StartSwarm(task="Count the lines.", source="exec", unattended="refuse")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHROOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def run(engine: FakeEngine, mode: headless.Mode = "headless", *, approve: bool = False) -> int:
    args = cli.parser_of("exec").parse_args(["x", "--base-url", "scripted:x"])
    settings = setup.headless(setup.settings_of(args))
    try:
        return headless.run(settings, COMMAND, mode, approve=approve, engine=engine.connect)
    except exits.Quit as error:
        return cli._fail(str(error), error.code)


# --- exec ------------------------------------------------------------------------------------------------


def test_the_answer_is_on_stdout_and_progress_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(story.opening(), [*story.iris_at_work(), *story.answered("It \x1b[31mis\n42.")])
    assert run(engine, approve=True) == exits.OK
    shown = capfd.readouterr()
    assert shown.out == "It is\n42.\n"
    assert shown.err.splitlines()[0] == "10:03:12 swarm started swarm-1 m on scripted:x (sandboxed)"
    assert shown.err.splitlines()[-1] == "10:03:32 root completed"
    assert "iris needs-you" in shown.err
    assert "wc -l" not in shown.err
    assert engine.settings is not None
    assert engine.settings.unattended is None


def test_json_is_every_event_once_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x9b31m\u202eb\U000e0041\x1b]0;x\x07"
    for lag_at in (None, 9, 12):
        engine = FakeEngine(story.opening(hostile), story.answered(), lag_at=lag_at)
        assert run(engine, "json") == exits.OK
        shown = capfd.readouterr()
        assert shown.err == ""
        lines = shown.out.splitlines()
        assert [json.loads(line)["seq"] for line in lines] == [event.seq for event in engine.events]
        assert [e.decode(line) for line in lines] == engine.events
        assert is_clean(shown.out)


def test_what_a_slow_reader_missed_is_read_from_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(story.opening(), [*story.iris_at_work(), *story.answered()], lag_at=7)
    assert run(engine, "json") == exits.OK
    seqs = [json.loads(line)["seq"] for line in capfd.readouterr().out.splitlines()]
    assert seqs == list(range(1, len(engine.events) + 1))


def test_a_failed_root_is_an_error_with_the_servers_words(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(story.opening(), story.failed("api.example.org: 401: bad \x1b[1mkey"))
    assert run(engine) == exits.ERROR
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "watchroom: api.example.org: 401: bad key\n" in shown.err
    assert shown.err.splitlines()[-1].endswith(f"watchroom session show {ROOT}")


def test_an_interrupted_root_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(story.opening(), [e.TurnInterrupted(agent=ROOT, turn="t1", by="operator")])
    assert run(engine) == exits.ERROR
    assert "ended as interrupted by operator" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "expected"), [("usage", exits.USAGE), ("refused", exits.ERROR)])
def test_a_refused_command_is_one_sentence(
    code: str, expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(FakeEngine(refuse=Reply(ok=False, error="that cannot be", code=code))) == expected
    assert capfd.readouterr().err == "watchroom: that cannot be\n"


def test_an_engine_that_goes_away_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(FakeEngine(story.opening())) == exits.ERROR
    assert "the engine ended before swarm swarm-1 was done" in capfd.readouterr().err


def test_plain_is_all_lines_on_stdout_and_the_demo_approves_its_own_ask(
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine = FakeEngine(story.opening(), [*story.iris_at_work(), *story.answered()])
    assert run(engine, "plain", approve=True) == exits.OK
    shown = capfd.readouterr()
    assert shown.err == ""
    assert "iris calls exec_command wc -l a.py" in shown.out
    assert shown.out.count("42 lines.") == 1
    assert [c for c in engine.commands if isinstance(c, Decide)] == [
        Decide(author="demo", swarm="swarm-1", approval="a1", approve=True)
    ]


def test_without_approve_nothing_is_ever_decided(capfd: pytest.CaptureFixture[str]) -> None:
    work = [event for event in story.iris_at_work() if not isinstance(event, e.ApprovalDecided)]
    engine = FakeEngine(story.opening(), [*work, *story.answered()])
    assert run(engine, "plain") == exits.OK
    assert not [c for c in engine.commands if isinstance(c, Decide)]


# --- job run ---------------------------------------------------------------------------------------------


def run_the_job(engine: FakeEngine, *options: str) -> int:
    args = cli.parser_of("job run").parse_args(
        ["in.csv", "--instruction", "Count {path}", "--base-url", "scripted:x", *options]
    )
    try:
        return run_job.run(args, engine.connect)
    except exits.Quit as error:
        return cli._fail(str(error), error.code)


def test_a_job_prints_its_output_path_and_progress(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engine = FakeEngine([], story.job(3, 0))
    assert (
        run_the_job(engine, "--output", "o.csv", "--max-concurrency", "2", "--progress", "lines") == exits.OK
    )
    shown = capfd.readouterr()
    assert shown.out == "/w/out.csv\n"
    progress = [line for line in shown.err.splitlines() if "[" in line]
    assert "0/3 0%" in progress[0]
    assert "3/3 100%" in progress[-1]
    assert "exec_command" not in shown.err
    command = engine.commands[0]
    assert isinstance(command, RunJob)
    assert command.input_path == str(Path.cwd() / "in.csv")
    assert command.output_path == str(Path.cwd() / "o.csv")
    assert (command.max_concurrency, command.unattended) == (2, "refuse")


def test_failed_rows_are_exit_code_3_and_only_the_first_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_the_job(FakeEngine([], story.job(20, 12)), "--progress", "off") == exits.FAILED_ROWS
    shown = capfd.readouterr()
    assert shown.err.count("failed: the model said no") == 5
    assert shown.err.count("more rows failed") == 1
    last = shown.err.splitlines()[-2]
    assert "8 of 20 rows done, 12 failed" in last
    assert f"watchroom job show {JOB[:8]}" in last
    assert "[#" not in shown.err
    assert shown.out == "/w/out.csv\n"


def ended(status: str, error: str | None = None) -> Callable[[], FakeEngine]:
    events = [*story.job(2, 0, output=None)[:-1], e.JobEnded(job=JOB, status=status, error=error)]  # type: ignore[arg-type]
    return lambda: FakeEngine([], events)


@pytest.mark.parametrize(
    ("engine", "code", "said"),
    [
        (ended("failed", "the runner broke"), exits.ERROR, "the runner broke"),
        (ended("completed", "out.csv cannot be written: disk full"), exits.ERROR, "disk full"),
        (ended("cancelled"), exits.FAILED_ROWS, "2 of 2 rows done"),
    ],
)
def test_how_a_job_ended_is_its_exit_code(
    engine: Callable[[], FakeEngine], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_the_job(engine()) == code
    shown = capfd.readouterr()
    assert said in shown.err
    assert f"watchroom job show {JOB[:8]}" in shown.err
    assert shown.out == ""


def paused(by: str, *more: e.AnyEvent, reason: str = "") -> FakeEngine:
    """A job of two rows that is paused after the first."""
    events = story.job(2, 0)
    first = next(n for n, event in enumerate(events) if isinstance(event, e.JobRowEnded)) + 1
    return FakeEngine([], [*events[:first], e.JobPaused(job=JOB, by=by, reason=reason), *more])


@pytest.mark.parametrize(("by", "code"), [("budget", exits.BUDGET), ("quota", exits.QUOTA)])
def test_out_of_means_is_an_exit_code_of_its_own(
    by: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_the_job(paused(by, reason="nothing is left\x1b[31m")) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-4:] == [
        f"job {JOB[:8]} [##########----------] 1/2 50% ✗0 ◍0 ◌1 paused by {by}",
        f"watchroom: the {by} stopped it: nothing is left",
        f"watchroom: 1 of 2 rows done, 0 failed; results so far are stored: watchroom job show {JOB[:8]}",
        f"watchroom: go on with: watchroom job resume {JOB[:8]}",
    ]


def test_the_budgets_way_on_names_more_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    said = "limit reached: budget.tokens = 9,000; 8,000 are spent, and its next request needs at least 2,000"
    assert run_the_job(paused("budget", reason=said)) == exits.BUDGET
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == f"watchroom: go on with: watchroom job resume {JOB[:8]} -c budget.tokens=18000"


def test_what_an_operator_has_paused_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    rest = story.job(2, 0)
    first = next(n for n, event in enumerate(rest) if isinstance(event, e.JobRowEnded)) + 1
    again = e.JobStarted(job=JOB, concurrency=2, by="nora")
    engine = paused("nora", again, e.JobCancelling(job=JOB, by="nora"), *rest[first:])
    assert run_the_job(engine) == exits.OK
    shown = capfd.readouterr()
    assert shown.out == "/w/out.csv\n"
    drawn = [line for line in shown.err.splitlines() if "[##" in line]
    assert any(line.endswith(" paused by nora") for line in drawn)
    assert any(line.endswith(" cancelling") for line in drawn)
    assert "2/2 100%" in drawn[-1]
    assert "cancelling" not in drawn[-1]


def test_other_jobs_of_its_swarm_are_not_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    other = "0" * 8
    events = story.job(2, 0)
    beside: list[e.AnyEvent] = [
        e.JobCreated(
            job=other, name="o", instruction="", input_path="", output_path=None, total=1, concurrency=1
        ),
        e.JobPaused(job=other, by="quota", reason="no"),
        e.JobExported(job=other, path="/other.csv", rows=1),
        e.JobEnded(job=other, status="failed", error="broken"),
    ]
    assert run_the_job(FakeEngine([], [*events[:4], *beside, *events[4:]])) == exits.OK
    assert capfd.readouterr().out == "/w/out.csv\n"


def test_an_engine_that_is_gone_names_the_command_that_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_the_job(FakeEngine([], story.job(3, 0)[:8])) == exits.ERROR
    said = capfd.readouterr().err.splitlines()
    assert f"watchroom: go on with: watchroom job resume {JOB[:8]}" in said
    assert said[-1].startswith("watchroom: the engine ended before swarm")


def test_a_job_that_is_refused_stores_nothing_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(refuse=Reply(ok=False, error="in.csv is empty", code="usage"))
    assert run_the_job(engine) == exits.USAGE
    assert capfd.readouterr().err == "watchroom: in.csv is empty\n"


def test_instruction_and_schema_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "i.txt").write_text("\ufeffDo {it}.\n")
    (tmp_path / "s.json").write_text('{"type": "object"}')
    parse = cli.parser_of("job run").parse_args
    good = run_job.command_of(
        parse(["x", "--instruction", f"@{tmp_path}/i.txt", "--schema", f"{tmp_path}/s.json"])
    )
    assert (good.instruction, good.output_schema) == ("Do {it}.\n", {"type": "object"})
    for text, said in (("[1]", "must be a JSON object"), ("{", "not valid JSON")):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(exits.Quit, match=said):
            run_job.command_of(parse(["x", "--instruction", "i", "--schema", f"{tmp_path}/s.json"]))
    (tmp_path / "i.txt").write_bytes(b"\xff")
    with pytest.raises(exits.Quit, match="not UTF-8"):
        run_job.command_of(parse(["x", "--instruction", f"@{tmp_path}/i.txt"]))


# --- signals and pipes: real processes -------------------------------------------------------------------

HANGING = """
import sys
from pathlib import Path
from tests.tui import cli_story as story
from tests.tui.cli_client import FakeEngine
from core.domain.commands import StartSwarm
from tui import cli, headless, setup, signals

def verb(args):
    closed = lambda: print("engine closed", file=sys.stderr, flush=True)
    mode, chatty = sys.argv[1], sys.argv[2] == "chatty"
    events = story.iris_at_work()[:1] * (20000 if chatty else 1)
    engine = FakeEngine(story.opening(), events, hang=True, on_close=closed)
    settings = setup.settings_of(args)
    return headless.run(settings, StartSwarm(task="x"), mode, engine=engine.connect)

cli._load = lambda target: verb
sys.exit(cli.main(["exec", "x", "--base-url", "scripted:x"]))
"""


def hanging(mode: str, what: str = "quiet", **pipes: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HANGING, mode, what],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER)},
        cwd=ROOT_FOLDER,
        **pipes,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_the_engine_and_is_the_exit_code(signum: signal.Signals) -> None:
    with hanging("headless", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert "swarm started" in process.stderr.readline()
        process.send_signal(signum)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert out == ""
    assert "engine closed" in err
    assert "Traceback" not in err
    assert err.splitlines()[-2:] == [
        f"watchroom: what happened so far is stored: watchroom session show {ROOT}",
        "watchroom: go on with: watchroom resume swarm-1",
    ]


def test_a_reader_that_stops_reading_cannot_block_a_signal() -> None:
    """`exec --json | sleep 1000`: the pipe is full, and Ctrl-C still closes the engine."""
    with hanging("json", "chatty", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "swarm_started" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "engine closed\n"
        assert process.wait(timeout=20) == 130
        process.stdout.close()


def test_a_reader_that_goes_away_ends_the_run_quietly() -> None:
    """`exec --json | head -1`."""
    with hanging("json", "chatty", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=20) == exits.PIPE
    assert err == "engine closed\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_signal_while_starting_leaves_without_a_traceback(signum: signal.Signals, after: float) -> None:
    script = (
        "import sys\nfrom tui import cli\n"
        "def heavy(args):\n"
        "    import textual.app, pydantic, httpx, polars\n"
        "    import signal\n"
        "    signal.pause()\n"
        "cli._load = lambda target: heavy\n"
        "from tui import signals\nsignals.leave_at_once()\n"
        "print('up', flush=True)\n"
        "sys.exit(cli.main(['exec', 'x']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT_FOLDER)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            process.wait(timeout=after or 0.001)
        except subprocess.TimeoutExpired:
            process.send_signal(signum)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + signum, "")
