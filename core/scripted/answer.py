"""What is sent back for one request: status, timed chunks, and how it ends."""

from __future__ import annotations

from typing import Literal

import msgspec

End = Literal["done", "drop", "hang", "reset"]


class Answer(msgspec.Struct, frozen=True):
    """`delay` seconds pass before the headers, each chunk's own before it is sent.

    `end` after the last chunk: done; drop (the connection breaks); hang (nothing more until the client goes;
    without chunks not even headers); reset (the connection breaks instead of any answer).
    """

    status: int
    content_type: str
    delay: float
    chunks: list[tuple[float, bytes]]
    end: End = "done"
    headers: dict[str, str] = {}


def error_answer(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    delay: float = 0.0,
    headers: dict[str, str] | None = None,
) -> Answer:
    error = {"message": message, "type": kind, "param": param, "code": code}
    content = msgspec.json.encode({"error": error})
    return Answer(status, "application/json", delay, [(0.0, content)], "done", headers or {})
