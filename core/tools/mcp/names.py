"""Names of MCP tools as a model sees them: `<server>__<tool>`, valid on the wire, each once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container

MAX_NAME = 64
"""What a Responses request takes, of letters, digits, `_` and `-`."""
_OTHER = re.compile(r"[^A-Za-z0-9_-]")
SEPARATOR = "__"


def wire_name(server: str, tool: str, taken: Container[str]) -> str:
    """The name of a tool, from its server's name and its own. A name that had to be changed, or is taken,
    ends with a hash of what it stands for, so that it is the same in every start."""
    plain = f"{_OTHER.sub('_', server)}{SEPARATOR}{_OTHER.sub('_', tool)}"
    exact = plain == f"{server}{SEPARATOR}{tool}"
    if exact and len(plain) <= MAX_NAME and plain not in taken:
        return plain
    digest = hashlib.sha256(f"{server}\0{tool}".encode(errors="replace")).hexdigest()
    size = 8
    while True:
        mark = f"_{digest[:size]}"
        name = plain[: MAX_NAME - len(mark)] + mark
        if name not in taken:
            return name
        size += 1
