"""Output schemas: refused early when they are broken, enforced in a process that can be stopped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from core.jobs.errors import JobInputError
from core.safety.nesting import depth_of
from core.safety.text import clean_line, shorten

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
CHECK_SECONDS = 5.0
_REPLY_BYTES = 1024 * 1024
_PLAIN = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data, not schemas."""

Violation = tuple[str, str]
"""(JSON path, what is wrong there)."""


def check_schema(schema: Any) -> None:
    """Raises JobInputError unless `schema` is one that a job can enforce. Blocks for some milliseconds."""
    if not isinstance(schema, dict):
        raise JobInputError("output_schema must be a JSON object")
    if depth_of(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise JobInputError(f"output_schema is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    size = len(json.dumps(schema).encode())
    if size > MAX_SCHEMA_BYTES:
        raise JobInputError(f"output_schema has {size:,} bytes; it may have at most {MAX_SCHEMA_BYTES:,}")
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise JobInputError(f"output_schema has type {kind!r}, but a result is always an object")
    _check_with_library(schema)


def _check_with_library(schema: dict[str, Any]) -> None:
    # Here, because a job without a schema needs none of this and it costs a tenth of a second.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problem = shorten(clean_line(error.message), 200)
        raise JobInputError(f"output_schema is not a JSON Schema: at {error.json_path}: {problem}") from None
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for keyword, value in _keywords(schema):
        if keyword in ("$ref", "$dynamicRef") and isinstance(value, str):
            shown = shorten(clean_line(value), 80)
            if not value.startswith("#"):
                raise JobInputError(
                    f"output_schema refers to {shown!r}; only references within it (#/…) are allowed"
                )
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise JobInputError(f"output_schema refers to {shown!r}, which it does not have") from None


def _keywords(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            if key not in _PLAIN:
                yield from _keywords(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keywords(value)


def embedded(schema: Mapping[str, Any], at: str) -> dict[str, Any]:
    """`schema` as a part of another document, under the JSON pointer `at` (like "#/properties/result")."""

    def move(node: Any) -> Any:
        if isinstance(node, list):
            return [move(value) for value in node]
        if not isinstance(node, dict):
            return node
        moved = {key: value if key in _PLAIN else move(value) for key, value in node.items()}
        ref = node.get("$ref")
        if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
            moved["$ref"] = at + ref[1:]
        return moved

    result = move({key: value for key, value in schema.items() if key not in ("$schema", "$id")})
    assert isinstance(result, dict)
    return result


class SchemaChecker:
    """Checks the results of one job, one at a time, in a process that lives until the block is left."""

    def __init__(self, schema: Mapping[str, Any], seconds: float = CHECK_SECONDS) -> None:
        self._schema = json.dumps(schema)
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> SchemaChecker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def check(self, result: str) -> list[Violation]:
        """What is wrong with `result` (JSON on one line), at most a few entries; nothing when it matches."""
        async with self._lock:
            try:
                return await self._ask(result)
            except BaseException:
                # A reply may still be on its way: the next check must not read it as its own.
                await self._end()
                raise

    async def _ask(self, result: str) -> list[Violation]:
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(result.encode() + b"\n")
            await process.stdin.drain()
            reply = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            reply = b""
        if not reply.endswith(b"\n"):
            await self._end()
            return [("$", f"the check against output_schema broke, or took longer than {self._seconds:g} s")]
        return [(path, problem) for path, problem in json.loads(reply)]

    async def _start(self) -> asyncio.subprocess.Process:
        # -I -S and our own import path: no variable and no folder of the user chooses what is imported.
        paths = json.dumps([entry for entry in sys.path if os.path.isabs(entry)])
        script = str(Path(__file__).with_name("check.py"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-X", "utf8", script, paths, str(self._seconds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,
            limit=_REPLY_BYTES,
        )
        self._process = process
        assert process.stdin is not None
        process.stdin.write(self._schema.encode() + b"\n")
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
