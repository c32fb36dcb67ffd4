"""Cleaning of whole structures: every string of an event or a state entry, field by field."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from core.safety.text import clean, is_clean

T = TypeVar("T", bound=msgspec.Struct)


def clean_struct(item: T) -> T:
    """`item` itself if all its text is clean, else a copy with clean text (nested structs and tuples too).

    A dict field (the server's own reasoning item) is left alone: nothing shows it.
    """
    changed: dict[str, object] = {}
    for name in item.__struct_fields__:
        value = getattr(item, name)
        if isinstance(value, str):
            if not is_clean(value):
                changed[name] = clean(value)
        elif isinstance(value, msgspec.Struct):
            inner = clean_struct(value)
            if inner is not value:
                changed[name] = inner
        elif isinstance(value, tuple) and any(isinstance(v, str) and not is_clean(v) for v in value):
            changed[name] = tuple(clean(v) if isinstance(v, str) else v for v in value)
    return replace(item, **changed) if changed else item
