"""The conversation with a server, on the `mcp` package's client. Imported in a thread, when a server starts.

What the package leaves to the transport is done here: messages are counted (a flood ends the connection), an
answer that was too long becomes an error of its call, and output schemas are dropped: the package would hold
answers against them on the loop, and a hostile pattern takes forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import anyio
import httpx2
import mcp_types as types
from mcp.client.client import Client
from mcp.client.session import ClientRequestContext, IncomingMessage
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from core.clock import Clock
from core.safety.text import clean_line, shorten
from core.tools.mcp.errors import CLOSED, Disconnected, McpError
from core.tools.mcp.stdio import MAX_LINE, LineReader, Oversized, ServerProcess
from core.version import VERSION

log = logging.getLogger("watchroom.tools")
# The package logs what servers say, with tracebacks; what matters of it reaches us as errors.
for _name in ("mcp", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

FLOOD_MESSAGES = 2_000
FLOOD_BYTES = 2 * MAX_LINE
FLOOD_SECONDS = 10.0
"""What a server may send unasked: so much at once, and as much again within this time. Answers do not count.
A message costs the loop up to half a millisecond."""
OVERSIZED = -32_099
"""The code of our own error for an answer that was too long."""
MAX_PAGES = 20
EXIT_SECONDS = 0.5
"""How long after its output's end a server's own end is waited for, to tell how it was."""

Item = SessionMessage | Exception
Streams = tuple[Any, Any]
Lost = Callable[[str], None]


class Progress(Protocol):
    async def __call__(self, progress: float, total: float | None, message: str | None) -> None: ...


class Host(Protocol):
    """Who answers a server's own requests."""

    async def elicit(
        self, message: str, schema: dict[str, Any] | None, url: str | None
    ) -> tuple[str, dict[str, Any] | None]:
        """Ask somebody; the action (accept, decline, cancel) and the form's values."""
        ...

    def tools_changed(self) -> None: ...


class Connection:
    """A server that has been greeted. Calls may come from any task, beside each other."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.over = False

    async def list_tools(self) -> list[Any]:
        """All its tools, as mcp's `Tool`. Raises McpError."""
        tools: list[Any] = []
        cursor: str | None = None
        with _sentences():
            for _ in range(MAX_PAGES):
                page = await self._client.list_tools(cursor=cursor, cache_mode="refresh")
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    return tools
        raise McpError(f"its list of tools has more than {MAX_PAGES} pages")

    async def call(self, tool: str, arguments: dict[str, Any], progress: Progress) -> Any:
        """mcp's `CallToolResult`. Cancelling tells the server. Raises McpError."""
        with _sentences():
            return await self._client.call_tool(tool, arguments, progress_callback=progress)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """What the package raises, as McpError."""
    try:
        yield
    except (TimeoutError, McpError):
        raise
    except Exception as error:
        raise _said(error) from None


def _said(error: BaseException) -> McpError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, McpError):
        return error
    if isinstance(error, ValidationError):
        return McpError("its answer does not follow the protocol")
    if not isinstance(error, MCPError):
        text = show(str(error))
        return McpError(f"{text} ({type(error).__name__})" if text else type(error).__name__)
    text = show(error.message)
    if error.code == types.CONNECTION_CLOSED:
        return Disconnected(text)
    return McpError(text if error.code == OVERSIZED else f"it says: {text}")


def show(text: str) -> str:
    return shorten(clean_line(text), 300)


@asynccontextmanager
async def conversation(
    transport: AbstractAsyncContextManager[Streams], host: Host
) -> AsyncIterator[Connection]:
    """Greet the server on `transport` and talk to it. Entered and left by one task: the server's owner."""

    async def elicit(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        if isinstance(params, types.ElicitRequestURLParams):
            action, content = await host.elicit(params.message, None, params.url)
        else:
            schema = params.requested_schema
            action, content = await host.elicit(params.message, dict(schema), None)
        return types.ElicitResult.model_validate({"action": action, "content": content})

    async def notice(message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            host.tools_changed()

    client = Client(
        transport,
        client_info=types.Implementation(name="watchroom", version=VERSION),
        # No sampling callback: the package then refuses such requests, and says before that it would.
        elicitation_callback=elicit,
        message_handler=notice,
        # Listings are asked for when they are wanted anew.
        cache=None,
    )
    async with contextlib.AsyncExitStack() as stack:
        with _sentences():
            await stack.enter_async_context(client)
        connection = Connection(client)
        watching = asyncio.ensure_future(_watch(client, host))
        try:
            yield connection
        finally:
            connection.over = True
            watching.cancel()
            await asyncio.wait({watching})


async def _watch(client: Client, host: Host) -> None:
    """Hear of changed tools where the protocol wants to be asked for that."""
    tools = client.server_capabilities.tools
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (tools and tools.list_changed):
        return
    try:
        async with client.listen(tools_list_changed=True) as changes:
            async for _ in changes:
                host.tools_changed()
    except (MCPError, ListenNotSupportedError, SubscriptionLost, TimeoutError) as error:
        # Nothing is lost but a hint: what the model was told is pinned either way.
        log.debug("an MCP server does not tell of changed tools: %s", show(str(error)))


class _Screen:
    """Looks at each message of a server before anybody else. Raises McpError for a flood."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at = clock.monotonic()
        self._messages = 0.0
        self._bytes = 0.0
        self.expected = 0
        """Answers that are still to come."""

    def count(self, size: int, *, answer: bool = False) -> None:
        """Take note of a message of `size` bytes. Each answer that is expected is free."""
        if answer and self.expected:
            self.expected -= 1
            return
        self.weigh(size)
        self._messages += 1
        if self._messages > FLOOD_MESSAGES:
            raise McpError(f"it flooded us with more than {FLOOD_MESSAGES:,} messages in {FLOOD_SECONDS:g} s")

    def weigh(self, size: int) -> None:
        """Take note of bytes, whatever they are."""
        now = self._clock.monotonic()
        share = (now - self._at) / FLOOD_SECONDS
        self._at = now
        self._messages = max(self._messages - share * FLOOD_MESSAGES, 0)
        self._bytes = max(self._bytes - share * FLOOD_BYTES, 0) + size
        if self._bytes > FLOOD_BYTES:
            raise McpError(
                f"it flooded us with more than {FLOOD_BYTES // 1_000_000} MB in {FLOOD_SECONDS:g} s"
            )


def _is_answer(item: SessionMessage) -> bool:
    return isinstance(item.message, types.JSONRPCResponse | types.JSONRPCError)


def _stripped(item: SessionMessage) -> SessionMessage:
    """Without output schemas."""
    message = item.message
    if isinstance(message, types.JSONRPCResponse) and isinstance(tools := message.result.get("tools"), list):
        for tool in tools:
            if isinstance(tool, dict):
                tool.pop("outputSchema", None)
    return item


# --- a process -------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_stdio(process: ServerProcess, clock: Clock, lost: Lost) -> AsyncIterator[Streams]:
    """A transport on a running process. `lost` is told why the connection ended before anybody who waits for
    an answer is."""
    deliver, incoming = anyio.create_memory_object_stream[Item](0)
    outgoing, collect = anyio.create_memory_object_stream[SessionMessage](0)
    screen = _Screen(clock)
    with deliver, incoming, outgoing, collect:
        async with asyncio.TaskGroup() as pumps:
            tasks = (
                pumps.create_task(_read(process, clock, screen, deliver, lost)),
                pumps.create_task(_write(process, screen, collect)),
            )
            try:
                yield incoming, outgoing
            finally:
                for task in tasks:
                    task.cancel()


async def _read(process: ServerProcess, clock: Clock, screen: _Screen, deliver: Any, lost: Lost) -> None:
    lines = LineReader()
    with deliver:
        try:
            while data := await process.read():
                for line in lines.feed(data):
                    await _line(line, screen, deliver)
                # A pipe that is always full never waits; others must have their turn.
                await clock.sleep(0)
            lost(await _end_of(process, clock))
        except McpError as why:
            lost(str(why))
        except anyio.BrokenResourceError:
            return  # nobody listens any more: the connection is being closed


async def _end_of(process: ServerProcess, clock: Clock) -> str:
    try:
        async with clock.timeout(EXIT_SECONDS):
            return await process.exited()
    except TimeoutError:
        return f"it closed its output{process.last_words()}"


async def _line(line: bytes | Oversized, screen: _Screen, deliver: Any) -> None:
    if isinstance(line, Oversized):
        screen.count(line.size, answer=line.answered is not None)
        said = f"it sent a message of {line.size / 1_000_000:.1f} MB, more than {MAX_LINE // 1_000_000} MB"
        if line.answered is None:
            raise McpError(said)
        error = types.ErrorData(code=OVERSIZED, message=f"{said}, which was dropped")
        await deliver.send(SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=line.answered, error=error)))
        return
    try:
        message = jsonrpc.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except (ValueError, RecursionError):
        screen.count(len(line))
        # Many a server prints a greeting; what is no message is no answer to anything.
        log.debug(
            "an MCP server wrote a line that is no message: %s", show(line[:200].decode(errors="replace"))
        )
        return
    item = SessionMessage(message)
    screen.count(len(line), answer=_is_answer(item))
    await deliver.send(_stripped(item))


async def _write(process: ServerProcess, screen: _Screen, collect: Any) -> None:
    try:
        async for item in collect:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            screen.expected += isinstance(item.message, types.JSONRPCRequest)
            await process.write(text.encode(errors="replace") + b"\n")
    except BrokenPipeError:
        # It does not read any more. Whoever sends next is told; the reader tells how it ended.
        collect.close()


# --- HTTP ------------------------------------------------------------------------------------------------

CONNECT_SECONDS = 30.0


@asynccontextmanager
async def over_http(url: str, clock: Clock, lost: Lost, refused: Lost) -> AsyncIterator[Streams]:
    """A transport to a URL. `refused` is told why the server will not have us at all."""

    screen = _Screen(clock)

    async def look(response: httpx2.Response) -> None:
        screen.expected += response.request.method == "POST"
        if response.status_code in (401, 403):
            refused(
                f"it asks for a login (HTTP {response.status_code}), and neither OAuth nor another login"
                " is supported"
            )
        if "content-encoding" in response.headers:
            refused("it compresses its answers, which it was asked not to")
            raise McpError("a compressed answer")
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            response.stream = _Capped(response.stream)
        elif response.request.method == "GET":
            # It belongs to no call whose time limit would end it.
            response.stream = _Metered(response.stream, screen, lost)

    # Calls have their own time limit, and a stream of notices may be silent for days.
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=None)
    headers = {"accept-encoding": "identity"}
    deliver, incoming = anyio.create_memory_object_stream[Item](0)
    with deliver, incoming:
        async with (
            httpx2.AsyncClient(timeout=timeout, headers=headers, event_hooks={"response": [look]}) as http,
            streamable_http_client(url, http_client=http, max_sse_event_size=MAX_LINE) as (source, outgoing),
            asyncio.TaskGroup() as pumps,
        ):
            pump = pumps.create_task(_relay(source, deliver, screen, lost))
            try:
                yield incoming, outgoing
            finally:
                pump.cancel()


async def _relay(source: Any, deliver: Any, screen: _Screen, lost: Lost) -> None:
    with deliver:
        try:
            async for item in source:
                known = isinstance(item, SessionMessage)
                screen.count(0, answer=known and _is_answer(item))
                await deliver.send(_stripped(item) if known else item)
            lost(CLOSED)
        except McpError as why:
            lost(str(why))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # nobody listens any more: the connection is being closed


class _Metered(httpx2.AsyncByteStream):
    """The body of a stream of notices, which has no end: as much as no flood is. What becomes of its bytes is
    unknown here, and much of what a server can write becomes no message."""

    def __init__(self, body: Any, screen: _Screen, lost: Lost) -> None:
        self._body = body
        self._screen = screen
        self._lost = lost

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            try:
                self._screen.weigh(len(chunk))
            except McpError as why:
                # The package would only connect again.
                self._lost(str(why))
                raise httpx2.StreamError(str(why)) from None
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


class _Capped(httpx2.AsyncByteStream):
    """A response's body, of at most MAX_LINE bytes."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._body:
            size += len(chunk)
            if size > MAX_LINE:
                # Of this class the package makes an error of the one call.
                raise httpx2.StreamError(f"it sent an answer of more than {MAX_LINE // 1_000_000} MB")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()
