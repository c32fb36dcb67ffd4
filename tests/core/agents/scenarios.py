"""Small scenarios for tests of the control plane, as TOML text."""

from __future__ import annotations

import json
from typing import Any


def toml(value: Any) -> str:
    """A JSON-like value as inline TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(value)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def step(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**({"calls": list(calls)} if calls else {}), **fields}


def scenario(agents: dict[str, list[dict[str, Any]]], **top: Any) -> str:
    """A scenario from path → steps. Steps past the end say "done"."""
    lines = [f"{key} = {toml(value)}" for key, value in {"chunk_chars": 200, **top}.items()]
    for path, steps in agents.items():
        lines += ["[[agents]]", f"path = {toml(path)}", 'closing = "done"']
        for one in steps:
            lines.append("[[agents.steps]]")
            lines += [f"{key} = {toml(value)}" for key, value in one.items()]
    return "\n".join(lines) + "\n"
