"""`watchroom attach`: the console on an engine that runs, here or on another machine; `watchroom bridge`:
what that machine runs for it."""

from __future__ import annotations

import asyncio
import re
import sys
from argparse import Namespace
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from core.channel.client import Client, ClientError
from core.safety.text import clean, clean_line
from core.store.readers import Reader
from core.store.roster import owned
from tui import exits, setup, signals
from tui.farewell import short_id

if TYPE_CHECKING:
    from core.config import Settings

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")


def run(args: Namespace) -> int:
    if args.json:
        raise exits.Quit(exits.USAGE, "the console has no --json: use watchroom agent list --json")
    if args.plain or (reason := setup.terminal()) is not None:
        said = "attach has no --plain" if args.plain else reason
        raise exits.Quit(exits.USAGE, f"{said}: use watchroom agent list, or session show ID")
    _check_id(args.id)
    settings = setup.settings_of(args, asks_model=False)
    if args.ssh is not None:
        return _over_ssh(args, settings)
    from tui.run_console import open_console

    swarm = _chosen(settings, args.id)
    return open_console(settings, swarm, connect=lambda wanted: setup.swarm_engine(wanted, swarm))


def _check_id(ref: str | None) -> None:
    if ref is not None and not _ID.match(ref):
        raise exits.Quit(exits.USAGE, f"{clean_line(ref)!r} is not the id of a swarm or agent")


# --- which swarm -----------------------------------------------------------------------------------------


def _chosen(settings: Settings, ref: str | None) -> str:
    """The id of the swarm to show. Raises ClientError, NotFound or StoreError, one sentence."""
    found: list[str] = []

    async def main() -> int:
        async with Reader.open(settings.home) as reader:
            found.append(await choose(reader, settings, ref))
        return exits.OK

    if code := signals.run(main):
        raise SystemExit(code)
    return found[0]


async def choose(reader: Reader, settings: Settings, ref: str | None) -> str:
    """The swarm that `ref` means (its id, an agent's, or a unique beginning); without it the newest of the
    background engine in which something happens, else the newest of any engine, busy ones first."""
    from core.channel.directory import background

    if ref is not None:
        swarm = await reader.find_swarm(ref)
        if swarm not in await reader.live_swarms():
            raise ClientError(
                f"this swarm is not running: watchroom resume {short_id(swarm)} goes on with it"
            )
        return swarm
    record = await asyncio.to_thread(background, settings.home)
    candidates = await owned(reader, settings.home)
    if candidates:
        mine = record.pid if record is not None else None
        # Stable, so that the newest stays first among equals.
        return min(candidates, key=lambda one: (not one.busy, one.pid != mine)).swarm
    newest = await reader.all("SELECT swarm FROM swarms ORDER BY started_at DESC, swarm DESC LIMIT 1")
    runs = "the engine runs no swarm" if record is not None else "nothing runs here"
    if newest:
        swarm = short_id(newest[0][0])
        raise ClientError(f"{runs}: watchroom resume {swarm} goes on with the newest swarm")
    raise ClientError(f"{runs}: start a swarm with watchroom TASK, or look at watchroom demo")


# --- over ssh --------------------------------------------------------------------------------------------


def _over_ssh(args: Namespace, settings: Settings) -> int:
    from core.channel.bridge import Link, connect_ssh, dial, on_link
    from tui.run_console import open_console

    if not args.ssh or args.ssh.startswith("-"):
        raise exits.Quit(exits.USAGE, f"--ssh needs the name of a host, not {clean_line(args.ssh)!r}")
    place = ["--home", args.home] if args.home is not None else []
    first = dial(args.ssh, [*place, *([args.id] if args.id else [])], say=_tell)
    links: list[Link] = [first]

    def connect(_: Settings) -> AbstractAsyncContextManager[Client]:
        return on_link(links.pop()) if links else connect_ssh(args.ssh, [*place, first.swarm])

    try:
        return open_console(settings, first.swarm, connect=connect, host=args.ssh)
    finally:
        for link in links:  # the console never came so far
            link.end()


def _tell(text: str) -> None:
    sys.stderr.write(clean(text))
    sys.stderr.flush()


def bridge(args: Namespace) -> int:
    from core.channel.bridge import pump
    from core.channel.directory import owner_of

    _check_id(args.id)
    settings = setup.settings_of(args, asks_model=False)
    swarm = _chosen(settings, args.id)
    record = owner_of(settings.home, swarm)
    if record is None:
        raise ClientError(f"the engine of swarm {swarm} cannot be reached: it listens nowhere")
    pump(Path(record.socket), swarm, sys.stdin.fileno(), sys.stdout.fileno())
    return exits.OK
