"""`watchroom doctor`: is everything there that a swarm needs? It only looks and makes nothing there."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import stat
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from core.clock import Clock, SystemClock
from core.safety.text import clean_line
from tui import exits, reading, setup, signals

if TYPE_CHECKING:
    from core.channel.directory import EngineRecord
    from core.config import McpSettings, Settings

Status = Literal["ok", "warn", "fail"]
SMALLEST = (80, 24)
ENGINE_SECONDS = 3.0


class Check(NamedTuple):
    name: str
    status: Status
    detail: str


def run(args: Namespace) -> int:
    checks: list[Check] = []

    async def main() -> int:
        async for check in examine(args, SystemClock()):
            checks.append(Check(check.name, check.status, clean_line(check.detail)))
            if not args.json:
                print(_line(checks[-1]), flush=True)
        return exits.OK

    if code := signals.run(main):
        return code
    failed = any(check.status == "fail" for check in checks)
    if args.json:
        reading.print_json({"ok": not failed, "checks": [check._asdict() for check in checks]})
    return exits.ERROR if failed else exits.OK


def _line(check: Check) -> str:
    glyphs = {"ok": "✓", "warn": "!", "fail": "✗"}
    if not setup.glyphs_fit(sys.stdout):
        glyphs = {"ok": "+", "warn": "!", "fail": "x"}
    return f"{glyphs[check.status]} {check.status:4}  {check.name:8}  {check.detail}"


async def examine(args: Namespace, clock: Clock) -> AsyncIterator[Check]:
    """The checks one by one, as each is done."""
    yield terminal()
    yield python()
    yield sqlite()
    try:
        settings = setup.settings_of(args, asks_model=False)
    except exits.Quit as error:
        yield Check("settings", "fail", str(error))
        return  # where things are kept, and which model, is not known then
    there = "read" if settings.config_file.is_file() else "there is none, which is fine"
    yield Check("settings", "ok", f"{settings.config_file} ({there})")
    yield await sandbox(settings, clock)
    for check in folders(settings):
        yield check
    yield await store(settings)
    async for check in engines(settings, clock):
        yield check
    yield key(settings)
    yield model(settings)
    yield await server(settings, clock)
    for check in mcp_servers(settings):
        yield check


# --- this machine ----------------------------------------------------------------------------------------


def terminal() -> Check:
    columns, lines = shutil.get_terminal_size((0, 0))
    encoding = (sys.stdout.encoding or "unknown").lower()
    colours = "no colours (NO_COLOR)" if os.environ.get("NO_COLOR") else _colours()
    facts = [f"TERM={os.environ.get('TERM') or 'unset'}", f"{columns}x{lines}", encoding, colours]
    said = ", ".join(facts)
    if (reason := setup.terminal()) is not None:
        return Check("terminal", "warn", f"{reason}; exec, job run and --plain need none ({said})")
    if columns < SMALLEST[0] or lines < SMALLEST[1]:
        return Check("terminal", "warn", f"{said}: the console wants {SMALLEST[0]}x{SMALLEST[1]} or more")
    if not setup.glyphs_fit(sys.stdout):
        return Check("terminal", "warn", f"{said}: without UTF-8 the console shows ASCII marks")
    return Check("terminal", "ok", said)


def _colours() -> str:
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "16 million colours"
    return "256 colours" if "256" in os.environ.get("TERM", "") else "16 colours"


def python() -> Check:
    from core.version import VERSION

    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", "ok", f"watchroom {VERSION}, Python {found}, {sys.platform}")


def sqlite() -> Check:
    from core.store.health import sqlite_version

    found, needed = sqlite_version()
    if needed is not None:
        return Check("sqlite", "fail", f"SQLite {found} is too old: {needed} or newer is needed")
    return Check("sqlite", "ok", f"SQLite {found}")


async def sandbox(settings: Settings, clock: Clock) -> Check:
    if settings.sandbox == "off":
        return Check("sandbox", "warn", "switched off: commands run with all that you may do")
    from core.tools.sandbox import Sandbox

    found, why = await Sandbox.detect(settings.cwd, clock)
    if found is not None:
        return Check("sandbox", "ok", f"bubblewrap works ({found.program}); commands run {settings.sandbox}")
    if settings.approval_policy == "untrusted":
        return Check("sandbox", "warn", f"{why}: every command that is not harmless asks you first")
    return Check(
        "sandbox", "fail", f"{why}: with approval policy {settings.approval_policy} no command can run"
    )


# --- folders, store, engines -----------------------------------------------------------------------------


def folders(settings: Settings) -> list[Check]:
    found = [
        _folder("config", settings.config_file.parent),
        _folder("home", settings.home),
        _folder("logs", settings.logs),
    ]
    return [*found, _sockets()]


def _folder(name: str, path: Path) -> Check:
    if not os.path.exists(path):
        if setup.writable(path):
            return Check(name, "ok", f"{path} (made when it is needed)")
        return Check(name, "fail", f"{path} does not exist and cannot be made")
    if not os.path.isdir(path):
        return Check(name, "fail", f"{path} is not a folder")
    mode = stat.S_IMODE(path.stat().st_mode)
    if name != "config" and not os.access(path, os.W_OK | os.X_OK):
        return Check(name, "fail", f"{path} cannot be written (mode {mode:04o})")
    if name == "home" and mode & 0o022:
        return Check(name, "warn", f"{path} can be written by others (mode {mode:04o}): chmod 700 it")
    return Check(name, "ok", f"{path} (mode {mode:04o})")


def _sockets() -> Check:
    """Where an engine would listen. Only making the folder tells whether it can be made."""
    from core.channel.client import ClientError
    from core.channel.sockets import socket_path

    try:
        folder = socket_path("doctor").parent
    except ClientError as error:
        return Check("sockets", "fail", str(error))
    return Check("sockets", "ok", f"{folder} (mode {stat.S_IMODE(folder.stat().st_mode):04o})")


async def store(settings: Settings) -> Check:
    from core.store.errors import StoreError
    from core.store.health import health

    try:
        found = await health(settings.home)
    except StoreError as error:
        return Check("store", "fail", str(error))
    except OSError as error:
        return Check("store", "fail", f"the store in {settings.home} cannot be read: {error.strerror}")
    if found is None:
        return Check("store", "ok", "there is none yet")
    said = f"{found.path}, {found.swarms} swarm{'' if found.swarms == 1 else 's'}, {found.bytes / 1e6:.1f} MB"
    if not found.writable:
        return Check("store", "fail", f"{said}: it can be read, not written")
    return Check("store", "ok", said)


async def engines(settings: Settings, clock: Clock) -> AsyncIterator[Check]:
    from core.channel.client import ClientError
    from core.channel.directory import living

    try:
        records = await asyncio.to_thread(living, settings.home)
    except ClientError as error:
        yield Check("engine", "fail", str(error))
        return
    if not records:
        yield Check("engine", "ok", "none runs in this home (the console starts one)")
    for record in records:
        said = f"{record.kind}, process {record.pid}, version {record.version}"
        if not record.here:
            yield Check("engine", "warn", f"{said}: it runs on {record.host} and cannot be asked from here")
            continue
        status, answer = await _answer(record, clock)
        yield Check("engine", status, f"{said}: {answer}")


async def _answer(record: EngineRecord, clock: Clock) -> tuple[Status, str]:
    from core.channel.client import ClientError
    from core.channel.remote import connect
    from core.domain.commands import ListSwarms

    started = clock.monotonic()
    try:
        async with clock.timeout(ENGINE_SECONDS), connect(Path(record.socket), clock=clock) as client:
            reply = await client.send(ListSwarms())
    except TimeoutError:
        return "warn", f"busy: it did not answer within {ENGINE_SECONDS:.0f} s"
    except ClientError as error:
        return "warn", str(error)
    if not reply.ok:
        return "warn", reply.error
    count = len(reply.value.get("swarms", ()))
    ms = (clock.monotonic() - started) * 1000
    return "ok", f"answers in {ms:.0f} ms, {count} swarm{'' if count == 1 else 's'}"


# --- model -----------------------------------------------------------------------------------------------


def key(settings: Settings) -> Check:
    name = settings.api_key_env
    if settings.api_key is not None:
        return Check("key", "ok", f"{name} is set")
    if settings.scripted is not None:
        return Check("key", "ok", f"{name} is not set; the embedded model needs none")
    needed = settings.model is not None and settings.missing() is not None
    return Check("key", "fail" if needed else "warn", f"{name} is not set")


def model(settings: Settings) -> Check:
    if settings.model is not None:
        return Check("model", "ok", settings.model)
    if settings.scripted is not None:
        return Check("model", "ok", f"embedded: scripted:{settings.scripted}")
    return Check("model", "warn", settings.missing() or "none is set")


async def server(settings: Settings, clock: Clock) -> Check:
    if (scenario := settings.scripted) is not None:
        return await asyncio.to_thread(_scripted, scenario)
    if settings.model is None:
        return Check("server", "warn", "not asked: no model is set")
    from core.models.probe import probe

    secret = settings.api_key.get_secret_value() if settings.api_key is not None else None
    answer = await probe(settings.base_url, secret, settings.model, clock)
    return Check("server", answer.status, answer.detail)


def _scripted(scenario: str) -> Check:
    from core.scripted.scenario import ScenarioError, load_scenario

    try:
        load_scenario(scenario)
    except ScenarioError as error:
        return Check("server", "fail", str(error))
    return Check("server", "ok", "embedded in the engine: no network, no key")


# --- MCP servers -----------------------------------------------------------------------------------------


def mcp_servers(settings: Settings) -> list[Check]:
    """What the settings name, and whether it can be started. Nothing is: a server is a program of others."""
    if not settings.mcp:
        return []
    from core.tools.mcp.server import INSTALL

    if importlib.util.find_spec("mcp") is None:
        required = any(one.enabled and one.required for one in settings.mcp.values())
        return [Check("mcp", "fail" if required else "warn", INSTALL)]
    return [_mcp_server(name, one, settings) for name, one in sorted(settings.mcp.items())]


def _mcp_server(name: str, one: McpSettings, settings: Settings) -> Check:
    from core.tools.mcp.errors import McpError
    from core.tools.mcp.server import environment_of, folder_of
    from core.tools.mcp.stdio import find_command

    said = name + (" (required)" if one.required else "")
    if not one.enabled:
        return Check("mcp", "ok", f"{said}: switched off")
    if (one.command is None) == (one.url is None):
        return Check("mcp", "fail" if one.required else "warn", f"{said}: it needs either a command or a url")
    if one.command is None:
        return Check("mcp", "ok", f"{said}: {one.url} (not asked)")
    missing = [variable for variable in one.env_vars if variable not in os.environ]
    try:
        found = find_command(one.command, folder_of(one, settings.cwd), environment_of(one, os.environ))
    except McpError as error:
        return Check("mcp", "fail" if one.required else "warn", f"{said}: {error}")
    if missing:
        return Check("mcp", "warn", f"{said}: {found}, but {', '.join(missing)} is not set")
    return Check("mcp", "ok", f"{said}: {found} (not started)")
