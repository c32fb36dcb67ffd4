"""Secrets are taken out where text enters the journal (decision 12): values of key variables, key patterns.

A pattern runs only if one of its literal hints is in the text: a substring search costs a tenth of a regular
expression with as many branches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

MARK = "[redacted]"
MIN_SECRET = 8
"""Shorter values of key variables are left alone: replacing them would garble ordinary text."""

_KEY_NAME = re.compile(
    r"(?:(?:^|_)(?:API_?KEY|(?:ACCESS|SECRET|PRIVATE)_?KEY|TOKEN|SECRET|CREDENTIALS?|PAT)"
    r"|PASSWORD|PASSWD|PASSPHRASE)(?:_ID|_BASE64)?$",
    re.IGNORECASE,
)
_START = r"(?<![A-Za-z0-9_-])"
_DIGIT = r"(?=[A-Za-z0-9._~+/=-]*[0-9])"
_T = TypeVar("_T", bound=msgspec.Struct)

_PATTERNS: list[tuple[tuple[str, ...], str, str]] = [
    # (hints, pattern, what stays). No pattern may match a quote, or a backslash outside a PEM block: the text
    # may be JSON, and must stay JSON.
    (("sk-",), _START + r"sk-(?=(?:[A-Za-z_-]*[0-9]){2})[A-Za-z0-9_-]{20,}", MARK),
    (("k_live_", "k_test_"), _START + r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,}", MARK),
    (("gh",), _START + r"gh[pousr]_[A-Za-z0-9]{20,}", MARK),
    (("github_pat_",), _START + r"github_pat_[A-Za-z0-9_]{20,}", MARK),
    (("glpat-",), _START + r"glpat-[A-Za-z0-9_-]{20,}", MARK),
    (("AKIA", "ASIA"), r"(?<![A-Za-z0-9])A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])", MARK),
    (("xox",), _START + r"xox[abeoprs]-[A-Za-z0-9-]{10,}", MARK),
    (("xapp-",), _START + r"xapp-[A-Za-z0-9-]{20,}", MARK),
    (("AIza",), _START + r"AIza[0-9A-Za-z_-]{35}", MARK),
    (("hf_",), _START + r"hf_[A-Za-z0-9]{30,}", MARK),
    (("npm_",), _START + r"npm_[A-Za-z0-9]{36}", MARK),
    (("eyJ",), _START + r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}", MARK),
    (
        ("earer ", "EARER "),
        r"(?i:\b(bearer +))" + _DIGIT + r"[A-Za-z0-9._~+/-]{16,}=*",
        r"\1" + MARK,
    ),
    (
        ("PRIVATE KEY-----",),
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----[^\"']*?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----",
        MARK,
    ),
    (("://",), r"(://[^\s/:@\"'\\]{1,64}:)[^\s/@\"'\\]{3,}(?=@[A-Za-z0-9\[])", r"\1" + MARK),
]
_SURROGATE = re.compile("[\ud800-\udfff]")
_OPAQUE = "encrypted_content"
"""Fields of a server's own item that only make sense unchanged."""


class Redactor:
    """Text in, the same text without secrets out. Idempotent.

    `env` is searched for variables whose names say that they hold a key; `key_vars` names further ones.
    """

    def __init__(self, env: Mapping[str, str], key_vars: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._values: list[str] = []
        self.learn(secret_values(env, key_vars))
        self._rules = [(hints, re.compile(pattern), stays) for hints, pattern, stays in _PATTERNS]

    def learn(self, values: Iterable[str]) -> None:
        """Take further values out from now on."""
        fresh = {value.strip() for value in values} - self._secrets
        fresh = {value for value in fresh if len(value) >= MIN_SECRET and value != MARK}
        if fresh:
            self._secrets |= fresh
            self._values = _spellings(self._secrets)

    def __call__(self, text: str) -> str:
        if len(text) < MIN_SECRET:
            return text
        if "\\" in text and text[0] in '{["':
            text = self._json(text)
        return self._plain(text)

    def _plain(self, text: str) -> str:
        for value in self._values:
            if value in text:
                text = text.replace(value, MARK)
        for hints, pattern, stays in self._rules:
            for hint in hints:
                if hint in text:
                    text = pattern.sub(stays, text)
                    break
        return text

    def _json(self, text: str) -> str:
        """JSON can spell any character as an escape: look at what the strings in it really say."""
        try:
            value = json.loads(text)
            redacted = redact_value(value, self._plain)
        except (ValueError, RecursionError):
            return text
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)


def secret_values(env: Mapping[str, str], key_vars: Iterable[str] = ()) -> set[str]:
    """The values of variables whose names say that they hold a key, and of `key_vars`."""
    named = set(key_vars)
    found = {v.strip() for name, v in env.items() if name in named or _KEY_NAME.search(name)}
    return {value for value in found if len(value) >= MIN_SECRET}


def redact_value(value: Any, redact: Callable[[str], str]) -> Any:
    """Every string in a JSON value, keys too, except opaque fields; in structs too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_value(v, redact) for v in value]
    if isinstance(value, tuple):
        return tuple(redact_value(v, redact) for v in value)
    if isinstance(value, msgspec.Struct):
        return redact_struct(value, redact)
    if isinstance(value, dict):
        return {redact(k): v if k == _OPAQUE else redact_value(v, redact) for k, v in value.items()}
    return value


def redact_struct(item: _T, redact: Callable[[str], str]) -> _T:
    """`item` itself if `redact` changes none of its text, else a copy (nested structs, tuples, dicts too)."""
    changed: dict[str, Any] = {}
    for name in item.__struct_fields__:
        value = getattr(item, name)
        if value is None or isinstance(value, int | float):
            continue
        new: Any = value
        if isinstance(value, str):
            new = redact(value)
        elif isinstance(value, msgspec.Struct):
            new = redact_struct(value, redact)
        elif isinstance(value, tuple | list | dict):
            new = redact_value(value, redact)
        if new is not value and new != value:
            changed[name] = new
    return replace(item, **changed) if changed else item


def storable(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which neither JSON nor the store can hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _spellings(values: Iterable[str]) -> list[str]:
    """Each value as it is and as JSON spells it, the longest first: one may be part of another."""
    found: set[str] = set()
    for value in values:
        found |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return sorted(found, key=lambda value: (-len(value), value))
