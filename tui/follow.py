"""Every event of a swarm from its first one on, in order, each once: what lines and JSON are made from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

from core.channel.client import Client, ClientError
from core.domain.commands import Batch, EventsPage, GetEvents, Snapshot
from core.domain.events import AnyEvent

PAGE = 1000


async def follow(
    client: Client, swarm: str, after: int = 0, begin: Callable[[Snapshot], object] = lambda _: None
) -> AsyncGenerator[Sequence[AnyEvent], None]:
    """Batches of the events behind seq `after`. What happened before the subscription, and what a slow reader
    missed, is read from the journal. With `after`, `begin` gets the first snapshot, and an empty batch comes
    when all up to it was told. Ends when the engine does. Use with `contextlib.aclosing`."""
    seq = after
    async with client.subscribe(swarm) as feed:
        async for item in feed:
            if isinstance(item, Snapshot):
                first = after and seq == after
                if first:
                    begin(item)
                while seq < item.state.seq:
                    page = await client.page(GetEvents(swarm=swarm, after=seq, limit=PAGE))
                    if not isinstance(page, EventsPage) or not page.events:
                        raise ClientError(f"the journal of swarm {swarm} ends at event {seq}")
                    seq = page.events[-1].seq
                    yield page.events
                if first:
                    yield ()
            elif isinstance(item, Batch):
                fresh = [event for event in item.events if event.seq > seq]
                if fresh:
                    seq = fresh[-1].seq
                    yield fresh
