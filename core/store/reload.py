"""What a new owner reads of a swarm beside its state: who an agent is, what it went through, its mail.

A history comes by the index of its agent, in chunks: what a swarm of a million events costs to go on with is
what those of its agents cost that really go on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec

from core.domain import events as e
from core.store.errors import NotFound
from core.store.readers import Reader

log = logging.getLogger("watchroom.store")
CHUNK = 2000

_BIRTH = "SELECT body FROM events WHERE swarm = ? AND agent = ? AND type = 'agent_spawned'"
_HISTORY = (
    "SELECT seq, body FROM events WHERE agent = ? AND shown = 1 AND swarm = ? AND seq > ? AND seq <= ?"
    " ORDER BY seq LIMIT ?"
)
_MAIL = (
    'SELECT mail, thread, author, kind, text, "trigger", seq FROM mail'
    " WHERE swarm = ? AND delivered_seq IS NULL ORDER BY seq"
)


async def birth(reader: Reader, swarm: str, thread: str) -> e.AgentSpawned:
    """The event that registered an agent. Raises NotFound, or StoreError."""
    for (body,) in await reader.all(_BIRTH, (swarm, thread)):
        try:
            event = e.decode(body)
        except (msgspec.DecodeError, ValueError) as error:
            raise NotFound(f"the birth of agent {thread} cannot be read: {error}") from error
        if isinstance(event, e.AgentSpawned):
            return event
    raise NotFound(f"there is no agent {thread} in swarm {swarm}")


async def history(reader: Reader, swarm: str, thread: str, upto: int) -> AsyncIterator[e.AnyEvent]:
    """An agent's transcript events up to and including seq `upto`, in order. Raises StoreError."""
    last = 0
    while chunk := await reader.all(_HISTORY, (thread, swarm, last, upto, CHUNK)):
        for seq, body in chunk:
            last = seq
            try:
                yield e.decode(body)
            except (msgspec.DecodeError, ValueError) as error:
                log.warning("store: event %s of swarm %s cannot be read: %s", seq, swarm, error)


async def queued_mail(reader: Reader, swarm: str) -> list[e.MailQueued]:
    """Mail that nobody has taken yet, oldest first. Raises StoreError."""
    return [
        e.MailQueued(
            swarm=swarm,
            seq=seq,
            agent=thread,
            mail=mail,
            author=author,
            kind=kind,
            text=text,
            trigger=bool(trigger),
        )
        for mail, thread, author, kind, text, trigger, seq in await reader.all(_MAIL, (swarm,))
    ]
