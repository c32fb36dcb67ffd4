from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain import events as e
from core.safety.redact import MARK, Redactor, redact_struct
from core.store.store import Store
from tests.clock import FakeClock
from tests.core.domain.strategies import EVENT_TYPES, random_events

CANARY = 'canary/Value+0123456789"\\é'
redactor = Redactor({"OPENAI_API_KEY": CANARY, "HOME": "/home/somebody", "MY_TOKEN": "short"}, [])
digits = "0123456789abcdef"

KEYS = [
    "sk-" + digits * 3,
    "sk-proj-" + digits + "_" + digits,
    "sk-ant-api03-" + digits + "-" + digits,
    "sk_live_" + digits,
    "ghp_" + digits * 2 + "abcd",
    "gho_" + digits * 2 + "abcd",
    "github_pat_" + digits * 2,
    "glpat-" + digits + "abcd",
    "AKIA" + "ABCDEFGH01234567",
    "xoxb-" + "123456789012-" + digits,
    "AIza" + digits * 2 + "abc",
    "hf_" + digits * 2 + "abcd",
    "npm_" + digits * 2 + "abcd",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc=\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:12])
@pytest.mark.parametrize("around", ["{}", "key={}", 'say "{}" now', "a\n{}\nb", "({})", "x: {}."])
def test_known_keys_go_and_the_rest_stays(key: str, around: str) -> None:
    assert redactor(around.format(key)) == around.format(MARK)
    whole = json.dumps({"cmd": around.format(key), "n": 1})
    assert json.loads(redactor(whole)) == {"cmd": around.format(MARK), "n": 1}


def test_bearer_tokens_and_passwords_in_addresses_keep_what_is_around_them() -> None:
    assert redactor("Authorization: Bearer abcdef0123456789abcdef==") == f"Authorization: Bearer {MARK}"
    assert redactor("bearer abcdef0123456789.abc") == f"bearer {MARK}"
    assert (
        redactor("git clone https://me:hunter2@host.example/x")
        == f"git clone https://me:{MARK}@host.example/x"
    )


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "api_key",
        "TOKEN",
        "PGPASSWORD",
    ],
)
def test_values_of_key_variables_go_wherever_they_are(name: str) -> None:
    redact = Redactor({name: "correct-horse"}, [])
    assert redact("xcorrect-horsey correct-horse") == f"x{MARK}y {MARK}"


def test_other_variables_and_short_values_stay() -> None:
    redact = Redactor({"HOME": "/home/somebody", "API_TOKEN": "short", "KEYBOARD": "qwerty-layout"}, [])
    for text in ("/home/somebody/x", "a short word", "qwerty-layout"):
        assert redact(text) is text
    assert Redactor({"MINE": "/home/somebody"}, ["MINE"])("in /home/somebody") == f"in {MARK}"


ORDINARY = [
    "The quick brown fox jumps over the lazy dog; a task-based, risk-free desk-job.",
    "pip install scikit-learn sk-learn-contrib-and-some-more-words",
    "/usr/lib/python3.11/site-packages/sk-very-long-module-name-without-numbers/file.py",
    "git checkout 3f786850e387550fdab836ed7e6dc881de23001b",
    "01a1f8d7-eb81-7166-8461-62640333a6d7",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "https://example.org:8080/path?token_count=3&x=y@z",
    "ssh://git@host.example:22/project.git",
    "bearer of good news, Bearer authentication-is-required-here",
    "ghp is a prefix; gh pr list --limit 20; AKIA is another",
    "def token(self) -> str: return self._token  # the next token",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    '{"path": "C:\\\\work\\\\new", "pattern": "\\\\d+"}',
    "eyJub3QiOiJhIGp3dCJ9",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUA",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redactor(text) is text


def test_the_projects_own_files_are_left_alone() -> None:
    """A corpus of ordinary text: nobody's source and prose may come out garbled."""
    root = Path(__file__).parents[3]
    files = [path for folder in ("core", "tui", "assets") for path in (root / folder).rglob("*.*")]
    read = 0
    for path in files:
        if path.suffix in (".py", ".toml", ".csv", ".md", ".tcss") and path.name != "redact.py":
            text = path.read_text(encoding="utf-8")
            assert redactor(text) == text, path
            read += len(text)
    assert read > 100_000


@given(st.text(string.ascii_letters + string.digits + " /._-:=\n", max_size=200))
def test_a_second_pass_finds_nothing_more(text: str) -> None:
    once = redactor(text)
    assert redactor(once) == once


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8) | st.sampled_from([CANARY, *KEYS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.booleans())
def test_json_stays_json_and_loses_its_secrets_however_they_are_spelled(value: Any, ascii_only: bool) -> None:
    text = json.dumps([value], ensure_ascii=ascii_only)
    out = redactor(text)
    strings = _strings(json.loads(out))
    assert not any(secret in string for secret in (CANARY, *KEYS) for string in strings)
    if not any(secret in string for secret in (CANARY, *KEYS) for string in _strings(value)):
        assert json.loads(out) == [value]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return []


def test_escapes_do_not_hide_a_key() -> None:
    hidden = '{"cmd": "echo \\u0073k-' + digits * 2 + '"}'
    assert json.loads(redactor(hidden)) == {"cmd": f"echo {MARK}"}


def test_what_the_server_needs_back_unchanged_is_not_touched() -> None:
    sealed = "gAAAA" + KEYS[0] + CANARY
    item = {"id": "rs_1", "encrypted_content": sealed, "summary": [{"text": f"uses {KEYS[0]}"}]}
    event = redact_struct(e.Reasoning(summary=KEYS[0], item=item), redactor)
    assert event.summary == MARK
    assert event.item == {"id": "rs_1", "encrypted_content": sealed, "summary": [{"text": f"uses {MARK}"}]}
    assert item["summary"] == [{"text": f"uses {KEYS[0]}"}]


@given(random_events)
def test_events_without_secrets_stay_themselves(events: list[e.Event]) -> None:
    for event in events:
        assert redact_struct(event, redactor) is event


def _filled(kind: type[e.Event]) -> e.Event:
    """An event with the canary in every field that takes text."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name in ("v", "seq", "at", "swarm"):
            continue
        names = str(field.type)
        if kind is e.Reasoning and field.name == "item":
            fields[field.name] = {"content": [{CANARY: CANARY}]}
        elif field.type is str or names == "str | None":
            fields[field.name] = f"before {CANARY} after"
        elif field.type == tuple[e.Image, ...]:
            fields[field.name] = (e.Image(blob="b", media_type=CANARY, size=1),)
        elif names.startswith("tuple"):
            fields[field.name] = (CANARY, "x")
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            fields[field.name] = field.type()
        elif field.required:
            fields[field.name] = {int: 1, float: 1.0}.get(field.type) or field.type.__args__[0]
    return kind(**fields)


def _bytes(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.iterdir() if path.is_file())


async def test_no_event_carries_a_secret_to_the_disk_or_to_subscribers(tmp_path: Path) -> None:
    told: list[bytes] = []
    redact = Redactor({"OPENAI_API_KEY": CANARY}, [])
    store = await Store.open(tmp_path, clock=FakeClock(), redact=redact)
    try:
        store.on_commit = lambda _, events, bodies: told.extend(e.encode(event) for event in events)
        await store.create("s")
        spawned = e.AgentSpawned(agent=f"before {MARK} after", path="/root", nickname="n")
        await store.append("s", [spawned, *(_filled(kind) for kind in EVENT_TYPES)])
        # While the store is open part of it is in the WAL.
        raw = _bytes(tmp_path)
    finally:
        await store.aclose()
    raw += _bytes(tmp_path)
    assert MARK.encode() in raw
    needle = b"canary/Value"
    assert needle not in raw
    assert len(told) == len(EVENT_TYPES) + 1
    assert not any(needle in line for line in told)
