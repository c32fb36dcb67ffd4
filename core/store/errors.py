"""The errors of the store: one sentence each, for people."""

from __future__ import annotations

import sqlite3


class StoreError(Exception):
    """The store cannot be used, or refused a write. For a writer it is fatal: nothing more is recorded."""


class Owned(StoreError):
    """A swarm belongs to another engine, which lives; the message names it."""


class NotFound(Exception):
    """No swarm, agent or job answers to the reference, or more than one does."""


class RowsBusy(Exception):
    """Rows of a job are not in a status in which this can be done to them; the message names one."""


def sentence(error: BaseException, what: str) -> str:
    """What went wrong with the store file, in one sentence; `what` says what was being done."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    match primary:
        case sqlite3.SQLITE_FULL:
            return f"{what}: the disk is full"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return f"{what}: the file is damaged or not an SQLite database"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY:
            return f"{what}: the file or its folder cannot be opened for that ({error})"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{what}: another process has held the store for too long"
    if isinstance(error, OSError) and error.strerror:
        return f"{what}: {error.strerror}"
    return f"{what}: {error}"
