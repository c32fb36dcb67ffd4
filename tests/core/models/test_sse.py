from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.models.sse import SseError, SseEvent, SseParser


def parse(raw: bytes, *cuts: int) -> list[SseEvent]:
    parser = SseParser()
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    return [event for a, b in pairwise(edges) for event in parser.feed(raw[a:b])]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_line_ends(end: bytes) -> None:
    raw = b"event: a" + end + b"data: 1" + end + b"data: 2" + end + end + b"data:3" + end + end
    assert parse(raw) == [SseEvent("a", b"1\n2"), SseEvent("", b"3")]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: x\n", []),  # not ended: no event
        (b": comment\n\n", []),
        (b"event: only-a-name\n\ndata: x\n\n", [SseEvent("", b"x")]),
        (b"data\n\n", [SseEvent("", b"")]),
        (b"data:\ndata:\n\n", [SseEvent("", b"\n")]),
        (b"data:  two spaces\n\n", [SseEvent("", b" two spaces")]),
        (b"id: 7\nretry: 10\nfoo: bar\ndata: x\n\n", [SseEvent("", b"x")]),
        (b"\xef\xbb\xbfdata: x\n\n", [SseEvent("", b"x")]),
        (b"\n\n\r\n\rdata: x\n\n\n\n", [SseEvent("", b"x")]),
        (b"data: a:b: c\n\n", [SseEvent("", b"a:b: c")]),
        (b"event: \xff\ndata: \xff\n\n", [SseEvent("\ufffd", b"\xff")]),
    ],
)
def test_fields(raw: bytes, expected: list[SseEvent]) -> None:
    assert parse(raw) == expected


_LINES = st.sampled_from(
    [
        "",
        "data: x",
        "data: zwölf 😀",
        "data",
        "data:",
        ": ping",
        "event: e",
        "event:",
        "id: 1",
        "\ufeffdata: y",
        "data: {}",
    ]
)


@given(
    lines=st.lists(st.tuples(_LINES, st.sampled_from(["\n", "\r", "\r\n"])), max_size=20),
    bom=st.booleans(),
    data=st.data(),
)
def test_any_chunking_gives_the_same_events(
    lines: list[tuple[str, str]], bom: bool, data: st.DataObject
) -> None:
    raw = ("\ufeff" if bom else "").encode() + "".join(line + end for line, end in lines).encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=len(raw) + 1))
    whole = parse(raw)
    assert parse(raw, *cuts) == whole
    assert parse(raw, *range(len(raw))) == whole
    assert whole == reference(raw)


def reference(raw: bytes) -> list[SseEvent]:
    """The standard's algorithm on the decoded whole."""
    text = raw.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events, name, data = [], "", ""
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                events.append(SseEvent(name, data.removesuffix("\n").encode()))
            name = data = ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data += value + "\n"
    return events


@pytest.mark.parametrize("line", [b"data: " + b"x" * 10 + b"\n", b"y" * 10, b": " + b"z" * 10])
def test_an_event_has_a_largest_size(line: bytes) -> None:
    parser = SseParser(max_event=1000)

    def flood() -> None:
        for _ in range(1000):
            parser.feed(line)

    with pytest.raises(SseError, match="1000 bytes"):
        flood()


def test_the_cap_is_per_event() -> None:
    parser = SseParser(max_event=100)
    assert sum(len(parser.feed(b"data: " + b"x" * 50 + b"\n\n")) for _ in range(100)) == 100
