"""The Responses stream as data: the events that are used, typed; server errors in one cleaned line."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import msgspec

from core.domain.status import Usage
from core.safety.text import clean_line

_MOST_TOKENS = 2**53
_SURROGATE = re.compile("[\ud800-\udfff]")


class WireError(Exception):
    """Bytes that are not what the Responses format says."""


class Head(msgspec.Struct):
    """Any event. `error` without a type is how some servers report a failure in the middle of a stream."""

    type: str = ""
    error: Any = None


class Delta(msgspec.Struct):
    delta: str = ""


class ItemDone(msgspec.Struct):
    item: dict[str, Any]
    output_index: int = 0


class Failure(msgspec.Struct):
    """An error object, as bodies, `response.failed` and `error` events carry it."""

    message: str | None = None
    code: str | int | None = None
    type: str | None = None
    param: str | None = None


class Incomplete(msgspec.Struct):
    reason: str | None = None


class Response(msgspec.Struct):
    id: str = ""
    model: str | None = None
    output: list[dict[str, Any]] = []
    usage: Any = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None


class Terminal(msgspec.Struct):
    response: Response


class ErrorEvent(msgspec.Struct):
    """Flat, or with the error nested, depending on the server."""

    message: str | None = None
    code: str | int | None = None
    param: str | None = None
    error: Failure | None = None


def decode(data: bytes, kind: Any) -> Any:
    """Decode JSON into a struct type; raises WireError.

    Servers that cut text into UTF-16 units send halves of a character as lone surrogate escapes, which are
    not Unicode; only then is the slower decoder used, and each half becomes U+FFFD.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if b"\\ud" not in data and b"\\uD" not in data:
            raise WireError(clean_line(str(error))) from None
    try:
        whole = json.dumps(json.loads(data), ensure_ascii=False)
        return msgspec.json.decode(_SURROGATE.sub("\ufffd", whole), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(clean_line(str(error))) from None


def usage_of(data: Any) -> Usage | None:
    """Token counts of a response's usage object; None when the server gave none. What is not a sane count
    is 0, and the whole is no less than its parts."""
    if not isinstance(data, dict):
        return None

    def count(source: Any, key: str) -> int:
        value = source.get(key) if isinstance(source, dict) else None
        whole = isinstance(value, int | float) and 0 <= value <= _MOST_TOKENS
        return int(value) if whole and value is not None else 0

    given = Usage(
        input=count(data, "input_tokens"),
        cached=count(data.get("input_tokens_details"), "cached_tokens"),
        output=count(data, "output_tokens"),
        reasoning=count(data.get("output_tokens_details"), "reasoning_tokens"),
        total=count(data, "total_tokens"),
    )
    parts = given.input + given.output
    return given if given.total >= parts else msgspec.structs.replace(given, total=parts)


def checked_items(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, if the turn loop can rely on them: every one has a type, every call its id, name and
    arguments as strings, and no id twice. Raises WireError; arguments are not looked into."""
    calls: set[str] = set()
    for item in items:
        if not isinstance(item.get("type"), str):
            raise WireError("an output item has no type")
        if item["type"] != "function_call":
            continue
        for key in ("call_id", "name", "arguments"):
            if not isinstance(item.get(key), str) or (key != "arguments" and not item[key]):
                raise WireError(f"a function call has no {key}")
        if item["call_id"] in calls:
            raise WireError("two function calls have the same call_id")
        calls.add(item["call_id"])
    return items


_READ = 4096
"""Of a long error text only so much is looked at: what patterns cost on hostile text is quadratic."""
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_DROPPED = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)


def _line(text: str) -> str:
    return clean_line(text[:_READ])


def looks_like_html(body: bytes) -> bool:
    start = body.lstrip()[:100].lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def failure_of(body: bytes) -> Failure:
    """What the body of an error answer says, whatever it is: JSON of several shapes, HTML, text, nothing."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = body[:_READ].decode("utf-8", "replace")
        if looks_like_html(body):
            title = _TITLE.search(text)
            text = html.unescape(title[1] if title else _DROPPED.sub(" ", text))
        return Failure(message=_line(text))
    while isinstance(data, list) and data:
        data = data[0]
    if isinstance(data, str):
        return Failure(message=_line(data))
    if not isinstance(data, dict):
        return Failure()
    inner = data.get("error")
    if isinstance(inner, str):
        return Failure(message=_line(inner))
    source = inner if isinstance(inner, dict) else data

    def word(*keys: str) -> str | None:
        value = next((source[key] for key in keys if source.get(key) not in (None, "")), None)
        if value is None:
            return None
        return _line(value if isinstance(value, str) else json.dumps(value))

    return Failure(
        message=word("message", "detail", "error_description"),
        code=word("code"),
        type=word("type"),
        param=word("param"),
    )


_CONTEXT = re.compile(
    r"context.?(length|window|size)|maximum context|too many tokens|input is too long", re.IGNORECASE
)


_TOO_MANY = ("rate_limit", "slow_down", "overloaded")
"""529 is called overloaded."""


def kind_of(failure: Failure, status: int | None) -> str:
    """The ModelError kind of a failure, by the server's code first, then its words, then the status.
    `status` None: told within a stream, where some servers give a status as the code."""
    if status is None and isinstance(failure.code, int) and 400 <= failure.code < 600:
        status = failure.code
    code = " ".join(str(part) for part in (failure.code, failure.type) if part).lower()
    if "insufficient_quota" in code or "billing" in code or status == 402:
        return "quota"
    if "context_length" in code or (
        status in (400, 413, 422, None) and _CONTEXT.search(failure.message or "")
    ):
        return "context"
    if "policy" in code or "content_filter" in code or "invalid_prompt" in code:
        return "policy"
    if status in (429, 529) or (status is None and any(word in code for word in _TOO_MANY)):
        return "rate_limit"
    if status is None:
        transient = not code or "server" in code or "timeout" in code
        return "server" if transient else "bad_request"
    by_status = {401: "auth", 403: "auth", 404: "not_found", 405: "not_found"}
    return by_status.get(status, "server" if status >= 500 else "bad_request")
