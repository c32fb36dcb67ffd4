"""Jobs in the store. Every transition is one conditional UPDATE and its events, in one transaction.

Who gets a row, and whether a report counts, is decided here and nowhere else: by the row count of an UPDATE
that names job, item, worker and the status it must still have.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from core.domain import events as e
from core.domain.commands import JobRow
from core.safety.text import clean_line, shorten
from core.store.connection import Transaction
from core.store.errors import StoreError
from core.store.readers import Reader
from core.store.rows import timestamp

if TYPE_CHECKING:
    from core.store.store import Store

CHUNK = 2000
LABEL_CELLS = 3
LABEL_CHARS = 80
ENGINE_ENDED = "the process ended"

_INSERT_JOB = """INSERT INTO agent_jobs (job, swarm, name, owner, status, instruction, input_path,
    output_path, concurrency, total, pending, running, completed, failed, skipped, created_at, last_error,
    headers, output_schema, raw, max_attempts, max_runtime_seconds, auto_export, model, role)
    VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, ?, '', ?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_ITEM = (
    'INSERT INTO agent_job_items (job, item, row_index, source_id, "values", status)'
    " VALUES (?, ?, ?, ?, ?, 'pending')"
)
_NEXT = (
    'SELECT item, source_id, row_index, attempt, "values" FROM agent_job_items'
    " WHERE job = ? AND status = 'pending' ORDER BY attempt, row_index LIMIT ?"
)
_CLAIM = (
    "UPDATE agent_job_items SET status = 'running', worker = ?, attempt = ?, started_at = ?, ended_at = NULL,"
    " reported_at = NULL WHERE job = ? AND item = ? AND status = 'pending'"
)
_BEGIN_ATTEMPT = (
    "INSERT INTO agent_job_attempts (job, item, attempt, worker, status, started_at)"
    " VALUES (?, ?, ?, ?, 'running', ?)"
)
_END_ATTEMPT = (
    "UPDATE agent_job_attempts SET status = ?, error = ?, ended_at = ?"
    " WHERE job = ? AND item = ? AND worker = ?"
)
_REPORT = (
    "UPDATE agent_job_items SET status = 'completed', result = ?, last_error = NULL, reported_at = ?,"
    " ended_at = ? WHERE job = ? AND item = ? AND worker = ? AND status = 'running'"
)
_STOPPED = "UPDATE agent_jobs SET stopped_by = ? WHERE job = ? AND swarm = ? AND stopped_by IS NULL"
_FAIL = (
    "UPDATE agent_job_items SET last_error = ?,"
    " status = CASE WHEN attempt < ? THEN 'pending' ELSE 'failed' END,"
    " worker = CASE WHEN attempt < ? THEN NULL ELSE worker END,"
    " ended_at = CASE WHEN attempt < ? THEN NULL ELSE ? END"
    " WHERE job = ? AND item = ? AND worker = ? AND status = 'running'"
)
_AT_WORK = (
    "SELECT i.job, i.item, i.row_index, i.attempt, i.worker, j.owner"
    " FROM agent_jobs j JOIN agent_job_items i ON i.job = j.job AND i.status = 'running'"
    " WHERE j.swarm = ? AND j.status IN ('pending', 'running', 'paused') ORDER BY j.created_at, i.row_index"
)
_REQUEUE = (
    "UPDATE agent_job_items SET status = 'pending', worker = NULL, attempt = attempt - 1, started_at = NULL"
    " WHERE job = ? AND item = ? AND worker = ? AND status = 'running'"
)
_LEFT_OVER = (
    "SELECT job, name, owner, instruction, input_path, output_path, concurrency, headers, output_schema, raw,"
    " max_attempts, max_runtime_seconds, auto_export, model, role, stopped_by FROM agent_jobs"
    " WHERE swarm = ? AND status IN ('pending', 'running', 'paused') ORDER BY created_at, job"
)
_STORED = (
    'SELECT item, row_index, source_id, "values", status, attempt, last_error, result, reported_at, ended_at'
    " FROM agent_job_items WHERE job = ? AND row_index > ? ORDER BY row_index LIMIT ?"
)
_PAGE = (
    "SELECT item, row_index, status, attempt, worker, source_id, result, last_error, started_at, ended_at,"
    ' "values" FROM agent_job_items WHERE job = ? AND row_index >= ? ORDER BY row_index LIMIT ?'
)

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


ROWS_AT_ONCE = 200
MAX_ROW = 2**53
"""More than any job has, and what a column can hold."""


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


class JobStore:
    """The jobs of a store: writes through its writer, reads what is committed."""

    def __init__(self, store: Store, reader: Reader, redact: Callable[[str], str]) -> None:
        self._store = store
        self._reader = reader
        self._redact = redact

    # --- transitions -------------------------------------------------------------------------------------

    async def create(
        self,
        swarm: str,
        event: e.JobCreated,
        headers: list[str],
        rows: Iterable[JobInput],
        schema: str | None,
        raw: bool,
        *,
        auto_export: bool = True,
        model: str | None = None,
        role: str | None = None,
    ) -> None:
        """A job with all its rows, pending. `schema` is JSON text; `model` and `role` are its workers'.
        Raises StoreError with nothing stored."""

        def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
            now = self._now()
            db.execute(
                _INSERT_JOB,
                (
                    event.job,
                    swarm,
                    event.name,
                    event.agent,
                    event.instruction,
                    event.input_path,
                    event.output_path,
                    event.concurrency,
                    event.total,
                    event.total,
                    now,
                    self._json(headers),
                    self._redact(schema) if schema is not None else None,
                    raw,
                    event.max_attempts,
                    event.max_runtime_seconds,
                    auto_export,
                    model,
                    role,
                ),
            )
            count, left = 0, iter(rows)
            while chunk := list(islice(left, CHUNK)):
                db.executemany(_INSERT_ITEM, [self._item(event.job, row) for row in chunk])
                count += len(chunk)
            if count != event.total:
                raise StoreError(
                    f"job {event.name} was announced with {event.total} rows and came with {count}"
                )
            return None, [event]

        await self._store.transact(swarm, op)

    async def start(self, swarm: str, job: str, concurrency: int) -> bool:
        """pending or paused → running; whether it was."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = 'running' WHERE job = ? AND swarm = ?"
                " AND status IN ('pending', 'paused')",
                (job, swarm),
            )
            if not changed:
                return False, []
            owner = _owner(db, job)
            return True, [e.JobStarted(agent=owner, job=job, concurrency=concurrency)]

        return await self._store.transact(swarm, op)

    async def claim(self, swarm: str, job: str, workers: list[str]) -> list[Claim]:
        """Give pending rows of a running job to `workers`, one each: new rows in row order, then those whose
        attempt failed. Fewer claims than workers: the queue is empty."""

        def op(db: Transaction) -> tuple[list[Claim], Sequence[e.Event]]:
            head = db.one(
                "SELECT owner FROM agent_jobs WHERE job = ? AND swarm = ? AND status = 'running'",
                (job, swarm),
            )
            if head is None or not workers:
                return [], []
            now = self._now()
            claims = [
                Claim(item, source_id, row_index, attempt + 1, worker, json.loads(values))
                for worker, (item, source_id, row_index, attempt, values) in zip(
                    workers, db.all(_NEXT, (job, len(workers))), strict=False
                )
            ]
            taken = db.executemany(_CLAIM, [(c.worker, c.attempt, now, job, c.item) for c in claims])
            if claims and taken != len(claims):
                raise StoreError(f"job {job}: {len(claims)} rows were pending, {taken} could be taken")
            db.executemany(_BEGIN_ATTEMPT, [(job, c.item, c.attempt, c.worker, now) for c in claims])
            return claims, [
                e.JobRowClaimed(
                    agent=head[0],
                    job=job,
                    item=c.item,
                    row_index=c.row_index,
                    attempt=c.attempt,
                    worker=c.worker,
                )
                for c in claims
            ]

        return await self._store.transact(swarm, op)

    async def report(
        self,
        swarm: str,
        job: str,
        item: str,
        worker: str,
        result_json: str,
        *,
        stopped_by: str | None = None,
    ) -> tuple[bool, str]:
        """Take a worker's result: (True, ""), or (False, why not). Each row's result is accepted once.
        `stopped_by`: the report also ends the job; kept with it, so that no restart forgets it."""
        result = self._redact(result_json)

        def op(db: Transaction) -> tuple[tuple[bool, str], Sequence[e.Event]]:
            now = self._now()
            owner = _owner(db, job)
            if db.execute(_REPORT, (result, now, now, job, item, worker)):
                db.execute(_END_ATTEMPT, ("completed", None, now, job, item, worker))
                if stopped_by is not None:
                    db.execute(_STOPPED, (stopped_by, job, swarm))
                row_index, attempt = _place(db, job, item)
                ended = e.JobRowEnded(
                    agent=owner,
                    job=job,
                    item=item,
                    row_index=row_index,
                    attempt=attempt,
                    status="completed",
                    worker=worker,
                    result=result,
                )
                return (True, ""), [ended]
            reason = _why_not(db, job, item, worker)
            refused = e.JobReportRefused(
                agent=owner, job=job, item=item, worker=worker, reason=reason, result=result
            )
            return (False, reason), [refused]

        return await self._store.transact(swarm, op)

    async def fail(
        self, swarm: str, job: str, item: str, worker: str, error: str, max_attempts: int
    ) -> Literal["failed", "pending"] | None:
        """End a worker's attempt without a result. With attempts left the row waits again, behind the new
        ones. None: the row is no longer this worker's, and nothing has changed."""
        problem = self._redact(error)

        def op(db: Transaction) -> tuple[Literal["failed", "pending"] | None, Sequence[e.Event]]:
            now = self._now()
            limits = (problem, max_attempts, max_attempts, max_attempts, now)
            if not db.execute(_FAIL, (*limits, job, item, worker)):
                return None, []
            db.execute(_END_ATTEMPT, ("failed", problem, now, job, item, worker))
            row_index, attempt = _place(db, job, item)
            status: Literal["failed", "pending"] = "pending" if attempt < max_attempts else "failed"
            ended = e.JobRowEnded(
                agent=_owner(db, job),
                job=job,
                item=item,
                row_index=row_index,
                attempt=attempt,
                status=status,
                worker=worker,
                error=problem,
            )
            return status, [ended]

        return await self._store.transact(swarm, op)

    async def give_back(self, swarm: str, job: str, item: str, worker: str, why: str) -> None:
        """A row goes back to the queue without using up an attempt; its worker can no longer report it."""
        problem = self._redact(why)

        def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
            row_index, attempt = _place(db, job, item)
            if not db.execute(_REQUEUE, (job, item, worker)):
                return None, []
            db.execute(_END_ATTEMPT, ("interrupted", problem, self._now(), job, item, worker))
            back = e.JobRowEnded(
                agent=_owner(db, job),
                job=job,
                item=item,
                row_index=row_index,
                attempt=attempt,
                status="pending",
                worker=worker,
                error=problem,
            )
            return None, [back]

        await self._store.transact(swarm, op)

    async def pause(self, swarm: str, job: str, reason: str) -> bool:
        """running → paused, until it is started again; whether it was."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = 'paused' WHERE job = ? AND swarm = ? AND status = 'running'",
                (job, swarm),
            )
            if not changed:
                return False, []
            return True, [e.JobPaused(agent=_owner(db, job), job=job, reason=self._redact(reason))]

        return await self._store.transact(swarm, op)

    async def end(
        self,
        swarm: str,
        job: str,
        status: Literal["completed", "failed", "cancelled"],
        error: str | None,
        by: str,
        *,
        told: Sequence[e.Event] = (),
    ) -> bool:
        """The job is over; False if it was over already. The first end stands. `told`: recorded with it."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = ? WHERE job = ? AND swarm = ?"
                " AND status IN ('pending', 'running', 'paused')",
                (status, job, swarm),
            )
            if not changed:
                return False, []
            owner = _owner(db, job)
            return True, [e.JobEnded(agent=owner, job=job, status=status, error=error, by=by), *told]

        return await self._store.transact(swarm, op)

    async def take_over(self, swarm: str, events: Sequence[e.Event]) -> None:
        """What a new owner records first, in one transaction: `events`, and every row that was at work goes
        back to the queue. That uses up no attempt, and whoever had the row can no longer report it."""

        def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
            now = self._now()
            back: list[e.Event] = []
            for job, item, row_index, attempt, worker, owner in db.all(_AT_WORK, (swarm,)):
                db.execute(_REQUEUE, (job, item, worker))
                db.execute(_END_ATTEMPT, ("interrupted", ENGINE_ENDED, now, job, item, worker))
                back.append(
                    e.JobRowEnded(
                        agent=owner,
                        job=job,
                        item=item,
                        row_index=row_index,
                        attempt=attempt,
                        status="pending",
                        worker=worker,
                        error=ENGINE_ENDED,
                    )
                )
            return None, [*events, *back]

        await self._store.transact(swarm, op)

    async def exported(self, swarm: str, job: str, path: str, rows: int) -> None:
        """Record that the CSV was written."""

        def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET exported_rows = ? WHERE job = ? AND swarm = ?", (rows, job, swarm)
            )
            if not changed:
                raise StoreError(f"there is no job {job} in swarm {swarm}")
            return None, [e.JobExported(agent=_owner(db, job), job=job, path=path, rows=rows)]

        await self._store.transact(swarm, op)

    # --- reading -----------------------------------------------------------------------------------------

    async def left_over(self, swarm: str) -> list[StoredJob]:
        """The jobs of a swarm that somebody has to go on with, oldest first."""
        return [StoredJob(*row) for row in await self._reader.all(_LEFT_OVER, (swarm,))]

    async def headers(self, job: str) -> list[str]:
        """The input's columns. Raises StoreError for an unknown job."""
        rows = await self._reader.all("SELECT headers FROM agent_jobs WHERE job = ?", (job,))
        if not rows:
            raise StoreError(f"there is no job {job} in the store")
        found: list[str] = json.loads(rows[0][0])
        return found

    async def page(self, job: str, start: int, limit: int) -> tuple[list[JobRow], bool]:
        """At most `limit` rows from row_index `start` on, in input order, fewer if they are large; and
        whether there are more behind them."""
        found, more = await self._reader.page(_PAGE, (job, min(max(start, 0), MAX_ROW)), limit)
        rows: list[JobRow] = []
        for row in found:
            rows.append(JobRow(**dict(zip(_PAGE_FIELDS, row, strict=False)), label=_label(row[-1])))
            if len(rows) % ROWS_AT_ONCE == 0:
                await self._store.clock.sleep(0)  # everybody else's turn
        return rows, more

    async def rows(self, job: str) -> AsyncIterator[StoredRow]:
        """Every row in input order, paged by key: a job of any length is never in memory whole."""
        last = -1
        while chunk := await self._reader.all(_STORED, (job, last, CHUNK)):
            for item, row_index, source_id, values, *rest in chunk:
                yield StoredRow(item, row_index, source_id, json.loads(values), *rest)
                last = row_index

    async def failures(self, job: str, limit: int) -> list[dict[str, Any]]:
        """The first failed rows in row order: {"item_id", "source_id", "last_error"}."""
        return await self._reader.failures(job, limit)

    # --- inside ------------------------------------------------------------------------------------------

    def _now(self) -> str:
        return timestamp(self._store.clock.now())

    def _item(self, job: str, row: JobInput) -> tuple[Any, ...]:
        source = self._redact(row.source_id) if row.source_id is not None else None
        return (job, row.item, row.row_index, source, self._json(row.values))

    def _json(self, values: Sequence[str]) -> str:
        return json.dumps([self._redact(value) for value in values], ensure_ascii=False)


def _owner(db: Transaction, job: str) -> str | None:
    row = db.one("SELECT owner FROM agent_jobs WHERE job = ?", (job,))
    return row[0] if row is not None else None


def _place(db: Transaction, job: str, item: str) -> tuple[int, int]:
    row = db.one("SELECT row_index, attempt FROM agent_job_items WHERE job = ? AND item = ?", (job, item))
    assert row is not None
    return row[0], row[1]


def _why_not(db: Transaction, job: str, item: str, worker: str) -> str:
    """Why a report was not taken, for the worker that made it."""
    row = db.one(
        "SELECT status, worker, attempt FROM agent_job_items WHERE job = ? AND item = ?", (job, item)
    )
    if row is None:
        return f"there is no item {item} in job {job}"
    status, holder, attempt = row
    if status == "pending":
        return f"item {item} is not assigned to anybody now; this attempt is over"
    if holder != worker:
        return f"item {item} is no longer yours: attempt {attempt} belongs to another worker"
    return f"item {item} is {status} already; a row is reported once"


def _label(values: str) -> str:
    cells = islice((value for value in json.loads(values) if value.strip()), LABEL_CELLS)
    return shorten(" · ".join(clean_line(value[:LABEL_CHARS]) for value in cells), LABEL_CHARS)
