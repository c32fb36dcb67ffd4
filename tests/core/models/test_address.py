from __future__ import annotations

import pytest

from core.models.address import is_loopback, parse_address
from core.models.types import ModelError


def test_credentials_never_reach_the_label() -> None:
    address = parse_address("https://user:pa%20ss@example.test:8443/v1/?api-version=2", "sk-secret")
    assert address.label == "https://example.test:8443/v1"
    assert address.url == "https://example.test:8443/v1/responses?api-version=2"
    assert address.authorization == "Bearer sk-secret"
    assert address.hide("sk-secret and pa ss and pa%20ss") == "[key] and [key] and [key]"


def test_credentials_of_the_url_serve_when_there_is_no_key() -> None:
    assert parse_address("https://u:p@h.test/v1", None).authorization == "Basic dTpw"
    assert parse_address("https://h.test/v1", "").authorization == ""


@pytest.mark.parametrize(
    "url", ["", "h.test/v1", "ftp://h.test", "http://", "http://h:port/", "http://[::1", "/v1"]
)
def test_what_is_no_address_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ModelError, match="is not an http or https address") as caught:
        parse_address(url, None)
    assert caught.value.kind == "bad_request"


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(ModelError) as caught:
        parse_address("ftp://user:hunter2@h.test/v1?key=hunter3", None)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h.test/v1", "http://10.0.0.7:8000/v1", "http://user:pass@h.test/v1"])
def test_a_key_does_not_travel_unencrypted(url: str) -> None:
    with pytest.raises(ModelError, match="not encrypted") as caught:
        parse_address(url, None if "@" in url else "sk-secret")
    assert caught.value.kind == "auth"
    assert "sk-secret" not in str(caught.value)
    assert parse_address("http://h.test/v1", None).authorization == ""


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8/v1"])
def test_loopback_may_have_the_key(url: str) -> None:
    address = parse_address(url, " sk-secret\n")
    assert address.authorization == "Bearer sk-secret"
    assert address.label == url


@pytest.mark.parametrize("key", ["sk secret", "sk-schlüssel", "sk-\x00secret", "a\r\nX-Other: b"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    with pytest.raises(ModelError, match="characters that no key has") as caught:
        parse_address("https://h.test/v1", key)
    assert key not in str(caught.value)


def test_the_label_replaces_the_address() -> None:
    assert parse_address("http://scripted.invalid/v1", None, "scripted:demo").label == "scripted:demo"


def test_loopback_names() -> None:
    assert is_loopback("app.localhost")
    assert not is_loopback("localhost.example.test")
    assert not is_loopback("0.0.0.0")
