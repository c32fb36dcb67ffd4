"""A job's input as a table: its columns, and its rows as often as somebody walks over them.

The input is read twice, as a stream: once to the end to check it, before anything is stored, and once to
store it. What is kept in between is no row, so an input of any length costs no memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec

from core.jobs.errors import JobInputError
from core.jobs.sources import Source, Stamp, file_source
from core.safety.text import clean_line, shorten
from core.store.job_reads import JobInput

MAX_ROWS = 10_000_000
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


class Rows:
    """The rows of an input that was checked: `len` of them, read anew by every walk. `item` is a row's id,
    unique in the job and one clean line; `source_id` is what the id column says; `row_index` counts from 0,
    without blank rows. A walk raises JobInputError if the input is no longer what was checked."""

    def __init__(
        self, source: Source, headers: list[str], id_at: int | None, stamp: Stamp, total: int
    ) -> None:
        self._source = source
        self._headers = headers
        self._id_at = id_at
        self._stamp = stamp
        self._total = total

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[JobInput]:
        self._check()
        ids = _Ids()
        index = 0
        for values in _records(self._source, self._headers):
            if not values:
                continue
            source = values[self._id_at] if self._id_at is not None else None
            yield JobInput(ids.take(source, index), source, index, values)
            index += 1
        self._check(index)

    def is_input(self, path: Path) -> bool:
        """Whether `path` is one of the files that are the rows."""
        return self._source.is_input(path)

    def _check(self, count: int | None = None) -> None:
        if self._source.stamp() != self._stamp or count not in (None, self._total):
            raise JobInputError(f"{self._source.name} was changed while it was read; nothing was stored")


class Table(msgspec.Struct, frozen=True):
    headers: list[str]
    rows: Rows
    blank: int
    """Rows without any text, left out."""

    @property
    def first(self) -> JobInput:
        """Its first row; there is always one."""
        return next(iter(self.rows))


def read_table(path: Path, *, id_column: str | None = None) -> Table:
    """The rows of a file, checked to its end. Raises JobInputError. Blocks: call it in a thread."""
    return table_of(file_source(path), id_column=id_column)


def table_of(source: Source, *, id_column: str | None = None) -> Table:
    """The rows of a source, checked to its end. Raises JobInputError. Blocks: call it in a thread."""
    stamp = source.stamp()
    headers = _check_headers(source.columns(), source)
    id_at = _id_index(headers, id_column, source.name)
    total = blank = 0
    for values in _records(source, headers):
        if values:
            total += 1
        else:
            blank += 1
        if total > MAX_ROWS:
            raise JobInputError(
                f"{source.name} has more than {MAX_ROWS:,} rows, the most that a job may have"
            )
    if not total:
        raise JobInputError(f"{source.name} has a header but no rows, so there is nothing to do")
    return Table(headers, Rows(source, headers, id_at, stamp, total), blank)


def columns_text(headers: list[str]) -> str:
    """The column names for a message, shortened."""
    shown = [shorten(clean_line(name), 40) for name in headers[:SHOWN_COLUMNS]]
    more = f" and {len(headers) - SHOWN_COLUMNS} more" if len(headers) > SHOWN_COLUMNS else ""
    return ", ".join(shown) + more


def _records(source: Source, headers: list[str]) -> Iterator[list[str]]:
    """The values of each record, nothing for a blank one. Raises JobInputError for one that does not fit."""
    width = len(headers)
    for number, values in source.records(headers):
        if not any(value.strip() for value in values):
            yield []
        elif len(values) != width:
            raise JobInputError(_ragged(f"{source.name}, {source.unit} {number}", values, headers))
        else:
            yield values


def _check_headers(headers: list[str], source: Source) -> list[str]:
    place = f"{source.name}, {source.header}"
    if not any(header.strip() for header in headers):
        raise JobInputError(f"{place.removesuffix(', ')}: the header is empty; it must name every column")
    seen: dict[str, int] = {}
    for column, header in enumerate(headers, start=1):
        shown = shorten(clean_line(header), 40)
        if not header.strip():
            raise JobInputError(f"{place}column {column}: the column has no name")
        if header in seen:
            raise JobInputError(
                f"{place}column {column}: {shown!r} is the name of column {seen[header]} already"
            )
        if header in EXPORT_COLUMNS:
            raise JobInputError(
                f"{place}column {column}: {shown!r} is a column that the output adds; rename it"
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


def _ragged(place: str, values: list[str], headers: list[str]) -> str:
    count = f"{len(values)} field{'s' if len(values) != 1 else ''}, the header has {len(headers)}"
    if len(values) < len(headers):
        missing = shorten(clean_line(headers[len(values)]), 40)
        return f"{place}, column {len(values) + 1}: {missing!r} is missing ({count})"
    return f"{place}, column {len(headers) + 1}: a field too many ({count})"


class _Ids:
    """Item ids: the source's text, else `row-<n>`; a repeated one gets -2, -3 … until it is free."""

    def __init__(self) -> None:
        self._used = _Seen()
        self._next: dict[str, int] = {}
        """Where to go on counting per base, so that a column of equal ids stays linear."""

    def take(self, source: str | None, row_index: int) -> str:
        if source is None:
            return f"row-{row_index + 1}"
        # An id stands on a line of its own in the worker's task: control characters and breaks are taken out.
        base = shorten(clean_line(source), MAX_ITEM_CHARS) if source else ""
        base = base or f"row-{row_index + 1}"
        if self._used.add(base):
            return base
        suffix = self._next.get(base, 2)
        while not self._used.add(item := f"{base}-{suffix}"):
            suffix += 1
        self._next[base] = suffix + 1
        return item


class _Seen:
    """A set of texts that keeps 64 bits of each: a tenth of the memory that the texts would take. That two of
    10,000,000 share theirs happens once in 400,000 times; an id gets a suffix then that it did not need."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = array("Q", [0]) * 1024

    def add(self, text: str) -> bool:
        """Whether it was not there yet."""
        if self._count * 3 > len(self._slots) * 2:
            self._grow()
        if not _put(self._slots, hash(text) & _MASK or 1):
            return False
        self._count += 1
        return True

    def _grow(self) -> None:
        slots = array("Q", [0]) * (2 * len(self._slots))
        for key in self._slots:
            if key:
                _put(slots, key)
        self._slots = slots


_MASK = 2**64 - 1


def _put(slots: array[int], key: int) -> bool:
    """Open addressing in a table whose length is a power of two; 0 is a free slot."""
    last = len(slots) - 1
    at = key & last
    while (there := slots[at]) != 0:
        if there == key:
            return False
        at = (at + 1) & last
    slots[at] = key
    return True
