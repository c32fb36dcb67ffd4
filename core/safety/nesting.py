"""How deep data from others nests: what nests deeper than a stack ends whoever walks it."""

from __future__ import annotations

from typing import Any


def depth_of(value: Any, limit: int) -> int:
    """How deep lists and objects nest; stops counting just above `limit`."""
    depth, level = 0, [value]
    while level and depth <= limit:
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        ]
        depth += bool(level)
    return depth
