"""What there is to say about the store's file and the library below it, for people who look for a fault."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import msgspec

from core.store.connection import FILE_NAME, NEEDED
from core.store.errors import StoreError
from core.store.readers import Reader

MOST_BYTES = 64_000_000
"""A bigger store is not read through: that takes long, and whoever asks is waiting."""


def sqlite_version() -> tuple[str, str | None]:
    """SQLite's version, and the one that is needed if this one is too old."""
    needed = ".".join(str(part) for part in NEEDED)
    return sqlite3.sqlite_version, None if sqlite3.sqlite_version_info >= NEEDED else needed


class Health(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    swarms: int
    bytes: int
    writable: bool


async def health(home: Path) -> Health | None:
    """None where there is no store yet. Raises StoreError for one that cannot be opened or is damaged."""
    path = home / FILE_NAME
    if not await asyncio.to_thread(path.exists):
        return None
    size = (await asyncio.to_thread(path.stat)).st_size
    async with Reader.open(home) as reader:
        rows = await reader.all("SELECT count(*) FROM swarms")
        found = await reader.all("PRAGMA quick_check(1)") if size < MOST_BYTES else []
    if found and str(found[0][0]) != "ok":
        raise StoreError(f"the store {path} is damaged: {found[0][0]}")
    writable = await asyncio.to_thread(os.access, path, os.W_OK)
    return Health(path=path, swarms=int(rows[0][0]) if rows else 0, bytes=size, writable=writable)
