"""Rows of a job that is not there yet.

A job of a million rows is not stored in one transaction, for which every other writer would have to wait. Its
rows come first, a piece at a time, and nobody sees them; the last transaction makes the job. Rows whose job
never came, because their process died, are taken away by whoever stages the next ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.domain import events as e
from core.store.connection import Transaction
from core.store.locks import owner_alive

if TYPE_CHECKING:
    from core.store.store import Store

PIECE = 5000
"""Rows that one transaction takes away."""
INSERT_ITEM = (
    'INSERT INTO agent_job_items (job, item, row_index, source_id, "values", status)'
    " VALUES (?, ?, ?, ?, ?, 'pending')"
)
_DISCARD = (
    "DELETE FROM agent_job_items WHERE rowid IN (SELECT rowid FROM agent_job_items WHERE job = ? LIMIT ?)"
    " AND NOT EXISTS (SELECT 1 FROM agent_jobs WHERE job = ?)"
)
_OVER = "DELETE FROM agent_job_staging WHERE job = ?"


class Staging:
    """The rows of one job on their way, by the owner of `swarm`. `active`: the jobs that the store stages."""

    def __init__(self, store: Store, swarm: str, job: str, active: set[str]) -> None:
        self._store = store
        self._swarm = swarm
        self._job = job
        self._active = active
        self.count = 0
        """Rows that are stored."""

    async def add(self, items: Sequence[tuple[Any, ...]]) -> None:
        """Store rows, each (job, item, row_index, source_id, values)."""
        if not self.count:
            self._active.add(self._job)
            await self._discard_left_over()

        def op(db: Transaction) -> tuple[None, Sequence[e.Event]]:
            if not self.count:
                staging = "INSERT INTO agent_job_staging (job, swarm) VALUES (?, ?)"
                db.execute(staging, (self._job, self._swarm))
            db.executemany(INSERT_ITEM, items)
            return None, []

        await self._store.transact(self._swarm, op)
        self.count += len(items)

    def finish(self, db: Transaction) -> None:
        """Within the transaction that makes the job."""
        if self.count:
            db.execute(_OVER, (self._job,))

    async def discard(self) -> None:
        """Take away what was stored."""
        if self.count:
            await self._discard(self._job)

    def end(self) -> None:
        self._active.discard(self._job)

    async def _discard_left_over(self) -> None:
        for job, swarm in await self._store.reader.all("SELECT job, swarm FROM agent_job_staging"):
            if self._store.owns(swarm):
                over = job not in self._active
            else:
                over = not await asyncio.to_thread(owner_alive, self._store.home, swarm)
            if over:
                await self._discard(job)

    async def _discard(self, job: str) -> None:
        def op(db: Transaction) -> tuple[int, Sequence[e.Event]]:
            gone = db.execute(_DISCARD, (job, PIECE, job))
            if not gone:
                db.execute(_OVER, (job,))
            return gone, []

        while await self._store.transact(self._swarm, op):
            pass
