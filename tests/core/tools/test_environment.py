from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tools.environment import DEFAULT_PATH, FIXED, PASSED, child_environment, search_path


def test_what_is_listed_passes_and_keys_do_not() -> None:
    env = child_environment(
        {
            "PATH": "/usr/bin",
            "HOME": "/home/a",
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color",
            "OPENAI_API_KEY": "sk-secret",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "PYTHONPATH": "/evil",
            "LD_PRELOAD": "/evil.so",
            "BASH_ENV": "/evil.sh",
            "BASH_FUNC_ls%%": "() { evil; }",
            "RIPGREP_CONFIG_PATH": "/evil",
            "GIT_EXTERNAL_DIFF": "evil",
            "SSH_AUTH_SOCK": "/tmp/agent",
        }
    )
    assert env == {"PATH": "/usr/bin", "HOME": "/home/a", "LC_ALL": "C.UTF-8", **FIXED}
    assert env["TERM"] == "dumb"


@given(st.dictionaries(st.text(), st.text()))
def test_only_listed_names_pass(source: dict[str, str]) -> None:
    for name in child_environment(source):
        assert name in PASSED or name in FIXED or name.startswith("LC_")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a::.:b:/c", "/a:/c"), ("", DEFAULT_PATH), (".", DEFAULT_PATH), (":/a:", "/a")],
)
def test_the_search_path_never_names_the_current_folder(path: str, expected: str) -> None:
    assert search_path({"PATH": path}) == expected


def test_this_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHROOM_TEST_KEY", "secret")
    assert "WATCHROOM_TEST_KEY" not in child_environment()
    assert child_environment()["PATH"] == search_path(os.environ)
