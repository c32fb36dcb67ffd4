"""`watchroom session list|show|tree`: swarms in the store."""

from __future__ import annotations

import sys
import textwrap
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from core.safety.text import clean, clean_line
from tui import exits, reading, setup
from tui.farewell import SHORT_CHARS, short_id
from tui.owners import owner, owner_text
from tui.table import cost_cell, moment, show

if TYPE_CHECKING:
    from core.store.readers import Reader

SHOWN_LINES = 12
"""Lines of one result that the text form shows; --json has them all."""


def show_list(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: reader.sessions())
    swarms = [row.pop("swarm") for row in found["sessions"]]
    for row, swarm in zip(found["sessions"], swarms, strict=True):
        row["engine"] = owner(settings.home, swarm)
    if args.json:
        reading.print_json(found)
        return exits.OK
    if not found["sessions"]:
        print("no swarms yet: start one with watchroom demo", file=sys.stderr)
        return exits.OK
    rows = [
        {
            **row,
            "swarm": short_id(swarm),
            "started": moment(row["started_at"]),
            "engine": owner_text(row["engine"]),
            "cost": cost_cell(row),
        }
        for row, swarm in zip(found["sessions"], swarms, strict=True)
    ]
    columns = (
        ("swarm", "swarm"),
        ("started", "started"),
        ("status", "status"),
        ("agents", "agents"),
        ("jobs", "jobs"),
        ("tokens", "tokens"),
        ("cost", "cost"),
        ("model", "model"),
        ("engine", "engine"),
        ("title", "title"),
    )
    show(columns, rows, gives_way=("model", "engine", "cost", "tokens", "jobs", "agents"))
    return exits.OK


def show_tree(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: reader.tree(args.id))
    if args.json:
        reading.print_json(found)
        return exits.OK
    guide = f"{setup.guide()} "
    ids = _short([row["thread"] for row in found["agents"]])
    rows = [
        {
            **row,
            "agent": guide * int(row["depth"] or 0) + clean_line(str(row["nickname"] or row["path"])),
            "thread": short,
            "waiting": row["waits_for"],
            "cost": cost_cell(row),
        }
        for row, short in zip(found["agents"], ids, strict=True)
    ]
    columns = (
        ("agent", "agent"),
        ("status", "status"),
        ("waiting", "waiting"),
        ("tokens", "tokens"),
        ("cost", "cost"),
        ("model", "model"),
        ("thread", "thread"),
        ("path", "path"),
    )
    show(columns, rows, gives_way=("model", "cost", "tokens", "waiting"))
    names = {row["thread"]: row["nickname"] for row in found["agents"]}
    for server in found["servers"]:
        whose = f"{names[server['agent']]}: " if server["agent"] in names else ""
        print(clean_line(f"{whose}mcp {server['words']}"))
    return exits.OK


def _short(threads: list[str]) -> list[str]:
    """The beginnings of these ids that tell them apart; agents can be spawned in one millisecond."""
    for chars in range(SHORT_CHARS, max(map(len, threads), default=0)):
        if len({thread[:chars] for thread in threads}) == len(set(threads)):
            return [thread[:chars].rstrip("-") for thread in threads]
    return threads


def show_one(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    if args.json:
        reading.print_json(reading.read(settings, lambda reader: reader.show(args.id)))
        return exits.OK
    both = reading.read(settings, lambda reader: _with_names(reader, args.id))
    found, names = both["found"], both["names"]
    total = (found["tokens"] or {}).get("total")
    used = f"{total:,} tokens" if total is not None else None  # unknown is not none
    spent = cost_cell(found)
    spent = f"cost {spent}" if spent == "n/a" else spent
    facts = [found["nickname"], found["path"], found["status"], found["model"], used, spent]
    print("  ".join(clean_line(str(fact)) for fact in facts if fact))
    names["assistant"] = found["nickname"] or "assistant"
    calls = {call["id"]: call for call in found["calls"]}
    for row in found["rows"]:
        for line in _row(row, calls, names):
            print(line)
    if hidden := {key: count for key, count in (found["damage"] or {}).items() if count}:
        print("damage  " + "  ".join(f"{clean_line(str(key))} {count}" for key, count in hidden.items()))
    return exits.OK


async def _with_names(reader: Reader, ref: str) -> dict[str, Any]:
    """The transcript of an agent, and the nickname of every agent of its swarm by thread id and by path."""
    found = await reader.show(ref)
    tree = await reader.tree(found["root"])
    names: dict[str, str] = {}
    for agent in tree["agents"]:
        if agent["nickname"]:
            names[agent["thread"]] = names[agent["path"]] = agent["nickname"]
    return {"found": found, "names": names}


def _row(row: dict[str, Any], calls: dict[str, dict[str, Any]], names: dict[str, str]) -> list[str]:
    if (call := calls.get(row.get("call", ""))) is not None:
        return _call(row, call, names)
    who = str(row.get("author") or row["role"])
    return ["", *_block(f"{_time(row['at'])}  {clean_line(names.get(who, who))}", row.get("text") or "")]


def _call(row: dict[str, Any], call: dict[str, Any], names: dict[str, str]) -> list[str]:
    lines = ["", f"{_time(row['at'])}  {clean_line(call['name'])}  {clean_line(call['arguments'])}"]
    guide = " " * 10 + setup.guide()
    for event in call["events"]:
        about = str(event["agent"] or "")
        facts = (event["status"], names.get(about, about))
        head = " ".join([guide, *(clean_line(fact) for fact in facts if fact)])
        text = clean(event["text"] or "").splitlines()
        shown = text[:SHOWN_LINES]
        lines.append(f"{head} {shown[0] if shown else ''}".rstrip())
        lines.extend(f"{guide} {line}".rstrip() for line in shown[1:])
        if len(text) > SHOWN_LINES:
            lines.append(f"{guide} {len(text) - SHOWN_LINES} more lines (--json shows all)")
    return lines


def _block(head: str, text: str) -> list[str]:
    return [head, *textwrap.indent(clean(text), "          ").splitlines()]


def _time(value: str | None) -> str:
    return (moment(value) or "     –").rsplit(" ", 1)[-1]
