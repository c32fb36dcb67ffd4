"""Frames and messages: what goes in comes out, however the stream is cut; what is too large is not read."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.channel import messages as m
from core.channel.feed import Events
from core.channel.frames import FrameError, pack, read_frame, read_prompt_frame
from core.domain import commands as c
from core.domain import events as e
from core.domain.state import AgentState, SwarmState
from core.version import VERSION
from tests.clock import FakeClock


async def read_all(chunks: list[bytes], limit: int = 1000, *, prompt: bool = False) -> list[bytes]:
    """The frames of a stream that arrives in these chunks and then ends."""
    reader = asyncio.StreamReader(limit=64)
    clock = FakeClock()
    frames: list[bytes] = []

    async def read() -> None:
        while True:
            frame = await (
                read_prompt_frame(reader, limit, clock, 30) if prompt else read_frame(reader, limit)
            )
            if frame is None:
                return
            frames.append(frame)

    reading = asyncio.create_task(read())
    for chunk in chunks:
        reader.feed_data(chunk)
        await asyncio.sleep(0)
    reader.feed_eof()
    await reading
    return frames


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 40), max_size=60), st.booleans()
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    bodies: list[bytes], cuts: list[int], prompt: bool
) -> None:
    stream = b"".join(pack(body, 1000) for body in bodies)
    chunks = []
    for cut in cuts:
        chunks.append(stream[:cut])
        stream = stream[cut:]
    chunks.append(stream)
    assert asyncio.run(read_all([chunk for chunk in chunks if chunk], prompt=prompt)) == bodies


@given(st.binary(max_size=50), st.integers(0, 53))
def test_a_stream_that_ends_within_a_frame_loses_only_that_frame(body: bytes, kept: int) -> None:
    whole = pack(body, 1000)
    cut = whole[: min(kept, len(whole) - 1)]
    assert asyncio.run(read_all([pack(b"first", 1000) + cut])) == [b"first"]


@pytest.mark.parametrize("size", [1001, 2**31, 2**32 - 1])
async def test_a_frame_that_is_too_large_is_refused_before_it_is_read(size: int) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(size.to_bytes(4, "big"))
    with pytest.raises(FrameError, match=f"{size} bytes"):
        await read_frame(reader, 1000)
    with pytest.raises(FrameError):
        pack(b"x" * 1001, 1000)


def note(seq: int, text: str) -> e.Notice:
    return e.Notice(seq=seq, swarm="s", agent="t", text=text)


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(1, 2**53))
def test_a_batch_put_together_from_stored_text_is_the_batch(texts: list[str], id: int) -> None:
    events: list[Any] = [note(n + 1, text) for n, text in enumerate(texts)]
    body = m.encode_item(id, Events(events, [e.encode(event).decode() for event in events]))
    assert m.decode_to_client(body) == m.Item(id=id, item=c.Batch(events=tuple(events)))


@given(
    st.lists(st.text() | st.just('"agents":{}'), max_size=12),
    st.text() | st.just('","agents":{},"'),
    st.integers(1, 5),
)
def test_a_snapshot_put_together_from_parts_is_the_snapshot(
    texts: list[str], title: str, at_once: int
) -> None:
    agents = {
        f"{n}{text}": AgentState(thread=f"{n}", path=text, nickname=text, status_message=title)
        for n, text in enumerate(texts)
    }
    streaming = tuple(c.Streaming(thread="t", response="r", text=text) for text in texts)
    item = c.Snapshot(
        state=SwarmState(swarm=title, title=title, cwd=title, agents=agents), streaming=streaming
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m, "AGENTS_AT_ONCE", at_once)
        parts = list(m.snapshot_parts(7, item))
    assert b"".join(parts) == m.encode(m.Item(id=7, item=item))
    assert len(parts) == 2 + -(-len(texts) // at_once)


@pytest.mark.parametrize(
    "message",
    [
        m.Ask(id=1, command=c.StartSwarm(setup=c.Setup(api_key="k", settings={"a": {"b": 1}}), task="x")),
        m.Ask(id=2, command=c.Decide(swarm="s", approval="a", approve=False, author="ann")),
        m.AskPage(id=3, request=c.GetTranscript(swarm="s", thread="t", before=9)),
        m.AskPage(id=4, request=c.GetAgents(swarm="s", status=("idle",))),
        m.Subscribe(id=5, swarm="s"),
        m.Unsubscribe(id=5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_client_says_is_understood(message: Any) -> None:
    assert m.decode_to_server(m.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        m.Answer(id=1, reply=c.Reply(value={"a": [1, None]})),
        m.PageAnswer(id=2, page=c.EventsPage(events=(note(1, "x"),), seq=1)),
        m.PageAnswer(
            id=2, page=c.JobRowsPage(rows=(c.JobRow(item="i", row_index=0, status="p"),), total=1, seq=1)
        ),
        m.Failed(id=3, message="no", code="busy"),
        m.Item(id=4, item=c.Lagged()),
        m.Item(id=4, item=c.Delta(thread="t", response="r", offset=0, text="x")),
        m.End(id=4),
        m.Refused(message="go"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_an_engine_says_is_understood(message: Any) -> None:
    assert m.decode_to_client(m.encode(message)) == message


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,1ae\\ud800type', max_size=60).map(str.encode))
def test_whatever_bytes_come_a_decoder_raises_only_what_is_caught(body: bytes) -> None:
    for decode in (m.decode_hello, m.decode_welcome, m.decode_to_server, m.decode_to_client):
        try:
            decode(body)
        except m.UNREADABLE:
            continue
        assert msgspec.json.decode(body), "only JSON is understood"


def test_only_the_same_version_is_served() -> None:
    assert m.mismatch(m.PROTOCOL, VERSION) is None
    assert m.mismatch(m.PROTOCOL + 1, VERSION) is not None
    assert m.mismatch(m.PROTOCOL, VERSION + ".post1") is not None
