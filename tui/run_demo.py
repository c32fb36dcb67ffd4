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
    if not setup.writable(settings.home):
        return _unkept(args, settings)
    if args.plain or args.json:
        return _in_lines(args, settings)
    # Not a `TemporaryDirectory`: the swarm may go on in it when the console is gone.
    scratch = Path(tempfile.mkdtemp(prefix="watchroom-demo-"))
    try:
        settings, command = _prepared(settings, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return run_console.open_console(settings, command, keeps=scratch)


def _prepared(settings: Settings, scratch: Path) -> tuple[Settings, StartSwarm]:
    """The demo's own folder, copied to `scratch`, and the command that starts it there."""
    folder = scratch / "demo"
    shutil.copytree(FOLDER, folder)
    command = StartSwarm(task=TASK, cwd=str(folder), title="demo", source="demo", unattended="wait")
    return settings.model_copy(update={"cwd": folder}), command


def _in_lines(args: Namespace, settings: Settings) -> int:
    with _scratch("demo") as scratch:
        settings, command = _prepared(settings, scratch)
        mode: headless.Mode = "json" if args.json else "plain"
        engine = setup.own_engine("demo")
        return headless.run(setup.headless(settings), command, mode, engine=engine, approve=True)


def _unkept(args: Namespace, settings: Settings) -> int:
    """The user's home is read-only: a home for this demo alone, with an engine that ends with it."""
    setup.note(f"{settings.home} cannot be written, so this demo is not kept")
    with _scratch("home") as home, _scratch("demo") as scratch:
        settings = settings.model_copy(update={"home": home, "logs": home / "logs"})
        if args.plain or args.json:
            return _in_lines(args, settings)
        settings, command = _prepared(settings, scratch)
        return run_console.open_console(settings, command, connect=setup.own_engine("demo"))


@contextmanager
def _scratch(what: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"watchroom-{what}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
