"""The parts below the servers: lines, names, answers, and what a server lists."""

from __future__ import annotations

import base64
import itertools
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.tools.base import MAX_OUTPUT_CHARS
from core.tools.mcp.errors import McpError, McpStartError
from core.tools.mcp.names import wire_name
from core.tools.mcp.offers import MAX_TOOLS, check
from core.tools.mcp.results import answer_of
from core.tools.mcp.stdio import LineReader, Oversized

# --- lines -----------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)), st.integers(1, 40))
def test_lines_do_not_depend_on_how_they_are_cut(data: bytes, cuts: list[int], limit: int) -> None:
    reader = LineReader(limit, skip=1_000_000)
    found: list[bytes | Oversized] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        found += reader.feed(data[start:end])
    whole = data.split(b"\n")[:-1]
    assert [line if isinstance(line, bytes) else line.size for line in found] == [
        line if len(line) <= limit else len(line) for line in whole
    ]


@pytest.mark.parametrize(
    ("line", "answered"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{"x":"%s"}}', 7),
        (b'{"id": 7, "jsonrpc": "2.0", "result": {"x": "%s"}}', 7),
        (b'{"result":{"x":"%s"},"jsonrpc":"2.0","id":7}', 7),
        (b'{"result":{"x":"%s"},"id":7,"jsonrpc":"2.0"}\r', 7),
        (b'{"jsonrpc":"2.0","method":"notifications/message","params":{"x":"%s","id":7}}', None),
        (b'{"jsonrpc":"2.0","id":"a","result":{"x":"%s"}}', None),
    ],
)
@pytest.mark.parametrize("chunk", [7, 100_000])
def test_the_request_that_a_dropped_line_answered(line: bytes, answered: int | None, chunk: int) -> None:
    data = line % (b"x" * 5_000) + b'\n{"ok":1}\n'
    reader = LineReader(1_000, skip=100_000)
    found = [
        part for start in range(0, len(data), chunk) for part in reader.feed(data[start : start + chunk])
    ]
    assert found == [Oversized(len(data) - len(b'\n{"ok":1}\n'), answered), b'{"ok":1}']


def test_a_line_without_an_end_is_given_up() -> None:
    reader = LineReader(100, skip=1_000)
    for _ in range(20):
        assert reader.feed(b"x" * 50) == []
    with pytest.raises(McpError, match="without the end of a message"):
        reader.feed(b"x")


# --- names -----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), unique=True, max_size=30))
def test_names_are_valid_and_each_once(pairs: list[tuple[str, str]]) -> None:
    taken: dict[str, tuple[str, str]] = {}
    for server, tool in pairs:
        name = wire_name(server, tool, taken)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
        assert "__" in name
        assert name not in taken
        taken[name] = (server, tool)


def test_a_plain_name_is_kept_and_a_changed_one_is_the_same_in_every_start() -> None:
    assert wire_name("files", "read-it_2", ()) == "files__read-it_2"
    assert wire_name("files", "a.b", ()) == wire_name("files", "a.b", {"x"}) != wire_name("files", "a/b", ())
    assert wire_name("a", "b__c", {"a__b__c"}).startswith("a__b__c_")


# --- answers ---------------------------------------------------------------------------------------------


def result(*blocks: Any, structured: Any = None, failed: bool | None = None) -> Any:
    return SimpleNamespace(content=list(blocks), structured_content=structured, is_error=failed)


def block(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(type=kind, **fields)


PNG = b"\x89PNG\r\n\x1a\n"


def image(raw: bytes, mime_type: str = "image/png") -> Any:
    return block("image", data=base64.b64encode(raw).decode(), mime_type=mime_type)


@given(st.text(), st.text())
def test_text_comes_out_clean(first: str, second: str) -> None:
    answer = answer_of(result(block("text", text=first), block("text", text=second)))
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text


def test_much_text_keeps_head_and_tail() -> None:
    answer = answer_of(result(block("text", text="a" * 100_000), block("text", text="b" * 100_000)))
    assert answer.text.startswith("aaa")
    assert answer.text.endswith("bbb")
    assert len(answer.text) < MAX_OUTPUT_CHARS + 100


def test_what_an_image_is_is_looked_up_in_its_bytes() -> None:
    answer = answer_of(result(image(b"\xff\xd8\xff" + b"x" * 1_500_000, "image/png\x1b[31m")))
    assert answer.text == "[image jpeg 1.5 MB]"
    assert [i.media_type for i in answer.images] == ["image/jpeg"]


def test_images_are_few_and_not_too_large() -> None:
    answer = answer_of(result(*[image(PNG + bytes([n])) for n in range(6)], image(PNG + b"x" * 5_000_000)))
    assert len(answer.images) == 4
    assert answer.text.splitlines()[4:] == [
        "[image png 9 B: left out, a call passes on at most 4]",
        "[image png 9 B: left out, a call passes on at most 4]",
        "[image png 5.0 MB: too large to pass on, the limit is 4.2 MB]",
    ]


def test_an_image_within_a_resource_is_one_too() -> None:
    inner = SimpleNamespace(uri="file:///x", mime_type="image/png", blob=base64.b64encode(PNG).decode())
    answer = answer_of(result(block("resource", resource=inner)))
    assert answer.text == "[resource file:///x]\n[image png 8 B]"
    assert len(answer.images) == 1


@pytest.mark.parametrize(
    ("texts", "structured", "shown"),
    [
        ([], {"a": 1}, '{"a": 1}'),
        (['{"a":1}'], {"a": 1}, '{"a":1}'),
        (["5"], {"result": 5}, "5"),
        (["hello"], {"result": "hello"}, "hello"),
        (["about it"], {"a": 1}, 'about it\n{"a": 1}'),
        ([], [], "[]"),
    ],
)
def test_structured_content_is_shown_once(texts: list[str], structured: Any, shown: str) -> None:
    answer = answer_of(result(*(block("text", text=t) for t in texts), structured=structured))
    assert answer.text == shown


def test_many_blocks_are_counted() -> None:
    answer = answer_of(result(*(block("text", text="x") for _ in range(1_500))))
    assert answer.text.endswith("[500 more blocks left out]")


# --- lists of tools --------------------------------------------------------------------------------------


def listed(name: str, schema: Any = None, **hints: bool) -> Any:
    annotations = SimpleNamespace(
        read_only_hint=hints.get("read_only"), destructive_hint=hints.get("destructive")
    )
    return SimpleNamespace(
        name=name,
        description="it",
        input_schema={"type": "object"} if schema is None else schema,
        annotations=annotations,
    )


def test_only_a_tool_that_says_so_and_nothing_else_is_read_only() -> None:
    offers, _ = check(
        [listed("a", read_only=True), listed("b"), listed("c", read_only=True, destructive=True)]
    )
    assert [offer.read_only for offer in offers.values()] == [True, False, False]


def test_too_many_tools() -> None:
    offers, problems = check([listed(f"t{n}") for n in range(MAX_TOOLS + 5)])
    assert len(offers) == MAX_TOOLS
    assert problems == [f"t{MAX_TOOLS} and what follows is more than {MAX_TOOLS} tools"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["type", "properties", "$ref", "items", "x", "required"]), json_values)
)
def test_any_schema_is_offered_or_left_out_with_a_sentence(schema: dict[str, Any]) -> None:
    offers, problems = check([listed("t", schema | {"type": "object"})])
    assert len(offers) + len(problems) == 1
    for offer in offers.values():
        assert offer.schema["type"] == "object"
        json.dumps(offer.schema)


def test_a_reference_must_lead_somewhere_within() -> None:
    inside = {"type": "object", "$defs": {"a": {}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    nowhere = {"type": "object", "properties": {"x": {"$ref": "#/$defs/b"}}}
    outside = {"type": "object", "properties": {"x": {"$ref": "file:///etc/passwd"}}}
    offers, problems = check([listed("a", inside), listed("b", nowhere), listed("c", outside)])
    assert list(offers) == ["a"]
    assert problems == [
        "b has a schema that refers to #/$defs/b, which it does not hold",
        "c has a schema that refers to file:///etc/passwd, outside itself",
    ]


def test_the_error_of_a_start_names_all_in_order() -> None:
    error = McpStartError({"b": "two", "a": "one"})
    assert str(error) == "a: one; b: two"
