"""How a console comes back to its swarm after the engine, or the way to it, is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.channel.client import Client
from core.clock import Clock
from core.domain.commands import Setup


@dataclass(frozen=True, kw_only=True)
class Again:
    """What the key R does, and the words for it."""

    open: Callable[[str], AbstractAsyncContextManager[Client]]
    """Reaches, or starts, an engine for the swarm of this id."""
    setup: Callable[[str], Setup | None] = lambda _: None
    """What the swarm, by the server that it was started on, goes on with if nobody owns it (decision 4)."""
    resumes: bool = True
    """Whether a swarm that nobody runs is resumed; else it can only be attached to."""
    gone: str = "the engine has ended"
    title: str = "engine ended"
    offer: str = "R starts it again"


def over_ssh(host: str, connect: Callable[[], AbstractAsyncContextManager[Client]]) -> Again:
    """The words and the way for an engine on another machine: whoever sits there resumes a swarm."""
    return Again(
        open=lambda _: connect(),
        resumes=False,
        gone=f"the connection to {host} is lost",
        title="connection lost",
        offer="R connects again",
    )


class HeldClock:
    """A clock whose wall time can be held: ages on the screen stand still while there is no engine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: datetime | None = None

    def hold(self) -> None:
        self._held = self._held or self._clock.now()

    def go_on(self) -> None:
        self._held = None

    def now(self) -> datetime:
        return self._held or self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        return self._clock.timeout(seconds)
