"""The Responses client: one request with the whole history, a stream of events back, retried as a whole.

Nothing of a response is acted upon before its terminal event (decision 15), so a stream that breaks can be
repeated without doing anything twice; `Completed.attempts` says how often that was.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec

from core.clock import Clock
from core.models import wire
from core.models.address import Address, parse_address
from core.models.http import Http, HttpFailure, Reply
from core.models.limiter import Limiters, Ticket
from core.models.retry import LONGEST_HINT, LONGEST_LIMITED, PATIENCE, backoff, hint, worth_retrying
from core.models.sse import SseError, SseEvent, SseParser
from core.models.types import (
    Completed,
    ModelError,
    ModelEvent,
    ModelRequest,
    Retrying,
    Sending,
    TextDelta,
)
from core.safety.text import clean_line, shorten

MAX_ERROR_BYTES = 64 * 1024
MAX_STREAM_BYTES = 256 * 1024 * 1024
MAX_MESSAGE_CHARS = 400
_ENCRYPTED = "reasoning.encrypted_content"
_REFUSES_INCLUDE = re.compile(
    r"\binclude\b|reasoning\.encrypted_content|encrypted content is not supported", re.IGNORECASE
)
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


class _Failed(Exception):
    """One attempt failed. `hinted` is the server's own wait in seconds; `metered`: it may have counted the
    request, because it took it and did not refuse it."""

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: int | None = None,
        retry: bool = False,
        hinted: float | None = None,
        metered: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry = retry
        self.hinted = hinted
        self.metered = metered


class _WithoutInclude(Exception):
    """The server refuses `include`; the same request is sent again without it."""


class ResponsesClient:
    """A `ModelClient` for one server and key. It owns no task and no connection: `http` is its maker's.

    `idle_timeout`: seconds without a byte (also before the first); `progress_timeout`: seconds with nothing
    but keep-alives. `retries`: further requests after the first; `patience`: the same after rate limits.
    `label` replaces the address in messages. `limits` decide when a request is sent; read them with `views`.
    Raises ModelError for an address or a key that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        http: Http,
        *,
        clock: Clock,
        label: str | None = None,
        idle_timeout: float = 300.0,
        progress_timeout: float = 1800.0,
        retries: int = 4,
        patience: int = PATIENCE,
        limits: Limiters | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._address: Address = parse_address(base_url, api_key, label)
        self.server = self._address.label
        self._http = http
        self._clock = clock
        self._idle = idle_timeout
        self._progress = progress_timeout
        self._retries = retries
        self._patience = patience
        self.limits = limits if limits is not None else Limiters(clock)
        self._spread = spread
        self._include = True

    def expect(self, count: int) -> None:
        self.limits.expect(count)

    async def aclose(self) -> None:
        """Nothing to do: every stream closes its own connection, `http` belongs to its maker."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """See `ModelClient.stream`. Every attempt has a place at the limiter for as long as it lasts."""
        ticket = self.limits.ticket(request.model)
        failures = limited = 0
        while True:
            shown = False
            try:
                async with aclosing(self._placed(ticket, request, failures + 1)) as events:
                    async for event in events:
                        shown = shown or isinstance(event, TextDelta)
                        yield event
                return
            except _WithoutInclude:
                self._include = False
                ticket.repeated = True
                continue
            except _Failed as error:
                failure = error
            failures += 1
            limited += failure.kind == "rate_limit"
            delay = self._delay(failure, failures, limited)
            if shown:
                yield TextDelta(text="", reset=True)
            yield Retrying(
                attempt=failures + 1,
                delay=delay,
                reason=str(failure),
                rate_limited=failure.kind == "rate_limit",
                metered=failure.metered,
            )
            await ticket.pause(delay)

    async def _placed(
        self, ticket: Ticket, request: ModelRequest, attempt: int
    ) -> AsyncGenerator[ModelEvent, None]:
        """One attempt: a place at the limiter, the request, the place given back, however it ends."""
        completed: Completed | None = None
        try:
            if not ticket.enter():
                async with aclosing(ticket.line()) as waits:
                    async for wait in waits:
                        yield wait
                yield Sending()
            elif attempt > 1:
                yield Sending()
            async with aclosing(self._attempt(request, attempt)) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        completed = event
                        break
                    yield event
            ticket.succeeded()
        except _Failed as failure:
            self._learn(ticket, failure)
            raise
        finally:
            ticket.leave()
        if completed is not None:
            yield completed

    def _learn(self, ticket: Ticket, failure: _Failed) -> None:
        """What the server said about more than this request: before its place goes to another one."""
        kind, hinted = failure.kind, failure.hinted
        if kind == "rate_limit":
            ticket.rate_limited()
        if kind == "quota":
            self.limits.refuse(ModelError(str(failure), kind=kind, status=failure.status))
        elif kind == "rate_limit" or failure.status == 503:
            if (refusal := self._refusal(failure)) is not None:
                ticket.refuse(refusal)
            elif hinted is not None:
                ticket.hold(min(hinted, LONGEST_HINT))

    def _refusal(self, failure: _Failed) -> ModelError | None:
        """The server asks for a longer wait than any request should have."""
        if not failure.retry or failure.hinted is None or failure.hinted <= LONGEST_HINT:
            return None
        until = _moment(self._clock.now().timestamp() + failure.hinted)
        return ModelError(f"{failure} (asks to wait until {until})", kind="rate_limit", status=failure.status)

    def _delay(self, failure: _Failed, failures: int, limited: int) -> float:
        """Seconds before the next request; raises ModelError when there will be none."""
        text, kind, hinted = str(failure), failure.kind, failure.hinted
        if (refusal := self._refusal(failure)) is not None:
            raise refusal
        spent = limited > self._patience or failures - limited > self._retries
        if not failure.retry or spent:
            tries = f" (after {failures} attempts)" if failures > 1 else ""
            raise ModelError(text + tries, kind=kind, status=failure.status, metered=failure.metered)
        if kind == "rate_limit":
            return max(hinted or 0.0, backoff(limited, self._spread(), LONGEST_LIMITED))
        return hinted if hinted is not None else backoff(failures - limited, self._spread())

    async def _attempt(self, request: ModelRequest, attempt: int) -> AsyncGenerator[ModelEvent, None]:
        included = self._include
        content = self._body(request)
        try:
            async with self._clock.timeout(self._idle):
                reply = await self._http.post(self._address.url, self._headers(), content)
        except HttpFailure as failure:
            raise self._network(failure) from None
        except TimeoutError:
            raise self._idled() from None
        try:
            if reply.status != 200:
                await self._refused(reply, included)
            async with aclosing(self._events(reply, attempt)) as events:
                async for event in events:
                    yield event
        finally:
            await reply.aclose()

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
        }
        if self._address.authorization:
            headers["Authorization"] = self._address.authorization
        return headers

    def _body(self, request: ModelRequest) -> bytes:
        body: dict[str, Any] = {
            "model": request.model,
            "instructions": request.instructions,
            "input": request.input,
            "stream": True,
            "store": False,
        }
        if request.tools:
            body["tools"] = request.tools
            body["tool_choice"] = "auto"
            body["parallel_tool_calls"] = request.parallel_tool_calls
        if self._include:
            body["include"] = [_ENCRYPTED]
        if request.cache_key:
            body["prompt_cache_key"] = request.cache_key
        if request.max_output_tokens is not None:
            body["max_output_tokens"] = request.max_output_tokens
        if request.reasoning_effort is not None:
            body["reasoning"] = {"effort": request.reasoning_effort}
        try:
            return msgspec.json.encode(body)
        except UnicodeEncodeError:  # half a surrogate pair in some text: no JSON decoder would take it
            return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")

    # -- the stream

    async def _events(self, reply: Reply, attempt: int) -> AsyncGenerator[ModelEvent, None]:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml", "application/json"):
            raise self._wrong(f"answered with {kind} instead of an event stream")
        items: list[tuple[int, dict[str, Any]]] = []
        seen = False
        async with aclosing(self._sse(reply)) as stream:
            async for event in stream:
                if event.data == b"[DONE]":
                    break
                head: wire.Head = self._decode(event.data, wire.Head)
                seen = seen or bool(head.type)
                if head.type == "response.output_text.delta":
                    text = self._decode(event.data, wire.Delta).delta
                    if text:
                        yield TextDelta(text=text)
                elif head.type == "response.output_item.done":
                    done: wire.ItemDone = self._decode(event.data, wire.ItemDone)
                    items.append((done.output_index, done.item))
                elif head.type in _TERMINAL or (not head.type and head.error is not None):
                    yield self._terminal(head.type, event.data, items, attempt)
                    return
        if not seen:
            raise self._wrong("sent no event of the Responses format")
        raise self._broken("the stream ended before the response was complete")

    async def _sse(self, reply: Reply) -> AsyncGenerator[SseEvent, None]:
        parser = SseParser()
        size = 0
        progress = self._clock.monotonic()
        while True:
            left = progress + self._progress - self._clock.monotonic()
            try:
                async with self._clock.timeout(min(self._idle, max(left, 0.001))):
                    chunk = await reply.read()
            except TimeoutError:
                raise self._idled() from None
            except HttpFailure as failure:
                raise self._network(failure, metered=True) from None
            size += len(chunk)
            if size > MAX_STREAM_BYTES:
                raise self._broken(f"the response is larger than {MAX_STREAM_BYTES} bytes", retry=False)
            try:
                events = parser.feed(chunk)
            except SseError as error:
                raise self._broken(str(error), retry=False) from None
            if events:
                progress = self._clock.monotonic()
            for event in events:
                yield event
            if not chunk:
                return

    def _terminal(
        self, kind: str, data: bytes, items: list[tuple[int, dict[str, Any]]], attempt: int
    ) -> Completed:
        if kind not in ("response.completed", "response.incomplete"):
            raise self._reported(kind, data)
        response: wire.Response = self._decode(data, wire.Terminal).response
        ordered = [item for _, item in sorted(items, key=lambda pair: pair[0])] or response.output
        try:
            wire.checked_items(ordered)
        except wire.WireError as error:
            raise self._broken(str(error), retry=False) from None
        incomplete = None
        if kind == "response.incomplete":
            details = response.incomplete_details
            incomplete = clean_line((details and details.reason) or "unknown")
        return Completed(
            response=response.id,
            items=ordered,
            model=response.model or "",
            usage=wire.usage_of(response.usage),
            attempts=attempt,
            incomplete=incomplete,
        )

    def _decode(self, data: bytes, kind: Any) -> Any:
        try:
            return wire.decode(data, kind)
        except wire.WireError as error:
            raise self._broken(f"the stream holds an event that cannot be read: {error}") from None

    # -- failures, each one sentence that names the server

    def _reported(self, kind: str, data: bytes) -> _Failed:
        """A failure that the server tells in the stream."""
        if kind == "response.failed":
            failure = self._decode(data, wire.Terminal).response.error or wire.Failure()
        else:
            event: wire.ErrorEvent = self._decode(data, wire.ErrorEvent)
            failure = event.error or wire.Failure(message=event.message, code=event.code, param=event.param)
        cause = wire.kind_of(failure, None)
        message = failure.message or (str(failure.code) if failure.code else "no reason given")
        return _Failed(
            self._say(f"reported a failure while answering: {message}"),
            kind=cause,
            retry=cause in ("server", "rate_limit"),
            metered=cause in ("server", "policy"),
        )

    async def _refused(self, reply: Reply, included: bool) -> None:
        """An answer that is not 200: raises what it means."""
        status = reply.status
        body = await self._error_body(reply)
        failure = wire.failure_of(self._address.hide(body.decode("utf-8", "replace")).encode())
        message = failure.message or (str(failure.code) if failure.code else "no message")
        about = f"{failure.param or ''} {message}"
        if included and status in (400, 422) and _REFUSES_INCLUDE.search(about):
            raise _WithoutInclude
        if status < 400:
            target = clean_line(reply.headers.get("location", ""))
            where = f" to {shorten(target, 120)}" if target else ""
            raise self._wrong(f"answered with HTTP {status}{where}, which is not followed", status)
        kind = wire.kind_of(failure, status)
        text = f"answered HTTP {status}: {shorten(message, MAX_MESSAGE_CHARS)}"
        if kind == "not_found" and "model" not in f"{failure.code} {message}".lower():
            raise self._wrong(text, status, kind=kind)
        if kind == "auth" and not self._address.authorization:
            text += " (no API key was sent)"
        final = kind in ("quota", "context", "policy")
        raise _Failed(
            self._say(text),
            kind=kind,
            status=status,
            retry=not final and worth_retrying(status, reply.headers),
            hinted=hint(reply.headers, self._clock.now()),
        )

    async def _error_body(self, reply: Reply) -> bytes:
        """At most 64 KB; what a broken connection or a stalled server held back is left out."""
        body = bytearray()
        try:
            async with self._clock.timeout(min(self._idle, 10.0)):
                while len(body) < MAX_ERROR_BYTES:
                    chunk = await reply.read()
                    if not chunk:
                        break
                    body += chunk
        except (HttpFailure, TimeoutError):
            return bytes(body[:MAX_ERROR_BYTES])  # the status alone says enough
        return bytes(body[:MAX_ERROR_BYTES])

    def _network(self, failure: HttpFailure, *, metered: bool = False) -> _Failed:
        retry = failure.cause not in ("tls", "protocol", "proxy")
        return _Failed(self._say(str(failure)), kind="network", retry=retry, metered=metered)

    def _idled(self) -> _Failed:
        return _Failed(self._say("sent nothing for too long"), kind="network", retry=True, metered=True)

    def _broken(self, what: str, *, retry: bool = True) -> _Failed:
        said = self._say(f"broke the protocol: {what}")
        return _Failed(said, kind="protocol", retry=retry, metered=True)

    def _wrong(self, what: str, status: int | None = 200, *, kind: str = "protocol") -> _Failed:
        advice = "; check --base-url: it must lead to a server of the Responses API and usually ends in /v1"
        return _Failed(self._say(what) + advice, kind=kind, status=status)

    def _say(self, what: str) -> str:
        """Hide secrets first in what the server wrote, and again in what cleaning has put together."""
        return shorten(self._address.hide(clean_line(f"{self.server} {self._address.hide(what)}")), 800)


def _moment(timestamp: float) -> str:
    try:
        return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "a time that no calendar holds"
