"""Jobs in the store. Every transition is one conditional UPDATE and its events, in one transaction.

Who gets a row, and whether a report counts, is decided here and nowhere else: by the row count of an UPDATE
that names job, item, worker and the status it must still have.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from core.domain import events as e
from core.safety.text import clean_line, shorten
from core.store.connection import Row, Transaction
from core.store.errors import NotFound, RowsBusy, StoreError
from core.store.job_reads import Claim, JobInput, JobReads, StoredJob, StoredRow
from core.store.readers import Reader
from core.store.rows import timestamp
from core.store.staging import INSERT_ITEM, Staging

if TYPE_CHECKING:
    from core.store.store import Store

__all__ = ["Claim", "JobInput", "JobStore", "StoredJob", "StoredRow"]
CHUNK = 2000
CHUNK_CHARS = 4 * 1024 * 1024
"""Rows that one transaction stores of a new job: so many, or so much."""
ENGINE_ENDED = "the process ended"
LEASE_LOST = "its engine was not heard of in time"
LEASE_SECONDS = 60.0
"""How long a claim stands without a heartbeat."""

_INSERT_JOB = """INSERT INTO agent_jobs (job, swarm, name, owner, status, instruction, input_path,
    output_path, concurrency, total, pending, running, completed, failed, skipped, created_at, last_error,
    headers, output_schema, raw, max_attempts, max_runtime_seconds, auto_export, model, role)
    VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, ?, '', ?, ?, ?, ?, ?, ?, ?, ?)"""
_MOVE = (
    "UPDATE agent_job_items SET status = ?, worker = NULL, ended_at = ?"
    " WHERE job = ? AND item = ? AND status = ?"
)
_ROW = "SELECT item, row_index, status FROM agent_job_items WHERE job = ? AND item = ?"
_FAILED = (
    "SELECT item, row_index, status FROM agent_job_items WHERE job = ? AND status = 'failed'"
    " ORDER BY row_index"
)
_REOPEN = (
    "UPDATE agent_jobs SET status = 'pending', stopped_by = NULL, ended_at = NULL"
    " WHERE job = ? AND swarm = ? AND status IN ('completed', 'failed', 'cancelled')"
)
_NEXT = (
    'SELECT item, source_id, row_index, attempt, "values" FROM agent_job_items'
    " WHERE job = ? AND status = 'pending' ORDER BY attempt, row_index LIMIT ?"
)
_CLAIM = (
    "UPDATE agent_job_items SET status = 'running', worker = ?, attempt = ?, lease_until = ?, started_at = ?,"
    " ended_at = NULL, reported_at = NULL WHERE job = ? AND item = ? AND status = 'pending'"
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
    "UPDATE agent_job_items SET status = 'completed', lease_until = NULL, result = ?, last_error = NULL,"
    " reported_at = ?, ended_at = ? WHERE job = ? AND item = ? AND worker = ? AND status = 'running'"
)
_STALE = (
    "INSERT INTO agent_job_stale_reports (job, item, worker, reason, result, at) VALUES (?, ?, ?, ?, ?, ?)"
)
_STOPPED = "UPDATE agent_jobs SET stopped_by = ? WHERE job = ? AND swarm = ? AND stopped_by IS NULL"
_FAIL = (
    "UPDATE agent_job_items SET last_error = ?, lease_until = NULL,"
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
_EXPIRED = (
    "SELECT i.job, i.item, i.row_index, i.attempt, i.worker, j.owner"
    " FROM agent_jobs j JOIN agent_job_items i ON i.job = j.job AND i.status = 'running'"
    " WHERE j.swarm = ? AND j.job = ? AND i.lease_until < ? ORDER BY i.row_index"
)
_HELD = (
    "SELECT i.job, i.item, i.row_index, i.attempt, i.worker, j.owner"
    " FROM agent_jobs j JOIN agent_job_items i ON i.job = j.job AND i.status = 'running'"
    " WHERE i.job = ? AND i.item = ? AND i.worker = ?"
)
_RENEW = "UPDATE agent_job_items SET lease_until = ? WHERE job = ? AND worker = ? AND status = 'running'"
_REQUEUE = (
    "UPDATE agent_job_items SET status = 'pending', worker = NULL, attempt = attempt - 1, started_at = NULL,"
    " lease_until = NULL"
    " WHERE job = ? AND item = ? AND worker = ? AND status = 'running'"
)


class JobStore(JobReads):
    """The jobs of a store: writes through its writer, reads what is committed."""

    def __init__(self, store: Store, reader: Reader, redact: Callable[[str], str]) -> None:
        super().__init__(reader, store.clock)
        self._store = store
        self._redact = redact
        self._staged: set[str] = set()

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
        """A job with all its rows, pending. `schema` is JSON text; `model` and `role` are its workers'. Many
        rows are walked over and stored in pieces, between which others write; nobody sees any of them before
        the last is there. Raises StoreError, or what `rows` raises, with nothing stored."""
        left = iter(rows)
        staging = Staging(self._store, swarm, event.job, self._staged)

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
            db.executemany(INSERT_ITEM, chunk)
            staging.finish(db)
            if (count := staging.count + len(chunk)) != event.total:
                raise StoreError(
                    f"job {event.name} was announced with {event.total} rows and came with {count}"
                )
            return None, [event]

        try:
            chunk = await asyncio.to_thread(self._chunk, event.job, left)
            while following := await asyncio.to_thread(self._chunk, event.job, left):
                await staging.add(chunk)
                chunk = following
            await self._store.transact(swarm, op)
        except Exception:
            # One that is cancelled must not take its time: the next who stages takes its rows away.
            await staging.discard()
            raise
        finally:
            staging.end()

    async def start(
        self,
        swarm: str,
        job: str,
        concurrency: int | None,
        by: str = "",
        *,
        source: Literal["pending", "paused", "both"] = "both",
    ) -> bool:
        """pending or paused → running, or only from `source`; whether it was. `concurrency`: rows side by
        side, None: as many as were set."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = 'running' WHERE job = ? AND swarm = ?"
                " AND status IN ('pending', 'paused') AND (? = 'both' OR status = ?)",
                (job, swarm, source, source),
            )
            if not changed:
                return False, []
            head = db.one("SELECT owner, concurrency FROM agent_jobs WHERE job = ?", (job,))
            assert head is not None
            many = concurrency if concurrency is not None else head[1]
            return True, [e.JobStarted(agent=head[0], job=job, concurrency=many, by=by)]

        return await self._store.transact(swarm, op)

    async def claim(
        self, swarm: str, job: str, workers: list[str], lease: float = LEASE_SECONDS
    ) -> list[Claim]:
        """Give pending rows of a running job to `workers`, one each, for `lease` seconds: new rows in row
        order, then those whose attempt failed. Fewer claims than workers: the queue is empty."""

        def op(db: Transaction) -> tuple[list[Claim], Sequence[e.Event]]:
            head = db.one(
                "SELECT owner FROM agent_jobs WHERE job = ? AND swarm = ? AND status = 'running'",
                (job, swarm),
            )
            if head is None or not workers:
                return [], []
            now, until = self._now(), self._now(lease)
            claims = [
                Claim(item, source_id, row_index, attempt + 1, worker, json.loads(values))
                for worker, (item, source_id, row_index, attempt, values) in zip(
                    workers, db.all(_NEXT, (job, len(workers))), strict=False
                )
            ]
            taken = db.executemany(_CLAIM, [(c.worker, c.attempt, until, now, job, c.item) for c in claims])
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
            db.execute(_STALE, (job, item, worker, reason, result, now))
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

    async def give_back(self, swarm: str, job: str, item: str, worker: str, why: str) -> bool:
        """A row goes back to the queue without using up an attempt, and its worker can no longer report it;
        False if the row was no longer this worker's."""
        problem = self._redact(why)

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            row = db.one(_HELD, (job, item, worker))
            if row is None:
                return False, []
            return True, [_requeue(db, row, problem, self._now())]

        return await self._store.transact(swarm, op)

    async def heartbeat(
        self, swarm: str, job: str, workers: Sequence[str], lease: float = LEASE_SECONDS
    ) -> int:
        """Keep the rows of `workers` for `lease` seconds from now; how many of them still hold one."""

        def op(db: Transaction) -> tuple[int, Sequence[e.Event]]:
            until = self._now(lease)
            return db.executemany(_RENEW, [(until, job, worker) for worker in workers]), []

        return await self._store.transact(swarm, op)

    async def reap(self, swarm: str, job: str) -> int:
        """Rows whose lease is over go back to the queue, and whoever had them can no longer report; how many.
        That uses up no attempt."""

        def op(db: Transaction) -> tuple[int, Sequence[e.Event]]:
            now = self._now()
            back = [_requeue(db, row, LEASE_LOST, now) for row in db.all(_EXPIRED, (swarm, job, now))]
            return len(back), back

        return await self._store.transact(swarm, op)

    async def pause(self, swarm: str, job: str, by: str, reason: str = "") -> bool:
        """pending or running → paused; whether it was."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = 'paused' WHERE job = ? AND swarm = ?"
                " AND status IN ('pending', 'running')",
                (job, swarm),
            )
            if not changed:
                return False, []
            return True, [e.JobPaused(agent=_owner(db, job), job=job, by=by, reason=self._redact(reason))]

        return await self._store.transact(swarm, op)

    async def cancelling(self, swarm: str, job: str, by: str) -> bool:
        """Record that the job's end was asked for; False if it has ended, or was asked for already."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET cancelling = ? WHERE job = ? AND swarm = ? AND cancelling = ''"
                " AND status IN ('pending', 'running', 'paused')",
                (by, job, swarm),
            )
            if not changed:
                return False, []
            return True, [e.JobCancelling(agent=_owner(db, job), job=job, by=by)]

        return await self._store.transact(swarm, op)

    async def change(self, swarm: str, job: str, concurrency: int, by: str) -> bool:
        """So many rows side by side from now on; False if it is so already, or the job has ended."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET concurrency = ? WHERE job = ? AND swarm = ? AND concurrency <> ?"
                " AND status IN ('pending', 'running', 'paused')",
                (concurrency, job, swarm, concurrency),
            )
            if not changed:
                return False, []
            return True, [e.JobChanged(agent=_owner(db, job), job=job, concurrency=concurrency, by=by)]

        return await self._store.transact(swarm, op)

    async def retry(
        self, swarm: str, job: str, items: Sequence[str], by: str, *, dry_run: bool = False
    ) -> int:
        """Put `items` that failed or were skipped, or all that failed if none are named, back into the queue;
        how many. A job that has ended is pending again then. Raises NotFound for an unknown item, RowsBusy
        for one in another status: nothing has changed then."""

        def op(db: Transaction) -> tuple[int, Sequence[e.Event]]:
            head = _head(db, swarm, job)
            found = _rows_of(db, job, items) if items else db.all(_FAILED, (job,))
            moved: list[e.JobRowMoved] = []
            for item, row_index, status in found:
                if status not in ("failed", "skipped"):
                    raise RowsBusy(f"row {item} is {status}; only failed and skipped rows are tried again")
                moved.append(_moved(head, job, item, row_index, status, "pending", by))
            if not moved or dry_run:
                return len(moved), []
            db.executemany(_MOVE, [("pending", None, job, row.item, row.source) for row in moved])
            if db.execute(_REOPEN, (job, swarm)):
                return len(moved), [e.JobReopened(agent=head, job=job, by=by), *moved]
            return len(moved), moved

        return await self._store.transact(swarm, op)

    async def skip(
        self,
        swarm: str,
        job: str,
        items: Sequence[str],
        by: str,
        *,
        dry_run: bool = False,
        ownerless: bool = False,
    ) -> int:
        """Take pending or failed `items` out of the job; how many. Raises NotFound or RowsBusy: nothing has
        changed then. `ownerless`, for a dry run: nobody runs the job, rows at work are pending again."""

        def op(db: Transaction) -> tuple[int, Sequence[e.Event]]:
            head = _head(db, swarm, job)
            now = self._now()
            moved: list[e.JobRowMoved] = []
            for item, row_index, status in _rows_of(db, job, items):
                left = ownerless and status == "running"
                if not left and status not in ("pending", "failed"):
                    raise RowsBusy(f"row {item} is {status}; only pending and failed rows are skipped")
                moved.append(_moved(head, job, item, row_index, status, "skipped", by))
            if dry_run:
                return len(moved), []
            db.executemany(_MOVE, [("skipped", now, job, row.item, row.source) for row in moved])
            return len(moved), moved

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
        """The job is over; False if it was over already: the first end stands. None is completed while rows
        of it are pending. `told`: recorded with it."""

        def op(db: Transaction) -> tuple[bool, Sequence[e.Event]]:
            changed = db.execute(
                "UPDATE agent_jobs SET status = ?1 WHERE job = ?2 AND swarm = ?3"
                " AND status IN ('pending', 'running', 'paused') AND (?1 <> 'completed' OR NOT EXISTS"
                " (SELECT 1 FROM agent_job_items WHERE job = ?2 AND status = 'pending'))",
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
            back = [_requeue(db, row, ENGINE_ENDED, now) for row in db.all(_AT_WORK, (swarm,))]
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

    # --- inside ------------------------------------------------------------------------------------------

    def _now(self, ahead: float = 0.0) -> str:
        return timestamp(self._store.clock.now() + timedelta(seconds=ahead))

    def _chunk(self, job: str, rows: Iterator[JobInput]) -> list[tuple[Any, ...]]:
        """The next rows as they are stored."""
        chunk: list[tuple[Any, ...]] = []
        size = 0
        for row in rows:
            chunk.append(self._item(job, row))
            size += len(chunk[-1][-1])
            if len(chunk) == CHUNK or size >= CHUNK_CHARS:
                break
        return chunk

    def _item(self, job: str, row: JobInput) -> tuple[Any, ...]:
        source = self._redact(row.source_id) if row.source_id is not None else None
        item = self._redact(row.item)
        if item != row.item:
            # What made it one of a kind may be what was taken out.
            item = f"{item}-{row.row_index + 1}"
        return (job, item, row.row_index, source, self._json(row.values))

    def _json(self, values: Sequence[str]) -> str:
        return json.dumps([self._redact(value) for value in values], ensure_ascii=False)


def _head(db: Transaction, swarm: str, job: str) -> str | None:
    """The owner of a job of this swarm. Raises NotFound."""
    row = db.one("SELECT owner FROM agent_jobs WHERE job = ? AND swarm = ?", (job, swarm))
    if row is None:
        raise NotFound(f"there is no job {job} in swarm {swarm}")
    owner: str | None = row[0]
    return owner


def _rows_of(db: Transaction, job: str, items: Sequence[str]) -> list[Row]:
    """(item, row_index, status) of each, in the order asked, once. Raises NotFound."""
    found = []
    for item in dict.fromkeys(items):
        row = db.one(_ROW, (job, item))
        if row is None:
            raise NotFound(f"job {job} has no row {shorten(clean_line(item), 60)}")
        found.append(row)
    return found


def _moved(
    owner: str | None,
    job: str,
    item: str,
    row_index: int,
    source: Any,
    status: Literal["pending", "skipped"],
    by: str,
) -> e.JobRowMoved:
    return e.JobRowMoved(
        agent=owner, job=job, item=item, row_index=row_index, source=source, status=status, by=by
    )


def _requeue(db: Transaction, row: Row, why: str, now: str) -> e.Event:
    """A row that was at work goes back to the queue, without using up its attempt."""
    job, item, row_index, attempt, worker, owner = row
    db.execute(_REQUEUE, (job, item, worker))
    db.execute(_END_ATTEMPT, ("interrupted", why, now, job, item, worker))
    return e.JobRowEnded(
        agent=owner,
        job=job,
        item=item,
        row_index=row_index,
        attempt=attempt,
        status="pending",
        worker=worker,
        error=why,
    )


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
