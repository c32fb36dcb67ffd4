from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.jobs.errors import ExportError
from core.jobs.export import FORMATS, check_output, export_job, export_rows, guard
from core.jobs.table import EXPORT_COLUMNS
from core.jobs.workers import Outcome
from tests.core.jobs.room import DONE, Room, Worker, read_output, reports

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    ["=1+2", "plain"],
    ["+49 30 123", "-5"],
    ["@SUM(A1)", "+3.25"],
    ['-2+3+cmd|" /C calc"!A0', "1e-7"],
    ["\t=1", "two\nlines"],
    ['say "hi", twice', "carriage\rreturn"],
    ["＝1", "ä 漢 \U0001f30a"],
    [" =1", ""],
]


@pytest.mark.parametrize(("name", "raw"), [("guarded.csv", False), ("raw.csv", True)])
async def test_the_bytes_of_an_output(room: Room, name: str, raw: bool) -> None:
    async def behave(worker: Worker) -> Outcome:
        row = int(worker.name.rsplit("_", 1)[1])
        if row == 2:
            return Outcome(status="errored", message="=HYPERLINK(1)")
        if row == 3:
            await worker.report({"stop": "é"}, stop=True)
            return DONE
        await worker.report({"text": '"quoted", and\nbroken', "n": row})
        return DONE

    with (room.folder / "in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["=head", "x"], *HOSTILE])
    room.behave = behave
    summary = await room.run(
        instruction="{x}", max_concurrency=1, output_path="deep/down/out.csv", raw=raw, id_column="x"
    )
    output = room.folder / "deep/down/out.csv"
    got = output.read_bytes().replace(summary["job_id"].encode(), b"JOB")
    expected = GOLDEN / name
    if not expected.exists():
        expected.write_bytes(got)
        pytest.fail(f"{name} did not exist; it was written: look at it")
    assert got == expected.read_bytes()
    assert os.listdir(output.parent) == ["out.csv"]
    if raw:
        assert [[row["=head"], row["x"]] for row in read_output(output)] == HOSTILE


@pytest.mark.parametrize(
    ("cell", "guarded"),
    [
        ("", ""),
        ("text", "text"),
        ("-5", "-5"),
        ("+3.5e-7", "+3.5e-7"),
        ("-,5", "-,5"),
        ("=1", "'=1"),
        ("+1+1", "'+1+1"),
        ("-1\n", "'-1\n"),
        ("-", "'-"),
        ("- item", "'- item"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("\n=1", "'\n=1"),
        ("-٣", "'-٣"),
    ],
)
def test_the_guard(cell: str, guarded: str) -> None:
    assert guard(cell) == guarded


@given(st.text(max_size=8))
def test_nothing_guarded_starts_like_a_formula_unless_it_is_a_number(cell: str) -> None:
    safe = guard(cell)
    assert safe in (cell, "'" + cell)
    if safe[:1] in ("=", "@", "\t", "\r"):
        pytest.fail(f"{safe!r} would be run")
    if safe[:1] in ("+", "-"):
        float(safe.replace(",", "."))


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


class Row:
    """As much of a stored row as an export looks at."""

    def __init__(self, index: int, values: list[str], **fields: Any) -> None:
        self.item = f"row-{index + 1}"
        self.row_index = index
        self.values = values
        self.source_id = self.result = self.error = self.reported_at = self.ended_at = None
        self.status = "pending"
        self.attempt = 0
        for name, value in fields.items():
            setattr(self, name, value)


def source(rows: list[Row]) -> Any:
    async def each() -> AsyncIterator[Row]:
        for row in rows:
            yield row

    return each


async def export(output: Path, rows: list[Row], *, headers: list[str] | None = None, **more: Any) -> int:
    given: dict[str, Any] = {"job": "j", "headers": headers or ["a", "b"], "source": None, "raw": True}
    return await export_rows(source(rows), output=output, **(given | more))


@settings(deadline=None)  # a disk may be busy
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=5))
async def test_what_was_exported_is_what_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]
) -> None:
    output = tmp_path_factory.getbasetemp() / "round.csv"
    count = await export(output, [Row(i, values) for i, values in enumerate(cells)])
    assert count == len(cells)
    read = read_output(output)
    assert [[row["a"], row["b"]] for row in read] == cells
    assert [row["row_index"] for row in read] == [str(i) for i in range(len(cells))]


async def test_many_rows_in_order(tmp_path: Path) -> None:
    output = tmp_path / "o.csv"
    assert await export(output, [Row(i, [str(i), "x" * 50]) for i in range(3210)]) == 3210
    assert [row["a"] for row in read_output(output)] == [str(i) for i in range(3210)]


async def test_an_older_output_is_replaced_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link.csv").symlink_to("target")
    (tmp_path / "old.csv").write_text("old")
    await export(tmp_path / "old.csv", [])
    await export(tmp_path / "link.csv", [])
    assert read_output(tmp_path / "old.csv") == []
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "link.csv").is_symlink()


async def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    data = tmp_path / "in.csv"
    data.write_text("a,b\n1,2\n")
    os.link(data, tmp_path / "hard.csv")
    (tmp_path / "soft.csv").symlink_to(data)
    for name in ("in.csv", "hard.csv", "soft.csv", "sub/../in.csv"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(ExportError, match="is the input itself"):
            await export(tmp_path / name, [], source=data)
    assert data.read_text() == "a,b\n1,2\n"


async def test_a_failure_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "o.csv"
    output.write_text("old")

    async def breaks() -> AsyncIterator[Row]:
        for i in range(2000):
            yield Row(i, ["a", "b"])
        raise OSError(28, "No space left on device")

    with pytest.raises(ExportError, match="No space left on device"):
        await export_rows(breaks, job="j", headers=["a", "b"], output=output, source=None, raw=True)  # type: ignore[arg-type]
    assert output.read_text() == "old"
    assert os.listdir(tmp_path) == ["o.csv"]


async def test_a_cancelled_export_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[Row]:
        yield Row(0, ["a", "b"])
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        export_rows(stuck, job="j", headers=["a", "b"], output=tmp_path / "o.csv", source=None, raw=True)  # type: ignore[arg-type]
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []


async def test_a_file_that_vanishes_is_written_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.csv"
    replace, times = os.replace, 0

    def thief(old: Path, new: Path) -> None:
        nonlocal times
        times += 1
        replace(old, new)
        if times <= thefts:
            os.unlink(new)

    monkeypatch.setattr("core.jobs.export.os.replace", thief)
    thefts = 1
    assert await export(output, [Row(0, ["1", "2"])]) == 1
    assert (times, len(read_output(output))) == (2, 1)
    thefts = 9
    with pytest.raises(ExportError, match="is gone again"):
        await export(output, [])
    assert times == 4


def test_outputs_that_can_never_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        check_output(tmp_path / "folder", None)
    with pytest.raises(ExportError, match="is not a folder"):
        check_output(tmp_path / "file" / "o.csv", None)
    with pytest.raises(ExportError, match="cannot be written"):
        check_output(tmp_path / ("x" * 300) / "o.csv", tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="a device, pipe or socket"):
        check_output(tmp_path / "pipe", None)
    check_output(tmp_path / "new" / "deep" / "o.csv", None)
    assert not (tmp_path / "new").exists()


async def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        await export(tmp_path / "o.csv", [])
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "o.csv").stat().st_mode) == 0o640


KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tests.core.jobs.test_export import Row, export

    async def main():
        output = Path(sys.argv[1])
        print("ready", flush=True)
        for turn in range(1_000_000):
            await export(output, [Row(i, [str(turn), "x" * 40]) for i in range(2000)])

    asyncio.run(main())
    """
)


def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    output = tmp_path / "o.csv"
    root = Path(__file__).parents[3]
    for delay in (0.0, 0.02, 0.05, 0.09):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(output)],
            cwd=root,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if output.exists():
            rows = read_output(output)
            assert len(rows) == 2000
            assert len({row["a"] for row in rows}) == 1


async def test_any_job_can_be_read_back_as_its_own_input_minus_the_added_columns(room: Room) -> None:
    room.behave = reports
    summary = await room.run(rows=3)
    rows = read_output(summary["output_csv_path"])
    assert [row["item_id"] for row in rows] == ["row-1", "row-2", "row-3"]
    assert all(row["reported_at"] and row["completed_at"] and row["attempt_count"] == "1" for row in rows)
    assert all(row["last_error"] == row["source_id"] == "" for row in rows)


# --- other formats ---------------------------------------------------------------------------------------

ADDED = ("j", "i", 0, None, "failed", 2, "=no", '{"a": 1}', None, "2026-01-01T00:00:00Z")


@settings(deadline=None, max_examples=50)  # polars is imported by the first one
@given(
    names=st.lists(CELL.filter(lambda name: name not in EXPORT_COLUMNS), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
async def test_json_lines_and_parquet_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    import polars

    row = st.lists(CELL, min_size=len(names), max_size=len(names))
    cells = data.draw(st.lists(row, max_size=4))
    fields = {"item": "i", "error": ADDED[6], "result": ADDED[7], "ended_at": ADDED[9]}
    rows = [Row(i, values, status="failed", attempt=2, **fields) for i, values in enumerate(cells)]
    expected = [(*values, "j", "i", i, *ADDED[3:]) for i, values in enumerate(cells)]
    folder = tmp_path_factory.getbasetemp()
    lines, table = folder / "round.jsonl", folder / "round.parquet"
    for output, format in ((lines, "jsonl"), (table, "parquet")):
        # Not raw: these formats run nothing, so nothing is guarded.
        assert await export(output, rows, headers=names, raw=False, format=format) == len(cells)
    read = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [tuple(each.values()) for each in read] == expected
    assert all(list(each) == [*names, *EXPORT_COLUMNS] for each in read)
    frame = polars.read_parquet(table)
    assert frame.columns == [*names, *EXPORT_COLUMNS]
    assert frame.rows() == expected
    assert str(frame.schema["row_index"]) == str(frame.schema["attempt_count"]) == "Int64"


@pytest.mark.parametrize("format", FORMATS)
async def test_any_job_is_exported_at_any_moment(room: Room, format: Any) -> None:
    """While its rows wait, are at work, and have ended; also when its input is gone."""
    output = room.folder / f"now.{format}"
    counts: list[int] = []

    async def behave(worker: Worker) -> Outcome:
        if worker.item == "row-2":
            (room.folder / "in.csv").unlink(missing_ok=True)
            counts.append(await export_job(room.store.jobs, worker.job, output, format=format))
        return await reports(worker)

    room.behave = behave
    summary = await room.run(rows=3, max_concurrency=1)
    assert counts == [3]
    text = output.read_bytes()
    assert b"running" in text
    assert b"pending" in text
    assert await export_job(room.store.jobs, summary["job_id"], output, format=format) == 3
    assert b"running" not in output.read_bytes()
    assert set(os.listdir(room.folder)) == {output.name, Path(summary["output_csv_path"]).name}


LIMITED = textwrap.dedent(
    """
    import asyncio, resource, sys
    from pathlib import Path
    from core.jobs.errors import ExportError
    from tests.core.jobs.test_export import Row, export

    # The nearest thing to a full disk that needs no rights: no file may grow beyond this.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    rows = [Row(i, [str(i), "x" * 400]) for i in range(3000)]
    try:
        asyncio.run(export(Path(sys.argv[1]), rows, format=sys.argv[2]))
    except ExportError as error:
        print(error)
    """
)


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills_in_the_middle_leaves_the_old_output(tmp_path: Path, format: str) -> None:
    output = tmp_path / "o"
    output.write_text("old")
    command = [sys.executable, "-c", LIMITED, str(output), format]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"the output {output} cannot be written: File too large\n"
    assert output.read_text() == "old"
    assert os.listdir(tmp_path) == ["o"]


async def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    # Root may write anywhere, so the question is answered for it.
    monkeypatch.setattr("core.jobs.export.os.access", lambda path, mode: False)
    with pytest.raises(ExportError, match="no permission to write in"):
        await export(folder / "o.csv", [])
    assert os.listdir(folder) == []
