"""`watchroom exec`: one task, no console."""

from __future__ import annotations

import sys
from argparse import Namespace

from core.domain.commands import StartSwarm
from tui import exits, headless, setup

MAX_TASK_BYTES = 4 * 1024 * 1024


def run(args: Namespace) -> int:
    settings = setup.headless(setup.settings_of(args))
    task = read_task(args.task)
    command = StartSwarm(task=task, cwd=str(settings.cwd), source="exec", unattended="refuse")
    mode: headless.Mode = "json" if args.json else "headless"
    return headless.run(settings, command, mode, engine=setup.own_engine("exec"))


def read_task(text: str, what: str = "the task", hint: str = "say what the root agent shall do") -> str:
    """The text itself; `-` reads standard input. Raises Quit, about `what`, if it is empty or unreadable."""
    if text == "-":
        data = sys.stdin.buffer.read(MAX_TASK_BYTES + 1)
        if len(data) > MAX_TASK_BYTES:
            raise exits.Quit(exits.USAGE, f"{what} on standard input is larger than {MAX_TASK_BYTES:,} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise exits.Quit(exits.USAGE, f"{what} on standard input is not UTF-8 text") from None
    if not text.strip():
        raise exits.Quit(exits.USAGE, f"{what} is empty: {hint}")
    return text
