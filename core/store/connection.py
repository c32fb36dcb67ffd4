"""Connections to the store's file: one that writes, others that only read."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from core.store.errors import StoreError, sentence

FILE_NAME = "watchroom.db"
BUSY_MS = 5000
NEEDED = (3, 35, 0)
"""RETURNING and the upserts of the tables."""

Row = Sequence[Any]
_WRITER = ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 67108864")
_UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


Statements = Sequence[tuple[str, Sequence[Sequence[Any]]]]
"""SQL with the rows it is run for."""


class _Connection(aiosqlite.Connection):
    async def in_one_trip(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` on the connection's thread. aiosqlite has no public call for that, and a trip to the
        thread costs more than most statements: one per statement made half the cost of a small commit."""
        await self._execute(work, self._conn)  # type: ignore[no-untyped-call]


class Transaction:
    """The writer's transaction as an operation sees it, on the connection's own thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, args: Sequence[Any] = ()) -> int:
        """Run one statement; returns how many rows it changed."""
        return self._connection.execute(sql, args).rowcount

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for every row; returns how many rows all of them changed."""
        return self._connection.executemany(sql, rows).rowcount

    def all(self, sql: str, args: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, args).fetchall()

    def one(self, sql: str, args: Sequence[Any] = ()) -> Row | None:
        row: Row | None = self._connection.execute(sql, args).fetchone()
        return row

    @property
    def open(self) -> bool:
        """Whether it has not been ended, as SQLite does after some errors."""
        return self._connection.in_transaction


class Db:
    """A connection as the writer and the readers see it: statements in, plain rows out."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def begin(self, work: Callable[[Transaction], None]) -> None:
        """Begin a transaction and do `work` in it, in one trip; it stays open. Raises what `work` raises."""

        def begun(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            work(Transaction(connection))

        await self._connection.in_one_trip(begun)

    async def commit(self, statements: Statements, *, begun: bool) -> None:
        """Run everything and commit it, in one trip. Not `begun`, it is a transaction of its own, which is
        rolled back when it fails."""

        def work(connection: sqlite3.Connection) -> None:
            if not begun:
                connection.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in statements:
                    connection.executemany(sql, rows)
                connection.execute("COMMIT")
            except BaseException:
                if not begun and connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        await self._connection.in_one_trip(work)

    async def end(self) -> None:
        """End the transaction if there is one: also one whose beginner was cancelled before it began."""

        def work(connection: sqlite3.Connection) -> None:
            if connection.in_transaction:
                connection.execute("COMMIT")

        await self._connection.in_one_trip(work)

    async def execute(self, sql: str, args: Sequence[Any] = ()) -> int:
        """Run one statement; returns how many rows it changed."""
        # Closing the cursor would cost a second trip to the thread; a finished one holds nothing.
        cursor = await self._connection.execute(sql, args)
        return cursor.rowcount

    async def all(self, sql: str, args: Sequence[Any] = ()) -> list[Row]:
        return list(await self._connection.execute_fetchall(sql, args))

    async def upto(self, size: int, sql: str, args: Sequence[Any] = ()) -> tuple[list[Row], bool]:
        """The first rows of a query that hold `size` characters of text together, at least one; and whether
        there are more. What does not fit is not read."""
        rows: list[Row] = []
        more = False

        def work(connection: sqlite3.Connection) -> None:
            nonlocal more
            cursor, left = connection.execute(sql, args), size
            for row in cursor:
                left -= sum(len(cell) for cell in row if isinstance(cell, str))
                if rows and left < 0:
                    more = True
                    break
                rows.append(row)
            cursor.close()

        await self._connection.in_one_trip(work)
        return rows, more

    async def one(self, sql: str, args: Sequence[Any] = ()) -> Row | None:
        rows = await self.all(sql, args)
        return rows[0] if rows else None

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    async def close(self) -> None:
        await self._connection.close()


def prepare_home(home: Path) -> Path:
    """Make the folder (0700) and the empty file (0600) if they are missing; returns the file's path.

    SQLite gives the WAL and the shared-memory file the mode of the database, so a wider folder that was there
    before does not open them to others.
    """
    path = home / FILE_NAME
    try:
        if not home.is_dir():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(sentence(error, f"the store {path} cannot be opened")) from error
    return path


async def connect_writer(path: Path) -> Db:
    """The writing connection: WAL, every commit synced. Raises StoreError."""
    check_version()
    try:
        connection = await _connect(path, "mode=rw")
        try:
            await _pragmas(connection, _WRITER)
        except BaseException:
            await connection.close()
            raise
    except sqlite3.Error as error:
        raise StoreError(sentence(error, f"the store {path} cannot be opened")) from error
    return Db(connection)


async def connect_reader(path: Path) -> Db:
    """A read-only connection. Raises StoreError."""
    check_version()
    try:
        return await _reading(path, "mode=ro")
    except sqlite3.Error as error:
        # To read a WAL database SQLite makes two files beside it. In a folder where it may not, and where
        # nobody writes now (there is no WAL), the file can be read as it is.
        code = error.sqlite_errorcode & 0xFF
        if code not in _UNWRITABLE or await asyncio.to_thread(os.path.exists, f"{path}-wal"):
            raise StoreError(sentence(error, f"the store {path} cannot be read")) from error
    try:
        return await _reading(path, "mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise StoreError(sentence(error, f"the store {path} cannot be read")) from error


async def _reading(path: Path, options: str) -> Db:
    connection = await _connect(path, options)
    try:
        await _pragmas(connection, ["query_only = ON"])
        await connection.execute_fetchall("SELECT count(*) FROM sqlite_schema")
    except BaseException:
        await connection.close()
        raise
    return Db(connection)


def check_version() -> None:
    if sqlite3.sqlite_version_info < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise StoreError(
            f"this Python has SQLite {sqlite3.sqlite_version}, the store needs {needed} or newer: "
            "use a newer Python"
        )


async def _connect(path: Path, options: str) -> _Connection:
    def connector() -> sqlite3.Connection:
        address = f"file:{quote(os.fsencode(path))}?{options}"
        return sqlite3.connect(address, uri=True, isolation_level=None, cached_statements=256)

    connection = _Connection(connector, iter_chunk_size=64)
    opening = asyncio.ensure_future(_opened(connection))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread goes on opening, and would keep the process alive: wait for it, then close.
        await asyncio.wait({opening})
        if opening.exception() is None:
            await connection.close()
        raise


async def _opened(connection: _Connection) -> _Connection:
    await connection
    return connection


async def _pragmas(connection: aiosqlite.Connection, pragmas: Iterable[str]) -> None:
    for pragma in (f"busy_timeout = {BUSY_MS}", "foreign_keys = ON", *pragmas):
        await connection.execute_fetchall(f"PRAGMA {pragma}")
