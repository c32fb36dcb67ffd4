"""Pictures between calls, the store and the model: histories hold marks, requests hold the bytes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from core.agents.history import MARK, Item, text_part
from core.domain import events as e
from core.models.types import ModelError
from core.safety.text import clean_line, size_of
from core.store import blobs
from core.store.errors import NotFound, StoreError
from core.store.readers import Reader
from core.tools.base import ToolImage

log = logging.getLogger("watchroom.agents")
MAX_SENT = 24 * 1024 * 1024
"""Bytes of pictures in one request, the newest ones. As base64 they are a third more, and servers take about
50 MB."""
MAX_CACHED = 32 * 1024 * 1024
"""Characters."""


class Images:
    """Sends the pictures of one swarm's histories. What is sent follows from the items and the store alone,
    so a reloaded agent sends what it sent before."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._cache: OrderedDict[str, str] = OrderedDict()
        self._cached = 0
        self._blind: set[str] = set()

    @staticmethod
    def suspects(error: ModelError) -> bool:
        """Whether a request may have been refused for its pictures: servers word that in many ways."""
        return error.kind == "bad_request" or "image" in str(error).lower()

    def withheld(self, model: str) -> bool:
        """Whether `model` is sent no pictures."""
        return model in self._blind

    def withhold(self, model: str) -> None:
        """Send `model` no pictures from now on: else an agent that was given one could never go on."""
        self._blind.add(model)

    def give(self, model: str) -> None:
        """Send `model` pictures again."""
        self._blind.discard(model)

    async def sendable(self, items: Sequence[Item], model: str) -> list[Item]:
        """`items` as a server takes them: each mark is its picture, or a line that says why it is not. The
        items themselves stay as they are."""
        sent = list(items)
        room = 0 if model in self._blind else MAX_SENT
        why = (
            "left out, the model takes no images" if model in self._blind else "left out, newer ones are sent"
        )
        for index in range(len(sent) - 1, -1, -1):
            parts = sent[index].get("output")
            if not isinstance(parts, list):
                continue
            told: list[Item] = []
            for part in parts:
                if part.get("type") != MARK:
                    told.append(part)
                elif part["size"] > room:
                    room = 0  # no older one either: what is sent are the newest without a gap
                    told.append(_line(part, why))
                else:
                    room -= part["size"]
                    told.append(await self._picture(part))
            sent[index] = {**sent[index], "output": _simple(told)}
        return sent

    async def _picture(self, mark: Item) -> Item:
        try:
            address = await self._address(mark["blob"])
        except (NotFound, StoreError) as error:
            log.warning("an image cannot be sent: %s", error)
            return _line(mark, clean_line(str(error)))
        return {"type": "input_image", "image_url": address, "detail": "auto"}

    async def _address(self, blob: str) -> str:
        """The picture as a data URL. Raises NotFound or StoreError."""
        if (address := self._cache.get(blob)) is not None:
            self._cache.move_to_end(blob)
            return address
        found = await blobs.read(self._reader, blob)
        address = await asyncio.to_thread(_data_url, found)
        if blob not in self._cache:
            self._cache[blob] = address
            self._cached += len(address)
        while self._cached > MAX_CACHED:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return address


def has_marks(items: Iterable[Item]) -> bool:
    """Whether any of these items has a picture."""
    return any(
        part.get("type") == MARK
        for item in items
        if isinstance(parts := item.get("output"), list)
        for part in parts
    )


def _simple(parts: list[Item]) -> str | list[Item]:
    """Text alone goes as a string, which every server takes."""
    if all(part.get("type") == "input_text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _line(mark: Item, why: str) -> Item:
    kind = str(mark["media_type"]).rpartition("/")[2]
    return text_part(f"[image {kind} {size_of(mark['size'])}: {why}]")


def _data_url(blob: blobs.Blob) -> str:
    return f"data:{blob.media_type};base64,{base64.b64encode(blob.data).decode()}"


# --- from a call into the store --------------------------------------------------------------------------


async def keep(images: Sequence[ToolImage]) -> tuple[list[blobs.Blob], list[str]]:
    """What a call returned, as the store keeps it, and a line for each that is no base64."""
    return await asyncio.to_thread(_keep, images)


def _keep(images: Sequence[ToolImage]) -> tuple[list[blobs.Blob], list[str]]:
    kept: list[blobs.Blob] = []
    problems: list[str] = []
    for image in images:
        try:
            kept.append(blobs.make_blob(base64.b64decode(image.data, validate=True), image.media_type))
        except (binascii.Error, ValueError):
            kind = image.media_type.rpartition("/")[2]
            problems.append(f"[image {kind}: not base64, left out]")
    return kept, problems


def names_of(kept: Iterable[blobs.Blob]) -> tuple[e.Image, ...]:
    return tuple(e.Image(blob=b.blob, media_type=b.media_type, size=len(b.data)) for b in kept)
