"""What crosses the socket, as JSON in frames. The first frame of each side is the handshake.

`Hello`, `Welcome` and `Refused` keep their form for ever: they are what two versions have in common.
Whoever changes any other message, command, event or page in a release raises the product version, and
another version is refused with a sentence that says which one to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated

import msgspec
from msgspec.structs import replace

from core.channel.feed import Events
from core.domain.commands import (
    AnyCommand,
    Delta,
    EngineInfo,
    FeedItem,
    Lagged,
    Page,
    PageRequest,
    Reply,
    Snapshot,
)
from core.safety.text import clean_line, shorten
from core.version import VERSION

PROTOCOL = 1
AGENTS_AT_ONCE = 500
Id = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""Chosen by the client, for requests and subscriptions alike; never used twice on a connection."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """A client's first frame."""

    protocol: int
    version: str


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The engine's answer to a Hello of its own version."""

    protocol: int
    engine: EngineInfo


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The connection is over; one sentence says why."""

    message: str


# --- from the client ---------------------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    id: Id
    command: AnyCommand


class AskPage(msgspec.Struct, frozen=True, kw_only=True, tag="ask_page"):
    id: Id
    request: PageRequest


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag="subscribe"):
    """Begin a feed; its items carry this id."""

    id: Id
    swarm: str


class Unsubscribe(msgspec.Struct, frozen=True, kw_only=True, tag="unsubscribe"):
    """End a feed; items that are on their way still arrive."""

    id: Id


ToServer = Ask | AskPage | Subscribe | Unsubscribe


# --- from the engine ---------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """The one reply to an Ask."""

    id: Id
    reply: Reply


class PageAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="page"):
    id: Id
    page: Page


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """An AskPage or a Subscribe that cannot be served. `code` "busy": ask again later."""

    id: Id
    message: str
    code: str = "error"


class Item(msgspec.Struct, frozen=True, kw_only=True, tag="item"):
    """An item of the feed `id`."""

    id: Id
    item: FeedItem


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """The feed `id` has ended with its engine."""

    id: Id


ToClient = Answer | PageAnswer | Failed | Item | End | Refused

UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What a decoder may raise on bytes from others: not JSON, not a message, not UTF-8, nested too deeply."""
encode = msgspec.json.Encoder().encode
decode_hello = msgspec.json.Decoder(Hello).decode
decode_welcome = msgspec.json.Decoder(Welcome | Refused).decode
decode_to_server = msgspec.json.Decoder(ToServer).decode
decode_to_client = msgspec.json.Decoder(ToClient).decode


def encode_item(id: int, item: Delta | Lagged | Events) -> bytes:
    """An Item. Events go as the JSON that the store holds: nothing is encoded once per reader."""
    if isinstance(item, Events):
        return _batch(id, item.bodies)
    return encode(Item(id=id, item=item))


def snapshot_parts(id: int, item: Snapshot) -> Iterator[bytes]:
    """An Item in parts, so that a swarm of thousands of agents does not hold up the loop: a part takes about
    a millisecond. Their concatenation is the message."""
    hollow = replace(item, state=replace(item.state, agents={}))
    # In a text the quotes would be escaped.
    before, mark, behind = encode(Item(id=id, item=hollow)).partition(b'"agents":{}')
    yield before + mark[:-1]
    agents = iter(item.state.agents.items())
    comma = b""
    while some := dict(islice(agents, AGENTS_AT_ONCE)):
        yield comma + encode(some)[1:-1]
        comma = b","
    yield mark[-1:] + behind


def _batch(id: int, bodies: Sequence[str]) -> bytes:
    head = f'{{"type":"item","id":{id},"item":{{"type":"batch","events":['
    return (head + ",".join(bodies) + "]}}").encode()


def mismatch(protocol: int, version: str) -> str | None:
    """Why a client of that version cannot be served, in one sentence; None if it can."""
    if (protocol, version) == (PROTOCOL, VERSION):
        return None
    theirs = shorten(clean_line(version), 40) or "another version"
    return (
        f"this engine is Watchroom {VERSION} and the console is Watchroom {theirs}:"
        f" run Watchroom {VERSION}, or end the engine with `watchroom stop`"
    )
