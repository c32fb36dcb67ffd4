"""Homes, socket folders and engine processes of tests about where engines live."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.channel import directory
from core.channel.directory import EngineRecord
from core.config import Settings
from core.domain.ids import uuid7
from core.version import VERSION
from tests.core.agents.scenarios import scenario, step
from tests.core.harness import settings_for

HANGS = scenario({"/root": [step(text="never said", fault={"kind": "hang", "times": 0})]})
"""A root whose model never answers."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a test's own is too long for a socket."""
    path = Path(tempfile.mkdtemp(prefix="wr", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def home_at(tmp_path: Path, text: str = HANGS, **options: Any) -> Settings:
    """Settings of a home that exists."""
    settings = settings_for(tmp_path, text, **options)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings


def record(**fields: Any) -> EngineRecord:
    """The record of an engine in this process."""
    known: dict[str, Any] = {
        "engine": uuid7(),
        "pid": os.getpid(),
        "kind": "background",
        "version": VERSION,
        "socket": "/nowhere.sock",
        "started_at": datetime(2026, 11, 20, tzinfo=UTC),
        "host": platform.node(),
    }
    return EngineRecord(**known | fields)


@contextmanager
def process(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Python with `script`; it ends with its standard input, or is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end_engines(home: Path) -> None:
    """Kill the background engine that a test left behind, and wait until it is gone."""
    while (found := directory.background(home)) is not None and found.here:
        if found.pid == os.getpid():
            return
        try:
            os.kill(found.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        directory.wait_until_gone(home)
