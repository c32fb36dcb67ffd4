"""The environment of commands that agents run: what is listed, and nothing else.

Keys and tokens live in the environment of whoever starts Watchroom; none of that reaches a command.
PYTHONPATH and the like are left out too: they would make a child load code from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PASSED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR",
        "SSL_CERT_FILE", "SSL_CERT_DIR",
    }
)  # fmt: skip
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

FIXED = {
    # Plain text, no pager, no prompt: nobody sits at this command's terminal.
    "TERM": "dumb",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    # `git status` must be a read.
    "GIT_OPTIONAL_LOCKS": "0",
    # A repository may name a program to run in its own config, and a clone may carry a bare repository
    # (with such a config) in a folder: neither may turn `git status` into running that program.
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "core.fsmonitor",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "safe.bareRepository",
    "GIT_CONFIG_VALUE_1": "explicit",
}


def listed(source: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that may reach a command."""
    return {
        name: value
        for name, value in source.items()
        if (name in PASSED or name.startswith("LC_")) and "\0" not in value
    }


def child_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a command gets of `source` (default: this process's environment)."""
    source = os.environ if source is None else source
    env = listed(source)
    env["PATH"] = search_path(source)
    return env | FIXED


def search_path(source: Mapping[str, str]) -> str:
    """PATH without relative entries: an empty one or `.` would run programs out of the current folder."""
    entries = [entry for entry in source.get("PATH", "").split(os.pathsep) if os.path.isabs(entry)]
    return os.pathsep.join(entries) or DEFAULT_PATH
