"""`job rows|resume|pause|cancel|retry|skip|set|export`: on a job that runs, and on one that nobody runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import EngineBusy
from core.safety.text import is_clean
from tests.tui.live_job import Gate, finish, watchroom
from tests.tui.shell import Shell
from tests.tui.test_job_verbs import read_csv, write_csv
from tui import exits

ROWS = 4
TASK = ("--instruction", "Do {name}.", "--max-concurrency", "2", "--output", "out.csv", "--progress", "lines")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write_csv(work / "rows.csv", [["name"], *([f"n{n}"] for n in range(1, ROWS + 1))])
    return work


@pytest.fixture
def shell(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path / "home", capfd, monkeypatch)


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    gate = Gate(folder)
    try:
        yield gate
    finally:
        gate.close()


@pytest.fixture
def live(shell: Shell, folder: Path, gate: Gate) -> Iterator[Any]:
    """A job of four rows with two at work."""
    words = ("job", "run", "rows.csv", *TASK, *gate.options)
    with watchroom(*words, home=shell.home, cwd=folder) as process:
        gate.wait_for(2)
        yield process


def job(shell: Shell) -> dict[str, Any]:
    (found,) = shell.json("job", "list")["jobs"]
    shown = shell.json("job", "show", found["job_id"])
    assert isinstance(shown, dict)
    return shown


def short(shell: Shell) -> str:
    return str(job(shell)["job_id"])[:8]


def rows(shell: Shell, *words: str) -> dict[str, str]:
    return {row["item_id"]: row["status"] for row in shell.json("job", "rows", short(shell), *words)["rows"]}


def counted(shell: Shell) -> None:
    """The counters are those of the rows."""
    found, statuses = job(shell), list(rows(shell).values())
    for status in ("pending", "running", "completed", "failed", "skipped"):
        assert found[f"{status}_items"] == statuses.count(status), status


# --- on a job that runs ----------------------------------------------------------------------------------


def test_a_pause_and_a_resume_from_beside(shell: Shell, folder: Path, gate: Gate, live: Any) -> None:
    ident = short(shell)
    ran = shell("job", "pause", ident, "--dry-run")
    assert ran.out == f"job {ident} would be paused; 2 rows at work go on to the end\n"
    assert job(shell)["status"] == "running"
    said = shell.json("job", "pause", ident, "--as", "nora")
    assert said == {
        "job_id": job(shell)["job_id"],
        "status": "paused",
        "changed": True,
        "dry_run": False,
        "running_items": 2,
        "engine": {"pid": live.pid, "kind": "job"},
    }
    shown = job(shell)
    assert (shown["status"], shown["paused_by"], shown["running_items"]) == ("paused", "nora", 2)
    assert rows(shell) == {"row-1": "running", "row-2": "running", "row-3": "pending", "row-4": "pending"}
    again = shell("job", "pause", ident)
    assert (again.code, again.out) == (
        exits.OK,
        f"nothing to do for job {ident}: it is paused already by nora\n",
    )
    with watchroom("job", "resume", ident, home=shell.home, cwd=folder) as second:
        gate.let(2)
        gate.wait_for(2)
        gate.let(2)
        code, out, err = finish(second)
    assert (code, out) == (exits.OK, f"{folder}/out.csv\n"), err
    code, out, err = finish(live)
    assert (code, out) == (exits.OK, f"{folder}/out.csv\n")
    assert any(line.endswith(" paused by nora") for line in err)
    assert [row["status"] for row in read_csv("out.csv")] == ["completed"] * ROWS
    counted(shell)


def test_a_cancel_stops_the_rows_at_work(shell: Shell, live: Any) -> None:
    ident = short(shell)
    ran = shell("job", "cancel", ident, "--dry-run")
    assert ran.out == f"job {ident} would be cancelled; 2 rows at work are stopped\n"
    ran = shell("job", "cancel", ident)
    assert ran.lines[0].startswith(f"job {ident} is ")
    assert ran.lines[0].endswith("cancelled; 2 rows at work are stopped")
    assert ran.lines[1] == f"what is done so far: watchroom job export {ident}"
    code, out, err = finish(live)
    assert (code, out) == (exits.FAILED_ROWS, "")
    assert err[-1] == f"watchroom: try the failed rows again: watchroom job retry {ident}"
    assert job(shell)["status"] == "cancelled"
    counted(shell)
    assert list(rows(shell, "--status", "pending")) == ["row-3", "row-4"]
    ran = shell("job", "cancel", ident)
    assert ran.out == f"nothing to do for job {ident}: it has ended: cancelled\n"


def test_rows_are_skipped_and_the_concurrency_changed(shell: Shell, gate: Gate, live: Any) -> None:
    ident = short(shell)
    ran = shell("job", "set", ident, "--max-concurrency", "9", "--json")
    assert (json.loads(ran.out)["changed"], json.loads(ran.out)["max_concurrency"]) == (False, 2)
    assert "has no slots for 9" in shell("job", "set", ident, "--max-concurrency", "9").out
    ran = shell("job", "set", ident, "--max-concurrency", "1", "--dry-run")
    assert ran.out == f"job {ident} would work on 1 row side by side, not 2 any more\n"
    ran = shell("job", "set", ident, "--max-concurrency", "1")
    assert ran.out == f"job {ident} works on 1 row side by side, not 2 any more\n"
    assert job(shell)["max_concurrency"] == 1
    assert "row-1 is running" in shell.refused(exits.ERROR, "job", "skip", ident, "--row", "row-1")
    ran = shell("job", "skip", ident, "--row", "row-9", "--json")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (exits.ERROR, "not_found")
    ran = shell("job", "skip", ident, "--row", "row-4", "--row", "row-3", "--dry-run")
    assert ran.out == f"2 rows of job {ident} would be skipped\n"
    assert shell("job", "skip", ident, "--row", "row-4").out == f"1 row of job {ident} is skipped\n"
    gate.let(2)
    gate.wait_for(1)
    gate.let(1)
    code, _, err = finish(live)
    assert code == exits.OK, err
    assert rows(shell) == {f"row-{n}": "completed" for n in (1, 2, 3)} | {"row-4": "skipped"}
    counted(shell)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_names_the_command_that_goes_on(
    shell: Shell, folder: Path, gate: Gate, live: Any, signum: int
) -> None:
    live.send_signal(signum)
    code, out, err = finish(live)
    ident = short(shell)
    assert (code, out) == (128 + signum, "")
    assert err[-2:] == [
        f"watchroom: 0 of 4 rows done, 0 failed; results so far are stored: watchroom job show {ident}",
        f"watchroom: go on with: watchroom job resume {ident}",
    ]
    gate.let(2 * ROWS)
    with watchroom("job", "resume", ident, *gate.options, home=shell.home, cwd=folder) as again:
        assert finish(again)[:2] == (exits.OK, f"{folder}/out.csv\n")
    assert {row["attempt_count"] for row in read_csv("out.csv")} == {"1"}


def test_whoever_only_follows_leaves_it_running(shell: Shell, folder: Path, gate: Gate, live: Any) -> None:
    ident = short(shell)
    shell("job", "pause", ident)
    with watchroom("job", "resume", ident, "--progress", "lines", home=shell.home, cwd=folder) as second:
        gate.let(1)
        gate.wait_for(1)  # the second has let it go on
        second.send_signal(signal.SIGINT)
        code, out, err = finish(second)
    assert (code, out) == (130, "")
    assert err[-1] == (
        f"watchroom: its engine goes on with it; follow it again with: watchroom job resume {ident}"
    )
    gate.let(ROWS)
    assert finish(live)[0] == exits.OK


def test_an_engine_that_does_not_answer_is_busy(
    shell: Shell, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy:
        async def __aenter__(self) -> Busy:
            return self

        async def __aexit__(self, *exc: object) -> None:
            return None

        async def send(self, command: object) -> None:
            raise EngineBusy("the engine did not answer")

    ident = short(shell)
    monkeypatch.setattr("core.channel.launch.engine_of", lambda *args, **kwargs: Busy())
    ran = shell("job", "pause", ident, "--json")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (exits.ERROR, "busy")
    assert "busy" in shell.refused(exits.ERROR, "job", "resume", ident)
    assert job(shell)["status"] == "running"


# --- on a job that nobody runs ---------------------------------------------------------------------------


def test_a_killed_job_is_steered_in_the_store_and_gone_on_with(
    shell: Shell, folder: Path, gate: Gate, live: Any
) -> None:
    live.kill()
    finish(live)
    ident = short(shell)
    assert set(rows(shell).values()) == {"pending"}
    counted(shell)
    [tried] = shell.json("job", "rows", ident)["rows"][0]["attempts"]
    assert (tried["attempt"], tried["status"]) == (1, "interrupted")
    ran = shell("job", "skip", ident, "--row", "row-1", "--dry-run")
    assert ran.out == f"1 row of job {ident} would be skipped\n"
    assert set(rows(shell).values()) == {"pending"}
    said = shell.json("job", "skip", ident, "--row", "row-1", "--as", "nora")
    assert (said["changed"], said["rows"], said["status"], said["engine"]) == (True, 1, "paused", None)
    counted(shell)
    ran = shell("job", "set", ident, "--max-concurrency", "1")
    assert ran.out == f"job {ident} works on 1 row side by side, not 2 any more\n"
    ran = shell("job", "pause", ident)
    assert ran.lines == [f"job {ident} is paused", f"go on with: watchroom job resume {ident}"]
    ran = shell("job", "resume", ident, "--dry-run")
    assert ran.out == f"job {ident} would go on in an engine of its own: 3 of 4 rows are left\n"
    gate.let(2 * ROWS)
    # One that an operator has paused goes on as well: that is what the verb is for.
    with watchroom("job", "resume", ident, *gate.options, "--json", home=shell.home, cwd=folder) as again:
        code, out, err = finish(again)
    assert code == exits.OK, err
    assert json.loads(out) == job(shell)
    assert rows(shell) == {"row-1": "skipped"} | {f"row-{n}": "completed" for n in (2, 3, 4)}
    assert [row["attempt_count"] for row in read_csv("out.csv")] == ["0", "1", "1", "1"]
    counted(shell)


def test_a_killed_job_is_cancelled_in_the_store(shell: Shell, live: Any) -> None:
    live.kill()
    finish(live)
    ident = short(shell)
    assert shell("job", "cancel", ident, "--dry-run").out == f"job {ident} would be cancelled\n"
    assert shell("job", "cancel", ident).lines[0] == f"job {ident} is cancelled"
    assert job(shell)["status"] == "cancelled"
    assert set(rows(shell).values()) == {"pending"}
    counted(shell)
    ran = shell("job", "resume", ident)
    assert (ran.code, ran.err) == (exits.FAILED_ROWS, f"watchroom: job {ident} has ended: it is cancelled\n")


def test_verbs_at_the_same_time_wait_for_each_other(shell: Shell, folder: Path, live: Any) -> None:
    live.kill()
    finish(live)
    ident = short(shell)
    with ExitStack() as stack:
        verbs = [
            stack.enter_context(
                watchroom("job", "skip", ident, "--row", f"row-{n}", home=shell.home, cwd=folder)
            )
            for n in range(1, ROWS + 1)
        ]
        told = [finish(verb) for verb in verbs]
    assert [(code, err) for code, _, err in told] == [(exits.OK, [])] * ROWS
    assert set(rows(shell).values()) == {"skipped"}
    counted(shell)


def test_a_job_is_gone_on_with_at_the_concurrency_that_it_was_set_to(
    shell: Shell, folder: Path, gate: Gate, live: Any
) -> None:
    live.send_signal(signal.SIGTERM)
    finish(live)
    ident = short(shell)
    ran = shell("job", "set", ident, "--max-concurrency", "4")
    assert ran.out == f"job {ident} works on 4 rows side by side, not 2 any more\n"
    with watchroom("job", "resume", ident, *gate.options, home=shell.home, cwd=folder) as again:
        gate.wait_for(ROWS)
        assert job(shell)["running_items"] == ROWS
        gate.let(2 * ROWS)
        assert finish(again)[0] == exits.OK


@pytest.fixture
def counting(shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job that has ended, whose second and third row failed: their files are missing."""
    monkeypatch.setenv("OPENAI_BASE_URL", "scripted:count-lines")
    (folder / "a").write_text("x\nx\n")
    write_csv(folder / "files.csv", [["path"], ["a"], ["b"], ["c"]])
    words = ("--instruction", "Count the lines of {path}.", "--output", "out.csv", "--name", "count")
    assert shell("job", "run", "files.csv", *words).code == exits.FAILED_ROWS
    return short(shell)


def test_failed_rows_are_tried_again(shell: Shell, folder: Path, counting: str) -> None:
    ran = shell("job", "retry", counting, "--dry-run")
    assert ran.out == f"2 rows of job {counting} would go back into its queue\n"
    assert job(shell)["status"] == "completed"
    assert "row-1 is completed" in shell.refused(exits.ERROR, "job", "retry", counting, "--row", "row-1")
    ran = shell("job", "retry", counting, "--row", "row-2")
    assert ran.lines == [
        f"1 row of job {counting} is back in its queue",
        f"run it with: watchroom job resume {counting}",
    ]
    assert rows(shell) == {"row-1": "completed", "row-2": "pending", "row-3": "failed"}
    counted(shell)
    (folder / "b").write_text("x\n")
    ran = shell("job", "resume", "count")
    assert (ran.code, ran.out) == (exits.FAILED_ROWS, f"{folder}/out.csv\n")
    (folder / "c").write_text("")
    assert shell.json("job", "retry", "count", "--failed")["rows"] == 1
    assert shell("job", "retry", "count").out == f"nothing to do for job {counting}: it has no failed rows\n"
    assert shell("job", "resume", "count").code == exits.OK
    assert [json.loads(row["result_json"]) for row in read_csv("out.csv")] == [
        {"lines": n} for n in (2, 1, 0)
    ]
    assert [row["attempt_count"] for row in read_csv("out.csv")] == ["1", "2", "2"]
    counted(shell)
    ran = shell("job", "resume", "count", "--json")
    assert (ran.code, json.loads(ran.out)["status"]) == (exits.OK, "completed")
    assert ran.err == f"watchroom: job {counting} has ended: it is completed\n"


def test_what_has_ended_stays_as_it_is(shell: Shell, counting: str) -> None:
    before = job(shell)
    for words in (("pause",), ("cancel",), ("set", "--max-concurrency", "3")):
        verb, *more = words
        for dry in ((), ("--dry-run",)):
            ran = shell("job", verb, counting, *more, *dry)
            assert (ran.code, ran.out) == (
                exits.OK,
                f"nothing to do for job {counting}: it has ended: completed\n",
            )
        assert shell.json("job", verb, counting, *more)["changed"] is False
    ran = shell("job", "resume", counting)
    assert (ran.code, ran.out) == (exits.FAILED_ROWS, "")
    assert ran.err.endswith(f"failed rows go back into its queue with: watchroom job retry {counting}\n")
    assert job(shell) == before


def test_rows_tell_of_each_try(shell: Shell, counting: str) -> None:
    found = shell.json("job", "rows", counting)["rows"]
    assert [list(row) for row in found] == [
        ["item_id", "row_index", "source_id", "status", "attempts", "result", "last_error", "stale_reports"]
    ] * 3
    assert (found[0]["result"], found[0]["last_error"]) == ({"lines": 2}, None)
    [tried] = found[1]["attempts"]
    assert (tried["status"], tried["error"]) == ("failed", found[1]["last_error"])
    assert tried["tokens"] > 0
    assert list(rows(shell, "--status", "failed")) == ["row-2", "row-3"]
    assert shell.json("job", "rows", counting, "--status", "skipped") == {"rows": []}
    assert shell("job", "rows", counting, "--status", "skipped").err == "no rows with status skipped\n"
    head, *lines = shell("job", "rows", counting).lines
    assert head.split() == ["row", "status", "tries", "time", "tokens", "result", "or", "error"]
    assert [line.split()[:3] for line in lines] == [
        ["row-1", "completed", "1"],
        ["row-2", "failed", "1"],
        ["row-3", "failed", "1"],
    ]
    assert lines[0].endswith('{"lines":2}')


@pytest.mark.parametrize(
    "words",
    [
        ("rows",),
        ("resume",),
        ("pause",),
        ("cancel",),
        ("retry",),
        ("skip", "--row", "row-1"),
        ("set", "--max-concurrency", "2"),
        ("export",),
    ],
)
def test_a_job_that_is_not_there_or_means_two(shell: Shell, counting: str, words: tuple[str, ...]) -> None:
    verb, *more = words
    assert "no job 'nope'" in shell.refused(exits.ERROR, "job", verb, "nope", *more)
    if verb != "rows":  # a verb that acts says it on standard output too, for scripts
        ran = shell("job", verb, "nope", *more, "--json")
        assert (ran.code, json.loads(ran.out)["error"]["code"]) == (exits.ERROR, "not_found")
    assert is_clean(shell.refused(exits.ERROR, "job", verb, "\x1b]0;x\x07", *more))
    again = ("job", "run", "files.csv", "--instruction", "Count the lines of {path}.", "--name", "count")
    assert shell(*again, "--no-export").code == exits.FAILED_ROWS
    assert "more than one job" in shell.refused(exits.ERROR, "job", verb, "count", *more)


def test_wrong_words_are_one_sentence(shell: Shell, counting: str) -> None:
    for words in (
        ("retry", "count", "--failed", "--row", "row-2"),
        ("skip", "count"),
        ("set", "count"),
        ("set", "count", "--max-concurrency", "0"),
        ("set", "count", "--max-concurrency", "10001"),
        ("pause", "count", "--as", " "),
        ("pause", "count", "--as", "budget"),
        ("pause", "count", "--as", "/root"),
        ("export", "count", "--format", "xml"),
    ):
        shell.refused(exits.USAGE, "job", *words)


# --- export ----------------------------------------------------------------------------------------------


def test_an_export_at_any_moment(shell: Shell, folder: Path, live: Any) -> None:
    ident = short(shell)
    ran = shell("job", "export", ident, "--output", "now.csv")
    assert (ran.code, ran.out) == (exits.OK, f"{folder}/now.csv\n")
    assert [row["status"] for row in read_csv("now.csv")] == ["running", "running", "pending", "pending"]
    assert shell("job", "export", ident).out == f"{folder}/out.csv\n"


def test_an_export_in_every_format(shell: Shell, folder: Path, counting: str) -> None:
    before = (folder / "out.csv").read_text()
    for name in ("csv", "jsonl", "parquet"):
        said = shell.json("job", "export", "count", "--format", name)
        output = folder / f"out.{name}"
        assert said == {
            "job_id": job(shell)["job_id"],
            "output_path": str(output),
            "format": name,
            "rows": 3,
        }
        assert output.stat().st_size > 0
    assert (folder / "out.csv").read_text() == before
    first = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    assert (first["path"], first["status"]) == ("a", "completed")


def test_an_export_never_hits_the_input_or_a_folder(shell: Shell, folder: Path, counting: str) -> None:
    before = (folder / "files.csv").read_text()
    assert "is the input itself" in shell.refused(
        exits.ERROR, "job", "export", "count", "--output", "files.csv"
    )
    assert "is a folder" in shell.refused(exits.ERROR, "job", "export", "count", "--output", ".")
    assert (folder / "files.csv").read_text() == before


def test_a_raw_export_leaves_formulas_as_they_are(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "scripted:count-lines")
    (folder / "a").write_text("x\n")
    write_csv(folder / "files.csv", [["path", "note"], ["a", "=1+1"]])
    words = ("--instruction", "Count the lines of {path}.", "--no-export")
    assert shell("job", "run", "files.csv", *words).code == exits.OK
    ident = short(shell)
    for more, cell in (((), "'=1+1"), (("--raw",), "=1+1")):
        ran = shell("job", "export", ident, *more)
        assert ran.out == f"{folder}/files.agent-job-{ident}.csv\n"
        assert read_csv(ran.out.strip())[0]["note"] == cell
