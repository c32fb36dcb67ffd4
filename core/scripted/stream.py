"""A response as the bytes of a Responses stream, or as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

Fields = dict[str, Any]


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def _response(base: Fields, status: str, output: list[Fields], **more: Any) -> Fields:
    return {**base, "status": status, "output": output, **more}


def base_response(request: Fields, response_id: str, model: str, created_at: int) -> Fields:
    """What every copy of the response object in a stream has in common. The request's instructions and
    tools are not repeated in it."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": request.get("max_output_tokens"),
        "metadata": {},
        "model": model,
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": (request.get("reasoning") or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
    }


def whole(base: Fields, output: list[Fields], usage: Fields) -> bytes:
    return msgspec.json.encode(_response(base, "completed", output, usage=usage))


def stream(
    base: Fields,
    output: list[Fields],
    usage: Fields,
    size: int,
    ending: str,
    error: Fields | None = None,
) -> list[bytes]:
    """Encoded events in order, `sequence_number` dense from 0. `size`: characters per delta. `ending`:
    completed, incomplete (by max_output_tokens) or failed (by `error`: its code and message)."""
    events: list[Fields] = [
        {"type": "response.created", "response": _response(base, "in_progress", [])},
        {"type": "response.in_progress", "response": _response(base, "in_progress", [])},
    ]
    for index, item in enumerate(output):
        events.extend(_item_events(index, item, size))
    if ending == "failed":
        final = _response(base, "failed", [], error=error)
    elif ending == "incomplete":
        details = {"reason": "max_output_tokens"}
        final = _response(base, "incomplete", output, usage=usage, incomplete_details=details)
    else:
        final = _response(base, "completed", output, usage=usage)
    events.append({"type": f"response.{ending}", "response": final})
    return [_encode(number, event) for number, event in enumerate(events)]


def _encode(number: int, event: Fields) -> bytes:
    event["sequence_number"] = number
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def _item_events(index: int, item: Fields, size: int) -> Iterator[Fields]:
    inner = {
        "message": _message_events,
        "function_call": _call_events,
        "reasoning": _reasoning_events,
    }[item["type"]]
    empty = {"message": "content", "function_call": "arguments", "reasoning": "summary"}[item["type"]]
    begun = {**item, empty: type(item[empty])()}
    if item["type"] == "reasoning":
        begun["encrypted_content"] = None
    else:
        begun["status"] = "in_progress"
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield from inner(item, {"item_id": item["id"], "output_index": index}, size)
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _message_events(item: Fields, at: Fields, size: int) -> Iterator[Fields]:
    part = item["content"][0]
    at = {**at, "content_index": 0}
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
    for piece in pieces(part["text"], size):
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part}


def _call_events(item: Fields, at: Fields, size: int) -> Iterator[Fields]:
    for piece in pieces(item["arguments"], size):
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
    done = {"arguments": item["arguments"], "name": item["name"]}
    yield {"type": "response.function_call_arguments.done", **at, **done}


def _reasoning_events(item: Fields, at: Fields, size: int) -> Iterator[Fields]:
    part = item["summary"][0]
    at = {**at, "summary_index": 0}
    yield {"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}}
    for piece in pieces(part["text"], size):
        yield {"type": "response.reasoning_summary_text.delta", **at, "delta": piece}
    yield {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]}
    yield {"type": "response.reasoning_summary_part.done", **at, "part": part}
