"""Where a server is and how to introduce oneself: the base URL taken apart, its secrets kept apart."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import msgspec

from core.models.types import ModelError
from core.safety.text import clean_line, shorten


class Address(msgspec.Struct, frozen=True):
    """`url` is what to post to, without credentials; `label` what people read; `authorization` the header
    ("" for none); `secrets` what must never be shown."""

    url: str
    label: str
    authorization: str
    secrets: Sequence[str]

    def hide(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return text


def parse_address(base_url: str, api_key: str | None, label: str | None = None) -> Address:
    """Raises ModelError for what cannot be used: no http(s) URL, a key that no header can hold, or a key
    that would travel unencrypted. Credentials in the URL are sent as Basic when there is no key."""
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = SplitResult("", "", "", "", ""), None, None
    if parts.scheme not in ("http", "https") or not host:
        shown = label or shorten(clean_line(base_url.rpartition("@")[2].partition("?")[0]), 120)
        raise ModelError(
            f"the base URL {shown!r} is not an http or https address; give one such as https://host/v1",
            kind="bad_request",
        )
    bare = f"[{host}]" if ":" in host else host
    where = bare if port is None else f"{bare}:{port}"
    path = parts.path.rstrip("/")
    name = label or clean_line(f"{parts.scheme}://{where}{path}")
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelError(
            f"the API key for {name} holds characters that no key has; check the variable that it comes from",
            kind="auth",
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    authorization = ""
    if key:
        authorization = f"Bearer {key}"
    elif user or password:
        authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if authorization and parts.scheme == "http" and not is_loopback(host):
        raise ModelError(
            f"{name} is not encrypted and not on this machine, so no key is sent there; "
            "use https, or unset the key",
            kind="auth",
        )
    secrets = {key, password, parts.password or "", authorization.partition(" ")[2], parts.query}
    return Address(
        url=urlunsplit((parts.scheme, where, path + "/responses", parts.query, "")),
        label=name,
        authorization=authorization,
        secrets=tuple(sorted((s for s in secrets if len(s) > 3), key=len, reverse=True)),
    )


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
