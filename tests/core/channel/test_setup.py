"""What a starter sends along: enough for an engine elsewhere, and nothing that it need not know."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from rich.pretty import pretty_repr

from core.channel.setup import NOT_SENT, setup_of
from core.config import FileSettings, load_settings
from core.domain.commands import Setup, StartSwarm
from core.engine.setup import environment_of, settings_of
from core.tools.environment import child_environment

KEY = "sk-canary-of-the-key-0123456789"
ENVIRON = {
    "OPENAI_API_KEY": KEY,
    "OTHER_TOKEN": "canary-of-a-token",
    "PATH": "/bin",
    "LC_ALL": "C",
    "PYTHONPATH": "/canary",
    "SSH_AUTH_SOCK": "/canary.sock",
}
CONFIG = """
model = "m"
approval_policy = "never"
[agents]
max_threads = 3
[agents.roles.helper]
instructions = "Help."
tools = ["exec_command"]
[jobs]
max_runtime_seconds = 5
"""


def test_an_engine_elsewhere_has_the_same_settings(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    mine = load_settings(home=tmp_path, environ=ENVIRON)
    own = load_settings(home=tmp_path / "other", environ={})
    setup = msgspec.json.decode(msgspec.json.encode(setup_of(mine, ENVIRON)), type=Setup)
    found = settings_of(setup, own)
    for name in set(FileSettings.model_fields) - NOT_SENT:
        assert getattr(found, name) == getattr(mine, name), name
    assert (found.home, found.logs, found.store, found.engine) == (own.home, own.logs, own.store, own.engine)
    assert found.api_key == mine.api_key
    assert KEY not in repr(found)


def test_secrets_are_known_as_such_and_go_nowhere_else(tmp_path: Path) -> None:
    setup = setup_of(load_settings(home=tmp_path, environ=ENVIRON), ENVIRON)
    assert environment_of(setup) == {"PATH": "/bin", "LC_ALL": "C"}
    assert set(setup.secrets) == {KEY, "canary-of-a-token"}
    assert setup.api_key == KEY
    assert "canary" not in msgspec.json.encode(setup.settings).decode()


def test_no_traceback_shows_a_setup(tmp_path: Path) -> None:
    command = StartSwarm(setup=setup_of(load_settings(home=tmp_path, environ=ENVIRON), ENVIRON))
    assert "canary" not in repr(command)
    assert "canary" not in pretty_repr(command)  # what a console prints of its variables when it crashes


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("scripted:./mine.toml", "scripted:/here/mine.toml"),
        ("scripted:mine.toml", "scripted:/here/mine.toml"),
        ("scripted:~/mine.toml", "scripted:/home/me/mine.toml"),
        ("scripted:/there/mine.toml", "scripted:/there/mine.toml"),
        ("scripted:demo", "scripted:demo"),
        ("https://example.invalid/v1", "https://example.invalid/v1"),
    ],
)
def test_a_scripted_model_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, sent: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    settings = load_settings(home=tmp_path, options={"base_url": given}, cwd=tmp_path, environ={})
    assert setup_of(settings, {}).settings["base_url"] == sent


def test_what_servers_are_to_be_given_is_sent_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        """
[mcp.docs]
command = "docs"
env_vars = ["OTHER_TOKEN", "NOT_SET"]
[mcp.off]
command = "off"
env_vars = ["SSH_AUTH_SOCK"]
enabled = false
"""
    )
    setup = setup_of(load_settings(home=tmp_path, environ=ENVIRON), ENVIRON)
    sent = {"PATH": "/bin", "LC_ALL": "C", "OTHER_TOKEN": "canary-of-a-token"}
    assert environment_of(setup) == sent
    # Commands get none of it.
    assert "OTHER_TOKEN" not in child_environment(environment_of(setup))
