from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from core.jobs.errors import JobInputError
from core.jobs.schema import SchemaChecker, check_schema, embedded

LINES = {
    "type": "object",
    "properties": {"lines": {"type": "integer", "minimum": 0}, "tree": {"$ref": "#/$defs/node"}},
    "required": ["lines"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        }
    },
}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"x": schema}}
    return schema


def test_good_schemas_pass() -> None:
    for schema in (
        {},
        LINES,
        {"type": ["object", "null"]},
        {"properties": {"a": {"const": {"$ref": "data"}}}},
    ):
        check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ([], "must be a JSON object"),
        ({"type": "array"}, "a result is always an object"),
        ({"properties": {"a": {"type": "int"}}}, "at $.properties.a.type"),
        ({"minimum": "x"}, "not a JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/x.json"}, "only references within it"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "only references within it"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "which it does not have"),
        ({"properties": {"a": {"pattern": "("}}}, "'(' is not a 'regex'"),
        ({"patternProperties": {"*": {}}}, "'*' is not a 'regex'"),
        (nested(40), "nested deeper than 32"),
        ({"description": "x" * 70_000}, "at most 65,536"),
    ],
)
def test_bad_schemas_are_refused_in_a_sentence(schema: Any, sentence: str) -> None:
    with pytest.raises(JobInputError) as caught:
        check_schema(schema)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embedding_moves_the_references_along() -> None:
    outer = {"type": "object", "properties": {"result": embedded(LINES, "#/properties/result")}}
    validator = Draft202012Validator(outer)
    assert validator.is_valid({"result": {"lines": 1, "tree": {"kids": [{"kids": []}]}}})
    assert not validator.is_valid({"result": {"lines": 1, "tree": {"kids": [{"kids": 3}]}}})


@pytest.fixture
async def checker() -> AsyncIterator[SchemaChecker]:
    async with SchemaChecker(LINES) as checker:
        yield checker


async def test_violations_name_their_paths(checker: SchemaChecker) -> None:
    assert await checker.check('{"lines": 3}') == []
    found = await checker.check(
        json.dumps({"lines": "many\n\x1b", "extra": 1, "tree": {"kids": [{"kids": 1}]}})
    )
    assert {path for path, _ in found} == {"$", "$.lines", "$.tree.kids[0].kids"}
    assert await checker.check('{"lines": 4}') == []


async def test_many_at_once_get_their_own_answers(checker: SchemaChecker) -> None:
    results = await asyncio.gather(*(checker.check(json.dumps({"lines": n - 50})) for n in range(100)))
    assert [bool(found) for found in results] == [n < 50 for n in range(100)]


async def test_a_runaway_pattern_ends_within_the_limit() -> None:
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    check_schema(schema)
    async with SchemaChecker(schema, seconds=0.2) as checker:
        found = await checker.check(json.dumps({"a": "a" * 60 + "!"}))
        assert "took longer than 0.2 s" in found[0][1]
        assert await checker.check('{"a": "aa"}') == [], "the next check has a fresh process"


async def test_a_cancelled_check_leaves_no_stale_answer() -> None:
    async with SchemaChecker({"properties": {"a": {"pattern": "^(a+)+$"}}}, seconds=30) as checker:
        assert await checker.check('{"a": "a"}') == []
        task = asyncio.create_task(checker.check(json.dumps({"a": "a" * 60 + "!"})))
        await asyncio.wait({task}, timeout=0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await checker.check('{"a": "b"}') != []
        assert await checker.check('{"a": "a"}') == []


async def test_the_process_ends_with_the_block() -> None:
    async with SchemaChecker(LINES) as checker:
        await checker.check("{}")
        process = checker._process
        assert process is not None
        pid = process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_violation_is_short_however_long_the_result(checker: SchemaChecker) -> None:
    found = await checker.check(json.dumps({"lines": "x" * 200_000, "y" * 5000: 1}))
    assert found
    assert all(len(path) < 400 and len(problem) < 400 for path, problem in found)
