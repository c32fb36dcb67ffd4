"""Failures of real connections, each told by its cause."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import httpx
import pytest

from core.clock import SystemClock
from core.models.http import Http, HttpFailure, classify, make_http
from core.models.responses import ResponsesClient
from core.models.types import ModelError, TextDelta
from tests.core.models.fake import REQUEST, delta, sse

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    client = make_http()
    yield client
    await client.aclose()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def cause(http: Http, url: str) -> str:
    with pytest.raises(HttpFailure) as caught:
        await http.post(url, {}, b"")
    return caught.value.cause


async def test_refused(http: Http) -> None:
    port = free_port()
    assert await cause(http, f"http://127.0.0.1:{port}/") == "refused"
    assert await cause(http, f"http://localhost:{port}/") == "refused"


async def test_dropped_before_and_within_the_answer(http: Http) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async with listening(hang_up) as port:
        assert await cause(http, f"http://127.0.0.1:{port}/") == "dropped"
    async with listening(half) as port:
        reply = await http.post(f"http://127.0.0.1:{port}/", {}, b"")
        assert await reply.read() == b"half"
        with pytest.raises(HttpFailure) as caught:
            await reply.read()
        assert caught.value.cause == "dropped"
        await reply.aclose()


async def test_tls_with_a_server_that_has_none(http: Http) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(plain) as port:
        assert await cause(http, f"https://127.0.0.1:{port}/") == "tls"


async def test_not_http_at_all(http: Http) -> None:
    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    async with listening(ssh) as port:
        assert await cause(http, f"http://127.0.0.1:{port}/") == "protocol"


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (chained(httpx.ConnectTimeout(""), socket.gaierror(-2, "Name or service not known")), "dns"),
        (chained(httpx.ConnectError(""), ConnectionRefusedError(111, "refused")), "refused"),
        (chained(httpx.ConnectTimeout(""), aiohttp.ServerDisconnectedError()), "dropped"),
        (chained(httpx.TimeoutException(""), aiohttp.ConnectionTimeoutError()), "timeout"),
        (chained(httpx.ConnectError(""), OSError(101, "Network is unreachable")), "unreachable"),
        (chained(httpx.ProxyError(""), ConnectionRefusedError(111, "refused")), "proxy"),
        (httpx.ReadTimeout(""), "timeout"),
        (httpx.ReadError(""), "dropped"),
        (httpx.DecodingError(""), "protocol"),
        (ssl.SSLError(1, "wrong"), "tls"),
    ],
)
def test_causes(error: Exception, expected: str) -> None:
    assert classify(error).cause == expected


async def test_a_redirect_is_not_followed(http: Http) -> None:
    hits = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hits
        hits += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    async with listening(redirect) as port:
        reply = await http.post(f"http://127.0.0.1:{port}/", {"Authorization": "Bearer k"}, b"")
        assert reply.status == 307
        await reply.aclose()
    assert hits == 1


async def test_loopback_does_not_go_by_way_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    http = make_http()
    async with listening(answer) as port:
        reply = await http.post(f"http://127.0.0.1:{port}/", {}, b"")
        assert reply.status == 204
        await reply.aclose()
    assert await cause(http, "http://models.test/") == "proxy"
    await http.aclose()


async def test_the_sentence_names_server_and_cause(http: Http) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    client = ResponsesClient(url, "sk-secret", http, clock=SystemClock(), retries=0)
    with pytest.raises(ModelError) as caught:
        await anext(client.stream(REQUEST))
    assert str(caught.value) == f"{url} refused the connection; is it running there?"
    assert caught.value.kind == "network"


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_leaving_is_seen_by_the_server(how: str, http: Http) -> None:
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = sse(delta("x"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n" + body
        )
        await writer.drain()
        while await reader.read(65536):
            pass
        gone.set()
        writer.close()

    async with listening(talk) as port:
        client = ResponsesClient(f"http://127.0.0.1:{port}/v1", None, http, clock=SystemClock())
        events = client.stream(REQUEST)
        assert await anext(events) == TextDelta(text="x")
        if how == "close":
            await events.aclose()
        else:
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(gone.wait(), 5)
