"""`watchroom` called in this process: fast, and what it prints is caught at the file descriptors."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.safety.text import is_clean
from tui import cli


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Shell:
    """`shell("session", "list")` runs one command with a home of its own; TZ is UTC, no model is set."""

    def __init__(self, home: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.home = home
        self._capfd = capfd
        self._patch = patch
        for name in [name for name in os.environ if name.startswith(("WATCHROOM_", "OPENAI_"))]:
            patch.delenv(name)
        for name in ("ACCESSIBLE", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("WATCHROOM_HOME", str(home))
        patch.setenv("TZ", "UTC")
        time.tzset()

    def __call__(self, *words: str | Path, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        self._capfd.readouterr()
        code = cli.main([str(word) for word in words])
        shown = self._capfd.readouterr()
        return Ran(code, shown.out, shown.err)

    def json(self, *words: str | Path) -> Any:
        """What a reading verb says with --json: one document on standard output, nothing beside it."""
        ran = self(*words, "--json")
        assert (ran.code, ran.err) == (0, "")
        assert is_clean(ran.out)
        return json.loads(ran.out)

    def refused(self, code: int, *words: str | Path, stdin: str | bytes = "") -> str:
        """The one sentence with which a command is refused."""
        ran = self(*words, stdin=stdin)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.err.startswith("watchroom: ")
        assert ran.err.endswith("\n")
        assert ran.err.count("\n") == 1, ran.err
        assert is_clean(ran.err)
        return ran.err

    def stored(self) -> tuple[int, int]:
        """How many swarms and jobs the store holds."""
        return len(self.json("session", "list")["sessions"]), len(self.json("job", "list")["jobs"])
