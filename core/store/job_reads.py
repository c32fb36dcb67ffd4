"""Rows of jobs as they are stored, and how they are read: by key, a page at a time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from core.clock import Clock
from core.domain.commands import JobRow, JobSort
from core.safety.text import clean_line, shorten
from core.store.errors import StoreError
from core.store.readers import Reader
from core.store.rows import timestamp

CHUNK = 2000
LABEL_CELLS = 3
LABEL_CHARS = 80
ROWS_AT_ONCE = 200
MAX_CHOSEN = 500
MAX_ORDER = 1_000_000
"""Rows of one answer about the order of a job's rows."""
MAX_ROW = 2**53
"""More than any job has, and what a column can hold."""

_STORED_JOB = (
    "SELECT job, name, owner, instruction, input_path, output_path, concurrency, headers, output_schema, raw,"
    " max_attempts, max_runtime_seconds, auto_export, model, role, stopped_by,"
    " status FROM agent_jobs "
)
_STORED = (
    'SELECT item, row_index, source_id, "values", status, attempt, last_error, result, reported_at, ended_at'
    " FROM agent_job_items WHERE job = ? AND row_index > ? ORDER BY row_index LIMIT ?"
)
_PAGE = (
    "SELECT item, row_index, status, attempt, worker, source_id, result, last_error, started_at, ended_at,"
    ' "values" FROM agent_job_items WHERE job = ? AND row_index >= ? ORDER BY row_index LIMIT ?'
)
_CHOSEN = _PAGE.replace("row_index >= ?", "row_index IN (SELECT value FROM json_each(?))")
_SORTS = {
    "row": "row_index",
    "state": "CASE status WHEN 'failed' THEN 0 WHEN 'running' THEN 1 WHEN 'pending' THEN 2"
    " WHEN 'completed' THEN 3 ELSE 4 END",
    "tries": "attempt",
    "time": "julianday(coalesce(ended_at, ?)) - julianday(started_at)",
}

_PAGE_FIELDS = (
    "item",
    "row_index",
    "status",
    "attempt",
    "worker",
    "source_id",
    "result",
    "error",
    "started_at",
    "ended_at",
)


class JobInput(NamedTuple):
    """One row on its way into a job: its values in the order of the headers."""

    item: str
    source_id: str | None
    row_index: int
    values: list[str]


class Claim(NamedTuple):
    """A row that was given to `worker`, a thread id that only this attempt has."""

    item: str
    source_id: str | None
    row_index: int
    attempt: int
    worker: str
    values: list[str]


class StoredJob(NamedTuple):
    """A job as it was created, for whoever goes on with it."""

    job: str
    name: str
    owner: str | None
    instruction: str
    input_path: str
    output_path: str | None
    concurrency: int
    headers: str
    """JSON text."""
    output_schema: str | None
    """JSON text."""
    raw: int
    max_attempts: int
    max_runtime_seconds: float
    auto_export: int
    model: str | None
    role: str | None
    stopped_by: str | None
    """Whose report ended the job early, if one did."""
    status: str


class StoredRow(NamedTuple):
    """One row with everything an export needs."""

    item: str
    row_index: int
    source_id: str | None
    values: list[str]
    status: str
    attempt: int
    error: str | None
    result: str | None
    """JSON text."""
    reported_at: str | None
    ended_at: str | None


class JobReads:
    """What is committed of the jobs of a store."""

    def __init__(self, reader: Reader, clock: Clock) -> None:
        self.reader = reader
        self.clock = clock

    async def left_over(self, swarm: str) -> list[StoredJob]:
        """The jobs of a swarm that have not ended, oldest first."""
        which = "WHERE swarm = ? AND status IN ('pending', 'running', 'paused') ORDER BY created_at, job"
        return [StoredJob(*row) for row in await self.reader.all(_STORED_JOB + which, (swarm,))]

    async def stored(self, job: str) -> StoredJob:
        """A job as it was created. Raises StoreError for an unknown one."""
        rows = await self.reader.all(_STORED_JOB + "WHERE job = ?", (job,))
        if not rows:
            raise StoreError(f"there is no job {job} in the store")
        return StoredJob(*rows[0])

    async def headers(self, job: str) -> list[str]:
        """The input's columns. Raises StoreError for an unknown job."""
        rows = await self.reader.all("SELECT headers FROM agent_jobs WHERE job = ?", (job,))
        if not rows:
            raise StoreError(f"there is no job {job} in the store")
        found: list[str] = json.loads(rows[0][0])
        return found

    async def page(self, job: str, start: int, limit: int) -> tuple[list[JobRow], bool]:
        """At most `limit` rows from row_index `start` on, in input order, fewer if they are large; and
        whether there are more behind them."""
        return await self._rows_of(_PAGE, (job, min(max(start, 0), MAX_ROW)), limit)

    async def chosen(self, job: str, rows: Sequence[int]) -> tuple[list[JobRow], bool]:
        """The rows with these indexes, in input order, fewer if they are large; and whether more of them are
        left."""
        asked = json.dumps([row for row in rows[:MAX_CHOSEN] if 0 <= row < MAX_ROW])
        return await self._rows_of(_CHOSEN, (job, asked), MAX_CHOSEN)

    async def order(
        self, job: str, status: Sequence[str], text: str, sort: JobSort, *, descending: bool
    ) -> tuple[list[int], bool]:
        """The indexes of the rows that a filter leaves, sorted; and whether there are more than MAX_ORDER.
        Equal ones stay in input order, rows without a value come last."""
        where, values = "job = ?", [job]
        if status:
            where += " AND status IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(list(status)))
        if text:
            parts = ('"values"', "result", "last_error", "item")
            where += " AND (" + " OR ".join(f"instr(lower(coalesce({p}, '')), ?)" for p in parts) + ")"
            values += [text.lower()] * len(parts)
        key = _SORTS[sort]
        if "?" in key:
            values.append(timestamp(self.clock.now()))
        # In a query of its own the key is computed once a row.
        rows = await self.reader.all(
            f"SELECT row_index FROM (SELECT row_index, {key} AS key FROM agent_job_items WHERE {where})"
            f" ORDER BY key IS NULL, key {'DESC' if descending else 'ASC'}, row_index LIMIT {MAX_ORDER + 1}",
            (values[-1], *values[:-1]) if "?" in key else values,
        )
        return [row[0] for row in rows[:MAX_ORDER]], len(rows) > MAX_ORDER

    async def _rows_of(self, sql: str, values: tuple[Any, ...], limit: int) -> tuple[list[JobRow], bool]:
        found, more = await self.reader.page(sql, values, limit)
        rows: list[JobRow] = []
        for row in found:
            rows.append(JobRow(**dict(zip(_PAGE_FIELDS, row, strict=False)), label=_label(row[-1])))
            if len(rows) % ROWS_AT_ONCE == 0:
                await self.clock.sleep(0)  # everybody else's turn
        return rows, more

    async def rows(self, job: str) -> AsyncIterator[StoredRow]:
        """Every row in input order, paged by key: a job of any length is never in memory whole."""
        last, more = -1, True
        while more:
            found, more = await self.reader.page(_STORED, (job, last), CHUNK)
            for item, row_index, source_id, values, *rest in found:
                yield StoredRow(item, row_index, source_id, json.loads(values), *rest)
                last = row_index

    async def failures(self, job: str, limit: int) -> list[dict[str, Any]]:
        """The first failed rows in row order: {"item_id", "source_id", "last_error"}."""
        return await self.reader.failures(job, limit)


def _label(values: str) -> str:
    cells = islice((value for value in json.loads(values) if value.strip()), LABEL_CELLS)
    return shorten(" · ".join(clean_line(value[:LABEL_CHARS]) for value in cells), LABEL_CHARS)
