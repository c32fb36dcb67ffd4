"""Writing a job's output: the input's columns, then what became of each row. Complete, or not there at all.

CSV, JSON lines or Parquet with the same columns. In CSV everything is text and unknown is empty; in the other
two `row_index` and `attempt_count` are numbers and unknown is null.
"""

from __future__ import annotations

import asyncio
import csv
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from core.jobs.errors import ExportError
from core.jobs.table import EXPORT_COLUMNS
from core.safety.text import clean_line
from core.store.job_reads import JobReads, StoredRow

BATCH = 500
BATCH_CHARS = 4 * 1024 * 1024
"""Rows that are written at once: so many, or so much."""
Format = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")
_NUMBERS = ("row_index", "attempt_count")
Cell = str | int | None
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\Z", re.ASCII)


def guard(cell: str) -> str:
    """A leading `'` for a cell that a spreadsheet would run as a formula; plain numbers stay as they are."""
    if cell.startswith(_FORMULA) and not _NUMBER.match(cell):
        return "'" + cell
    return cell


def check_output(output: Path, source: Path | None) -> None:
    """Raises ExportError if `output` can never be written: it is the input, a folder, or below a file."""
    try:
        there = output.exists()
        # The input may be gone since; a pattern of files never was one.
        same = there and source is not None and source.exists() and output.samefile(source)
        if same or output == source:
            raise ExportError(f"the output {output} is the input itself; give another name")
        if output.is_dir():
            raise ExportError(f"the output {output} is a folder; give the name of a file")
        if there and not output.is_file():
            # A file would be renamed over the device, and whoever runs this as root would lose it.
            raise ExportError(f"the output {output} is a device, pipe or socket; give the name of a file")
        parent = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
        if not parent.is_dir():
            raise ExportError(f"the output {output} cannot be written: {parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ExportError(f"the output {output} cannot be written: no permission to write in {parent}")
    except (OSError, ValueError) as error:
        raise ExportError(f"the output {output} cannot be written: {_reason(error)}") from None


async def export_job(
    jobs: JobReads, job: str, output: Path, *, format: Format = "csv", raw: bool | None = None
) -> int:
    """Write a stored job, at any moment of its life; returns the number of rows. `raw` None: as the job was
    made. Raises ExportError, or StoreError for an unknown job."""
    stored = await jobs.stored(job)
    return await export_rows(
        lambda: jobs.rows(job),
        job=job,
        headers=await jobs.headers(job),
        output=output,
        source=Path(stored.input_path),
        raw=bool(stored.raw) if raw is None else raw,
        format=format,
    )


async def export_rows(
    rows: Callable[[], AsyncIterator[StoredRow]],
    *,
    job: str,
    headers: Sequence[str],
    output: Path,
    source: Path | None,
    raw: bool,
    format: Format = "csv",
) -> int:
    """Write `output` from what is stored; returns the number of rows. Raises ExportError.

    `source` is the input, which is never overwritten. `raw`: CSV cells as they are, formulas too; the other
    formats never change a cell. A file that is gone right after it was put in place is written once more.
    """
    for _ in range(2):
        await asyncio.to_thread(check_output, output, source)
        count = await _write(rows(), job, headers, output, raw, format)
        if await asyncio.to_thread(os.path.exists, output):
            return count
    raise ExportError(f"the output {output} was written twice and is gone again; does something remove it?")


async def _write(
    rows: AsyncIterator[StoredRow],
    job: str,
    headers: Sequence[str],
    output: Path,
    raw: bool,
    format: Format,
) -> int:
    columns = [*headers, *EXPORT_COLUMNS]
    temporary = output.with_name(f".watchroom-{secrets.token_hex(8)}.tmp")
    other = temporary.with_suffix(".parquet")
    count = 0
    try:
        file = await asyncio.to_thread(_create, temporary)
        try:
            batch: list[list[Cell]] = []
            size = 0
            if format == "csv":
                batch.append([*columns])
            async for row in rows:
                batch.append(_cells(job, row))
                size += sum(map(len, row.values)) + len(row.result or "")
                count += 1
                if len(batch) >= BATCH or size >= BATCH_CHARS:
                    await asyncio.to_thread(_append, file, columns, batch, raw, format)
                    batch, size = [], 0
            await asyncio.to_thread(_append, file, columns, batch, raw, format)
            if format == "parquet":
                await asyncio.to_thread(_to_parquet, file, temporary, other, columns)
            await asyncio.to_thread(_finish, file, other if format == "parquet" else temporary, output)
        finally:
            file.close()
    except (OSError, ValueError) as error:
        raise ExportError(f"the output {output} cannot be written: {_reason(error)}") from None
    finally:
        # After the rename there is none; after a failure or a cancellation nothing half written stays.
        for path in (temporary, other):
            with suppress(OSError):
                path.unlink()
    return count


def _create(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="")


class _LineFeeds:
    """csv quotes a carriage return only if the line ending holds one; so it ends lines with CR LF, and the CR
    is taken off here."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line[:-2] + "\n")


def _append(file: TextIO, columns: Sequence[str], rows: list[list[Cell]], raw: bool, format: Format) -> None:
    if format != "csv":
        for row in rows:
            file.write(msgspec.json.encode(dict(zip(columns, row, strict=True))).decode() + "\n")
        return
    writer = csv.writer(_LineFeeds(file), lineterminator="\r\n")
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    writer.writerows(texts if raw else [[guard(cell) for cell in row] for row in texts])


def _to_parquet(file: TextIO, lines: Path, target: Path, columns: Sequence[str]) -> None:
    """Make the JSON lines a Parquet file, in a stream: a job of any length is never in memory whole."""
    import polars  # a third of a second and 34 MiB, for whoever asks for Parquet

    file.flush()
    _create(target).close()
    if not lines.stat().st_size:
        polars.DataFrame(schema=_schema(columns)).write_parquet(target)
    else:
        try:
            polars.scan_ndjson(lines, schema=_schema(columns)).sink_parquet(target)
        except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
            raise ValueError(clean_line(str(error))) from None
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _schema(columns: Sequence[str]) -> dict[str, Any]:
    import polars

    return {name: polars.Int64() if name in _NUMBERS else polars.String() for name in columns}


def _finish(file: TextIO, temporary: Path, output: Path) -> None:
    """On disk first, then visible under its name, then the name on disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary, output)
    folder = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cells(job: str, row: StoredRow) -> list[Cell]:
    return [
        *row.values,
        job,
        row.item,
        row.row_index,
        row.source_id,
        row.status,
        row.attempt,
        row.error,
        row.result,
        row.reported_at,
        row.ended_at,
    ]


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
