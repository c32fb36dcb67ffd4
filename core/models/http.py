"""The one HTTP client of the models: httpx with aiohttp's connections, and failures told by their cause.

httpx's own pool costs 7 to 25 times the CPU per request from 64 concurrent requests on, hence aiohttp below.
Read time-outs are the caller's (they run on its clock); only connecting is timed here.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import aiohttp
import httpx
from httpx_aiohttp import HttpxAiohttpClient

from core.safety.text import clean_line, shorten

CONNECT_TIMEOUT = 5.0
MAX_CONNECTIONS = 10_000
"""How many agents talk at once is decided by the slots. None would mean aiohttp's default of 100."""

Cause = Literal["refused", "dns", "tls", "proxy", "timeout", "dropped", "unreachable", "protocol"]

_SENTENCES: dict[str, str] = {
    "refused": "refused the connection; is it running there?",
    "dns": "could not be found: its name does not resolve",
    "tls": "failed the TLS handshake",
    "proxy": "could not be reached through the proxy",
    "timeout": "did not answer in time",
    "dropped": "dropped the connection",
    "unreachable": "could not be reached",
    "protocol": "did not answer in HTTP",
}
_LOOPBACK_MOUNTS = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class HttpFailure(Exception):
    """A request without a whole answer. `str()` continues a sentence that begins with the server's name."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        sentence = _SENTENCES[cause]
        super().__init__(f"{sentence} ({detail})" if detail else sentence)
        self.cause = cause


class Reply:
    """Status and headers of an answer whose body is still to come. Close it in any case."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        """The next bytes as they arrive; empty at the end. Raises HttpFailure."""
        with _failures():
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        return b""

    async def aclose(self) -> None:
        """Close the connection, or hand it back if the body was read to its end."""
        try:
            with _failures():
                await self._response.aclose()
        except HttpFailure:
            return  # it is gone, which is what was asked for


class Http:
    """No redirects (they would carry the key along), no retries, no read time-out."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        """Send and return when the headers are there. Raises HttpFailure."""
        with _failures():
            request = self._client.build_request("POST", url, headers=dict(headers), content=content)
            return Reply(await self._client.send(request, stream=True))

    async def get(self, url: str, headers: Mapping[str, str]) -> Reply:
        """As `post`, for what changes nothing at the server."""
        with _failures():
            request = self._client.build_request("GET", url, headers=dict(headers))
            return Reply(await self._client.send(request, stream=True))

    async def aclose(self) -> None:
        await self._client.aclose()


def make_http(transport: httpx.AsyncBaseTransport | None = None) -> Http:
    """A client for any number of model clients; whoever makes it closes it.

    `transport` replaces the network (the in-process scripted model). Proxy variables are honoured, but not
    for loopback servers: a key may go there in the clear, so it must not go by way of a proxy.
    """
    return Http(
        HttpxAiohttpClient(
            transport=transport,
            mounts=None if transport is not None else dict.fromkeys(_LOOPBACK_MOUNTS),
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_CONNECTIONS,
                keepalive_expiry=30,
            ),
        )
    )


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError) as error:
        raise classify(error) from error


def classify(error: BaseException) -> HttpFailure:
    """The cause of a failed request. The libraries' own classes mislead (refused, unknown name and dropped
    are all httpx.ConnectTimeout), so the chain of causes is searched, the innermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or getattr(link, "os_error", None)
    for found in chain:
        if isinstance(found, _PROXY):  # what lies below is about the proxy, not about the server
            return HttpFailure("proxy", _detail(found))
    for found in reversed(chain):
        failure = _os_failure(found) if isinstance(found, OSError) else None
        if failure is not None:
            return failure
        for kinds, cause in _BY_CLASS:
            if isinstance(found, kinds):
                return HttpFailure(cause, _detail(found) if cause == "protocol" else "")
    return HttpFailure("unreachable", _detail(error))


def _os_failure(error: OSError) -> HttpFailure | None:
    """What the operating system or OpenSSL said. aiohttp's connector errors are OSErrors as well, so what
    says nothing here is left to the table."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return HttpFailure("tls", clean_line(getattr(error, "verify_message", "")))
    if isinstance(error, ssl.SSLError):
        return HttpFailure(
            "tls", clean_line(str(getattr(error, "reason", None) or "").replace("_", " ").lower())
        )
    if isinstance(error, socket.gaierror):
        return HttpFailure("dns")
    if isinstance(error, aiohttp.ClientError):
        return None
    if isinstance(error, TimeoutError):
        return HttpFailure("timeout")
    if error.errno == errno.ECONNREFUSED or "refused" in str(error).lower():
        return HttpFailure("refused")
    if isinstance(error, ConnectionError):
        return HttpFailure("dropped")
    return HttpFailure("unreachable", shorten(clean_line(error.strerror or ""), 120))


_PROXY = (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError, httpx.ProxyError)
_BY_CLASS: tuple[tuple[tuple[type[BaseException], ...], Cause], ...] = (
    ((aiohttp.ClientConnectorDNSError,), "dns"),
    ((aiohttp.ClientSSLError,), "tls"),
    ((aiohttp.ServerTimeoutError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout), "timeout"),
    ((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError), "dropped"),
    ((aiohttp.ClientConnectionResetError, httpx.NetworkError, httpx.RemoteProtocolError), "dropped"),
    ((aiohttp.ClientResponseError, httpx.DecodingError), "protocol"),
    ((httpx.InvalidURL, httpx.UnsupportedProtocol), "protocol"),
)


def _detail(error: BaseException) -> str:
    return shorten(clean_line(str(error)), 120) or type(error).__name__
