"""What a server offers, checked: its text is hostile, and a broken schema must not break every request of the
agents that are told about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import msgspec

from core.safety.text import clean, clean_line, shorten

MAX_TOOLS = 128
MAX_DESCRIPTION = 4_000
MAX_SCHEMA_BYTES = 32 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_RAW_NAME = 256


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as its server describes it. `tool` is the server's own name for it, exactly."""

    tool: str
    description: str
    schema: dict[str, Any]
    read_only: bool
    """It says of itself that it changes nothing."""
    digest: str
    """Of everything the model is told and approvals rest on."""


class _LeftOut(Exception):
    """Why a tool cannot be offered."""


def check(listed: Iterable[Any]) -> tuple[dict[str, Offer], list[str]]:
    """The usable ones of a server's tools (objects with the attributes of mcp's `Tool`), by the server's name
    for them, and a sentence for each that is left out. Blocks for some milliseconds: run it in a thread."""
    offers: dict[str, Offer] = {}
    problems: list[str] = []
    for tool in listed:
        shown = show(tool.name)
        if tool.name in offers:
            problems.append(f"{shown} is listed twice")
        elif len(offers) >= MAX_TOOLS:
            problems.append(f"{shown} and what follows is more than {MAX_TOOLS} tools")
            break
        else:
            try:
                offers[tool.name] = _offer(tool)
            except _LeftOut as why:
                problems.append(f"{shown} {why}")
    return offers, problems


def show(name: str) -> str:
    """A server's name for something, fit for a sentence."""
    return shorten(clean_line(name), 80) or "a tool without a name"


def _offer(tool: Any) -> Offer:
    if not tool.name or len(tool.name) > MAX_RAW_NAME:
        raise _LeftOut(f"has no name of 1 to {MAX_RAW_NAME} characters")
    description = shorten(clean(tool.description or "").strip(), MAX_DESCRIPTION)
    schema = _schema(tool.input_schema)
    hints = tool.annotations
    read_only = bool(hints and hints.read_only_hint) and not (hints and hints.destructive_hint)
    told = json.dumps([tool.description, tool.input_schema, read_only], sort_keys=True)
    return Offer(
        tool=tool.name,
        description=description,
        schema=schema,
        read_only=read_only,
        digest=hashlib.sha256(told.encode(errors="replace")).hexdigest(),
    )


def _schema(given: dict[str, Any]) -> dict[str, Any]:
    if _deeper(given, MAX_SCHEMA_DEPTH):
        raise _LeftOut(f"has a schema nested deeper than {MAX_SCHEMA_DEPTH} levels")
    size = len(json.dumps(given, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_SCHEMA_BYTES:
        raise _LeftOut(f"has a schema of {size:,} bytes, more than {MAX_SCHEMA_BYTES:,}")
    schema = _cleaned(given)
    assert isinstance(schema, dict)
    if schema.get("type") != "object":
        raise _LeftOut("has a schema that is not an object")
    # Some models' servers refuse an object without it, and with it the whole request.
    schema.setdefault("properties", {})
    # Here: a tenth of a second, for those who use servers.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problem = shorten(clean_line(error.message), 200)
        raise _LeftOut(f"has a schema that is none: at {error.json_path}: {problem}") from None
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise _LeftOut(f"has a schema that refers to {show(reference)}, outside itself")
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError):
            raise _LeftOut(f"has a schema that refers to {show(reference)}, which it does not hold") from None
    return schema


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (levels == 0 or any(_deeper(part, levels - 1) for part in inner))


def _cleaned(value: Any) -> Any:
    """Its text without what drives a terminal. Names of properties stay as they are: they are what the server
    wants to be called with."""
    if isinstance(value, dict):
        return {key: _cleaned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return clean(value) if isinstance(value, str) else value


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(part, str):
                yield part
            else:
                yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)
