"""The schema, as numbered migrations. `user_version` is how many of them a file has had."""

from __future__ import annotations

import sqlite3

from core.store.connection import Db
from core.store.errors import StoreError, sentence

APPLICATION_ID = 0x57524D31
"""Marks the file as a Watchroom store."""

_FIRST = [
    """CREATE TABLE swarms (
        swarm TEXT PRIMARY KEY, seq INTEGER NOT NULL, title TEXT NOT NULL, cwd TEXT NOT NULL,
        model TEXT NOT NULL, server TEXT NOT NULL, source TEXT NOT NULL, approval_policy TEXT NOT NULL,
        sandbox TEXT NOT NULL, sandboxed INTEGER NOT NULL, unattended TEXT NOT NULL, slots INTEGER NOT NULL,
        started_at TEXT NOT NULL, last_at TEXT NOT NULL, root TEXT, tokens TEXT, spending TEXT NOT NULL,
        budget TEXT NOT NULL, servers TEXT NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX swarms_started ON swarms (started_at)",
    # The journal. `shown`: a transcript shows it (core.domain.events.TRANSCRIPT).
    """CREATE TABLE events (
        swarm TEXT NOT NULL, seq INTEGER NOT NULL, agent TEXT, type TEXT NOT NULL, at TEXT NOT NULL,
        shown INTEGER NOT NULL, body TEXT NOT NULL)""",
    "CREATE UNIQUE INDEX events_swarm ON events (swarm, seq)",
    "CREATE INDEX events_transcript ON events (agent, seq) WHERE shown = 1",
    "CREATE INDEX events_spawned ON events (swarm, agent) WHERE type = 'agent_spawned'",
    """CREATE TABLE agents (
        thread TEXT NOT NULL, swarm TEXT NOT NULL, path TEXT NOT NULL, nickname TEXT NOT NULL,
        role TEXT NOT NULL, model TEXT NOT NULL, parent TEXT, depth INTEGER NOT NULL,
        "order" INTEGER NOT NULL, task TEXT NOT NULL, status TEXT NOT NULL,
        status_message TEXT NOT NULL, error_kind TEXT NOT NULL DEFAULT '',
        wait TEXT, turn TEXT, turns INTEGER NOT NULL,
        outcome_seq INTEGER NOT NULL, calls INTEGER NOT NULL, failed_calls INTEGER NOT NULL,
        activity TEXT NOT NULL, asks INTEGER NOT NULL, mail INTEGER NOT NULL, retries INTEGER NOT NULL,
        tokens TEXT, turn_tokens TEXT, spending TEXT NOT NULL,
        started_at TEXT NOT NULL, last_at TEXT NOT NULL, call TEXT, job TEXT, item TEXT,
        closed_with TEXT, PRIMARY KEY (thread, swarm)) WITHOUT ROWID""",
    'CREATE INDEX agents_swarm ON agents (swarm, "order")',
    "CREATE INDEX agents_job ON agents (job) WHERE job IS NOT NULL",
    # `result_content` is derived: the last text, or one block per agent in first-seen order.
    """CREATE TABLE tool_calls (
        swarm TEXT NOT NULL, thread TEXT NOT NULL, call TEXT NOT NULL, seq INTEGER NOT NULL,
        name TEXT NOT NULL, category TEXT NOT NULL,
        arguments TEXT NOT NULL, brief TEXT NOT NULL, status TEXT NOT NULL,
        events INTEGER NOT NULL, result_content TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT,
        seconds REAL, PRIMARY KEY (swarm, thread, call))""",
    "CREATE INDEX tool_calls_open ON tool_calls (swarm, seq) WHERE status = 'open'",
    """CREATE TABLE tool_result_events (
        swarm TEXT NOT NULL, seq INTEGER NOT NULL, thread TEXT, call TEXT NOT NULL, "index" INTEGER NOT NULL,
        source TEXT NOT NULL, status TEXT NOT NULL, text TEXT NOT NULL, about TEXT, at TEXT NOT NULL)""",
    "CREATE INDEX tool_result_events_call ON tool_result_events (swarm, thread, call, seq)",
    """CREATE TABLE mail (
        swarm TEXT NOT NULL, mail TEXT NOT NULL, thread TEXT NOT NULL, author TEXT NOT NULL,
        kind TEXT NOT NULL, text TEXT NOT NULL,
        "trigger" INTEGER NOT NULL, seq INTEGER NOT NULL, queued_at TEXT NOT NULL,
        delivered_seq INTEGER, delivered_at TEXT, consumed_seq INTEGER, PRIMARY KEY (swarm, mail))""",
    "CREATE INDEX mail_queued ON mail (swarm, seq) WHERE delivered_seq IS NULL",
    "CREATE INDEX mail_unread ON mail (swarm, thread) WHERE consumed_seq IS NULL",
    """CREATE TABLE approvals (
        swarm TEXT NOT NULL, approval TEXT NOT NULL, thread TEXT NOT NULL, call TEXT NOT NULL,
        command TEXT NOT NULL, argv TEXT NOT NULL, cwd TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL,
        decision TEXT, decided_by TEXT, decided_at TEXT, PRIMARY KEY (swarm, approval))""",
    "CREATE INDEX approvals_open ON approvals (swarm, at) WHERE decision IS NULL",
    # Pictures that calls returned, by the SHA-256 of their bytes; events name them.
    "CREATE TABLE blobs (blob TEXT PRIMARY KEY, media_type TEXT NOT NULL, data BLOB NOT NULL) WITHOUT ROWID",
    # The counters are kept by the transaction that moves a row. Below `last_error` is what only the job's own
    # room needs; it is filled when the job is made through it.
    """CREATE TABLE agent_jobs (
        job TEXT PRIMARY KEY, swarm TEXT NOT NULL, name TEXT NOT NULL, owner TEXT, status TEXT NOT NULL,
        instruction TEXT NOT NULL, input_path TEXT NOT NULL, output_path TEXT, concurrency INTEGER NOT NULL,
        total INTEGER NOT NULL, pending INTEGER NOT NULL, running INTEGER NOT NULL,
        completed INTEGER NOT NULL,
        failed INTEGER NOT NULL, skipped INTEGER NOT NULL, created_at TEXT NOT NULL, started_at TEXT,
        ended_at TEXT, last_error TEXT NOT NULL, refused INTEGER NOT NULL DEFAULT 0,
        paused_by TEXT NOT NULL DEFAULT '', pause_reason TEXT NOT NULL DEFAULT '',
        cancelling TEXT NOT NULL DEFAULT '', pace_from TEXT, pace_done INTEGER NOT NULL DEFAULT 0,
        headers TEXT NOT NULL DEFAULT '[]', output_schema TEXT, raw INTEGER NOT NULL DEFAULT 0,
        max_attempts INTEGER NOT NULL DEFAULT 1, max_runtime_seconds REAL NOT NULL DEFAULT 1800,
        auto_export INTEGER NOT NULL DEFAULT 1, model TEXT, role TEXT, stopped_by TEXT,
        exported_rows INTEGER) WITHOUT ROWID""",
    "CREATE INDEX agent_jobs_swarm ON agent_jobs (swarm)",
    "CREATE INDEX agent_jobs_created ON agent_jobs (created_at)",
    # The rows of a large job are there before the job is: `agent_job_staging` names it until then.
    """CREATE TABLE agent_job_items (
        job TEXT NOT NULL, item TEXT NOT NULL,
        row_index INTEGER NOT NULL, source_id TEXT, "values" TEXT NOT NULL, status TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0, worker TEXT, lease_until TEXT, result TEXT, last_error TEXT,
        started_at TEXT, reported_at TEXT, ended_at TEXT, PRIMARY KEY (job, item))""",
    "CREATE UNIQUE INDEX agent_job_items_row ON agent_job_items (job, row_index)",
    "CREATE INDEX agent_job_items_queue ON agent_job_items (job, status, attempt, row_index)",
    "CREATE TABLE agent_job_staging (job TEXT PRIMARY KEY, swarm TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE agent_job_attempts (
        job TEXT NOT NULL REFERENCES agent_jobs (job) ON DELETE CASCADE, item TEXT NOT NULL,
        attempt INTEGER NOT NULL, worker TEXT NOT NULL, status TEXT NOT NULL, error TEXT,
        started_at TEXT NOT NULL, ended_at TEXT, PRIMARY KEY (job, item, worker)) WITHOUT ROWID""",
    # Reports that did not count: kept, shown, never accepted afterwards.
    """CREATE TABLE agent_job_stale_reports (
        job TEXT NOT NULL REFERENCES agent_jobs (job) ON DELETE CASCADE, item TEXT NOT NULL,
        worker TEXT NOT NULL, reason TEXT NOT NULL, result TEXT NOT NULL, at TEXT NOT NULL)""",
    "CREATE INDEX agent_job_stale_reports_item ON agent_job_stale_reports (job, item)",
]

MIGRATIONS: list[list[str]] = [_FIRST]


async def migrate(db: Db, where: str) -> None:
    """Bring the file to the newest schema in one transaction. Raises StoreError; then nothing has changed."""
    try:
        if await _number(db, "user_version") == len(MIGRATIONS):
            await _check(db, where)
            return
        await db.execute("BEGIN IMMEDIATE")
        try:
            version = await _check(db, where)
            for script in MIGRATIONS[version:]:
                for statement in script:
                    await db.execute(statement)
            await db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            await db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            await db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                await db.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise StoreError(sentence(error, f"the store {where} cannot be brought up to date")) from error


async def check_readable(db: Db, where: str) -> bool:
    """Whether a reader finds a schema that it knows; False for an empty file. Raises StoreError."""
    try:
        version = await _check(db, where)
    except sqlite3.Error as error:
        raise StoreError(sentence(error, f"the store {where} cannot be read")) from error
    if 0 < version < len(MIGRATIONS):
        raise StoreError(
            f"the store {where} is from an older Watchroom: start this one once to bring it up to date"
        )
    return version > 0


async def _check(db: Db, where: str) -> int:
    version = await _number(db, "user_version")
    application = await _number(db, "application_id")
    used = await db.one("SELECT 1 FROM sqlite_schema LIMIT 1")
    if application != APPLICATION_ID and (application or version or used):
        raise StoreError(f"{where} is an SQLite database of another program, not a Watchroom store")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the store {where} has schema {version}, this Watchroom knows up to {len(MIGRATIONS)}: "
            "use the newer Watchroom that wrote it, or another --home"
        )
    return version


async def _number(db: Db, pragma: str) -> int:
    row = await db.one(f"PRAGMA {pragma}")
    assert row is not None
    return int(row[0])
