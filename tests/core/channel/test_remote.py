"""The client behind a socket: what it says without an engine, to another one, to one that does not answer."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from core.channel import messages as m
from core.channel import remote as remote_module
from core.channel import server as server_module
from core.channel.client import ClientError, EngineBusy, EngineGone
from core.channel.frames import MAX_TO_CLIENT, MAX_TO_SERVER, read_frame
from core.channel.remote import Subscription, connect, connect_streams
from core.channel.server import Server, bind
from core.clock import SystemClock
from core.domain import commands as c
from core.domain import events as e
from core.version import VERSION
from tests.clock import FakeClock
from tests.core.channel.wire import SWARM, Stage, introduced, raw, staged, tell, until

INFO = c.EngineInfo(engine="e", pid=4711, kind="background", version=VERSION)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def impostor(path: Path, talk: Talk) -> AsyncIterator[Path]:
    """Something that listens and says what the test wants. It hangs up after `talk`."""

    busy: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        busy.add(task)

    async with await asyncio.start_unix_server(accept, str(path)):
        yield path
        await asyncio.wait_for(asyncio.gather(*busy), 10)


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_frame(reader, MAX_TO_SERVER)
    tell(writer, m.Welcome(protocol=m.PROTOCOL, engine=INFO))


# --- no engine, or not ours --------------------------------------------------------------------------------


async def test_where_nobody_listens_there_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineGone, match="no engine listens"):
        async with connect(tmp_path / "none.sock"):
            pass
    listener, _ = bind(tmp_path / "left.sock")
    listener.close()
    with pytest.raises(EngineGone, match="no engine listens"):
        async with connect(tmp_path / "left.sock"):
            pass


async def test_a_path_that_no_socket_can_have_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        async with connect(tmp_path / ("x" * 120)):
            pass
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x02\xff\xff"]
)
async def test_what_is_no_engine_is_called_so(tmp_path: Path, answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, MAX_TO_SERVER)
        writer.write(answer)
        await writer.drain()

    async with impostor(tmp_path / "s", talk) as socket:
        with pytest.raises(ClientError, match="not an engine of Watchroom"):
            async with connect(socket):
                pass


async def test_an_engine_of_another_version_says_which_one_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged() as place:
        monkeypatch.setattr(remote_module, "VERSION", "9.9.9")
        with pytest.raises(ClientError, match=f"run Watchroom {VERSION}"):
            async with connect(place.socket):
                pass


async def test_a_refusal_is_cleaned_before_it_is_shown(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, MAX_TO_SERVER)
        tell(writer, m.Refused(message="go\x1b[2J away\n" * 100))
        await writer.drain()

    async with impostor(tmp_path / "s", talk) as socket:
        with pytest.raises(ClientError) as caught:
            async with connect(socket):
                pass
    assert str(caught.value).startswith("go away go away")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 400


async def test_a_socket_of_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = asyncio.Event()
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.read(100))
        except OSError:
            heard.append(b"")
        got.set()

    monkeypatch.setattr(remote_module, "peer_uid", lambda sock: 4242)
    async with impostor(tmp_path / "s", talk) as socket:
        with pytest.raises(ClientError, match="another user"):
            async with connect(socket):
                pass
        await got.wait()
    assert heard == [b""]


async def test_an_engine_that_does_not_say_who_it_is_is_busy(tmp_path: Path) -> None:
    clock = FakeClock()
    begun, done = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, MAX_TO_SERVER)
        begun.set()
        await done.wait()

    async def try_it(socket: Path) -> None:
        async with connect(socket, clock=clock):
            pass

    async with impostor(tmp_path / "s", talk) as socket:
        trying = asyncio.create_task(try_it(socket))
        await begun.wait()
        await clock.advance(4.9)
        assert not trying.done()
        await clock.advance(0.2)
        with pytest.raises(EngineBusy, match="busy"):
            await trying
        done.set()


# --- an engine that stops answering ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["command", "page", "feed"])
async def test_an_engine_that_does_not_answer_is_busy_and_the_client_goes_on(
    tmp_path: Path, what: str
) -> None:
    clock = FakeClock()
    later = asyncio.Event()
    silent: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        while (frame := await read_frame(reader, MAX_TO_SERVER)) is not None:
            silent.append(frame)
            if later.is_set():
                ask = m.decode_to_server(frame)
                tell(writer, m.Answer(id=1, reply=c.Reply(value={"late": True})))
                tell(writer, m.Answer(id=ask.id, reply=c.Reply(value={"n": ask.id})))

    async def ask(client: Any) -> None:
        if what == "command":
            await client.send(c.ListSwarms())
        elif what == "page":
            await client.page(c.GetEvents(swarm=SWARM))
        else:
            async with client.subscribe(SWARM):
                pass

    async with impostor(tmp_path / "s", talk) as socket, connect(socket, clock=clock) as client:
        asking = asyncio.create_task(ask(client))
        await until(lambda: bool(silent) and clock.sleeping == 1)
        await clock.advance(29)
        assert not asking.done()
        await clock.advance(2)
        with pytest.raises(EngineBusy, match="pid 4711"):
            await asking
        later.set()
        reply = await client.send(c.ListSwarms())
        assert reply.value["n"] > 1, "an answer that came too late is nobody else's"


async def test_an_engine_that_dies_is_noticed_by_everybody_who_waits() -> None:
    async with staged() as place:
        place.stage.gate.clear()
        async with connect(place.socket) as client, client.subscribe(SWARM) as feed:
            await anext(feed)
            place.stage.spawn(2)
            asked = [
                asyncio.ensure_future(client.send(c.ListSwarms())),
                asyncio.ensure_future(client.page(c.GetEvents(swarm=SWARM))),
            ]
            await until(lambda: len(place.stage.begun) == 2)
            for connection in place.server._connections:
                connection._writer.transport.abort()
            for future in asked:
                with pytest.raises(EngineGone, match="has ended"):
                    await future
            assert [type(item) for item in [item async for item in feed]] in ([], [c.Batch])
            for late in (client.send(c.ListSwarms()), client.page(c.GetEvents(swarm=SWARM))):
                with pytest.raises(EngineGone, match="has ended"):
                    await late
            with pytest.raises(EngineGone):
                async with client.subscribe(SWARM):
                    pass
            place.stage.gate.set()


async def test_a_killed_engine_is_noticed_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "s"
    child = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom tests.core.channel.wire import *\n"
        "async def main():\n"
        "    stage = Stage()\n    hub = Hub(stage)\n"
        "    info = EngineInfo(engine='e', pid=os.getpid(), kind='background', version=VERSION)\n"
        "    where = Path(sys.argv[1])\n"
        "    async with Server.listening(hub, where, info=info, clock=SystemClock(), starts=True):\n"
        "        print('ready', flush=True)\n        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", child, str(path), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        async with connect(path) as client, client.subscribe(SWARM) as feed:
            assert isinstance(await anext(feed), c.Snapshot)
            process.kill()
            async with asyncio.timeout(1):
                assert [item async for item in feed] == []
                with pytest.raises(EngineGone, match=f"pid {process.pid}"):
                    await client.send(c.ListSwarms())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("noise", [b"\x00\x00\x00\x02{}", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xff"])
async def test_noise_from_the_engine_ends_the_connection_with_a_sentence(
    tmp_path: Path, noise: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        writer.write(noise)
        await read_frame(reader, MAX_TO_SERVER)

    async with impostor(tmp_path / "s", talk) as socket, connect(socket) as client:
        await until(lambda: not client.connected)
        with pytest.raises(ClientError, match="cannot be read"):
            await client.send(c.ListSwarms())


async def test_a_command_that_is_too_large_is_refused_here() -> None:
    async with staged() as place, connect(place.socket) as client:
        with pytest.raises(ClientError, match="too large"):
            await client.send(c.SendInput(swarm=SWARM, thread="t", text="x" * (MAX_TO_SERVER + 1)))
        text = "x" * (MAX_TO_SERVER - 1000)
        reply = await client.send(c.SendInput(swarm=SWARM, thread="t", text=text))
        assert reply.value == {"text": text}


async def test_a_closed_client_says_so_and_may_be_closed_again() -> None:
    async with staged() as place, connect(place.socket) as client:
        await client.aclose()
        await client.aclose()
        with pytest.raises(ClientError, match="closed"):
            await client.send(c.ListSwarms())


async def test_streams_of_a_bridge_say_what_was_lost() -> None:
    async with staged() as place:
        reader, writer = await asyncio.open_unix_connection(str(place.socket))
        lost = "the ssh connection to tower has ended"
        async with connect_streams(reader, writer, clock=SystemClock(), lost=lost) as client:
            assert (await client.send(c.ListSwarms())).ok
            for connection in place.server._connections:
                connection.finish()
            await until(lambda: not client.connected)
            with pytest.raises(EngineGone, match="tower has ended"):
                await client.send(c.ListSwarms())


async def test_a_snapshot_comes_first_however_late_a_subscriber_begins_to_read() -> None:
    async with (
        staged() as place,
        connect(place.socket, backlog=10) as client,
        client.subscribe(SWARM) as feed,
    ):
        await overflow(place.stage, feed)
        first = await anext(feed)
        assert isinstance(first, c.Snapshot)
        assert first.state == place.stage.now
        place.stage.spawn(2)
        assert isinstance(await anext(feed), c.Batch)


async def test_after_lagged_comes_a_snapshot_also_when_its_reader_lags_once_more() -> None:
    async with (
        staged() as place,
        connect(place.socket, backlog=10) as client,
        client.subscribe(SWARM) as feed,
    ):
        assert isinstance(await anext(feed), c.Snapshot)
        await overflow(place.stage, feed)
        assert isinstance(await anext(feed), c.Lagged)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(feed)
        await until(lambda: bool(cast("Subscription", feed)._queue))
        await overflow(place.stage, feed)
        again = await anext(feed)
        assert isinstance(again, c.Snapshot)
        assert again.state == place.stage.now


async def overflow(stage: Stage, feed: AsyncIterator[c.FeedItem]) -> None:
    """Let more happen than the subscriber's side keeps."""
    subscription = cast("Subscription", feed)
    while not subscription._lagged:
        stage.spawn(1)
        await asyncio.sleep(0)


# --- the server's own side ---------------------------------------------------------------------------------


async def test_the_socket_is_private_and_gone_afterwards() -> None:
    async with staged() as place:
        assert stat.S_IMODE(os.stat(place.socket).st_mode) == 0o600
        socket = place.socket
    assert not socket.exists()


async def test_a_file_left_behind_is_replaced_and_a_living_engine_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind(path)[0].close()
    async with staged() as place:
        with pytest.raises(ClientError, match="another engine listens"):
            bind(place.socket)
        listening = Server.listening(place.hub, path, info=INFO, clock=SystemClock(), starts=True)
        async with listening, connect(path) as client:
            assert (await client.send(c.ListSwarms())).ok
    assert not path.exists()


async def test_a_file_that_another_engine_has_put_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        staged() as place,
        Server.listening(place.hub, path, info=INFO, clock=SystemClock(), starts=True),
    ):
        os.rename(path, tmp_path / "old")
        other, _ = bind(path)
    assert path.exists()
    other.close()


@pytest.mark.parametrize("name", ["x" * 150, "missing/s"])
async def test_a_socket_that_cannot_be_made_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="cannot be opened") as caught:
        bind(tmp_path / name)
    assert str(caught.value).isprintable()


async def test_an_engine_that_belongs_to_a_run_starts_nothing_else() -> None:
    async with staged(kind="exec", starts=False) as place, connect(place.socket) as client:
        for command in (
            c.StartSwarm(task="x"),
            c.RunJob(input_path="x", instruction="y"),
            c.ResumeSwarm(swarm=SWARM),
            c.StopEngine(),
        ):
            reply = await client.send(command)
            assert reply.code == "refused"
            assert "`watchroom exec`" in reply.error
        assert (await client.send(c.SendInput(swarm=SWARM, thread="t", text="hi"))).ok
        assert place.stage.done == ["hi"]


async def test_whoever_watches_the_engine_hears_of_clients() -> None:
    async with staged() as place:
        place.stage.changed.clear()
        async with connect(place.socket):
            await place.stage.changed.wait()
            assert place.server.clients == 1
            place.stage.changed.clear()
        await place.stage.changed.wait()
        assert place.server.clients == 0


async def test_a_server_that_ends_gives_the_replies_it_owes() -> None:
    async with staged() as place:
        place.stage.gate.clear()
        async with connect(place.socket) as client, client.subscribe(SWARM) as feed:
            asked = asyncio.create_task(client.send(c.StopEngine()))
            await until(lambda: bool(place.stage.begun))
            place.server._close()
            for _ in range(50):
                await asyncio.sleep(0)
            place.stage.gate.set()
            assert (await asked).ok
            items = [type(item) async for item in feed]
            assert items == [c.Snapshot]


async def test_replies_go_before_what_the_feed_has() -> None:
    async with staged() as place, introduced(place.socket) as (reader, writer):
        tell(writer, m.Subscribe(id=1, swarm=SWARM))
        await read_frame(reader, MAX_TO_CLIENT)
        for _ in range(20):
            place.stage.happen(*[e.Notice(agent="t", text="x" * 40_000) for _ in range(30)])
        tell(writer, m.Ask(id=2, command=c.ListSwarms()))
        kinds = []
        while m.Answer not in kinds:
            frame = await read_frame(reader, MAX_TO_CLIENT)
            assert frame is not None
            kinds.append(type(m.decode_to_client(frame)))
        assert len(kinds) <= 4, "24 batches wait and the reply does not wait for them"


async def test_what_is_too_large_for_a_client_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "MAX_TO_CLIENT", 100_000)
    async with staged() as place, connect(place.socket) as client, connect(place.socket) as other:
        place.stage.happen(e.Notice(agent="t", text="x" * 200_000))
        with pytest.raises(EngineGone, match="is too large"):
            await client.page(c.GetEvents(swarm=SWARM))
        assert (await other.send(c.ListSwarms())).ok
    assert "a client is dropped" in caplog.text


async def test_a_body_that_raises_comes_out_as_it_was() -> None:
    class FaceError(Exception):
        pass

    with pytest.raises(FaceError):
        async with staged() as place, raw(place.socket):
            raise FaceError


def test_a_client_is_light() -> None:
    code = (
        "import sys, core.channel.remote\n"
        "heavy = {'httpx', 'aiohttp', 'polars', 'aiosqlite', 'sqlite3', 'pydantic', 'core.engine',"
        " 'core.store', 'core.agents', 'textual'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
