"""A Client without an engine: it plays a story, keeps what was sent, and pages through the story's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from core.channel.client import ClientError
from core.domain.apply import apply
from core.domain.commands import (
    AnyCommand,
    Batch,
    Delta,
    EngineInfo,
    FeedItem,
    GetJobOrder,
    GetJobRows,
    GetTranscript,
    JobOrderPage,
    JobRow,
    JobRowsPage,
    Page,
    PageRequest,
    Reply,
    ResumeSwarm,
    Snapshot,
    StartSwarm,
    Streaming,
    TranscriptPage,
)
from core.domain.events import TRANSCRIPT, AnyEvent, Event
from core.domain.state import SwarmState
from core.version import VERSION
from tests.tui.story import SWARM


class FakeClient:
    """`events` have happened when a face subscribes; `push` makes more happen."""

    def __init__(
        self,
        events: Sequence[AnyEvent] = (),
        *,
        rows: Sequence[JobRow] = (),
        streaming: Sequence[Streaming] = (),
        page_limit: int | None = None,
        outlives: bool = False,
        kind: str = "local",
    ) -> None:
        self.engine = EngineInfo(engine="fake", pid=4242, kind=kind, version=VERSION)
        self.outlives = outlives
        """As an engine of its own: leaving closes this client only."""
        self.events = list(events)
        self.rows = list(rows)
        self.streaming = tuple(streaming)
        self.page_limit = page_limit
        self.sent: list[AnyCommand] = []
        self.pages: list[PageRequest] = []
        self.replies: dict[type, Reply] = {}
        self.raises: ClientError | None = None
        """What every command raises instead of a reply."""
        self.closed = False
        self.page_error: str | None = None
        self.gate = asyncio.Event()
        """Pages take until it is set."""
        self.gate.set()
        self._feeds: list[asyncio.Queue[FeedItem | ClientError | None]] = []

    # --- the Client interface ------------------------------------------------------------------------------

    async def send(self, command: AnyCommand) -> Reply:
        self.sent.append(command)
        if self.raises is not None:
            raise self.raises
        default = Reply(value={"swarm": SWARM}) if isinstance(command, StartSwarm | ResumeSwarm) else Reply()
        return self.replies.get(type(command), default)

    @asynccontextmanager
    async def subscribe(self, swarm: str) -> AsyncIterator[AsyncIterator[FeedItem]]:
        feed: asyncio.Queue[FeedItem | ClientError | None] = asyncio.Queue()
        self._feeds.append(feed)
        feed.put_nowait(self.snapshot())
        try:
            yield self._items(feed)
        finally:
            self._feeds.remove(feed)

    async def _items(self, feed: asyncio.Queue[FeedItem | ClientError | None]) -> AsyncIterator[FeedItem]:
        while (item := await feed.get()) is not None:
            if isinstance(item, ClientError):
                raise item
            yield item

    async def page(self, request: PageRequest) -> Page:
        self.pages.append(request)
        if self.page_error is not None:
            raise ClientError(self.page_error)
        if isinstance(request, GetJobOrder):
            page: Page = self._order(request)
        elif isinstance(request, GetJobRows) and request.rows:
            some = tuple(self.rows[i] for i in sorted(request.rows)[: self.page_limit])
            page = JobRowsPage(rows=some, total=len(self.rows), seq=self.seq)
        elif isinstance(request, GetJobRows):
            end = request.start + min(request.limit, self.page_limit or request.limit)
            rows, more = tuple(self.rows[request.start : end]), end < len(self.rows)
            page = JobRowsPage(rows=rows, total=len(self.rows), seq=self.seq, more=more)
        else:
            page = self._transcript(request)
        await self.gate.wait()
        return page

    def _order(self, request: GetJobOrder) -> JobOrderPage:
        left = [row for row in self.rows if not request.status or row.status in request.status]
        key = {"row": lambda r: r.row_index, "tries": lambda r: r.attempt}.get(request.sort)
        left.sort(key=key or (lambda r: r.status), reverse=request.descending)
        return JobOrderPage(rows=tuple(r.row_index for r in left), total=len(self.rows), seq=self.seq)

    async def aclose(self) -> None:
        self.closed = True

    # --- the test's side -----------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        return self.events[-1].seq if self.events else 0

    def snapshot(self) -> Snapshot:
        state = SwarmState(swarm=SWARM)
        for event in self.events:
            apply(state, event)
        return Snapshot(state=state, streaming=self.streaming)

    def push(self, *events: Event) -> None:
        """Events happen: stored, then fed."""
        self.events.extend(events)
        for feed in self._feeds:
            feed.put_nowait(Batch(events=tuple(events)))

    def stream(self, thread: str, text: str, offset: int = 0) -> None:
        for feed in self._feeds:
            feed.put_nowait(Delta(thread=thread, response="live", offset=offset, text=text))

    def feed(self, item: FeedItem | None) -> None:
        """Feed any item; None ends the feed."""
        for feed in self._feeds:
            feed.put_nowait(item)

    def fail(self, error: ClientError) -> None:
        """The connection ends with this error."""
        for feed in self._feeds:
            feed.put_nowait(error)

    def _transcript(self, request: GetTranscript) -> TranscriptPage:
        mine = [
            event
            for event in self.events
            if event.agent == request.thread
            and isinstance(event, TRANSCRIPT)
            and (request.before is None or event.seq < request.before)
        ]
        limit = min(request.limit, self.page_limit or request.limit)
        return TranscriptPage(events=tuple(mine[-limit:]), seq=self.seq, more=len(mine) > limit)


def connecting(client: FakeClient) -> Callable[[], object]:
    """A `connect` for the app that gives this client and closes it at the end."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        try:
            yield client
        finally:
            await client.aclose()

    return connect
