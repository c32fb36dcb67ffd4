"""Requests are held to what a strict server holds them to: this finds mistakes of our own engine."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

from core.scripted.exchange import Item, text_of

SEAL = "scripted."
_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,")
_KINDS = frozenset({"message", "function_call", "function_call_output", "reasoning"})
_PARTS = {
    "user": frozenset({"input_text", "input_image", "input_file"}),
    "system": frozenset({"input_text"}),
    "developer": frozenset({"input_text"}),
    "assistant": frozenset({"output_text", "refusal"}),
}


class Refused(Exception):
    """HTTP 400 with an error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def seal(item_id: str, summary: str) -> str:
    """Stands for a reasoning item's encrypted content; only the same item has the same."""
    digest = hashlib.blake2b(f"{item_id}\0{summary}".encode("utf-8", "replace"), digest_size=24)
    return SEAL + digest.hexdigest()


def read_request(raw: bytes) -> dict[str, Any]:
    """The body, its `input` a list of items. Raises Refused."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Refused("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused("The body is not a JSON object.")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refused("Missing required parameter: 'model'.", "model")
    if not isinstance(body.get("instructions") or "", str):
        raise Refused("'instructions' must be a string.", "instructions")
    if body.get("store") is not False:
        raise Refused("This server stores nothing: send store = false.", "store")
    if body.get("previous_response_id") is not None:
        raise Refused("This server stores nothing: send the whole input.", "previous_response_id")
    given = body.get("input")
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Refused("'input' must be a string or a list of at least one item.", "input")
    body["input"] = given
    _check_tools(body.get("tools"))
    _check_items(given)
    return body


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise Refused("'tools' must be a list.", "tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise Refused(f"'{where}' is not a function tool.", where)
        name = tool.get("name")
        if not isinstance(name, str) or not name or len(name) > 64:
            raise Refused(f"'{where}.name' must be a string of 1 to 64 characters.", f"{where}.name")
        if not isinstance(tool.get("parameters"), dict):
            raise Refused(f"'{where}.parameters' must be a JSON Schema.", f"{where}.parameters")
        if name in names:
            raise Refused(f"The tool {name!r} is listed twice.", where)
        names.add(name)


def _check_items(items: list[Any]) -> None:
    waiting: set[str] = set()
    called: set[str] = set()
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise Refused(f"'{where}' is not an object.", where)
        kind = item.setdefault("type", "message" if "role" in item else None)
        if kind not in _KINDS:
            raise Refused(f"'{where}.type' is {kind!r}, which is no item type here.", f"{where}.type")
        if kind == "message":
            _check_message(item, where)
        elif kind == "reasoning":
            _check_reasoning(item, where)
        else:
            _check_call(item, where, called, waiting)
    for call in sorted(waiting):
        raise Refused(f"No tool output found for function call {call}.", "input")


def _check_message(item: Item, where: str) -> None:
    allowed = _PARTS.get(str(item.get("role")))
    if allowed is None:
        raise Refused(f"'{where}.role' is {item.get('role')!r}, which is no role.", f"{where}.role")
    content = item.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise Refused(f"'{where}.content' must be a string or a list.", f"{where}.content")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in allowed:
            raise Refused(
                f"'{where}.content' of role {item['role']} takes {', '.join(sorted(allowed))}.",
                f"{where}.content",
            )


def _check_reasoning(item: Item, where: str) -> None:
    if not isinstance(item.get("id"), str) or not isinstance(item.get("summary"), list):
        raise Refused(f"'{where}' must be the reasoning item as it was sent.", where)
    sealed = item.get("encrypted_content")
    if sealed is None:
        return
    if sealed != seal(item["id"], text_of(item["summary"])):
        raise Refused(
            f"The encrypted content of item {item['id']} could not be verified.",
            where,
            "invalid_encrypted_content",
        )


def _check_call(item: Item, where: str, called: set[str], waiting: set[str]) -> None:
    call = item.get("call_id")
    if not isinstance(call, str) or not call:
        raise Refused(f"'{where}.call_id' must be a string.", f"{where}.call_id")
    if item["type"] == "function_call":
        if not isinstance(item.get("name"), str) or not isinstance(item.get("arguments"), str):
            raise Refused(f"'{where}' needs name and arguments as strings.", where)
        if call in called:
            raise Refused(f"The call_id {call} is used by two function calls.", where)
        called.add(call)
        waiting.add(call)
        return
    if not isinstance(item.get("output"), str | list):
        raise Refused(f"'{where}.output' must be a string or a list.", f"{where}.output")
    if isinstance(item["output"], list):
        for number, part in enumerate(item["output"]):
            _check_output_part(part, f"{where}.output[{number}]")
    if call not in called:
        raise Refused(f"No tool call found for function call output with call_id {call}.", where)
    if call not in waiting:
        raise Refused(f"The function call {call} has two outputs.", where)
    waiting.discard(call)


def _check_output_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_text":
        if not isinstance(part.get("text"), str):
            raise Refused(f"'{where}.text' must be a string.", f"{where}.text")
    elif kind == "input_image":
        if not is_image(part.get("image_url")):
            raise Refused(f"'{where}.image_url' must be the address or the bytes of an image.", where)
    elif kind != "input_file":
        raise Refused(f"'{where}.type' is {kind!r}, which no output has.", f"{where}.type")


def is_image(address: Any) -> bool:
    """An address of the web, or a data URL with the bytes of an image of a kind that models are shown."""
    if not isinstance(address, str):
        return False
    if address.startswith(("https://", "http://")):
        return True
    found = _IMAGE.match(address)
    if found is None:
        return False
    try:
        return bool(base64.b64decode(address[found.end() :], validate=True))
    except (binascii.Error, ValueError):
        return False
