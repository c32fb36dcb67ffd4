"""What a server answered to a call, as text and images for the model."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Literal

import msgspec

from core.safety.text import clean, clean_line, head_and_tail, shorten, size_of
from core.tools.base import MAX_OUTPUT_CHARS, ToolImage

MAX_BLOCKS = 1_000
MAX_IMAGES = 4
MAX_IMAGE_BYTES = 4 * 1024 * 1024

ImageType = Literal["image/png", "image/jpeg", "image/gif", "image/webp"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    images: tuple[ToolImage, ...] = ()
    failed: bool = False
    """The tool says that it did not do it."""


def answer_of(result: Any) -> Answer:
    """The answer in mcp's `CallToolResult`: blocks in their order, text at most MAX_OUTPUT_CHARS (head and
    tail). Structured content is added where no text block says the same."""
    parts: list[str] = []
    images: list[ToolImage] = []
    for block in result.content[:MAX_BLOCKS]:
        parts.append(_block(block, images))
    if (more := len(result.content) - MAX_BLOCKS) > 0:
        parts.append(f"[{more} more blocks left out]")
    if result.structured_content is not None and not _said(result.structured_content, parts):
        parts.append(clean(_json(result.structured_content)))
    text = head_and_tail("\n".join(parts), MAX_OUTPUT_CHARS)
    return Answer(text=text, images=tuple(images), failed=bool(result.is_error))


def _block(block: Any, images: list[ToolImage]) -> str:
    match block.type:
        case "text":
            # Cut before it is cleaned: cleaning megabytes that nobody will read takes a while.
            return clean(head_and_tail(block.text, 2 * MAX_OUTPUT_CHARS))
        case "image":
            return _image(block.data, block.mime_type, images)
        case "audio":
            return f"[audio {_kind(block.mime_type)} {size_of(_bytes_of(block.data))}: not passed on]"
        case "resource_link":
            named = show(block.title or block.name)
            about = f": {show(block.description)}" if block.description else ""
            return f"[resource {named} {show(str(block.uri))}{about}]"
        case "resource":
            return _resource(block.resource, images)
        case other:
            return f"[a block of the unknown type {show(str(other))}]"


def _resource(resource: Any, images: list[ToolImage]) -> str:
    head = f"[resource {show(str(resource.uri))}]"
    if (text := getattr(resource, "text", None)) is not None:
        return f"{head}\n{clean(head_and_tail(text, 2 * MAX_OUTPUT_CHARS))}"
    kind = resource.mime_type or ""
    if kind.startswith("image/"):
        return f"{head}\n{_image(resource.blob, kind, images)}"
    return f"{head}\n[{_kind(kind) or 'bytes'} {size_of(_bytes_of(resource.blob))}: not passed on]"


def _image(data: str, said: str, images: list[ToolImage]) -> str:
    """One line about an image; it is added to `images` if a model can be shown it."""
    label = f"image {_kind(said)}"
    size = _bytes_of(data)
    if size > MAX_IMAGE_BYTES:
        return f"[{label} {size_of(size)}: too large to pass on, the limit is {size_of(MAX_IMAGE_BYTES)}]"
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return f"[{label}: not base64, left out]"
    found = _sniff(raw)
    if found is None:
        return f"[{label} {size_of(len(raw))}: no png, jpeg, gif or webp, left out]"
    label = f"image {_kind(found)} {size_of(len(raw))}"
    if len(images) >= MAX_IMAGES:
        return f"[{label}: left out, a call passes on at most {MAX_IMAGES}]"
    images.append(ToolImage(media_type=found, data=data))
    return f"[{label}]"


def _sniff(raw: bytes) -> ImageType | None:
    """What it is by its first bytes; what the server calls it proves nothing."""
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if raw.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if raw.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return "image/webp"
    return None


def _bytes_of(encoded: str) -> int:
    """How many bytes a base64 text holds, without decoding it."""
    return max(len(encoded) * 3 // 4 - encoded[-2:].count("="), 0)


def _kind(media_type: str) -> str:
    return show(media_type.rpartition("/")[2])


def show(text: str) -> str:
    return shorten(clean_line(text), 200)


def _json(value: Any) -> str:
    return head_and_tail(json.dumps(value, ensure_ascii=False, default=str), 2 * MAX_OUTPUT_CHARS)


def _said(value: Any, parts: list[str]) -> bool:
    """Whether a text block says the same: servers repeat structured content as text for older clients, and
    wrap a plain result into {"result": ...}."""
    inner = value["result"] if isinstance(value, dict) and value.keys() == {"result"} else value
    for part in parts:
        if part == inner:
            return True
        try:
            told = msgspec.json.decode(part)
        except (msgspec.DecodeError, RecursionError):
            continue
        if told in (value, inner):
            return True
    return bool(parts) and isinstance(inner, str) and clean(inner) == "\n".join(parts)
