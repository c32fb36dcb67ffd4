"""A ToolContext that answers from what a test gave it and remembers what was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.clock import Clock, SystemClock
from core.tools.base import Verdict


@dataclass
class FakeContext:
    cwd: Path
    verdict: Verdict = field(default_factory=lambda: Verdict(approved=True, by="operator"))
    clock: Clock = field(default_factory=SystemClock)
    thread: str = "thread-1"
    path: str = "/root"
    call: str = "call-1"
    emitted: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def emit(self, *, source: str, text: str = "", status: str = "", about: str | None = None) -> None:
        self.emitted.append({"source": source, "text": text, "status": status, "about": about})

    @asynccontextmanager
    async def blocked(
        self, reason: Literal["agents", "job", "approval"], detail: str = ""
    ) -> AsyncIterator[None]:
        yield

    async def approve(self, *, command: str, argv: list[str], cwd: Path, reason: str) -> Verdict:
        self.asked.append({"command": command, "argv": argv, "cwd": cwd, "reason": reason})
        return self.verdict
