"""What every face holds. It knows nothing of the engine behind it, in this process or in another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from core.domain.commands import AnyCommand, EngineInfo, FeedItem, Page, PageRequest, Reply


class ClientError(Exception):
    """The engine cannot be reached, or cannot answer. The message is one sentence for people."""


class EngineGone(ClientError):
    """The engine has ended, or the connection to it."""


class EngineBusy(ClientError):
    """The engine lives and did not answer in time (decision 46). What was asked may still happen."""


class Client(Protocol):
    @property
    def engine(self) -> EngineInfo: ...

    @property
    def outlives(self) -> bool:
        """Whether the engine goes on when this client is closed."""
        ...

    async def send(self, command: AnyCommand) -> Reply:
        """Exactly one reply per command, also when it fails. Raises ClientError when there is no engine."""
        ...

    def subscribe(self, swarm: str) -> AbstractAsyncContextManager[AsyncIterator[FeedItem]]:
        """The feed of one swarm: a Snapshot first, then every event after it without gap or repeat, and
        deltas. After a Lagged item the next one is a Snapshot again. Ends when the engine ends."""
        ...

    async def page(self, request: PageRequest) -> Page:
        """A page of history. Raises ClientError for an unknown swarm, agent or job."""
        ...

    async def aclose(self) -> None: ...
