"""`watchroom agent list|interrupt|close|resume|send|compact`: see and steer agents of live engines.

The list is read from the store, so that a busy engine is never disturbed by it. The others go to the engine
that owns the agent's swarm, name exactly one agent, and answer what changed (decision 46).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from core.channel.client import ClientError, EngineBusy, EngineGone
from core.domain.commands import Close, Compact, Interrupt, Reply, ResumeAgent, SendInput
from core.domain.state import AgentState
from core.safety.text import clean_line
from core.store.errors import NotFound, StoreError
from core.store.readers import Reader
from core.store.roster import Found, find_agents, roster, running_below
from tui import exits, reading, setup, signals
from tui.farewell import short_id
from tui.owners import owner, owner_text
from tui.run_exec import read_task
from tui.table import cost_cell, show

SHOWN_MATCHES = 8


def show_list(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: roster(reader, args.id, args.status))
    owners = {swarm: owner(settings.home, swarm) for swarm in {row["swarm"] for row in found["agents"]}}
    for row in found["agents"]:
        row["engine"] = owners[row["swarm"]]
    if args.json:
        reading.print_json(found)
        return exits.OK
    if not found["agents"]:
        which = f" with status {args.status}" if args.status else ""
        where = "of a swarm that runs" if args.id is None else "in that swarm"
        print(f"no agents{which} {where}", file=sys.stderr)
        return exits.OK
    open_ones = [row for row in found["agents"] if args.status or row["status"] != "shutdown"]
    if open_ones:
        _show(open_ones, owners, indent=args.status is None)
    if closed := len(found["agents"]) - len(open_ones):
        print(f"not listed: {closed} closed (--status shutdown)", file=sys.stderr)
    return exits.OK


def _show(
    agents: Sequence[dict[str, Any]], owners: dict[str, dict[str, Any] | None], *, indent: bool
) -> None:
    guide = f"{setup.guide()} "
    rows = [
        {
            **row,
            "agent": guide * (int(row["depth"] or 0) if indent else 0)
            + clean_line(str(row["nickname"] or row["path"])),
            "waiting": row["waits_for"],
            "cost": cost_cell(row),
            "engine": owner_text(owners[row["swarm"]]),
            "swarm": short_id(row["swarm"]),
        }
        for row in agents
    ]
    columns = [("agent", "agent"), ("status", "status"), ("waiting", "waiting"), ("asks", "asks")]
    columns += [("calls", "calls"), ("tokens", "tokens"), ("cost", "cost"), ("engine", "engine")]
    if len(owners) > 1:
        columns.append(("swarm", "swarm"))
    show([*columns, ("path", "path")], rows, gives_way=("engine", "calls", "asks", "cost", "tokens"), last=40)


# --- one agent -------------------------------------------------------------------------------------------


def interrupt(args: Namespace) -> int:
    return _change(args, "interrupt")


def close(args: Namespace) -> int:
    return _change(args, "close")


def resume(args: Namespace) -> int:
    return _change(args, "resume")


def send(args: Namespace) -> int:
    text = read_task(args.text, "the text", "say something to the agent")
    return _change(args, "send", text)


def compact(args: Namespace) -> int:
    return _change(args, "compact")


_EFFECTS = {"interrupt": "stopped", "close": "closed", "resume": "resumed"}
"""What a reply calls those whom a command changed."""
_NOTHING = {"interrupt": "it runs no turn", "close": "it is closed already", "resume": "it is open already"}


class Refused(Exception):
    """The engine said no: a code for programs, a sentence for people."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.error)
        self.code = reply.code or "error"


class _Ambiguous(Exception):
    """A word that means several agents; the sentence lists them."""


class _Result:
    """What one command did, with all that is needed to tell it."""

    def __init__(
        self, target: Found, value: dict[str, Any], agents: dict[str, AgentState], below: int
    ) -> None:
        self.target = target
        self.value = value
        self.agents = agents
        self.below = below

    def people(self, key: str) -> list[dict[str, str]]:
        threads = self.value.get(key, [])
        known = [self.agents[thread] for thread in threads if thread in self.agents]
        return [{"thread": a.thread, "nickname": a.nickname, "path": a.path} for a in known]


def _change(args: Namespace, verb: str, text: str = "") -> int:
    settings = setup.settings_of(args, asks_model=False)
    author = author_of(args)
    results: list[_Result] = []

    async def main() -> int:
        from core.channel.launch import engine_of

        async with Reader.open(settings.home) as reader:
            target = _only(args.agent, await find_agents(reader, args.agent, args.swarm))
            who = {"swarm": target.swarm, "thread": target.thread, "author": author}
            command: Interrupt | Close | ResumeAgent | SendInput | Compact
            if verb == "interrupt":
                command = Interrupt(**who, cascade=args.cascade, dry_run=args.dry_run)
            elif verb == "close":
                command = Close(**who, dry_run=args.dry_run)
            elif verb == "resume":
                command = ResumeAgent(**who, dry_run=args.dry_run)
            elif verb == "compact":
                command = Compact(**who, dry_run=args.dry_run)
            else:
                command = SendInput(**who, text=text, dry_run=args.dry_run)
            async with engine_of(settings.home, target.swarm) as client:
                reply = await client.send(command)
            if not reply.ok:
                raise Refused(reply)
            state = await reader.load_state(target.swarm)
            below = 0 if verb != "interrupt" or args.cascade else len(running_below(state, target.thread))
            results.append(_Result(target, reply.value, state.agents, below))
        return exits.OK

    try:
        if code := signals.run(main):
            return code
    except (Refused, _Ambiguous, ClientError, NotFound, StoreError) as error:
        return failed(error, args.json)
    if args.json:
        reading.print_json(_json(results[0], verb, args.dry_run))
    else:
        for line in _lines(results[0], verb, args.dry_run):
            print(line)
    return exits.OK


def _only(ref: str, found: Sequence[Found]) -> Found:
    if len(found) == 1:
        return found[0]
    several = len({agent.swarm for agent in found}) > 1
    names = [
        f"{agent.nickname} {agent.path}"
        + (f" (swarm {short_id(agent.swarm)})" if several else f" {agent.thread}")
        for agent in found[:SHOWN_MATCHES]
    ]
    more = ", …" if len(found) > SHOWN_MATCHES else ""
    hint = "; --swarm ID narrows it down" if several else ""
    raise _Ambiguous(f"{clean_line(ref)!r} means {len(found)} agents: {', '.join(names)}{more}{hint}")


def author_of(args: Namespace) -> str:
    """Who asks, as it is recorded. Raises Quit."""
    author = clean_line(args.author).strip()
    if not author or len(author) > 80:
        raise exits.Quit(exits.USAGE, "--as needs a name of 1 to 80 letters")
    return author


def failed(error: Exception, json: bool) -> int:
    """One sentence on standard error; for a script its code and the same sentence as JSON."""
    if isinstance(error, Refused):
        code = error.code
    elif isinstance(error, NotFound):
        code = "not_found"
    elif isinstance(error, _Ambiguous):
        code = "ambiguous"
    elif isinstance(error, EngineBusy):
        code = "busy"
    else:
        code = "gone" if isinstance(error, EngineGone) else "error"
    message = clean_line(str(error))
    if code == "busy" and "busy" not in message:
        message = f"busy: {message}"
    if json:
        reading.print_json({"error": {"code": code, "message": message}})
    print(f"watchroom: {message}", file=sys.stderr)
    return exits.USAGE if code in ("usage", "ambiguous") else exits.ERROR


def _json(result: _Result, verb: str, dry_run: bool) -> dict[str, Any]:
    target = result.target
    shown = {
        "swarm": target.swarm,
        "thread": target.thread,
        "nickname": target.nickname,
        "path": target.path,
        "changed": bool(result.value.get("changed")),
        "dry_run": dry_run,
    }
    if verb == "interrupt":
        return {**shown, "stopped": result.people("stopped"), "running_below": result.below}
    key = _EFFECTS.get(verb)
    return {**shown, key: result.people(key)} if key is not None else shown


def _lines(result: _Result, verb: str, dry_run: bool) -> list[str]:
    name = _name({"nickname": result.target.nickname, "path": result.target.path})
    if verb == "send":
        said = "would get the text" if dry_run else "got the text"
        return [f"{name} {said}"]
    if verb == "compact":
        when = f"its history {'would be' if dry_run else 'is'} compacted before its next request"
        asked = result.value.get("changed") or dry_run
        return [f"{name}: {when}" if asked else f"nothing to do for {name}: {when} already"]
    done = "interrupted" if verb == "interrupt" else _EFFECTS[verb]
    people = result.people(_EFFECTS[verb])
    lines = [f"{'would be ' if dry_run else ''}{done}: {_name(person)}" for person in people]
    if not people:
        lines.append(f"nothing to do for {name}: {_NOTHING[verb]}")
    if result.below:
        goes = "agent below it goes" if result.below == 1 else "agents below it go"
        lines.append(f"{result.below} {goes} on; --cascade stops them too")
    return lines


def _name(who: dict[str, str]) -> str:
    return clean_line(f"{who['nickname'] or 'agent'} ({who['path']})")
