"""Agent paths: `/root`, `/root/audit`, `/root/audit/tests`. The canonical name of an agent in its swarm."""

from __future__ import annotations

import re

ROOT = "/root"
MAX_NAME = 64
"""Characters of a new agent's name: its path is in every list, every line about it and all its mail."""
_SEGMENT = re.compile(r"[a-z0-9_]+\Z")


class PathError(ValueError):
    """A name or path that breaks the grammar; the message says how."""


def check_segment(name: str) -> str:
    """Return `name` if it may be one segment below /root, else raise PathError."""
    if not name:
        raise PathError("an agent name must not be empty")
    if name in ("root", ".", ".."):
        raise PathError(f"the agent name {name!r} is reserved")
    if "/" in name:
        raise PathError(f"the agent name {name!r} must not contain '/'")
    if not _SEGMENT.match(name):
        raise PathError(f"the agent name {name!r} may hold only a-z, 0-9 and _")
    return name


def check_path(path: str) -> str:
    """Return an absolute path unchanged if it is well formed, else raise PathError."""
    if path == ROOT:
        return path
    if not path.startswith(ROOT + "/"):
        raise PathError(f"the agent path {path!r} must start with {ROOT}")
    if path.endswith("/"):
        raise PathError(f"the agent path {path!r} must not end with '/'")
    for segment in path[len(ROOT) + 1 :].split("/"):
        check_segment(segment)
    return path


def child_path(parent: str, name: str) -> str:
    """The path of a new agent. Raises PathError."""
    if len(name) > MAX_NAME:
        raise PathError(f"an agent name has at most {MAX_NAME} characters, and this one has {len(name)}")
    return f"{check_path(parent)}/{check_segment(name)}"


def resolve(caller: str, target: str) -> str:
    """The absolute path a `target` argument means for `caller`: absolute as it is, else downwards from it."""
    target = target.strip()
    if not target:
        raise PathError("the target must not be empty")
    if target.startswith("/"):
        return check_path(target)
    return check_path(f"{caller}/{target}")


def parent_of(path: str) -> str | None:
    return None if path == ROOT else path.rsplit("/", 1)[0]


def leaf(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def depth(path: str) -> int:
    """0 for /root, 1 for its children."""
    return path.count("/") - 1


def is_within(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or lies below it, by whole segments."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")
