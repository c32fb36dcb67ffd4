"""Cleaning of whole structures: every string of an event or a state entry, field by field."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from core.safety.text import clean, is_clean

T = TypeVar("T", bound=msgspec.Struct)
_TEXTLESS = (
    inspect.IntType,
    inspect.FloatType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.DateTimeType,
    inspect.LiteralType,
    inspect.DictType,
)
"""What holds no text that anybody shows. A dict is the server's own reasoning item."""
_fields: dict[type[msgspec.Struct], tuple[str, ...]] = {}


def clean_struct(item: T) -> T:
    """`item` itself if all its text is clean, else a copy with clean text (nested structs and tuples too).

    A dict field (the server's own reasoning item) is left alone: nothing shows it.
    """
    names = _fields.get(type(item))
    if names is None:
        names = _fields_with_text(type(item))
    changed: dict[str, object] | None = None
    for name in names:
        value = getattr(item, name)
        if value.__class__ is str:
            if value.isprintable() or is_clean(value):
                continue
            cleaned: object = clean(value)
        elif value is None:
            continue
        else:
            cleaned = _clean(value)
            if cleaned is value:
                continue
        changed = changed or {}
        changed[name] = cleaned
    return replace(item, **changed) if changed is not None else item


def _clean(value: object) -> object:
    """`value` itself if its text is clean, or if it holds none."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, msgspec.Struct):
        return clean_struct(value)
    if isinstance(value, tuple):
        cleaned = tuple(_clean(part) for part in value)
        return cleaned if any(a is not b for a, b in zip(value, cleaned, strict=True)) else value
    return value


def _fields_with_text(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Names of the fields that may hold text, found out once per type: most fields hold none."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    names = _fields[kind] = tuple(field.name for field in info.fields if not _textless(field.type))
    return names


def _textless(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return all(_textless(part) for part in kind.types)
    return isinstance(kind, _TEXTLESS)
