"""`watchroom engine` and `watchroom stop`: the home's background engine, and its end."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from core.channel import directory
from core.channel.client import ClientError
from core.channel.directory import EngineRecord
from core.clock import Clock, SystemClock
from core.domain.commands import ListSwarms, StopEngine
from core.safety.text import clean_line
from tui import exits, reading, setup, signals
from tui.farewell import short_id

if TYPE_CHECKING:
    from core.channel.directory import Claim
    from core.channel.logfile import LogFile
    from core.config import Settings
    from core.engine.engine import Engine

log = logging.getLogger("watchroom.engine")
ASK_SECONDS = 10.0
"""How long a living engine may take to say that it stops."""
STOP_SECONDS = 60.0
"""How long it may then take to interrupt and record everything."""


# --- engine ----------------------------------------------------------------------------------------------


def run(args: Namespace) -> int:
    if args.background:
        return _detached(args)
    settings = setup.settings_of(args, asks_model=False)

    def ready(socket: str) -> None:
        said = clean_line(f"watchroom: the engine of {settings.home} listens at {socket}")
        print(f"{said} (process {os.getpid()}; ctrl+c ends it)", file=sys.stderr, flush=True)

    return _engine(settings, ready)


def _engine(settings: Settings, ready: Callable[[str], None]) -> int:
    from core.channel.host import claim
    from core.channel.logfile import logging_to

    # Waiting for one that is starting or ending blocks: before there is a loop, when ctrl+c still works.
    claimed = claim(settings)
    try:
        with logging_to(settings.logs) as file:
            return signals.run(lambda: _serve(settings, ready, claimed, file))
    finally:
        claimed.close()


async def _serve(settings: Settings, ready: Callable[[str], None], claimed: Claim, file: LogFile) -> int:
    from core.channel.host import run_background

    def started(engine: Engine) -> None:
        file.redact = engine.store.redact  # it learns the secrets of everybody who starts a swarm

    try:
        await run_background(settings, ready=ready, claimed=claimed, started=started)
    except Exception as error:
        log.error("the engine broke: %s", error, exc_info=not isinstance(error, ClientError))
        raise
    return exits.OK


def _detached(args: Namespace) -> int:
    """As a console starts it: in a session of its own, and nobody's child, so that nobody has to wait for
    it. Says on a pipe, in one piece, that it is ready or why it cannot be."""
    from core.channel import launch
    from core.channel.host import EngineRuns

    if os.fork():
        os._exit(exits.OK)
    faulthandler.enable()  # into the file that standard error is
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is no terminal that could be lost
    os.nice(launch.NICE)
    voice = _Voice(args.ready_fd)
    try:
        described = os.environ.pop(launch.VARIABLE, None)
        settings = (
            setup.settings_of(args, asks_model=False) if described is None else launch.described(described)
        )
        return _engine(settings, lambda _: voice.say(launch.READY))
    except EngineRuns:
        voice.say(launch.READY)  # somebody else was faster: that engine serves just as well
        return exits.OK
    except (ClientError, exits.Quit) as error:
        voice.say(clean_line(str(error)))
        raise
    except Exception as error:
        voice.say(clean_line(f"the engine failed: {error!r}"))
        raise


class _Voice:
    """Says one thing on an inherited pipe."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def say(self, text: str) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.write(fd, text.encode("utf-8", "replace")[:2000] + b"\n")
        except BrokenPipeError:
            log.info("whoever started this engine has gone")
        finally:
            os.close(fd)


# --- stop ------------------------------------------------------------------------------------------------


@dataclass
class Stopped:
    """What became of an engine. `interrupted` None: it could not be asked what it was doing."""

    pid: int
    how: str = "asked"
    interrupted: list[dict[str, Any]] | None = None
    why: str = ""
    """Why it could not be asked."""


def stop(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    with directory.watching(settings.home) as wait:
        record = directory.background(settings.home)
        if record is None:
            return _none(settings.home, wait, args.json)
        stopped = Stopped(record.pid)
        if code := signals.run(lambda: _ask(record, stopped, SystemClock())):
            return code
        if stopped.how != "asked":
            _signal(settings.home, record, stopped.why)
        if not _gone(wait):
            raise exits.Quit(
                exits.ERROR,
                f"the engine (process {record.pid}) was told to stop and still runs after {STOP_SECONDS:g}"
                f" seconds; kill -9 {record.pid} ends it at once",
            )
    _tell(stopped, args.json)
    return exits.OK


async def _ask(record: EngineRecord, stopped: Stopped, clock: Clock) -> int:
    """Ask the engine to stop; `stopped` says whether it will."""
    from core.channel.remote import connect

    try:
        async with clock.timeout(ASK_SECONDS), connect(Path(record.socket), clock=clock) as client:
            listed = await client.send(ListSwarms())
            reply = await client.send(StopEngine())
            if reply.ok:
                running = [swarm for swarm in listed.value.get("swarms", ()) if swarm["live"]]
                stopped.interrupted = [
                    {name: swarm[name] for name in ("swarm", "title", "running")} for swarm in running
                ]
                return exits.OK
            stopped.why = reply.error
    except TimeoutError:
        stopped.why = f"it did not answer within {ASK_SECONDS:g} seconds"
    except ClientError as error:
        stopped.why = str(error)
    stopped.how = "signal"
    return exits.OK


def _signal(home: Path, record: EngineRecord, why: str) -> None:
    """SIGTERM, only while the record is locked: until then the process number is the engine's. Raises Quit
    for an engine of another machine, whose number means nothing here."""
    if not record.here:
        where = f"on {record.host} (process {record.pid})"
        raise exits.Quit(exits.ERROR, f"the engine of this home runs {where}: stop it there; here {why}")
    if record not in directory.living(home):
        return
    try:
        os.kill(record.pid, signal.SIGTERM)
    except ProcessLookupError:
        return  # it ended by itself just now
    except PermissionError:
        raise exits.Quit(
            exits.ERROR, f"the engine of this home (process {record.pid}) belongs to another user: {why}"
        ) from None
    if sys.stderr.isatty():
        setup.note(f"{why}; process {record.pid} got a signal and has {STOP_SECONDS:g} seconds to end")


def _gone(wait: Callable[[], None]) -> bool:
    """Wait for the engine's end; False if it takes too long."""
    try:
        with _limit(STOP_SECONDS):
            wait()
    except TimeoutError:
        return False
    return True


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in a body that blocks in a system call."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


def _none(home: Path, wait: Callable[[], None], as_json: bool) -> int:
    """No background engine is to be found; one that is ending is waited for."""
    if not _gone(wait):
        raise exits.Quit(exits.ERROR, "an engine of this home is starting or ending; try again")
    if as_json:
        reading.print_json({"stopped": False, "pid": None, "how": None, "interrupted": []})
        return exits.OK
    print("no background engine runs in this home")
    for record in directory.living(home):
        print(clean_line(f"process {record.pid} ({record.kind}) runs an engine of its own: stop it there"))
    return exits.OK


def _tell(stopped: Stopped, as_json: bool) -> None:
    if as_json:
        reading.print_json(
            {
                "stopped": True,
                "pid": stopped.pid,
                "how": stopped.how,
                "interrupted": stopped.interrupted,
            }
        )
        return
    if stopped.interrupted is None:
        print(clean_line(f"the engine (process {stopped.pid}) was ended by a signal: {stopped.why}"))
        return
    print(f"the engine (process {stopped.pid}) has stopped; " + _interrupted(stopped.interrupted))


def _interrupted(swarms: list[dict[str, Any]]) -> str:
    if not swarms:
        return "nothing was running"
    named = [f"{clean_line(swarm['title']) or 'untitled'} ({short_id(swarm['swarm'])})" for swarm in swarms]
    which = short_id(swarms[0]["swarm"]) if len(swarms) == 1 else "ID"
    return f"interrupted: {', '.join(named)}; to go on: watchroom resume {which}"
