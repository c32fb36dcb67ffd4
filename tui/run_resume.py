"""`watchroom resume [ID]`: go on with a swarm of the store, in the console or in lines."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.domain.commands import ResumeSwarm
from tui import exits, headless, reading, run_console, setup
from tui.farewell import short_id

if TYPE_CHECKING:
    from core.config import Settings
    from core.store.readers import Reader


@dataclass(frozen=True)
class Chosen:
    swarm: str
    seq: int
    """Of its last stored event."""
    owned: bool
    """A living engine runs it."""
    server: str
    """Who answered it so far."""


def run(args: Namespace) -> int:
    in_lines = args.plain or args.json or os.environ.get("ACCESSIBLE") == "1" or setup.terminal() is not None
    settings = setup.settings_of(args, asks_model=False)
    chosen = choose(settings, args.id)
    if chosen.owned:
        return _attach(settings, chosen, in_lines=in_lines)
    if args.base_url is None and args.model is None:
        settings = setup.going_on(settings, chosen.server)
    if (missing := settings.missing()) is not None:
        raise exits.Quit(exits.USAGE, missing)
    command = ResumeSwarm(swarm=chosen.swarm, unattended="refuse" if in_lines else "wait")
    if not in_lines:
        return run_console.open_console(settings, command)
    mode: headless.Mode = "json" if args.json else "plain" if args.plain else "headless"
    engine = setup.own_engine("exec")
    return headless.run(setup.headless(settings), command, mode, engine=engine, after=chosen.seq)


def choose(settings: Settings, ref: str | None) -> Chosen:
    """The swarm that `ref` means (its id, an agent's, or a unique beginning); without it the newest that did
    not end by itself, else the newest. Raises Quit, StoreError or NotFound, one sentence."""
    found = reading.read(settings, lambda reader: _choose(reader, ref))
    if not found:
        raise exits.Quit(exits.ERROR, "there is no swarm to go on with: start one with watchroom TASK")
    return Chosen(**found)


async def _choose(reader: Reader, ref: str | None) -> dict[str, Any]:
    if ref is not None:
        swarm = await reader.find_swarm(ref)
    elif (newest := await _newest(reader)) is not None:
        swarm = newest
    else:
        return {}
    owned = swarm in await reader.live_swarms()
    state = await reader.load_state(swarm)
    return {"swarm": swarm, "seq": state.seq, "owned": owned, "server": state.server}


async def _newest(reader: Reader) -> str | None:
    """`status` is the root's: a swarm whose owner died reads as interrupted (decision 2)."""
    sessions = (await reader.sessions())["sessions"]
    cut = [one for one in sessions if one["status"] not in ("completed", "errored", "shutdown")]
    chosen = next(iter(cut or sessions), None)
    return str(chosen["swarm"]) if chosen is not None else None


def _attach(settings: Settings, chosen: Chosen, *, in_lines: bool) -> int:
    """A living engine runs it: the console shows it there, lines cannot go on with it."""
    if in_lines:
        from core.channel.directory import owner_of

        owner = owner_of(settings.home, chosen.swarm)
        who = f"{owner.kind} engine, process {owner.pid}" if owner is not None else "another engine"
        raise exits.Quit(
            exits.ERROR,
            f"this swarm runs already ({who}): watchroom attach {short_id(chosen.swarm)} shows it",
        )
    return run_console.open_console(
        settings, chosen.swarm, connect=lambda wanted: setup.swarm_engine(wanted, chosen.swarm)
    )
