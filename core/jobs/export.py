"""Writing a job's CSV: the input's columns, then what became of each row. Complete, or not there at all."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from core.jobs.errors import ExportError
from core.jobs.table import EXPORT_COLUMNS
from core.store.jobs import StoredRow

BATCH = 500
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
        if source is not None and (output == source or (output.exists() and output.samefile(source))):
            raise ExportError(f"the output {output} is the input itself; give another name")
        if output.is_dir():
            raise ExportError(f"the output {output} is a folder; give the name of a file")
        if output.exists() and not output.is_file():
            # A file would be renamed over the device, and whoever runs this as root would lose it.
            raise ExportError(f"the output {output} is a device, pipe or socket; give the name of a file")
        parent = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
        if not parent.is_dir():
            raise ExportError(f"the output {output} cannot be written: {parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ExportError(f"the output {output} cannot be written: no permission to write in {parent}")
    except (OSError, ValueError) as error:
        raise ExportError(f"the output {output} cannot be written: {_reason(error)}") from None


async def export_csv(
    rows: Callable[[], AsyncIterator[StoredRow]],
    *,
    job: str,
    headers: Sequence[str],
    output: Path,
    source: Path | None,
    raw: bool,
) -> int:
    """Write `output` from what is stored; returns the number of rows. Raises ExportError.

    `source` is the input, which is never overwritten. A file that is gone right after it was put in place is
    written once more.
    """
    for _ in range(2):
        await asyncio.to_thread(check_output, output, source)
        count = await _write(rows(), job, headers, output, raw)
        if await asyncio.to_thread(os.path.exists, output):
            return count
    raise ExportError(f"the output {output} was written twice and is gone again; does something remove it?")


async def _write(
    rows: AsyncIterator[StoredRow], job: str, headers: Sequence[str], output: Path, raw: bool
) -> int:
    temporary = output.with_name(f".watchroom-{secrets.token_hex(8)}.tmp")
    count = 0
    try:
        file = await asyncio.to_thread(_create, temporary)
        try:
            cells = [[*headers, *EXPORT_COLUMNS]]
            async for row in rows:
                cells.append(_cells(job, row))
                count += 1
                if len(cells) >= BATCH:
                    await asyncio.to_thread(_append, file, cells, raw)
                    cells = []
            await asyncio.to_thread(_append, file, cells, raw)
            await asyncio.to_thread(_finish, file, temporary, output)
        finally:
            file.close()
    except (OSError, ValueError) as error:
        raise ExportError(f"the output {output} cannot be written: {_reason(error)}") from None
    finally:
        # After the rename there is none; after a failure or a cancellation nothing half written stays.
        with suppress(OSError):
            temporary.unlink()
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


def _append(file: TextIO, rows: list[list[str]], raw: bool) -> None:
    writer = csv.writer(_LineFeeds(file), lineterminator="\r\n")
    writer.writerows(rows if raw else [[guard(cell) for cell in row] for row in rows])


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


def _cells(job: str, row: StoredRow) -> list[str]:
    added = (
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
    )
    return [*row.values, *("" if value is None else str(value) for value in added)]


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
