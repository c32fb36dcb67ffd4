"""`job run|list|show` on the scripted model over real files: every number can be counted by hand."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from core.safety.text import is_clean
from tests.tui.shell import Ran, Shell
from tests.tui.terminal import Terminal
from tests.tui.test_cli import ROOT
from tui import exits

COUNT = ("--instruction", "Count the lines of {path}.")
EXPORT = (
    *("job_id", "item_id", "row_index", "source_id", "status", "attempt_count", "last_error", "result_json"),
    *("reported_at", "completed_at"),
)
JOB = (
    *("job_id", "name", "status", "total_items", "completed_items", "failed_items", "running_items"),
    *("pending_items", "skipped_items", "rate_per_minute", "eta_seconds", "input_path", "output_csv_path"),
    *("created_at", "last_error"),
)
DETAILS = (
    *JOB,
    "failed_item_errors",
    "in_flight",
    "tokens",
    "cost",
    "cost_partial",
    "max_concurrency",
    "refused_reports",
    "paused_by",
    "pause_reason",
    "cancelling_by",
)
LINE = re.compile(
    r"job [0-9a-f]{8} (\[[#-]+\] )?(?P<done>\d+)/(?P<total>\d+) \d+% ✗(?P<failed>\d+) ◍\d+ ◌\d+"
    r"( (?P<rate>[\d.]+)/min)?( eta (?P<eta>\w+))?"
)
FILES = {"a.txt": 3, "leer.txt": 0, "c d.txt": 17, "räksmörgås 漢字.txt": 5, 'it\'s "odd".txt': 2}
BROKEN = """
[[agents]]
path = "*"
[[agents.steps]]
text = "never said"
fault = { kind = "unauthorized", times = 0, message = "no \\u001b[31mway" }
"""

WORKER = """
[[agents]]
path = "*/job_*"
[agents.captures]
job = { in = "first", match = '^Job ID: (.+)$' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
calls = [{ name = "exec_command", arguments = { cmd = "COMMAND" } }]
[[agents.steps]]
when = { last_output = '^done$' }
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { ok = true } }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: files of known lengths, and files.csv that lists them."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, lines in FILES.items():
        (work / name).write_text("x\n" * lines)
    write_csv(work / "files.csv", [["path", "note"], *([name, f"={n}"] for name, n in FILES.items())])
    return work


@pytest.fixture
def shell(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    shell = Shell(tmp_path / "home", capfd, monkeypatch)
    monkeypatch.setenv("OPENAI_BASE_URL", "scripted:count-lines")
    return shell


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_csv(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(shell: Shell, *words: str | Path, table: str = "files.csv") -> Ran:
    return shell("job", "run", table, *COUNT, *words)


def progress(ran: Ran) -> list[re.Match[str]]:
    return [found for line in ran.err.splitlines() if (found := LINE.fullmatch(line))]


def worker(folder: Path, command: str) -> tuple[str, ...]:
    """Options for workers that run `command`, and report once it has said `done`."""
    (folder / "worker.toml").write_text(WORKER.replace("COMMAND", command))
    return ("--base-url", f"scripted:{folder}/worker.toml", "--approval-policy", "never")


def only_job(shell: Shell) -> dict[str, Any]:
    (job,) = shell.json("job", "list")["jobs"]
    assert isinstance(job, dict)
    return job


# --- a run -----------------------------------------------------------------------------------------------


def test_the_counts_are_those_of_the_files(shell: Shell, folder: Path) -> None:
    ran = run(shell, "--output", "out.csv", "--id-column", "path", "--name", "count them")
    assert (ran.code, ran.out) == (exits.OK, f"{folder}/out.csv\n")
    rows = read_csv("out.csv")
    assert tuple(rows[0]) == ("path", "note", *EXPORT)
    assert [row["path"] for row in rows] == [row["item_id"] for row in rows] == list(FILES)
    assert [json.loads(row["result_json"]) for row in rows] == [{"lines": n} for n in FILES.values()]
    assert {(row["status"], row["attempt_count"], row["last_error"]) for row in rows} == {
        ("completed", "1", "")
    }
    job = only_job(shell)
    assert tuple(job) == JOB
    assert {row["job_id"] for row in rows} == {job["job_id"]}
    assert (job["name"], job["status"]) == ("count them", "completed")
    assert (job["total_items"], job["completed_items"], job["failed_items"]) == (len(FILES), len(FILES), 0)
    assert (job["running_items"], job["pending_items"], job["skipped_items"]) == (0, 0, 0)
    assert (job["input_path"], job["output_csv_path"]) == (f"{folder}/files.csv", f"{folder}/out.csv")
    assert (job["eta_seconds"], job["last_error"]) == (None, None)
    assert job["rate_per_minute"] > 0


def test_without_a_name_the_output_lies_beside_the_input(shell: Shell, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "files.csv").rename(folder / "data" / "files.csv")
    ran = run(shell, table="data/files.csv")
    job = only_job(shell)
    assert ran.out == f"{folder}/data/files.agent-job-{job['job_id'][:8]}.csv\n"
    assert job["name"] == f"agent-job-{job['job_id'][:8]}"
    assert len(read_csv(ran.out.strip())) == len(FILES)


@pytest.mark.parametrize(("words", "first"), [((), "'=3"), (("--raw",), "=3")])
def test_cells_that_a_spreadsheet_would_run_are_guarded_unless_raw(
    shell: Shell, words: tuple[str, ...], first: str
) -> None:
    assert run(shell, "--output", "out.csv", *words).code == exits.OK
    assert read_csv("out.csv")[0]["note"] == first


def test_no_export_writes_no_file_and_says_no_path(shell: Shell, folder: Path) -> None:
    before = sorted(folder.iterdir())
    ran = run(shell, "--no-export")
    assert (ran.code, ran.out) == (exits.OK, "")
    assert sorted(folder.iterdir()) == before
    assert only_job(shell)["completed_items"] == len(FILES)


def test_json_ends_with_one_object_alone_on_stdout(shell: Shell) -> None:
    ran = run(shell, "--json", "--output", "out.csv")
    job = json.loads(ran.out)
    assert tuple(job) == DETAILS
    assert job == shell.json("job", "show", job["job_id"])
    assert (job["failed_item_errors"], job["in_flight"], job["cost"]) == ([], 0, None)
    assert job["tokens"]["total"] == job["tokens"]["input"] + job["tokens"]["output"] > 0
    assert {key: job[key] for key in JOB} == only_job(shell)


def test_the_instruction_may_stand_in_a_file(shell: Shell, folder: Path) -> None:
    (folder / "what to do.txt").write_text("\ufeffMeasure {path}, {{really}}.\n")
    ran = shell("job", "run", "files.csv", "--instruction", "@what to do.txt", "--dry-run", "--json")
    assert "Measure a.txt, {really}." in json.loads(ran.out)["first"]
    ran = shell("job", "run", "files.csv", "--instruction", "@what to do.txt", "--json")
    assert json.loads(ran.out)["completed_items"] == len(FILES)


def test_three_hundred_rows_each_counted_once(shell: Shell, folder: Path) -> None:
    lines = {f"{n:03}.txt": n * 7 % 50 for n in range(300)}
    for name, count in lines.items():
        (folder / name).write_text("x\n" * count)
    write_csv(folder / "many.csv", [["path"], *([name] for name in lines)])
    ran = run(shell, "--output", "out.csv", "--id-column", "path", "--json", table="many.csv")
    assert ran.code == exits.OK
    assert json.loads(ran.out)["completed_items"] == 300
    assert {row["item_id"]: json.loads(row["result_json"])["lines"] for row in read_csv("out.csv")} == lines
    told = progress(ran)
    assert (told[0]["done"], told[-1]["done"]) == ("0", "300")
    assert len(told) < 60


def test_never_more_workers_at_a_time_than_asked_for(shell: Shell, folder: Path) -> None:
    """Each worker's command fails if another one is at work: a folder can be made only once."""
    words = worker(folder, "mkdir lock && wc -l files.csv && rmdir lock && echo done")
    ran = run(shell, "--max-concurrency", "1", "--json", *words)
    job = json.loads(ran.out)
    assert (ran.code, job["completed_items"]) == (exits.OK, len(FILES)), job["failed_item_errors"]


# --- failures --------------------------------------------------------------------------------------------


def test_failed_rows_are_exit_3_and_everything_else_is_done(shell: Shell, folder: Path) -> None:
    write_csv(folder / "some.csv", [["path"], ["a.txt"], ["gone.txt"], ["leer.txt"], ["gone\x1b[31m too"]])
    ran = run(shell, "--output", "out.csv", table="some.csv")
    assert (ran.code, ran.out) == (exits.FAILED_ROWS, f"{folder}/out.csv\n")
    job = only_job(shell)
    short = job["job_id"][:8]
    said = ran.err.splitlines()
    assert said[-2:] == [
        f"watchroom: 2 of 4 rows done, 2 failed; results so far are stored: watchroom job show {short}",
        f"watchroom: try the failed rows again: watchroom job retry {short}",
    ]
    assert sum(f"job {short} row row-2 failed: " in line for line in said) == 1
    assert progress(ran)[-1]["failed"] == "2"
    assert [row["status"] for row in read_csv("out.csv")] == ["completed", "failed", "completed", "failed"]
    shown = shell.json("job", "show", short)
    assert tuple(shown) == DETAILS
    assert [failure["item_id"] for failure in shown["failed_item_errors"]] == ["row-2", "row-4"]
    assert all("report_agent_job_result" in failure["last_error"] for failure in shown["failed_item_errors"])
    text = shell("job", "show", short)
    assert re.search(r"^failed items +2$", text.out, re.MULTILINE)
    assert re.search(r"^failed  2 rows, the first row-2: the worker ended", text.out, re.MULTILINE)
    assert re.search(rf"^tokens +{shown['tokens']['total']}$", text.out, re.MULTILINE)
    assert re.search(r"^cost +n/a$", text.out, re.MULTILINE)
    assert is_clean(ran.err + text.out)


def test_a_result_that_does_not_fit_the_schema_fails_its_row(shell: Shell, folder: Path) -> None:
    for kind, code in (("integer", exits.OK), ("string", exits.FAILED_ROWS)):
        schema = {"type": "object", "required": ["lines"], "properties": {"lines": {"type": kind}}}
        (folder / "schema.json").write_text(json.dumps(schema))
        ran = run(shell, "--schema", "schema.json", "--no-export", "--json")
        assert ran.code == code
    errors = json.loads(ran.out)["failed_item_errors"]
    assert len(errors) == 5
    assert "$.lines: 3 is not of type 'string'" in errors[0]["last_error"]


def test_the_servers_words_are_a_rows_error(shell: Shell, folder: Path) -> None:
    (folder / "broken.toml").write_text(BROKEN)
    ran = run(shell, "--base-url", f"scripted:{folder}/broken.toml", "--no-export", "--json")
    assert ran.code == exits.FAILED_ROWS
    job = json.loads(ran.out)
    assert (job["failed_items"], job["tokens"]) == (len(FILES), None)
    assert all("401" in failure["last_error"] for failure in job["failed_item_errors"])
    assert "no way" in job["failed_item_errors"][0]["last_error"]
    assert is_clean(ran.err)


def test_an_output_that_cannot_be_written_is_exit_1_and_the_results_stay(shell: Shell, folder: Path) -> None:
    """The folder of the output turns into a file while the job runs: a worker's command sees to it."""
    (folder / "deep").mkdir()
    words = worker(folder, "rmdir deep; echo > deep; echo done")
    ran = run(shell, *words, "--output", "deep/out.csv")
    assert (ran.code, ran.out) == (exits.ERROR, "")
    said = ran.err.splitlines()[-3:]
    assert said[0].startswith(f"watchroom: the output {folder}/deep/out.csv cannot be written: ")
    job = only_job(shell)
    short = job["job_id"][:8]
    assert said[1].endswith(
        f"5 of 5 rows done, 0 failed; results so far are stored: watchroom job show {short}"
    )
    assert said[2] == f"watchroom: write them elsewhere: watchroom job export {short} --output FILE"
    assert (job["completed_items"], job["last_error"] is None) == (len(FILES), False)


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"path\n", "has a header but no rows"),
        (b"\n\npath\na\n", "line 1: the header is empty"),
        (b"path,\na,b\n", "line 1, column 2: the column has no name"),
        (b"path,status\na,b\n", "'status' is a column that the output adds"),
        (b"path,n\na.txt\n", "line 2, column 2: 'n' is missing"),
        (b"path\na.txt,b\n", "line 2"),
        (b'path\n"a.txt\n', "a quote is opened and never closed"),
        (b"path\na\xff.txt\n", "the byte 0xff is not UTF-8"),
        (b"path\na\x00.txt\n", "a NUL byte"),
    ],
)
def test_a_bad_table_is_one_sentence_that_names_the_place(
    shell: Shell, folder: Path, text: bytes, said: str
) -> None:
    (folder / "bad.csv").write_bytes(text)
    for more in ((), ("--dry-run",), ("--json",)):
        sentence = shell.refused(exits.USAGE, "job", "run", "bad.csv", *COUNT, *more)
        assert "bad.csv" in sentence
        assert said in sentence
    assert shell.stored() == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output", "files.csv"), "is the input itself"),
        (("--output", "./link.csv"), "is the input itself"),
        (("--output", "."), "is a folder"),
        (("--output", "a.txt/out.csv"), "a.txt is not a folder"),
        (("--id-column", "nope"), "no column 'nope' for ids; its columns are: "),
        (("--instruction", ""), "the instruction is empty"),
        (("--instruction", "{path} {nope}"), "the instruction names {nope}"),
        (("--instruction", "a { b"), "a single '{' at line 1, character 3"),
        (("--instruction", "@"), "cannot be read: Is a directory"),
        (("--instruction", "@none.txt"), "the instruction file none.txt cannot be read: No such file"),
        (("--schema", "a.txt"), "the schema a.txt is not valid JSON"),
        (("--schema", "list.json"), "must be a JSON object"),
        (("--schema", "remote.json"), "only references within it"),
        (("--schema", "wrong.json"), "is not a JSON Schema"),
        (("--max-concurrency", "0"), "1 or more"),
        (("--max-concurrency", "many"), "a whole number"),
        (("--max-runtime", "0"), "seconds above 0"),
        (("--profile", "none"), "there is no profile none"),
    ],
)
def test_a_bad_option_is_one_sentence_and_nothing_is_stored(
    shell: Shell, folder: Path, words: tuple[str, ...], said: str
) -> None:
    (folder / "link.csv").symlink_to("files.csv")
    (folder / "list.json").write_text("[]")
    (folder / "remote.json").write_text('{"type": "object", "$ref": "http://example.org/x"}')
    (folder / "wrong.json").write_text('{"type": "object", "properties": 7}')
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert said in shell.refused(exits.USAGE, "job", "run", "files.csv", *COUNT, *words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert shell.stored() == (0, 0)


def test_an_input_that_is_no_file_is_one_sentence(shell: Shell, folder: Path) -> None:
    assert "there is no file" in shell.refused(exits.USAGE, "job", "run", "none.csv", *COUNT)
    assert "is a folder" in shell.refused(exits.USAGE, "job", "run", ".", *COUNT)
    assert shell.stored() == (0, 0)


def test_a_dry_run_says_what_would_happen_and_stores_nothing(shell: Shell, folder: Path) -> None:
    before = sorted(folder.iterdir())
    ran = run(shell, "--dry-run", "--output", "out.csv", "--max-concurrency", "2", "--id-column", "path")
    assert (ran.code, ran.err) == (exits.OK, "")
    assert ran.lines[0] == f"5 rows, 2 workers at a time, writes {folder}/out.csv."
    assert "Count the lines of a.txt." in ran.lines
    assert "Item ID: a.txt" in ran.lines
    assert ran.lines[-1] == "Nothing was stored."
    assert "writes no CSV." in run(shell, "--dry-run", "--no-export").lines[0]
    data = json.loads(run(shell, "--dry-run", "--json").out)
    assert list(data) == ["rows", "blank", "columns", "first"]
    assert (data["rows"], data["blank"], data["columns"]) == (5, 0, ["path", "note"])
    assert sorted(folder.iterdir()) == before
    assert not shell.home.exists()


# --- progress --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["auto", "lines"])
def test_in_a_pipe_progress_is_whole_lines(shell: Shell, how: str) -> None:
    ran = run(shell, "--progress", how, "--no-export")
    first, *_, last = progress(ran)
    assert (first["done"], first["total"], first["rate"], first["eta"]) == ("0", "5", None, None)
    assert (last["done"], last["failed"], last["eta"]) == ("5", "0", None)
    assert float(last["rate"]) > 0
    assert is_clean(ran.err)


def test_off_says_no_progress(shell: Shell) -> None:
    ran = run(shell, "--progress", "off", "--no-export")
    assert progress(ran) == []
    assert len(ran.err.splitlines()) == 1
    assert "swarm started" in ran.err


def test_a_line_that_is_asked_for_is_drawn_in_place_in_a_pipe_too(shell: Shell) -> None:
    ran = run(shell, "--progress", "line", "--no-export")
    drawn = [text.split("\x1b[K")[0] for text in ran.err.split("\r")[1:]]
    assert LINE.fullmatch(drawn[-1])
    assert " 5/5 100% " in drawn[-1]
    assert all(len(text) <= 79 for text in drawn)
    assert ran.err.endswith("\x1b[K\n")


@pytest.mark.parametrize(("width", "bar"), [(160, 20), (56, None), (30, None)])
def test_on_a_terminal_the_line_is_redrawn_and_fits(
    shell: Shell, folder: Path, width: int, bar: int | None
) -> None:
    entry = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import os; os.chdir({str(folder)!r}); "
    entry += "from tui.cli import main; sys.exit(main())"
    words = ["job", "run", "files.csv", *COUNT, "--output", "out.csv"]
    env = {"WATCHROOM_HOME": str(shell.home), "COLUMNS": "", "LINES": ""}
    with Terminal(["-c", entry, *words], width=width, height=12, **env) as terminal:
        assert terminal.wait() == exits.OK
    drawn = re.findall(rb"\r(job [^\r]*?)\x1b\[K", terminal.raw)
    texts = [text.decode() for text in drawn]
    assert len(texts) >= 2
    assert all(len(text) < width for text in texts)
    assert " 5/5 100% " in texts[-1]
    bars = [found[1] for text in texts if (found := re.search(r"\[([#-]+)\]", text))]
    if bar is not None:
        assert {len(found) for found in bars} == {bar}
        assert bars[-1] == "#" * bar
    assert b"Traceback" not in terminal.raw
    assert sum(line.startswith("job ") for line in terminal.screen.display) == 1


# --- reading ---------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_and_found_by_id_prefix_and_name(shell: Shell) -> None:
    assert shell("job", "list").err == "no jobs yet\n"
    assert shell.json("job", "list") == {"jobs": []}
    for name in ("first", "漢字 second", "twice", "twice"):
        assert run(shell, "--no-export", "--name", name).code == exits.OK
    jobs = shell.json("job", "list")["jobs"]
    assert [job["name"] for job in jobs] == ["twice", "twice", "漢字 second", "first"]
    assert sorted((job["created_at"] for job in jobs), reverse=True) == [job["created_at"] for job in jobs]
    ident = jobs[3]["job_id"]
    for ref in (ident, ident[:12], ident.upper(), "first"):
        assert shell.json("job", "show", ref)["job_id"] == ident
    assert shell.json("job", "show", "漢字 second")["job_id"] == jobs[2]["job_id"]
    said = shell.refused(exits.ERROR, "job", "show", "twice")
    assert jobs[0]["job_id"] in said
    assert jobs[1]["job_id"] in said
    assert "'nope'" in shell.refused(exits.ERROR, "job", "show", "nope")
    assert "give the id of a job" in shell.refused(exits.ERROR, "job", "show", " ")
    head, *rows = shell("job", "list").lines
    assert head.split() == ["job", "created", "status", "rows", "done", "failed", "name"]
    assert [row.split()[0] for row in rows] == [job["job_id"][:8] for job in jobs]
    assert [row.split()[4:7] for row in rows] == [["5", "5", "0"]] * 4


def test_a_jobs_swarm_stands_in_the_list_of_sessions(shell: Shell) -> None:
    run(shell, "--no-export", "--name", "counted")
    (session,) = shell.json("session", "list")["sessions"]
    assert (session["jobs"], session["agents"], session["status"]) == (1, 1 + len(FILES), "completed")
    tree = shell.json("session", "tree", session["thread"])["agents"]
    job = only_job(shell)
    assert all(agent["parent"] == tree[0]["thread"] for agent in tree[1:])
    rows = [agent["path"].removeprefix(f"/root/job_{job['job_id'][:8]}_") for agent in tree[1:]]
    assert len(rows) == len(FILES)
    assert all(row.isdigit() for row in rows)


def test_a_name_cannot_drive_a_terminal(shell: Shell) -> None:
    run(shell, "--no-export", "--name", "x\x1b]0;evil-title\x07[bold]\u202ey")
    for words in (("job", "list"), ("job", "show", only_job(shell)["job_id"])):
        ran = shell(*words)
        assert is_clean(ran.out)
        assert "evil-title" not in ran.out
        assert "x[bold]y" in ran.out
