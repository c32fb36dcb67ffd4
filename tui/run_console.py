"""`watchroom [TASK]`: the full-screen console."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.safety.text import clean, clean_line
from tui import exits, setup, signals

if TYPE_CHECKING:
    from core.config import Settings
    from core.domain.commands import ResumeSwarm, Setup, StartSwarm
    from tui.app import WatchroomApp
    from tui.setup import Connect


def run(args: Namespace) -> int:
    if args.json:
        raise exits.Quit(exits.USAGE, "the console has no --json: use watchroom exec --json TASK")
    if args.task is not None and not args.task.strip():
        raise exits.Quit(exits.USAGE, "the task is empty: say what the root agent shall do, or leave it out")
    if args.plain or os.environ.get("ACCESSIBLE") == "1":
        return _plain(args)
    if (reason := setup.terminal()) is not None:
        raise exits.Quit(exits.USAGE, f"{reason}: use watchroom exec TASK, or --plain TASK for every line")
    settings = setup.settings_of(args, asks_model=False)
    if (missing := settings.missing()) is not None:
        return _offer_demo(args, missing)
    from core.domain.commands import StartSwarm

    command = StartSwarm(
        task=args.task,
        cwd=str(settings.cwd),
        source="console",
        unattended=settings.unattended or "wait",
    )
    return open_console(settings, command)


def _plain(args: Namespace) -> int:
    from core.domain.commands import StartSwarm
    from tui import headless

    if args.task is None:
        raise exits.Quit(exits.USAGE, "lines need a task from the start: use watchroom --plain TASK")
    settings = setup.headless(setup.settings_of(args))
    command = StartSwarm(task=args.task, cwd=str(settings.cwd), source="console", unattended="refuse")
    return headless.run(settings, command, "plain", engine=setup.own_engine("exec"))


def _offer_demo(args: Namespace, missing: str) -> int:
    """Without a model there is still something to see: no key and no network are needed for it."""
    print(f"watchroom: {clean_line(missing)}", file=sys.stderr)
    print("Press Enter to open the demo instead, Ctrl-C to leave. ", end="", file=sys.stderr, flush=True)
    if not sys.stdin.readline():
        print(file=sys.stderr)
        return exits.USAGE
    from tui import run_demo

    return run_demo.run(args)


def open_console(
    settings: Settings,
    start: StartSwarm | ResumeSwarm | str,
    connect: Connect | None = None,
    keeps: Path | None = None,
    *,
    host: str = "",
) -> int:
    """Run the console until the operator leaves it. The engine is reached behind its first frame.

    `start` begins a swarm, resumes one, or is the id of one that runs. `connect`: another engine than the
    home's own; it is called again when the engine is gone and the operator wants it back. `host`: that engine
    is on another machine. `keeps`: a scratch folder of the swarm, removed here unless it is still needed."""
    from core.channel.setup import setup_of
    from tui.again import Again, over_ssh
    from tui.app import WatchroomApp
    from tui.themes import DARK, LIGHT

    if not isinstance(start, str) and start.setup is None:
        from msgspec.structs import replace

        start = replace(start, setup=setup_of(settings))

    def mine(server: str) -> Setup:
        return setup_of(setup.going_on(settings, server))

    reach = partial(connect or setup.home_engine, settings)
    if host:
        again = over_ssh(host, reach)
    elif connect is not None:
        again = Again(open=lambda _: reach(), setup=mine)
    else:
        again = Again(open=partial(setup.swarm_engine, settings), setup=mine)
    app = WatchroomApp(
        reach,
        start,
        again=again,
        attach=f"watchroom attach --ssh {host}" if host else "watchroom attach",
        ascii_glyphs=settings.view.glyphs == "ascii" or not setup.glyphs_fit(),
        theme=LIGHT if settings.view.theme == "light" else DARK,
        refresh_seconds=1 / settings.view.refresh_hz,
    )
    try:
        return signals.run(lambda: _run(app))
    finally:
        if summary := app.summary():
            print(clean(summary))
        if keeps is not None:
            _keep(keeps, app)
        if app.exit_code:
            print(f"watchroom: {clean_line(app.failure or '')}", file=sys.stderr)


def _keep(folder: Path, app: WatchroomApp) -> None:
    """A scratch folder goes with a swarm that is done; one that goes on, or can, still works in it."""
    state, fate = app.view.state, app.fate()
    agents = state.agents.values()
    waits = state.active() or any(agent.wait or agent.asks for agent in agents)
    cut = fate in ("stopped", "stopping", "ended") and any(a.status == "interrupted" for a in agents)
    if fate != "closed" and (waits or cut):
        print(f"its files stay in {clean_line(str(folder))}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(app: WatchroomApp) -> int:
    running = asyncio.create_task(app.run_async())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        app.exit()  # leaves the full screen, and closes an engine of this process in order
        await running
        raise
    return app.return_code or exits.OK
