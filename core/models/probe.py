"""Whether a server answers at all, and to this key: what `doctor` asks. It generates and costs nothing."""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from core.clock import Clock
from core.models.address import parse_address
from core.models.http import Http, HttpFailure, make_http
from core.models.types import ModelError

SECONDS = 5.0
MAX_BYTES = 4 * 1024 * 1024


class Answer(NamedTuple):
    status: Literal["ok", "warn", "fail"]
    detail: str


async def probe(base_url: str, api_key: str | None, model: str | None, clock: Clock) -> Answer:
    """GET `<base_url>/models`, five seconds at most. The detail never holds the key."""
    try:
        address = parse_address(base_url, api_key)
    except ModelError as error:
        return Answer("fail", str(error))
    http = make_http()
    try:
        async with clock.timeout(SECONDS):
            parts = urlsplit(address.url)
            path = parts.path.removesuffix("/responses") + "/models"
            headers = {"Accept": "application/json"}
            if address.authorization:
                headers["Authorization"] = address.authorization
            url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
            code, body = await _get(http, url, headers)
    except TimeoutError:
        return Answer("fail", f"{address.label} did not answer within {SECONDS:.0f} s")
    except HttpFailure as error:
        return Answer("fail", address.hide(f"{address.label} {error}"))
    finally:
        await http.aclose()
    return _judge(address.label, code, body, bool(address.authorization), model)


async def _get(http: Http, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    reply = await http.get(url, headers)
    try:
        body = bytearray()
        while reply.status == 200 and len(body) <= MAX_BYTES and (chunk := await reply.read()):
            body += chunk
        return reply.status, bytes(body)
    finally:
        await reply.aclose()


def _judge(label: str, code: int, body: bytes, keyed: bool, model: str | None) -> Answer:
    if code in (401, 403):
        said = "key refused" if keyed else "it wants a key"
        return Answer("fail", f"{label}: {said} (HTTP {code})")
    if code in (404, 405):
        return Answer("ok", f"{label} answers; it has no list of models (HTTP {code})")
    if code != 200:
        return Answer("warn", f"{label} answers with HTTP {code}")
    names = _names(body)
    if model is not None and names and model not in names:
        return Answer("warn", f"{label} answers (HTTP 200), but does not list the model {model}")
    return Answer("ok", f"{label} answers (HTTP 200)")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _names(body: bytes) -> set[str]:
    """The models that are listed; none if the answer is something else."""
    try:
        return {found.id for found in msgspec.json.decode(body, type=_Models).data}
    except msgspec.DecodeError:
        return set()
