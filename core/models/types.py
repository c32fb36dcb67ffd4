"""What the turn loop and the model clients say to each other. Provider-neutral but for `input` and `item`,
which are Responses items (the one wire format whose history can carry reasoning back)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, Protocol

import msgspec

from core.domain.status import Usage


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request: the whole history, every time. `cache_key` is the thread id."""

    model: str
    instructions: str
    input: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    """Responses function tools: {"type": "function", "name", "description", "parameters", "strict"}."""
    cache_key: str = ""
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool = True


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """More text of the answer. `reset` drops what came before (the request is being repeated)."""

    text: str
    reset: bool = False


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """The request is not sent yet: it is `place`th in line (from 1) among those to the same server and model,
    which are all held back until `until` if the server asked for that. Comes again when that has changed."""

    place: int
    until: datetime | None = None


class Sending(msgspec.Struct, frozen=True):
    """The request that was queued or that failed is sent now."""


class Retrying(msgspec.Struct, frozen=True, kw_only=True):
    """The request failed and will be sent again after `delay` seconds. `rate_limited` tells 429 and 529;
    `metered` that the server may have counted tokens of it."""

    attempt: int
    delay: float
    reason: str
    rate_limited: bool = False
    metered: bool = False


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """The response is whole: its output items in order, as the server gave them.

    Item types that matter: message, function_call {call_id, name, arguments}, reasoning.
    `incomplete` is the server's reason when it stopped early (max_output_tokens, content_filter).
    """

    response: str
    items: list[dict[str, Any]]
    model: str = ""
    usage: Usage | None = None
    attempts: int = 1
    incomplete: str | None = None


ModelEvent = TextDelta | Queued | Sending | Retrying | Completed


class ModelError(Exception):
    """A request that failed for good. `str()` is one line: server, status, the server's own message.

    `kind`: auth, not_found, bad_request, rate_limit, quota, context, policy, server, network, protocol.
    `metered`: the server may have counted tokens of it all the same.
    """

    def __init__(self, message: str, *, kind: str, status: int | None = None, metered: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.metered = metered


class ModelClient(Protocol):
    server: str
    """The base URL, for people; never with credentials."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Deltas, waits and retries as they come, then exactly one Completed; or ModelError. Closing the
        iterator (or cancelling the task) closes the connection."""
        ...

    def expect(self, count: int) -> None:
        """An operator wants so many requests at a time: a client that finds out by itself how many a server
        takes begins there."""
        ...

    async def aclose(self) -> None: ...
