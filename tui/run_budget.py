"""`watchroom agent budget`: what a swarm may spend, and has; changed while it runs."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from core.channel.client import ClientError
from core.domain.commands import SetBudget
from core.domain.state import SwarmState
from core.store.errors import NotFound, StoreError
from core.store.readers import Reader
from core.view.budget import limits
from tui import exits, reading, setup, signals
from tui.farewell import short_id
from tui.run_agent import Refused, author_of, failed

NAMES = ("tokens", "cost", "per_agent_tokens", "per_agent_cost")


def budget(args: Namespace) -> int:
    """Without a limit to set: show. The engine that runs the swarm changes it; one that nobody runs gets its
    limits when it is resumed."""
    settings = setup.settings_of(args, asks_model=False)
    author = author_of(args)
    wanted = {name: getattr(args, name) for name in NAMES}
    change = any(value is not None for value in wanted.values())
    found: list[tuple[SwarmState, bool]] = []

    async def main() -> int:
        async with Reader.open(settings.home) as reader:
            swarm = await reader.find_swarm(args.id)
            changed = False
            state = await reader.load_state(swarm)
            if change:
                from core.channel.launch import engine_of

                command = SetBudget(swarm=swarm, author=author, dry_run=args.dry_run, **wanted)
                async with engine_of(settings.home, swarm) as client:
                    reply = await client.send(command)
                if not reply.ok:
                    raise Refused(reply)
                changed = bool(reply.value["changed"])
                told = reply.value["budget"]
                state = await reader.load_state(swarm)
                state.budget = type(state.budget)(**told)  # a dry run shows what would be
            found.append((state, changed))
        return exits.OK

    try:
        if code := signals.run(main):
            return code
    except (Refused, ClientError, NotFound, StoreError) as error:
        return failed(error, args.json)
    state, changed = found[0]
    if args.json:
        reading.print_json(_json(state, changed, args.dry_run))
        return exits.OK
    for line in _lines(state, change, changed, args.dry_run):
        print(line)
    return exits.OK


def _json(state: SwarmState, changed: bool, dry_run: bool) -> dict[str, Any]:
    tokens = state.tokens.total if state.tokens is not None else 0
    spending = state.spending
    return {
        "swarm": state.swarm,
        "budget": {name: getattr(state.budget, name) for name in NAMES},
        "spent": {
            "tokens": tokens + spending.unmetered,
            "cost": round(spending.dollars + spending.unmetered_dollars, 6) if state.budget.money else None,
            "unmetered_tokens": spending.unmetered,
        },
        "changed": changed,
        "dry_run": dry_run,
    }


def _lines(state: SwarmState, change: bool, changed: bool, dry_run: bool) -> list[str]:
    shown = [f"{limit.kind.replace('_', ' ')}: {limit.words()}" for limit in limits(state)]
    lines = shown or [f"no limit; {_used(state)}"]
    if change and not dry_run and not changed:
        lines.append("nothing to do: it was so already")
    if not change and not shown:
        lines.append(f"set one: watchroom agent budget {short_id(state.swarm)} --tokens 1M")
    return lines


def _used(state: SwarmState) -> str:
    tokens = (state.tokens.total if state.tokens is not None else 0) + state.spending.unmetered
    return f"{tokens:,} tokens used"
