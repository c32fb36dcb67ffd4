"""Clients that break the rules: refused or dropped, within bounds, and the others notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from core.channel import messages as m
from core.channel import server as server_module
from core.channel.client import ClientError
from core.channel.frames import MAX_TO_SERVER, read_frame
from core.channel.remote import RemoteClient, connect
from core.domain.commands import GetEvents, Lagged, ListSwarms, SendInput, Snapshot
from core.domain.events import Notice
from core.version import VERSION
from tests.clock import FakeClock
from tests.core.channel.wire import SWARM, Staged, heard, introduced, raw, staged, tell, until


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def place(clock: FakeClock) -> AsyncIterator[Staged]:
    """An engine with a good client; whatever the test does, that one is served to the end."""
    async with staged(clock=clock) as place, connect(place.socket, clock=clock) as good:
        yield place
        await until(lambda: place.server.clients == 1)
        assert (await good.send(ListSwarms())).ok
        assert await ends_up_with_all(place, good)


async def ends_up_with_all(place: Staged, client: RemoteClient) -> bool:
    place.stage.spawn(1)
    async with client.subscribe(SWARM) as feed:
        first = await anext(feed)
    assert isinstance(first, Snapshot)
    return first.state == place.stage.now


async def dropped(reader: asyncio.StreamReader) -> str:
    """What the engine says at the end of a connection; fails if it does not end."""
    said = ""
    while (frame := await read_frame(reader, 1 << 28)) is not None:
        message = m.decode_to_client(frame)
        said = message.message if isinstance(message, m.Refused) else said
    return said


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        b"\xff\xff\xff\xff" + b"x" * 100,
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x02\xff\xfe",
        b"\x00\x00\x00\x00",
        (MAX_TO_SERVER + 1).to_bytes(4, "big"),
        (30).to_bytes(4, "big") + b'{"type":"ask","id":1,"command"',
    ],
)
@pytest.mark.parametrize("when", ["at once", "after the handshake"])
async def test_what_is_not_a_message_ends_the_connection(place: Staged, noise: bytes, when: str) -> None:
    async with (raw if when == "at once" else introduced)(place.socket) as (reader, writer):
        writer.write(noise)
        said = await dropped(reader)
    assert said.startswith("the engine closed the connection: ")
    assert "\n" not in said


async def test_a_header_of_4_gb_reserves_nothing(place: Staged) -> None:
    async with introduced(place.socket) as (reader, writer):
        writer.write(b"\xff\xff\xff\xff")
        assert f"{0xFFFFFFFF} bytes" in await dropped(reader)


@pytest.mark.parametrize(
    "message",
    [
        b'{"type":"format_disk","id":1}',
        b'{"type":"ask","id":1,"command":{"command":"format_disk"}}',
        b'{"type":"ask","id":1}',
        b'{"type":"unsubscribe","id":0}',
        b'{"type":"unsubscribe","id":-1}',
        b'{"type":"unsubscribe","id":"1"}',
        b'{"type":"unsubscribe","id":' + b"9" * 400 + b"}",
        b"[" * 100_000,
        b'{"type":"subscribe","id":1,"swarm":' + b'"' + b"\xff" * 9 + b'"}',
    ],
)
async def test_an_unknown_or_senseless_message_ends_the_connection(place: Staged, message: bytes) -> None:
    async with introduced(place.socket) as (reader, writer):
        writer.write(len(message).to_bytes(4, "big") + message)
        assert "cannot read what this client sent" in await dropped(reader)
    assert place.stage.begun == []


@pytest.mark.parametrize(("protocol", "version"), [(2, VERSION), (1, "9.9.9"), (0, "\x1b[2J9\n" * 50)])
async def test_another_version_is_told_which_one_to_run(place: Staged, protocol: int, version: str) -> None:
    async with raw(place.socket) as (reader, writer):
        tell(writer, m.Hello(protocol=protocol, version=version))
        said = await dropped(reader)
    assert f"run Watchroom {VERSION}" in said
    assert "watchroom stop" in said
    assert said.isprintable()
    assert len(said) < 300


async def test_a_hello_with_fields_of_a_later_version_is_understood(place: Staged) -> None:
    async with raw(place.socket) as (reader, writer):
        body = b'{"type":"hello","protocol":7,"version":"3.0.0","colour":["blue"]}'
        writer.write(len(body).to_bytes(4, "big") + body)
        assert "Watchroom 3.0.0" in await dropped(reader)


async def test_a_client_that_says_nothing_is_dropped(place: Staged, clock: FakeClock) -> None:
    async with raw(place.socket) as (reader, _):
        await until(lambda: clock.sleeping == 1)  # it is waited for
        await clock.advance(4.9)
        assert place.server.clients == 2
        await clock.advance(0.2)
        assert "nothing was said in time" in await dropped(reader)


@pytest.mark.parametrize("part", [b"\x00", b"\x00\x00\x00\x10", b'\x00\x00\x00\x10{"type":'])
async def test_half_a_message_is_not_waited_for_long(place: Staged, clock: FakeClock, part: bytes) -> None:
    async with introduced(place.socket) as (reader, writer):
        await clock.advance(1000)  # silence between messages is nobody's business
        assert place.server.clients == 2
        writer.write(part)
        await until(lambda: clock.sleeping == 1)  # it has begun to wait
        await clock.advance(29)
        assert place.server.clients == 2
        await clock.advance(2)
        assert "not whole within 30 s" in await dropped(reader)


async def test_two_hundred_clients_are_64_and_the_others_are_told(place: Staged, clock: FakeClock) -> None:
    streams = [await asyncio.open_unix_connection(str(place.socket)) for _ in range(200)]
    await until(lambda: place.server.clients == 64)
    served = told = cut = 0
    for reader, writer in streams:
        tell(writer, m.Hello(protocol=m.PROTOCOL, version=VERSION))
        try:
            frame = await read_frame(reader, 1 << 20)
        except OSError:
            frame = None
        answer = m.decode_welcome(frame) if frame is not None else None
        served += isinstance(answer, m.Welcome)
        told += isinstance(answer, m.Refused) and "64 clients" in answer.message
        cut += answer is None
    assert (served, told + cut) == (63, 137), "one place is the good client's"
    assert told >= 64
    for _, writer in streams:
        writer.close()
    await until(lambda: place.server.clients == 1)


async def test_a_refused_client_says_so_in_one_sentence(clock: FakeClock) -> None:
    async with staged(clock=clock) as place, AsyncExitStack() as held:
        for _ in range(64):
            await held.enter_async_context(raw(place.socket))
        await until(lambda: place.server.clients == 64)
        with pytest.raises(ClientError, match="64 clients already"):
            async with connect(place.socket, clock=clock):
                pass


async def test_another_user_is_turned_away_without_a_word(
    place: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "peer_uid", lambda sock: 4242)
    async with raw(place.socket) as (reader, writer):
        tell(writer, m.Hello(protocol=m.PROTOCOL, version=VERSION))
        with pytest.raises((OSError, EOFError)):
            assert await reader.readexactly(1)
    monkeypatch.undo()


async def test_more_requests_than_64_are_told_busy_and_the_first_are_served(place: Staged) -> None:
    place.stage.gate.clear()
    async with connect(place.socket) as client:
        asked = [
            asyncio.create_task(client.send(SendInput(swarm=SWARM, thread="t", text=str(n))))
            for n in range(70)
        ]
        await until(lambda: sum(task.done() for task in asked) == 6)
        assert {task.result().code for task in asked if task.done()} == {"busy"}
        place.stage.gate.set()
        replies = await asyncio.gather(*asked)
    assert sum(reply.ok for reply in replies) == 64
    assert sorted(map(int, place.stage.done)) == list(range(64))


@pytest.mark.parametrize("asked_before", [0, 60])
async def test_one_who_asks_and_never_reads_is_not_heard_any_more(place: Staged, asked_before: int) -> None:
    """Nor is what was accepted from him before computed: a page is large."""
    place.stage.happen(*[Notice(agent="t", text="x" * 50_000) for _ in range(20)])  # 1 MB a page
    place.stage.gate.clear()
    async with introduced(place.socket) as (_, writer):
        for n in range(asked_before or 2000):
            tell(writer, m.AskPage(id=n + 1, request=GetEvents(swarm=SWARM)))
            if asked_before:
                await until(lambda: sum(len(c._requests) for c in place.server._connections) == n + 1)  # noqa: B023
        place.stage.gate.set()
        await until(lambda: len(place.stage.begun) >= 8)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert len(place.stage.begun) <= 12, "what nobody reads is not computed"


async def test_an_id_that_is_in_use_ends_the_connection(place: Staged) -> None:
    place.stage.gate.clear()
    for first, second in (
        (m.Ask(id=1, command=ListSwarms()), m.Ask(id=1, command=ListSwarms())),
        (m.Subscribe(id=1, swarm=SWARM), m.Subscribe(id=1, swarm=SWARM)),
    ):
        async with introduced(place.socket) as (reader, writer):
            tell(writer, first)
            tell(writer, second)
            assert "cannot read" in await dropped(reader)
    place.stage.gate.set()


async def test_a_client_may_follow_64_swarms_and_no_more(place: Staged) -> None:
    async with introduced(place.socket) as (reader, writer):
        for n in range(65):
            tell(writer, m.Subscribe(id=n + 1, swarm=SWARM))
        seen: dict[str, int] = {}
        while sum(seen.values()) < 65:
            message = m.decode_to_client(await heard(reader))
            seen[type(message).__name__] = seen.get(type(message).__name__, 0) + 1
        assert seen == {"Item": 64, "Failed": 1}


async def test_who_hung_up_is_not_served_but_what_was_accepted_is_done(place: Staged) -> None:
    place.stage.gate.clear()
    async with introduced(place.socket) as (_, writer):
        tell(writer, m.Ask(id=1, command=SendInput(swarm=SWARM, thread="t", text="do it")))
        tell(writer, m.AskPage(id=2, request=GetEvents(swarm=SWARM)))
        await until(lambda: place.stage.begun == ["do it", "page"])
    await until(lambda: place.stage.cancelled == ["page"])
    place.stage.gate.set()
    await until(lambda: place.stage.done == ["do it"])


async def test_who_never_reads_costs_a_bounded_backlog_and_slows_nobody(clock: FakeClock) -> None:
    async with (
        staged(backlog=100, clock=clock) as place,
        introduced(place.socket) as (reader, writer),
        connect(place.socket, clock=clock) as good,
    ):
        tell(writer, m.Subscribe(id=1, swarm=SWARM))
        assert isinstance(m.decode_to_client(await heard(reader)), m.Item)
        writer.transport.pause_reading()
        async with good.subscribe(SWARM) as feed:
            assert isinstance(await anext(feed), Snapshot)
            for _ in range(40):
                place.stage.happen(*[Notice(agent="t", text="x" * 20_000) for _ in range(20)])
                seen = 0
                while seen < 20:
                    seen += len((await anext(feed)).events)  # type: ignore[union-attr]
        writer.transport.resume_reading()
        kinds: list[type] = []
        while Lagged not in kinds:
            message = m.decode_to_client(await heard(reader))
            assert isinstance(message, m.Item)
            kinds.append(type(message.item))
        last = m.decode_to_client(await heard(reader))
        assert isinstance(last, m.Item)
        assert isinstance(last.item, Snapshot)
        assert last.item.state == place.stage.now


async def test_one_who_takes_nothing_for_an_hour_is_dropped(clock: FakeClock) -> None:
    async with staged(clock=clock) as place, introduced(place.socket) as (reader, writer):
        tell(writer, m.Subscribe(id=1, swarm=SWARM))
        await heard(reader)
        writer.transport.pause_reading()
        for _ in range(40):
            place.stage.happen(*[Notice(agent="t", text="x" * 20_000) for _ in range(20)])
            await asyncio.sleep(0)
        await until(lambda: clock.sleeping == 1)
        await clock.advance(3500)
        assert place.server.clients == 1
        await clock.advance(200)
        await until(lambda: place.server.clients == 0)


async def test_one_who_takes_nothing_does_not_keep_the_server_from_ending(clock: FakeClock) -> None:
    leave = asyncio.Event()
    opened: asyncio.Future[Staged] = asyncio.get_running_loop().create_future()

    async def life() -> None:
        async with staged(clock=clock) as place:
            opened.set_result(place)
            await leave.wait()

    living = asyncio.create_task(life())
    place = await opened
    async with introduced(place.socket) as (reader, writer):
        tell(writer, m.Subscribe(id=1, swarm=SWARM))
        await heard(reader)
        writer.transport.pause_reading()
        place.stage.happen(*[Notice(agent="t", text="x" * 20_000) for _ in range(400)])
        await until(lambda: clock.sleeping == 1)  # for the client to take something
        leave.set()
        await until(lambda: clock.sleeping == 2)  # and to take the rest
        await clock.advance(2.1)
        await until(living.done)
    await living


async def test_a_bug_in_one_connection_is_nobody_elses(
    place: Staged, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr("core.channel.outbox.snapshot_parts", broken)
    async with introduced(place.socket) as (reader, writer):
        tell(writer, m.Subscribe(id=1, swarm=SWARM))
        assert await read_frame(reader, 1 << 20) is None
    monkeypatch.undo()
    assert "a connection failed" in caplog.text
