"""Structs to rows and back: one column per field, JSON text where a field is a structure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from core.store.connection import Row
from core.store.errors import StoreError

T = TypeVar("T", bound=msgspec.Struct)
_JSON = frozenset({"tokens", "turn_tokens", "spending", "budget", "servers", "wait", "argv"})
_PLAIN = frozenset({str, int, float, bool, type(None)})
"""What SQLite takes as it is: most cells of most rows."""


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds, so that text sorts as time does."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"


def cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime):
        return timestamp(value)
    return msgspec.json.encode(value).decode()


class Table(Generic[T]):
    """The columns of a state table that hold the fields of one struct."""

    def __init__(
        self, name: str, struct: type[T], key: Iterable[str], *, leave_out: Iterable[str] = ()
    ) -> None:
        self.struct = struct
        out = set(leave_out)
        self.fields = [field for field in struct.__struct_fields__ if field not in out]
        columns = self.fields if "swarm" in self.fields else [*self.fields, "swarm"]
        self.columns = ", ".join(f'"{column}"' for column in columns)
        keys = tuple(key)
        updates = ", ".join(f'"{c}" = excluded."{c}"' for c in columns if c not in keys)
        self.upsert = (
            f"INSERT INTO {name} ({self.columns}) VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {updates}"
        )
        self.select = f"SELECT {self.columns} FROM {name} "
        self._swarm = "swarm" not in self.fields
        self._values = attrgetter(*self.fields)

    def row(self, entry: T, swarm: str) -> tuple[Any, ...]:
        cells = [value if type(value) in _PLAIN else cell(value) for value in self._values(entry)]
        if self._swarm:
            cells.append(swarm)
        return tuple(cells)

    def entry(self, row: Row, **more: Any) -> T:
        fields: dict[str, Any] = dict(more)
        for name, value in zip(self.fields, row, strict=False):
            if name in _JSON and value is not None:
                value = _json(self.struct.__name__, name, value)
            elif name == "sandboxed":
                value = bool(value)
            fields[name] = value
        return msgspec.convert(fields, self.struct)


def _json(struct: str, field: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise StoreError(f"the store is damaged: the {field} of an entry ({struct}) is not JSON") from None
