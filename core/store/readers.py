"""Reading the store, also while an engine writes it: sessions, agents, transcripts and jobs."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.clock import Clock, SystemClock
from core.domain import events as e
from core.domain.commands import EventsPage, TranscriptPage
from core.domain.state import JobState, SwarmState
from core.domain.status import Spending
from core.store import shapes
from core.store.connection import FILE_NAME, Db, Row, connect_reader
from core.store.errors import NotFound, StoreError, sentence
from core.store.loading import load_state, without_owner
from core.store.locks import owned_swarms, owner_alive
from core.store.projection import JOBS, SWARMS
from core.store.schema import check_readable
from core.view.transcript import Transcript

log = logging.getLogger("watchroom.store")
SHOWN_FAILURES = 5
PAGE_LIMIT = 5000
"""Entries that one page may hold."""
PAGE_SIZE = 2 * 1024 * 1024
"""The same in characters; an entry that is larger is a page alone."""
SLICE = 256 * 1024
"""Characters that are decoded before the loop has its turn: about a millisecond."""
EVENT_COST = 256
"""What an event costs to decode beside its characters, in characters."""
SHOWN_NAMES = 5
ROWS_AT_ONCE = 500

_SESSIONS = f"""SELECT {SWARMS.columns},
    (SELECT count(*) FROM agents a WHERE a.swarm = s.swarm),
    (SELECT count(*) FROM agent_jobs j WHERE j.swarm = s.swarm),
    (SELECT count(*) FROM agents a WHERE a.swarm = s.swarm AND a.status IN ('pending_init', 'running')),
    (SELECT count(*) FROM agent_jobs j
        WHERE j.swarm = s.swarm AND j.status NOT IN ('completed', 'failed', 'cancelled')),
    (SELECT j.status FROM agent_jobs j WHERE j.swarm = s.swarm ORDER BY j.created_at DESC LIMIT 1),
    (SELECT a.status FROM agents a WHERE a.thread = s.root AND a.swarm = s.swarm)
    FROM swarms s ORDER BY s.started_at DESC, s.swarm DESC"""

_JOB_ROWS = (
    "SELECT item, row_index, source_id, status, result, last_error FROM agent_job_items"
    " WHERE job = ? AND row_index > ? ORDER BY row_index LIMIT ?"
)
_JOB_ATTEMPTS = (
    "SELECT t.item, t.attempt, t.worker, t.status, t.error, t.started_at, t.ended_at, a.tokens"
    " FROM agent_job_items i JOIN agent_job_attempts t ON t.job = i.job AND t.item = i.item"
    " LEFT JOIN agents a ON a.thread = t.worker"
    " WHERE i.job = ? AND i.row_index BETWEEN ? AND ? ORDER BY t.item, t.started_at, t.attempt"
)
_JOB_STALE = (
    "SELECT s.item, s.worker, s.reason, s.result, s.at"
    " FROM agent_job_items i JOIN agent_job_stale_reports s ON s.job = i.job AND s.item = i.item"
    " WHERE i.job = ? AND i.row_index BETWEEN ? AND ? ORDER BY s.rowid"
)


class Reader:
    """Read-only. Made by `open`; one event loop; several calls at once take turns."""

    def __init__(self, home: Path, db: Db | None, clock: Clock) -> None:
        self._home = home
        self._db = db
        self._clock = clock
        self._turn = asyncio.Lock()
        self._decoding = asyncio.Lock()

    @classmethod
    def open(cls, home: Path, *, clock: Clock | None = None) -> _Opening:
        """`await` it, or enter it with `async with`. Without a store it reads as empty. Raises StoreError."""
        return _Opening(lambda: cls._open(home, clock or SystemClock()))

    @classmethod
    async def _open(cls, home: Path, clock: Clock) -> Reader:
        path = home / FILE_NAME
        try:
            there = await asyncio.to_thread(path.is_file)
        except OSError as error:
            raise StoreError(sentence(error, f"the store {path} cannot be read")) from error
        if not there:
            return cls(home, None, clock)
        db = await connect_reader(path)
        try:
            ready = await check_readable(db, str(path))
        except BaseException:
            await db.close()
            raise
        if not ready:
            await db.close()
        return cls(home, db if ready else None, clock)

    async def aclose(self) -> None:
        if self._db is not None:
            await self._db.close()
            self._db = None

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # --- plumbing ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Db]:
        """A transaction that sees one moment of the store. Raises StoreError; NotFound without a store."""
        async with self._turn:
            if self._db is None:
                raise NotFound(f"there is no store in {self._home}")
            try:
                try:
                    await self._db.execute("BEGIN")
                    yield self._db
                finally:
                    await self._db.end()
            except sqlite3.Error as error:
                raise StoreError(sentence(error, f"the store in {self._home} cannot be read")) from error

    async def all(self, sql: str, args: Sequence[Any] = ()) -> list[Row]:
        """The rows of one query; none without a store. Raises StoreError."""
        async with self._turn:
            if self._db is None:
                return []
            try:
                return await self._db.all(sql, args)
            except sqlite3.Error as error:
                raise StoreError(sentence(error, f"the store in {self._home} cannot be read")) from error

    async def page(self, sql: str, args: Sequence[Any], limit: int) -> tuple[list[Row], bool]:
        """At most `limit` rows of a query that ends with `LIMIT ?`, within the bounds of a page; and whether
        there are more. Raises StoreError."""
        limit = max(1, min(limit, PAGE_LIMIT))
        async with self._turn:
            if self._db is None:
                return [], False
            try:
                rows, more = await self._db.upto(PAGE_SIZE, sql, (*args, limit + 1))
            except sqlite3.Error as error:
                raise StoreError(sentence(error, f"the store in {self._home} cannot be read")) from error
        return rows[:limit], more or len(rows) > limit

    def now(self) -> datetime:
        return self._clock.now()

    async def exists(self, swarm: str) -> bool:
        return bool(await self.all("SELECT 1 FROM swarms WHERE swarm = ?", (swarm,)))

    async def live_swarms(self) -> list[str]:
        """Swarms with a living owner, newest first."""
        owned = await asyncio.to_thread(owned_swarms, self._home)
        rows = (
            await self.all("SELECT swarm FROM swarms ORDER BY started_at DESC, swarm DESC") if owned else []
        )
        return [swarm for (swarm,) in rows if swarm in owned]

    async def _alive(self, swarm: str) -> bool:
        return await asyncio.to_thread(owner_alive, self._home, swarm)

    # --- finding -----------------------------------------------------------------------------------------

    async def find_thread(self, ref: str) -> tuple[str, str]:
        """(swarm, thread) of an agent by its id or a unique prefix; a swarm's id means its root."""
        ref = _asked(ref, "a session or agent")
        rows = await self.all(f"SELECT swarm, thread FROM {_NAMED} LIMIT {SHOWN_NAMES + 1}", _range(ref))
        found = {(swarm, thread) for swarm, thread in rows}
        whole = {(swarm, thread) for swarm, thread in found if ref in (swarm, thread)}
        chosen: tuple[str, str] = _only(list(whole or found), ref, "session or agent", lambda entry: entry[1])
        return chosen

    async def find_swarm(self, ref: str) -> str:
        """The swarm whose id, or whose root's, is or begins with `ref`; only if there is none, the one of
        agents whose ids do. Ids begin with the time: an agent's may begin like a younger swarm's."""
        ref = _asked(ref, "a session or agent")
        rows = await self.all(
            f"SELECT swarm, max(CASE WHEN ? IN (swarm, thread) THEN 2 ELSE root END) FROM {_NAMED}"
            f" GROUP BY swarm ORDER BY 2 DESC LIMIT {SHOWN_NAMES + 1}",
            (ref, *_range(ref)),
        )
        found = [swarm for swarm, rank in rows if rank == rows[0][1]]
        return str(_only(found, ref, "session or agent", str))

    async def find_job(self, ref: str) -> str:
        """The id of a job by its id, its name, or a unique prefix of its id."""
        asked = _asked(ref, "a job", lower=False)
        names = await self.all(
            f"SELECT job FROM agent_jobs WHERE job = ? OR name = ? LIMIT {SHOWN_NAMES + 1}",
            (asked.lower(), asked),
        )
        if not names:
            low = asked.lower()
            names = await self.all(
                f"SELECT job FROM agent_jobs WHERE job >= ? AND job < ? LIMIT {SHOWN_NAMES + 1}",
                (low, _after(low)),
            )
        found = [str(row[0]) for row in names]
        chosen: str = _only([asked.lower()] if asked.lower() in found else found, asked, "job", str)
        return chosen

    # --- sessions ----------------------------------------------------------------------------------------

    async def sessions(self) -> dict[str, Any]:
        """`session list --json`, and each one's "swarm" instead of its "engine"."""
        found = []
        width = len(SWARMS.fields)
        for row in await self.all(_SESSIONS):
            state = SWARMS.entry(row[:width])
            agents, jobs, live, open_jobs, last_job, root = row[width:]
            alive = bool(live or open_jobs) and await self._alive(state.swarm)
            status = shapes.session_status(root, live=bool(live or open_jobs), alive=alive, last_job=last_job)
            found.append({**shapes.session(state, status, agents, jobs), "swarm": state.swarm})
        return {"sessions": found}

    async def tree(self, ref: str) -> dict[str, Any]:
        """`session tree --json`. Raises NotFound."""
        swarm = await self.find_swarm(ref)
        return shapes.tree(await self.load_state(swarm), self.now())

    async def show(self, ref: str) -> dict[str, Any]:
        """`session show --json` of one agent. Raises NotFound."""
        swarm, thread = await self.find_thread(ref)
        state = await self.load_state(swarm)
        transcript = Transcript(thread)
        rows = await self.all(
            "SELECT body, seq, at, type FROM events WHERE agent = ? AND shown = 1 AND swarm = ? AND seq <= ?"
            " ORDER BY seq",
            (thread, swarm, state.seq),
        )
        events, damaged = _decode(rows, thread)
        transcript.prepend(TranscriptPage(events=events, seq=state.seq, more=False))
        return shapes.show(state, thread, transcript, damaged)

    async def load_state(self, swarm: str) -> SwarmState:
        """A swarm as it has to be shown: without a living owner nothing in it runs. Raises NotFound."""
        async with self.snapshot() as db:
            state = await load_state(db, swarm)
        running = any(a.live or a.wait or a.asks for a in state.agents.values())
        under_way = running or state.calls or any(not job.ended for job in state.jobs.values())
        if under_way and not await self._alive(swarm):
            return without_owner(state)
        return state

    async def transcript(
        self,
        swarm: str,
        thread: str,
        before: int | None = None,
        limit: int = 500,
        *,
        after: int | None = None,
    ) -> TranscriptPage:
        """The newest `limit` transcript events of an agent with seq < `before`; with `after` the oldest with
        seq > `after`. Fewer if they are large; `more` tells. Raises NotFound."""
        seq = await self._seq(swarm)
        if not await self.all("SELECT 1 FROM agents WHERE thread = ? AND swarm = ?", (thread, swarm)):
            raise NotFound(f"there is no agent {thread} in swarm {swarm}")
        order = "DESC" if after is None else "ASC"
        rows, more = await self.page(
            "SELECT body, seq, at, type FROM events WHERE agent = ? AND shown = 1 AND swarm = ? AND seq < ?"
            f" AND seq > ? ORDER BY seq {order} LIMIT ?",
            (thread, swarm, *_between(before, after or 0, seq)),
            limit,
        )
        events = await self._decoded(rows if after is not None else rows[::-1], thread)
        return TranscriptPage(events=events, seq=seq, more=more)

    async def events(
        self,
        swarm: str,
        after: int = 0,
        limit: int = 1000,
        *,
        before: int | None = None,
        agent: str | None = None,
    ) -> EventsPage:
        """Events of a swarm with seq > `after`, oldest first; with `before` the newest `limit` below it,
        oldest first too; of one `agent` if it is given. Fewer if they are large; `more` tells. Raises
        NotFound."""
        seq = await self._seq(swarm)
        only = "" if agent is None else " AND agent = ?"
        order = "ASC" if before is None else "DESC"
        rows, more = await self.page(
            f"SELECT body, seq, at, type FROM events WHERE swarm = ? AND seq < ? AND seq > ?{only}"
            f" ORDER BY seq {order} LIMIT ?",
            (swarm, *_between(before, after, seq), *(() if agent is None else (agent,))),
            limit,
        )
        events = await self._decoded(rows if before is None else rows[::-1], None)
        return EventsPage(events=events, seq=seq, more=more)

    async def _decoded(self, rows: Sequence[Row], thread: str | None) -> tuple[e.AnyEvent, ...]:
        """`_decode` in slices, the loop's turn between them; pages take turns, however many are asked for."""
        events: list[e.AnyEvent] = []
        first = 0
        async with self._decoding:
            while first < len(rows):
                end, left = first, SLICE
                while end < len(rows) and left > 0:
                    left -= len(rows[end][0]) + EVENT_COST
                    end += 1
                events += _decode(rows[first:end], thread)[0]
                first = end
                await self._clock.sleep(0)
        return tuple(events)

    async def _seq(self, swarm: str) -> int:
        """Read before the events: what is committed later is left out, so a page is true for one moment."""
        rows = await self.all("SELECT seq FROM swarms WHERE swarm = ?", (swarm,))
        if not rows:
            raise NotFound(f"there is no swarm {swarm} in the store")
        return int(rows[0][0])

    # --- jobs --------------------------------------------------------------------------------------------

    async def jobs(self) -> dict[str, Any]:
        """`job list --json`."""
        rows = await self.all(JOBS.select + "ORDER BY created_at DESC, job DESC")
        return {"jobs": [shapes.job(await self._shown(row), self.now()) for row in rows]}

    async def job(self, ref: str) -> dict[str, Any]:
        """`job show --json`. Raises NotFound."""
        row = await self._job_row(ref)
        job = await self._shown(row)
        failures = await self.failures(job.job, SHOWN_FAILURES)
        used, spent = await self._used(job.job)
        return shapes.job_with_details(job, self.now(), failures, used, spent)

    async def job_state(self, ref: str) -> tuple[str, JobState]:
        """The swarm of a job, and how the job stands. Raises NotFound."""
        row = await self._job_row(ref)
        return str(row[len(JOBS.fields)]), await self._shown(row)

    async def _job_row(self, ref: str) -> Row:
        rows = await self.all(JOBS.select + "WHERE job = ?", (await self.find_job(ref),))
        return rows[0]

    async def job_rows(self, ref: str, status: str | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """The rows of `job rows --json` in input order, all of one moment, never all of them in memory; with
        `status` only those. Raises NotFound. Use with `contextlib.aclosing`."""
        job = await self.find_job(ref)
        async with self.snapshot() as db:
            head = await db.one(JOBS.select + "WHERE job = ?", (job,))
            assert head is not None
            ended, swarm = JOBS.entry(head).ended, str(head[len(JOBS.fields)])
            interrupted = not ended and not await self._alive(swarm)
            last = -1
            while items := await db.all(_JOB_ROWS, (job, last, ROWS_AT_ONCE)):
                first, last = items[0][1], items[-1][1]
                attempts = await db.all(_JOB_ATTEMPTS, (job, first, last))
                stale = await db.all(_JOB_STALE, (job, first, last))
                for row in shapes.job_rows(items, attempts, stale, interrupted):
                    if status in (None, row["status"]):
                        yield row

    async def failure_groups(self, job: str, limit: int) -> list[dict[str, Any]]:
        """What failed rows say, the most frequent first: {"message", "rows", "first": an item}."""
        rows = await self.all(
            "SELECT g.last_error, g.count, i.item"
            " FROM (SELECT last_error, count(*) count, min(row_index) first"
            " FROM agent_job_items WHERE job = ?1 AND status = 'failed' GROUP BY last_error) g"
            " JOIN agent_job_items i ON i.job = ?1 AND i.row_index = g.first"
            " ORDER BY g.count DESC, g.first LIMIT ?2",
            (job, limit),
        )
        return [{"message": message, "rows": count, "first": first} for message, count, first in rows]

    async def failures(self, job: str, limit: int) -> list[dict[str, Any]]:
        """The first failed rows in row order: item_id, source_id, last_error."""
        rows = await self.all(
            "SELECT item, source_id, last_error FROM agent_job_items WHERE job = ? AND status = 'failed'"
            " ORDER BY row_index LIMIT ?",
            (job, limit),
        )
        return [{"item_id": item, "source_id": source, "last_error": error} for item, source, error in rows]

    async def _shown(self, row: Row) -> JobState:
        job = JOBS.entry(row)
        swarm = str(row[len(JOBS.fields)])
        if job.ended or await self._alive(swarm):
            return job
        state = SwarmState(swarm=swarm, jobs={job.job: job})
        return without_owner(state).jobs[job.job]

    async def _used(self, job: str) -> tuple[dict[str, int] | None, Spending]:
        """What the workers of a job used and cost."""
        rows = await self.all("SELECT tokens, spending FROM agents WHERE job = ?", (job,))
        used = shapes.sum_tokens(tokens for tokens, _ in rows if tokens is not None)
        return used, shapes.sum_spending(spending for _, spending in rows)


class _Opening:
    """A reader on its way: await it, or enter it."""

    def __init__(self, start: Callable[[], Awaitable[Reader]]) -> None:
        self._start = start
        self._reader: Reader | None = None

    def __await__(self) -> Generator[Any, None, Reader]:
        return self._start().__await__()

    async def __aenter__(self) -> Reader:
        self._reader = await self._start()
        return self._reader

    async def __aexit__(self, *exc: object) -> None:
        assert self._reader is not None
        await self._reader.aclose()


def _decode(rows: Sequence[Row], thread: str | None) -> tuple[tuple[e.AnyEvent, ...], int]:
    """The events of rows (body, seq, at, type), and how many cannot be read: each leaves a notice behind."""
    events: list[e.AnyEvent] = []
    damaged = 0
    for body, seq, at, kind in rows:
        try:
            events.append(e.decode(body))
        except (msgspec.DecodeError, ValueError) as error:
            damaged += 1
            log.warning("store: event %s (%s) cannot be read: %s", seq, kind, error)
            level: Literal["warning"] = "warning"
            text = f"an event of type {kind} could not be read"
            notice = e.Notice(seq=seq, agent=thread, text=text, level=level)
            events.append(msgspec.structs.replace(notice, at=datetime.fromisoformat(at)))
    return tuple(events), damaged


def _between(before: int | None, after: int, seq: int) -> tuple[int, int]:
    """The seqs below and above which a page may not be; a number that no column can hold is the nearest."""
    return min(seq + 1 if before is None else max(before, 0), seq + 1), min(max(after, 0), seq)


def _asked(ref: str, what: str, *, lower: bool = True) -> str:
    ref = ref.strip()
    if not ref:
        raise NotFound(f"give the id of {what}, or the beginning of it")
    return ref.lower() if lower else ref


_NAMED = (
    "(SELECT swarm, thread, parent IS NULL AS root FROM agents WHERE thread >= ? AND thread < ?"
    " UNION SELECT swarm, root, 1 FROM swarms WHERE swarm >= ? AND swarm < ? AND root IS NOT NULL)"
)


def _range(ref: str) -> tuple[str, ...]:
    return (ref, _after(ref), ref, _after(ref))


def _after(prefix: str) -> str:
    """The first text behind everything that begins with `prefix`."""
    return prefix + "\U0010ffff"


def _only(found: list[Any], ref: str, what: str, name: Callable[[Any], str]) -> Any:
    if not found:
        raise NotFound(f"there is no {what} {ref!r} in the store")
    if len(found) > 1:
        names = sorted(name(entry) for entry in found)
        more = ", …" if len(names) > SHOWN_NAMES else ""
        raise NotFound(f"{ref!r} means more than one {what}: {', '.join(names[:SHOWN_NAMES])}{more}")
    return found[0]
