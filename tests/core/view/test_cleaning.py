"""Cleaning of whole structures leaves no unsafe text in any field that can hold text."""

from __future__ import annotations

import sys
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from core.domain import commands as c
from core.domain import events as e
from core.domain import state as s
from core.domain.status import Usage, Wait
from core.safety.text import clean, is_clean
from core.view.cleaning import clean_struct

KINDS = [
    *get_args(e.AnyEvent),
    s.AgentState,
    s.OpenCall,
    s.Approval,
    s.QueuedMail,
    s.JobState,
    c.JobRow,
    Wait,
]
DIRTY = "a\x1b[31mb\u202ec"


def strings(value: Any) -> list[str]:
    """Every string in a struct or a tuple of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple):
        return [text for part in value for text in strings(part)]
    if isinstance(value, msgspec.Struct):
        return [text for name in value.__struct_fields__ for text in strings(getattr(value, name))]
    return []


def dirty(kind: inspect.Type) -> Any:
    """A value of a type with unsafe text wherever text can be."""
    match kind:
        case inspect.StrType():
            return DIRTY
        case inspect.VarTupleType():
            return (dirty(kind.item_type), dirty(kind.item_type))
        case inspect.StructType():
            return kind.cls(**{field.name: dirty(field.type) for field in kind.fields})
        case inspect.UnionType():
            return dirty(next(part for part in kind.types if not isinstance(part, inspect.NoneType)))
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.BoolType():
            return True
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.DateTimeType():
            return e.EPOCH
        case inspect.DictType():
            return {}
    raise AssertionError(f"a field of a type that this test does not know: {kind}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_kind_is_cleaned(kind: type[msgspec.Struct]) -> None:
    item = dirty(inspect.type_info(kind))
    assert not all(map(is_clean, strings(item)))
    cleaned = clean_struct(item)
    assert strings(cleaned) == [clean(text) for text in strings(item)]
    assert clean_struct(cleaned) is cleaned, "what is clean is not copied"


def test_a_struct_without_text_is_itself_every_time() -> None:
    usage = Usage()
    assert clean_struct(usage) is usage
    assert clean_struct(usage) is usage


def test_no_printable_character_is_unsafe() -> None:
    """The short cut of `is_clean` rests on this."""
    unsafe = [
        n
        for n in range(sys.maxunicode + 1)
        if chr(n).isprintable() and clean(f"a\n{chr(n)}") != f"a\n{chr(n)}"
    ]
    assert unsafe == []


@given(st.text())
def test_clean_text_is_what_clean_leaves_alone(text: str) -> None:
    assert is_clean(text) == (clean(text) == text)
    assert is_clean(clean(text))
