"""Faults: how an answer goes wrong."""

from __future__ import annotations

from typing import Any, Literal

from core.scripted.answer import Answer, error_answer
from core.scripted.scenario import Fault

_PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>"


def refusal(fault: Fault, delay: float) -> Answer | None:
    """The answer of a fault that leaves no stream at all; None for the others."""
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    message = fault.message
    match fault.kind:
        case "rate_limit":
            text = message or "Rate limit reached for requests."
            code = "rate_limit_exceeded"
            return error_answer(429, text, kind="requests", code=code, delay=delay, headers=headers)
        case "quota":
            text = message or "You exceeded your current quota, please check your plan and billing details."
            code = "insufficient_quota"
            return error_answer(429, text, kind=code, code=code, delay=delay)
        case "unauthorized":
            text = message or "Incorrect API key provided."
            return error_answer(401, text, code="invalid_api_key", delay=delay)
        case "server_error":
            text = message or "The server had an error while processing the request."
            return error_answer(500, text, kind="server_error", delay=delay, headers=headers)
        case "context":
            text = message or "Your input exceeds the context window of this model."
            return error_answer(400, text, param="input", code="context_length_exceeded", delay=delay)
        case "html":
            return Answer(200, "text/html", delay, [(0.0, _PAGE)])
        case "reset":
            return Answer(0, "", delay, [], "reset")
        case "hang" if fault.after_events == 0:
            return Answer(0, "", delay, [], "hang")
        case _:
            return None


def ending(fault: Fault) -> Literal["completed", "incomplete", "failed"]:
    if fault.kind == "failed":
        return "failed"
    return "incomplete" if fault.kind == "incomplete" else "completed"


def failure(fault: Fault) -> dict[str, Any]:
    """What a failed response says."""
    message = fault.message or "The server had an error while answering."
    return {"code": fault.code, "message": message}


def spoil_items(fault: Fault, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Halve the arguments of calls (malformed_arguments), or the last item (incomplete)."""
    spoilt = []
    for index, item in enumerate(output):
        last = index == len(output) - 1
        if item["type"] == "function_call" and (
            fault.kind == "malformed_arguments" or (fault.kind == "incomplete" and last)
        ):
            half = item["arguments"][: len(item["arguments"]) // 2]
            item = {**item, "arguments": half}
        elif item["type"] == "message" and fault.kind == "incomplete" and last:
            part = item["content"][0]
            item = {**item, "content": [{**part, "text": part["text"][: len(part["text"]) // 2]}]}
        if fault.kind == "incomplete" and last:
            item = {**item, "status": "incomplete"}
        spoilt.append(item)
    return spoilt


def spoil_stream(fault: Fault, events: list[bytes], delay: float) -> Answer:
    """The stream with the fault in it. What is cut off is at least the terminal event."""
    kept = events[: min(fault.after_events, len(events) - 1)]
    kind = "text/event-stream"
    match fault.kind:
        case "cut" | "eof":
            joined = b"".join(kept)
            if fault.after_bytes is not None:
                joined = b"".join(events)[: min(fault.after_bytes, sum(map(len, events)) - len(events[-1]))]
            return Answer(200, kind, delay, [(0.0, joined)], "drop" if fault.kind == "cut" else "done")
        case "hang":
            return Answer(200, kind, delay, [(0.0, b"".join(kept))], "hang")
        case "malformed_event":
            broken = b'event: response.output_text.delta\ndata: {"type": "response.output_te\n\n'
            rest = events[len(kept) :]
            return Answer(200, kind, delay, [(0.0, b"".join((*kept, broken, *rest)))])
        case "drip":
            return Answer(200, kind, delay, [(fault.delay_ms / 1000, event) for event in events])
        case _:
            return Answer(200, kind, delay, [(0.0, b"".join(events))])
