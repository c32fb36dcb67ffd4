"""From parsed options to settings, and from settings to an engine."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TextIO

from core.channel.client import Client
from core.config import SCRIPTED, ConfigError, Settings, load_settings
from core.safety.text import clean_line
from tui import exits
from tui.glyphs import ASCII, UNICODE

Connect = Callable[[Settings], AbstractAsyncContextManager[Client]]


def settings_of(args: Namespace, *, base_url: str | None = None, asks_model: bool = True) -> Settings:
    """The settings of this command line. `base_url` is what the verb insists on. With `asks_model` a run that
    could not ask a model is refused here. Raises Quit."""
    if args.full_auto and (args.approval_policy or args.sandbox):
        raise exits.Quit(
            exits.USAGE, "--full-auto sets --approval-policy and --sandbox itself: leave them out"
        )
    for option, folder in (("--home", args.home), ("-C", args.cd)):
        if folder == "":  # an unset variable of a script must not become the user's own home
            raise exits.Quit(exits.USAGE, f"{option} needs the name of a folder, not ''")
    options = {
        "base_url": base_url or args.base_url,
        "model": args.model,
        "api_key_env": args.api_key_env,
        "approval_policy": "never" if args.full_auto else args.approval_policy,
        "sandbox": "workspace-write" if args.full_auto else args.sandbox,
    }
    try:
        settings = load_settings(
            options=options,
            values=args.values,
            profile=args.profile,
            config_file=args.config,
            home=args.home,
            cwd=args.cd,
            notify=note,
        )
    except ConfigError as error:
        raise exits.Quit(exits.USAGE, str(error)) from None
    if asks_model and (missing := settings.missing()) is not None:
        raise exits.Quit(exits.USAGE, missing)
    return settings


def headless(settings: Settings) -> Settings:
    """Nobody attends: asks are refused whatever the settings say of consoles (decision 28)."""
    return settings.model_copy(update={"unattended": None})


def going_on(settings: Settings, server: str) -> Settings:
    """The settings for a swarm that was started on `server`: what began on a scripted model, as the demo
    does, is not sent to a real one because somebody else goes on with it."""
    if settings.scripted is None and server.startswith(SCRIPTED):
        return settings.model_copy(update={"base_url": server})
    return settings


def home_engine(settings: Settings) -> AbstractAsyncContextManager[Client]:
    """The home's background engine, started if none lives. It goes on when the client is closed."""
    from core.channel.launch import home_engine

    return home_engine(settings)


@asynccontextmanager
async def swarm_engine(settings: Settings, swarm: str) -> AsyncIterator[Client]:
    """The engine that owns a swarm; without an owner the home's own, which may resume it."""
    from core.channel.launch import engine_of, home_engine
    from core.store.locks import owner_alive

    alive = await asyncio.to_thread(owner_alive, settings.home, swarm)
    async with engine_of(settings.home, swarm) if alive else home_engine(settings) as client:
        yield client


def own_engine(kind: str) -> Connect:
    """An engine in this process that a console can attach to. Imported only when it is opened: it is what
    costs time to load."""

    def connect(settings: Settings) -> AbstractAsyncContextManager[Client]:
        from core.channel.host import host_engine

        return host_engine(settings, kind=kind)

    return connect


def note(text: str) -> None:
    """A remark on standard error."""
    print(f"watchroom: note: {clean_line(text)}", file=sys.stderr)


def writable(folder: Path) -> bool:
    """Whether `folder` is, or could be made, a folder to write in."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def glyphs_fit(stream: TextIO | None = None) -> bool:
    """Whether `stream` (standard error) can carry the product's glyphs."""
    try:
        "✗◍◌┆".encode((stream or sys.stderr).encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def guide() -> str:
    """The mark of "came from", as standard output can carry it."""
    return UNICODE.guide if glyphs_fit(sys.stdout) else ASCII.guide


def terminal() -> str | None:
    """Why there can be no full-screen console here, or None."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "this is not a terminal"
    if os.environ.get("TERM", "") in ("", "dumb"):
        return "this terminal cannot show a full screen (TERM is unset or dumb)"
    return None
