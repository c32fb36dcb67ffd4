"""Reading a job's input: strict CSV, nothing guessed, nothing repaired.

The standard library's reader in strict mode (decision 32): every value stays the text that it was, and what
is not well formed is refused with file, line and column before anything is stored. The file is decoded and
parsed as a stream; its rows are kept, because their number must be known before the first is stored.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import msgspec

from core.jobs.errors import JobInputError
from core.safety.text import clean_line, shorten
from core.store.jobs import JobInput

MAX_BYTES = 512 * 1024 * 1024
MAX_ITEM_CHARS = 200
SHOWN_COLUMNS = 20
EXPORT_COLUMNS = (
    "job_id",
    "item_id",
    "row_index",
    "source_id",
    "status",
    "attempt_count",
    "last_error",
    "result_json",
    "reported_at",
    "completed_at",
)
"""What an export adds to the input's own columns, in this order."""

_BREAK = re.compile("\r\n|\r|\n")


class Table(msgspec.Struct, frozen=True):
    """A row's `item` is its id, unique in the job and one clean line; `source_id` is what the id column says;
    `row_index` counts from 0, without blank rows."""

    headers: list[str]
    rows: list[JobInput]
    blank: int
    """Rows without any text, left out."""


def read_table(path: Path, *, id_column: str | None = None) -> Table:
    """The rows of a CSV file. Raises JobInputError. Blocks: call it in a thread."""
    with _open(path) as file:
        records = _records(file, path)
        first = next(records, None)
        if first is None:
            raise JobInputError(f"{path.name} is empty; it needs a header and at least one row")
        headers = _check_headers(first[1], path.name)
        id_at = _id_index(headers, id_column, path.name)
        rows: list[JobInput] = []
        ids = _Ids()
        blank = 0
        for line, values in records:
            if not any(value.strip() for value in values):
                blank += 1
                continue
            if len(values) != len(headers):
                raise JobInputError(_ragged(path.name, line, values, headers))
            source = values[id_at] if id_at is not None else None
            rows.append(JobInput(ids.take(source, len(rows)), source, len(rows), values))
    if not rows:
        raise JobInputError(f"{path.name} has a header but no rows, so there is nothing to do")
    return Table(headers, rows, blank)


def columns_text(headers: list[str]) -> str:
    """The column names for a message, shortened."""
    shown = [shorten(clean_line(name), 40) for name in headers[:SHOWN_COLUMNS]]
    more = f" and {len(headers) - SHOWN_COLUMNS} more" if len(headers) > SHOWN_COLUMNS else ""
    return ", ".join(shown) + more


def _open(path: Path) -> TextIOWrapper:
    """A regular file and nothing else: a pipe or a device would block, or never end."""
    name = path.name or str(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise JobInputError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise JobInputError(f"{name} cannot be read: {reason}") from None
    info = os.fstat(fd)
    problem = None
    if not stat.S_ISREG(info.st_mode):
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        problem = f"{name} is {what}; a job needs a CSV file"
    elif info.st_size > MAX_BYTES:
        problem = f"{name} has {info.st_size:,} bytes; a job's input may have at most {MAX_BYTES:,}"
    if problem is not None:
        os.close(fd)
        raise JobInputError(problem)
    return open(fd, encoding="utf-8-sig", newline="")


class _Lines:
    """Feeds the parser line by line and remembers the lines of the record that it is in."""

    def __init__(self, file: TextIOWrapper, name: str) -> None:
        self._file = file
        self._name = name
        self.number = 0
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        self.record.append(line)
        if (at := line.find("\0")) >= 0:
            raise JobInputError(
                f"{self._name}, line {self.number}, character {at + 1}: a NUL byte; "
                "is this really a CSV file in UTF-8?"
            )
        return line


def _records(file: TextIOWrapper, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record starts, its fields) for every record."""
    csv.field_size_limit(MAX_BYTES)  # one per process; the default of 128 KiB refuses honest files
    lines = _Lines(file, path.name)
    parser = csv.reader(lines, strict=True)
    while True:
        lines.record.clear()
        start = lines.number + 1
        try:
            record = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            raise JobInputError(_malformed(path.name, start, lines.record, str(error))) from None
        except UnicodeDecodeError:
            raise JobInputError(_not_utf8(path)) from None
        yield start, record


def _malformed(name: str, start: int, record: list[str], problem: str) -> str:
    """Where in its record the parser failed. Its error names no place, so the record is parsed again."""
    line = start + len(record) - 1
    if "end of data" in problem:
        fields = next(csv.reader(record, strict=False))
        breaks = len(_BREAK.findall("".join(record))) - len(_BREAK.findall(fields[-1]))
        opened = start + breaks
        return f"{name}, line {opened}, column {len(fields)}: a quote is opened and never closed"
    low, high = 0, len(record[-1])
    while low < high:
        middle = (low + high) // 2
        if _fails([*record[:-1], record[-1][:middle]], problem):
            high = middle
        else:
            low = middle + 1
    if "expected after" in problem:
        problem = "text after a closing quote; a quote inside a field is doubled"
    return f"{name}, line {line}, character {low}: {problem}"


def _fails(record: list[str], problem: str) -> bool:
    try:
        list(csv.reader(record, strict=True))
    except csv.Error as error:
        return str(error) == problem
    return False


def _not_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = _BREAK.split(data[: error.start].decode("utf-8"))
        byte = data[error.start]
        return (
            f"{path.name}, line {len(before)}, character {len(before[-1]) + 1}: "
            f"the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        )
    return f"{path.name} is not UTF-8, or changed while it was read"


def _check_headers(headers: list[str], name: str) -> list[str]:
    if not any(header.strip() for header in headers):
        raise JobInputError(f"{name}, line 1: the header is empty; it must name every column")
    seen: dict[str, int] = {}
    for column, header in enumerate(headers, start=1):
        shown = shorten(clean_line(header), 40)
        if not header.strip():
            raise JobInputError(f"{name}, line 1, column {column}: the column has no name")
        if header in seen:
            raise JobInputError(
                f"{name}, line 1, column {column}: {shown!r} is the name of column {seen[header]} already"
            )
        if header in EXPORT_COLUMNS:
            raise JobInputError(
                f"{name}, line 1, column {column}: {shown!r} is a column that the output adds; rename it"
            )
        seen[header] = column
    return headers


def _id_index(headers: list[str], id_column: str | None, name: str) -> int | None:
    if id_column is None:
        return None
    if id_column not in headers:
        asked = shorten(clean_line(id_column), 40)
        raise JobInputError(
            f"{name} has no column {asked!r} for ids; its columns are: {columns_text(headers)}"
        )
    return headers.index(id_column)


def _ragged(name: str, line: int, values: list[str], headers: list[str]) -> str:
    count = f"{len(values)} field{'s' if len(values) != 1 else ''}, the header has {len(headers)}"
    if len(values) < len(headers):
        missing = shorten(clean_line(headers[len(values)]), 40)
        return f"{name}, line {line}, column {len(values) + 1}: {missing!r} is missing ({count})"
    return f"{name}, line {line}, column {len(headers) + 1}: a field too many ({count})"


class _Ids:
    """Item ids: the source's text, else `row-<n>`; a repeated one gets -2, -3 … until it is free."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}
        """Where to go on counting per base, so that a column of equal ids stays linear."""

    def take(self, source: str | None, row_index: int) -> str:
        # An id stands on a line of its own in the worker's task: control characters and breaks are taken out.
        base = shorten(clean_line(source), MAX_ITEM_CHARS) if source else ""
        base = base or f"row-{row_index + 1}"
        item = base
        if base in self._used:
            suffix = self._next.get(base, 2)
            while (item := f"{base}-{suffix}") in self._used:
                suffix += 1
            self._next[base] = suffix + 1
        self._used.add(item)
        return item
