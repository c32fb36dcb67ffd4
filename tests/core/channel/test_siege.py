"""A real engine among many clients that mean it ill: its memory is measured, and a good client is served."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from core.channel import directory
from core.channel import messages as m
from core.channel.client import Client
from core.channel.frames import MAX_TO_CLIENT, MAX_TO_SERVER, pack
from core.channel.launch import home_engine
from core.channel.setup import setup_of
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.version import VERSION
from tests.core.channel import homes
from tests.core.harness import Watched

MB = 1_000_000
MOST = 60 * MB
"""What a siege may cost an engine. Each one here would cost several times as much without its bound."""
TEXT = "x" * 200_000
NOBODY = 65534
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = homes.home_at(tmp_path)
    yield settings
    homes.end_engines(settings.home)


@pytest.fixture
async def good(settings: Settings) -> AsyncIterator[Watched]:
    """A client that follows a swarm with 4 MB of mail in its journal."""
    async with asyncio.timeout(50), home_engine(settings) as client:
        reply = await client.send(c.StartSwarm(task="go", cwd=str(settings.cwd), setup=setup_of(settings)))
        watched = Watched(client, reply.value["swarm"], reply.value["thread"])
        following = asyncio.create_task(watched.follow())
        for _ in range(20):
            await tell(watched, TEXT)
        yield watched
        following.cancel()
        await asyncio.wait({following})


async def tell(watched: Watched, text: str) -> None:
    reply = await watched.client.send(c.SendInput(swarm=watched.swarm, thread=watched.root, text=text))
    assert reply.ok, reply.error


async def is_served(watched: Watched) -> None:
    """Commands, pages and the feed go on; nothing was missed."""
    for number in range(5):
        await tell(watched, f"still there {number}")
        page = await watched.client.page(c.GetEvents(swarm=watched.swarm, limit=5))
        assert isinstance(page, c.EventsPage)
        assert [event.seq for event in page.events] == [1, 2, 3, 4, 5]
    last = (await watched.client.page(c.GetAgents(swarm=watched.swarm))).seq
    await watched.until(lambda state: state.seq >= last)
    assert [event.seq for event in watched.events] == list(
        range(watched.events[0].seq, watched.state.seq + 1)
    )
    assert [mail.text for mail in watched.of(e.MailQueued)][-1] == "still there 4"


def most_memory(client: Client) -> int:
    """The most that the engine ever held, in bytes."""
    for line in Path(f"/proc/{client.engine.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


# --- what they do ----------------------------------------------------------------------------------------

HELLO = pack(m.encode(m.Hello(protocol=m.PROTOCOL, version=VERSION)), MAX_TO_CLIENT)
Attack = Callable[[socket.socket, str], bytes]


def silent(door: socket.socket, swarm: str) -> bytes:
    return b""


def four_gigabytes(door: socket.socket, swarm: str) -> bytes:
    return HELLO + b"\xff\xff\xff\xff" + b"x" * (4 * MB)


def garbage(door: socket.socket, swarm: str) -> bytes:
    return os.urandom(100_000)


def too_much_at_once(door: socket.socket, swarm: str) -> bytes:
    return (MAX_TO_SERVER + 1).to_bytes(4, "big") + b"x" * (4 * MB)


def never_reads(door: socket.socket, swarm: str) -> bytes:
    """Asks for 800 MB of pages and takes none."""
    ask = (m.AskPage(id=n + 1, request=c.GetEvents(swarm=swarm)) for n in range(200))
    return HELLO + b"".join(pack(m.encode(one), MAX_TO_CLIENT) for one in ask)


async def besiege(where: str, swarm: str, attack: Attack, count: int, stack: ExitStack) -> None:
    """`count` connections that say their part as far as anybody takes it, and stay."""

    async def one() -> None:
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        door.setblocking(False)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(door, where)
                await loop.sock_sendall(door, attack(door, swarm))

    await asyncio.gather(*(one() for _ in range(count)))


@linux
@pytest.mark.parametrize(
    ("attack", "count"),
    [(silent, 200), (four_gigabytes, 60), (garbage, 200), (too_much_at_once, 60), (never_reads, 1)],
)
async def test_a_siege_costs_little_memory_and_harms_nobody(
    settings: Settings, good: Watched, attack: Attack, count: int
) -> None:
    (record,) = directory.living(settings.home)
    await is_served(good)
    before = most_memory(good.client)
    with ExitStack() as stack:
        attacking = asyncio.create_task(besiege(record.socket, good.swarm, attack, count, stack))
        await is_served(good)
        await attacking
        await is_served(good)
        assert most_memory(good.client) - before < MOST
    await is_served(good)
    assert directory.living(settings.home) == [record]
    async with home_engine(settings, start=False) as another:
        assert (await another.send(c.ListSwarms())).value["swarms"][0]["running"] == 1


# --- another user ----------------------------------------------------------------------------------------

KNOCK = """
import os, socket, sys
user = int(sys.argv[3])
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
door = socket.socket(socket.AF_UNIX)
door.settimeout(10)
try:
    door.connect(sys.argv[1])
    door.sendall(bytes.fromhex(sys.argv[2]))
    print("heard", len(door.recv(100)))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_cannot_connect_and_is_not_answered_even_where_the_folder_lets_him(
    settings: Settings, good: Watched, folder: Path
) -> None:
    (record,) = directory.living(settings.home)

    async def knock(user: int) -> str:
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-c", KNOCK, record.socket, HELLO.hex(), str(user)],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=30,
        )
        assert ran.stderr == ""
        return ran.stdout.strip()

    assert (await knock(os.geteuid())).startswith("heard")
    assert await knock(NOBODY) == "PermissionError"
    for path, mode in ((folder, 0o755), (os.path.dirname(record.socket), 0o755), (record.socket, 0o666)):
        os.chmod(path, mode)
    assert await knock(NOBODY) in ("heard 0", "ConnectionResetError", "BrokenPipeError")
    await is_served(good)
