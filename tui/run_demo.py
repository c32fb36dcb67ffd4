"""`watchroom demo`: a real swarm on the embedded scripted model, in a scratch copy of the demo folder."""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import core
from core.config import Settings
from core.domain.commands import StartSwarm
from tui import exits, headless, run_console, setup

FOLDER = Path(core.__file__).resolve().parent.parent / "assets" / "demo"
TASK = "Is this project ready for a release? Look at it from all sides, measure every module, and report."


def run(args: Namespace) -> int:
    if not (args.plain or args.json) and (reason := setup.terminal()) is not None:
        raise exits.Quit(exits.USAGE, f"{reason}: use watchroom demo --plain")
    settings = setup.settings_of(args, base_url="scripted:demo")
    with tempfile.TemporaryDirectory(prefix="watchroom-demo-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "demo"
        shutil.copytree(FOLDER, folder)
        settings = settings.model_copy(update={"cwd": folder})
        with _home(settings) as home:
            settings = settings.model_copy(update={"home": home})
            command = StartSwarm(task=TASK, cwd=str(folder), title="demo", source="demo", unattended="wait")
            if args.plain or args.json:
                mode: headless.Mode = "json" if args.json else "plain"
                return headless.run(setup.headless(settings), command, mode, approve=True)
            return run_console.open_console(settings, command)


@contextmanager
def _home(settings: Settings) -> Iterator[Path]:
    """The user's store, so that the demo can be looked at afterwards; a scratch one if that is read-only."""
    if setup.writable(settings.home):
        yield settings.home
        return
    with tempfile.TemporaryDirectory(prefix="watchroom-home-", ignore_cleanup_errors=True) as scratch:
        setup.note(f"{settings.home} cannot be written, so this demo is not kept")
        yield Path(scratch)
