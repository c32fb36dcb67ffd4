from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.status import Usage
from core.models import wire
from core.safety.text import is_clean


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no such model", "code": "model_not_found"}}', "no such model"),
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', '[{"loc": ["body"], "msg": "bad"}]'),
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b'"just a string"', "just a string"),
        (b"<!DOCTYPE html><html><head><title>502 Bad\n Gateway</title></head></html>", "502 Bad Gateway"),
        (b"<html><body><style>b{}</style><h1>Oh &amp; no</h1>\n<p>x</p></body></html>", "Oh & no x"),
        (b"upstream\r\n  broke \x1b[31mred\x1b[0m", "upstream broke red"),
        (b"\xff\xfe not utf-8", "\ufffd\ufffd not utf-8"),
        (b"", ""),
    ],
)
def test_the_message_of_an_error_body(body: bytes, message: str) -> None:
    assert wire.failure_of(body).message == message


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_error_body_breaks_or_dirties_the_message(body: bytes) -> None:
    failure = wire.failure_of(body)
    assert is_clean(failure.message or "")
    assert "\n" not in (failure.message or "")


def test_a_deeply_nested_body_is_no_trouble() -> None:
    assert wire.failure_of(b"[" * 60_000).message is not None


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (wire.Failure(code="insufficient_quota"), 429, "quota"),
        (wire.Failure(), 402, "quota"),
        (wire.Failure(), 429, "rate_limit"),
        (wire.Failure(code="rate_limit_exceeded"), None, "rate_limit"),
        (wire.Failure(code="context_length_exceeded"), 400, "context"),
        (wire.Failure(message="This model's maximum context length is 4096 tokens"), 400, "context"),
        (wire.Failure(code="bio_policy_violation"), None, "policy"),
        (wire.Failure(code="invalid_prompt"), None, "policy"),
        (wire.Failure(), 401, "auth"),
        (wire.Failure(), 404, "not_found"),
        (wire.Failure(), 422, "bad_request"),
        (wire.Failure(), 503, "server"),
        (wire.Failure(code="server_error"), None, "server"),
        (wire.Failure(), None, "server"),
        (wire.Failure(code="unsupported_parameter"), None, "bad_request"),
        (wire.Failure(code=1234), 500, "server"),
    ],
)
def test_kinds(failure: wire.Failure, status: int | None, kind: str) -> None:
    assert wire.kind_of(failure, status) == kind


def test_half_characters_become_replacement_characters() -> None:
    assert wire.decode(rb'{"delta": "a\ud83d"}', wire.Delta).delta == "a\ufffd"
    assert wire.decode(rb'{"delta": "\ud83d\ude00"}', wire.Delta).delta == "😀"
    for bad in (b"{", rb'{"delta": "\ud83d', b"[" * 60_000, b'{"delta": "\xff"}', b'{"delta": 1}'):
        with pytest.raises(wire.WireError):
            wire.decode(bad, wire.Delta)


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (None, None),
        ([], None),
        (
            {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens": 3,
                "total_tokens": 8,
            },
            Usage(input=5, cached=2, output=3, total=8),
        ),
        (
            {"input_tokens": 5, "output_tokens": 3, "output_tokens_details": None},
            Usage(input=5, output=3, total=8),
        ),
        ({"input_tokens": -1, "output_tokens": 1e300, "total_tokens": "many"}, Usage()),
        (
            # A total that leaves something out would let a budget be exceeded.
            {"input_tokens": 5_000, "output_tokens": 30, "total_tokens": 30},
            Usage(input=5_000, output=30, total=5_030),
        ),
        ({"input_tokens": 5, "output_tokens": 3, "total_tokens": 12}, Usage(input=5, output=3, total=12)),
    ],
)
def test_usage(data: Any, usage: Usage | None) -> None:
    assert wire.usage_of(data) == usage


@pytest.mark.parametrize(
    "items",
    [
        [{}],
        [{"type": "function_call", "name": "x", "arguments": "{}"}],
        [{"type": "function_call", "call_id": "c", "name": "", "arguments": "{}"}],
        [{"type": "function_call", "call_id": "c", "name": "x", "arguments": {}}],
        [{"type": "function_call", "call_id": "c", "name": "x", "arguments": "{}"}] * 2,
    ],
)
def test_items_that_cannot_be_relied_on(items: list[dict[str, Any]]) -> None:
    with pytest.raises(wire.WireError):
        wire.checked_items(items)


def test_arguments_are_not_looked_into() -> None:
    items = [{"type": "function_call", "call_id": "c", "name": "x", "arguments": '{"cmd": "rm -r'}]
    assert wire.checked_items(items) is items
