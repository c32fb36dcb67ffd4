"""How a face comes to an engine: the home's own, started if none lives, or the one that owns a swarm.

Light: nothing of the engine is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import core
from core.channel import directory, remote
from core.channel.client import Client, ClientError, EngineBusy, EngineGone
from core.channel.directory import EngineRecord
from core.channel.logfile import make_private
from core.clock import Clock, SystemClock
from core.config import EngineSettings, Settings
from core.safety.text import clean_line, shorten
from core.store import locks
from core.store.errors import StoreError
from core.tools.environment import listed

READY = "ready"
START_SECONDS = 30.0
TRIES = 3
"""An engine may end by itself in the moment in which somebody comes."""
MOST_SENTENCE = 2000
NICE = 5
"""The engine gives way to the console."""
OUTPUT_NAME = "engine.err"
MOST_OUTPUT = 1_000_000
VARIABLE = "WATCHROOM_ENGINE"
"""How the home's settings reach a background engine; it takes nothing else of its starter's."""
_PASSED = frozenset(
    {
        "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
        "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    }
)  # fmt: skip


@asynccontextmanager
async def home_engine(
    settings: Settings, *, clock: Clock | None = None, start: bool = True
) -> AsyncIterator[Client]:
    """The home's background engine, started first if none lives (with `start`). Raises ClientError."""
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        yield await _home_engine(stack, settings, clock, start)


async def _home_engine(stack: AsyncExitStack, settings: Settings, clock: Clock, start: bool) -> Client:
    for attempt in range(TRIES):
        record = await asyncio.to_thread(directory.background, settings.home)
        if record is not None:
            try:
                return await stack.enter_async_context(_connect(settings.home, record, clock))
            except EngineGone:
                if attempt == TRIES - 1:
                    raise
        if not start:
            break
        await start_engine(settings, clock)
    else:
        raise ClientError("the engine of this home was started and ended again; its log says why")
    raise ClientError("no engine runs here; the console starts one, and so does: watchroom engine")


@asynccontextmanager
async def engine_of(home: Path, swarm: str, *, clock: Clock | None = None) -> AsyncIterator[Client]:
    """The engine that owns a swarm. Raises ClientError: the swarm is not running, or its owner cannot be
    reached."""
    try:
        alive = await asyncio.to_thread(locks.owner_alive, home, swarm)
    except StoreError as error:
        raise ClientError(str(error)) from error
    if not alive:
        raise ClientError(f"swarm {swarm} is not running; to go on with it: watchroom resume {swarm}")
    record = await asyncio.to_thread(directory.owner_of, home, swarm)
    if record is None:
        owner = locks.owner_of(home, swarm)
        who = owner.text if owner is not None else "process unknown"
        raise ClientError(f"swarm {swarm} belongs to an engine that cannot be reached ({who})")
    async with _connect(home, record, clock or SystemClock()) as client:
        yield client


@asynccontextmanager
async def _connect(home: Path, record: EngineRecord, clock: Clock) -> AsyncIterator[Client]:
    """Raises ClientError; EngineGone only if the engine has ended meanwhile."""
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(remote.connect(Path(record.socket), clock=clock))
        except EngineGone as error:
            raise await asyncio.to_thread(_unreachable, home, record, error) from error
        yield client


def _unreachable(home: Path, record: EngineRecord, error: EngineGone) -> ClientError:
    """Why nothing answers at an engine's socket. One that lives without it has not ended."""
    if record not in directory.living(home):
        return error
    if not record.here:
        # Asked only now: a machine's name may change while its engine runs, and then the socket answers.
        host = clean_line(record.host)
        return ClientError(
            f"the engine (process {record.pid}) runs on {host}, not on this machine:"
            f" watchroom attach --ssh {host}"
        )
    if os.path.exists(record.socket):
        return error
    end = "watchroom stop" if record.kind == "background" else f"kill {record.pid}"
    return ClientError(
        f"the engine (process {record.pid}, {record.kind}) lives, but its socket {record.socket} is gone;"
        f" end it with: {end}"
    )


# --- starting --------------------------------------------------------------------------------------------


async def start_engine(settings: Settings, clock: Clock) -> None:
    """Start the home's background engine and wait until it can be connected to. If another process starts
    one at the same moment, that one is waited for. Raises ClientError with the engine's own sentence."""
    output = _open_output(settings.logs)
    hear, say = os.pipe()
    try:
        process = _spawn(settings, say, output)
    except OSError as error:
        os.close(hear)
        raise ClientError(f"the engine cannot be started: {error.strerror}") from error
    finally:
        os.close(say)
        os.close(output)
    try:
        async with clock.timeout(START_SECONDS):
            sentence = clean_line((await _first_words(hear)).decode("utf-8", "replace"))
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ours, and not yet an engine that serves anybody
        raise EngineBusy(
            f"the engine is not ready after {START_SECONDS:g} seconds; the log in {settings.logs} may say why"
        ) from None
    finally:
        process.wait()  # the engine leaves its starter at once: there is nobody to be waited for later
    if sentence != READY:
        raise ClientError(
            shorten(sentence, 400) or f"the engine ended while it started; see {settings.logs / OUTPUT_NAME}"
        )


def _spawn(settings: Settings, say: int, output: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "tui", "engine", "--background", "--ready-fd", str(say)]
    return subprocess.Popen(
        [*argv, "--home", str(settings.home)],
        cwd="/",
        env=engine_environment(settings, os.environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(say,),
        start_new_session=True,
    )


def engine_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What a background engine inherits: what is listed, and no key (decision 4)."""
    env = listed(environ)
    env |= {name: environ[name] for name in _PASSED if name in environ}
    if (path := _import_path(environ)) is not None:
        env["PYTHONPATH"] = path
    env[VARIABLE] = _described(settings)
    return env


def _import_path(environ: Mapping[str, str]) -> str | None:
    """The folder of this package, if it is importable only because PYTHONPATH or the folder Python was
    started in says so. Never the rest of PYTHONPATH (decision 5)."""
    folder = Path(core.__file__).resolve().parent.parent
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if str(folder) in {os.path.realpath(path) for path in installed}:
        return None
    named = [os.path.realpath(path) for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if not sys.flags.safe_path and sys.path:
        named.append(os.path.realpath(sys.path[0]))
    return str(folder) if str(folder) in named else None


def _described(settings: Settings) -> str:
    """The engine's own settings: home, log folder and [engine]. Everything else comes with commands."""
    engine = settings.engine.model_dump(mode="json")
    return json.dumps({"home": str(settings.home), "logs": str(settings.logs), "engine": engine})


def described(text: str) -> Settings:
    """Settings as `start_engine` described them. Raises ClientError."""
    try:
        found: dict[str, Any] = json.loads(text)
        return Settings(
            home=Path(found["home"]),
            logs=Path(found["logs"]),
            engine=EngineSettings.model_validate(found["engine"]),
            config_file=Path(os.devnull),
            cwd=Path("/"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the engine was started with settings that cannot be read: {error}") from error


def _open_output(logs: Path) -> int:
    """A file for what the interpreter itself may print; never a terminal. Raises ClientError."""
    path = logs / OUTPUT_NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        make_private(logs)
        fd = os.open(path, flags, 0o600)
        if os.fstat(fd).st_size > MOST_OUTPUT:
            os.ftruncate(fd, 0)
    except OSError as error:
        raise ClientError(f"the log {path} cannot be written: {error.strerror}") from error
    return fd


async def _first_words(fd: int) -> bytes:
    """What is first written into a pipe, in one piece; nothing if it ends first. Owns `fd`."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        return await reader.read(MOST_SENTENCE)
    finally:
        transport.close()
