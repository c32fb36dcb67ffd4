"""Pictures beside the journal: bytes under their own hash. Events name them and stay small."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec

from core.store.connection import Statements
from core.store.errors import NotFound
from core.store.readers import Reader

# Bytes that were damaged on the disk are mended by the same picture coming again.
_PUT = (
    "INSERT INTO blobs (blob, media_type, data) VALUES (?, ?, ?)"
    " ON CONFLICT (blob) DO UPDATE SET media_type = excluded.media_type, data = excluded.data"
    " WHERE data IS NOT excluded.data OR media_type <> excluded.media_type"
)
_GET = "SELECT media_type, data FROM blobs WHERE blob = ?"


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    blob: str
    """The SHA-256 of the bytes, in hexadecimal: the same picture is kept once, whoever returned it."""
    media_type: str
    data: bytes


def make_blob(data: bytes, media_type: str) -> Blob:
    """Hashes: a few milliseconds for megabytes, so not on a busy loop."""
    return Blob(blob=hashlib.sha256(data).hexdigest(), media_type=media_type, data=data)


def kept(blobs: Sequence[Blob]) -> Statements:
    """What a transaction runs to keep them. Those that are there already stay as they are."""
    return [(_PUT, [(blob.blob, blob.media_type, blob.data) for blob in blobs])] if blobs else []


async def read(reader: Reader, blob: str) -> Blob:
    """What was put under `blob`. Raises NotFound, with the reason, if it is not there or is not what it was;
    StoreError if the store cannot be read."""
    for media_type, data in await reader.all(_GET, (blob,)):
        whole = isinstance(data, bytes) and await asyncio.to_thread(_is, data, blob)
        if not whole or not isinstance(media_type, str):
            raise NotFound("damaged in the store")
        return Blob(blob=blob, media_type=media_type, data=data)
    raise NotFound("no longer in the store")


def _is(data: bytes, blob: str) -> bool:
    return hashlib.sha256(data).hexdigest() == blob
