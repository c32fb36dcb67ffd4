"""`watchroom doctor`: each check in the good and in the bad case; folders, stores and servers are real."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.safety.text import is_clean
from tests.tui.engine_process import engine_with_swarm
from tests.tui.shell import Ran, Shell
from tui import exits

KEY = "sk-this-is-very-secret-0123456789"
NAMES = [
    *("terminal", "python", "sqlite", "settings", "sandbox", "config", "home", "logs", "sockets", "store"),
    *("engine", "key", "model", "server"),
]


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Shell(tmp_path / "home", capfd, monkeypatch)


def examined(shell: Shell, *words: str) -> tuple[Ran, dict[str, Any]]:
    """The run with --json and its checks by name."""
    ran = shell("doctor", "--json", *words)
    assert (ran.err, is_clean(ran.out)) == ("", True)
    found = json.loads(ran.out)
    assert list(found) == ["ok", "checks"]
    assert all(list(check) == ["name", "status", "detail"] for check in found["checks"])
    failed = any(check["status"] == "fail" for check in found["checks"])
    assert found["ok"] is not failed
    assert ran.code == (exits.ERROR if failed else exits.OK)
    return ran, {check["name"]: (check["status"], check["detail"]) for check in found["checks"]}


def test_a_new_home_with_the_embedded_model_is_fine_and_nothing_is_made(shell: Shell) -> None:
    ran, checks = examined(shell, "--base-url", "scripted:demo")
    assert list(checks) == NAMES
    assert ran.code == exits.OK
    statuses = {name: status for name, (status, _) in checks.items()}
    assert {name for name, status in statuses.items() if status != "ok"} <= {"terminal", "sandbox"}
    assert "not a terminal" in checks["terminal"][1]
    assert sqlite3.sqlite_version in checks["sqlite"][1]
    assert "embedded" in checks["server"][1]
    assert "there is none yet" in checks["store"][1]
    assert not shell.home.exists()


def test_for_people_every_check_is_one_aligned_line(shell: Shell) -> None:
    ran = shell("doctor", "--base-url", "scripted:demo")
    assert (ran.code, ran.err) == (exits.OK, "")
    assert [line.split()[2] for line in ran.lines] == NAMES
    glyphs = {"ok": "✓", "warn": "!", "fail": "✗"}
    for line in ran.lines:
        mark, word, _ = line.split(maxsplit=2)
        assert mark == glyphs[word]
    starts = {line.index(name) for line, name in zip(ran.lines, NAMES, strict=True)}
    assert len(starts) == 1


def test_without_a_model_it_says_what_to_set_and_asks_no_server(shell: Shell) -> None:
    _, checks = examined(shell)
    assert checks["model"][0] == "warn"
    assert "--model NAME" in checks["model"][1]
    assert checks["key"] == ("warn", "OPENAI_API_KEY is not set")
    assert checks["server"][0] == "warn"
    assert "not asked" in checks["server"][1]


def test_settings_that_cannot_be_read_are_a_check_too(shell: Shell) -> None:
    shell.home.mkdir()
    (shell.home / "config.toml").write_text('modell = "x"\n')
    ran, checks = examined(shell)
    assert ran.code == exits.ERROR
    assert list(checks) == ["terminal", "python", "sqlite", "settings"]
    assert "modell" in checks["settings"][1]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here")
def test_the_sandbox_is_tried_out(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("--base-url", "scripted:demo")
    assert examined(shell, *words)[1]["sandbox"][0] == "ok"
    assert examined(shell, *words, "--sandbox", "off")[1]["sandbox"][0] == "warn"
    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    status, detail = examined(shell, *words)[1]["sandbox"]
    assert (status, "asks you first" in detail) == ("warn", True)
    status, detail = examined(shell, *words, "--approval-policy", "never")[1]["sandbox"]
    assert (status, "no command can run" in detail) == ("fail", True)


def test_folders_and_stores_that_cannot_be_used(shell: Shell, tmp_path: Path) -> None:
    words = ("--base-url", "scripted:demo")
    shell.home.mkdir(mode=0o700)
    (shell.home / "logs").write_text("a file where a folder has to be")
    (shell.home / "watchroom.db").write_bytes(b"not a database at all, but long enough to be read" * 40)
    ran, checks = examined(shell, *words)
    assert ran.code == exits.ERROR
    assert checks["logs"][0] == "fail"
    assert checks["store"][0] == "fail"
    assert checks["home"] == ("ok", f"{shell.home} (mode 0700)")
    shell.home.chmod(0o777)
    status, detail = examined(shell, *words)[1]["home"]
    assert (status, "chmod 700" in detail) == ("warn", True)


def test_a_folder_of_another_user_is_a_check_too(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a shell of one user keeps the variables, or the working folder, of another one."""
    closed = tmp_path / "closed"
    looked = os.stat

    def stat(path: Any, *args: Any, **named: Any) -> os.stat_result:
        """root may look everywhere: this is what others see."""
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, *args, **named)

    closed.mkdir()
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setenv("WATCHROOM_SQLITE_HOME", str(closed / "store"))
    ran, checks = examined(shell, "--base-url", "scripted:demo", "-C", str(closed))
    assert ran.code == exits.ERROR
    assert {name for name, (status, _) in checks.items() if status == "fail"} == {"store", "engine"}
    assert all("Errno" not in detail for _, detail in checks.values())
    assert "Permission denied" in shell.refused(exits.ERROR, "stop")


def test_engines_that_live_are_asked_and_one_that_stands_still_is_busy(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--base-url", "scripted:demo")
    with engine_with_swarm(shell.home) as running:
        status, detail = examined(shell, *words)[1]["engine"]
        assert status == "ok"
        assert f"exec, process {running['pid']}" in detail
        assert "1 swarm" in detail
        monkeypatch.setattr("tui.run_doctor.ENGINE_SECONDS", 0.3)
        os.kill(running["pid"], signal.SIGSTOP)
        try:
            status, detail = examined(shell, *words)[1]["engine"]
        finally:
            os.kill(running["pid"], signal.SIGCONT)
        assert (status, "busy: it did not answer" in detail) == ("warn", True)
    status, detail = examined(shell, *words)[1]["engine"]
    assert (status, detail.startswith("none runs")) == ("ok", True)


# --- server ----------------------------------------------------------------------------------------------


@contextmanager
def server(code: int, body: object = None) -> Iterator[tuple[str, list[str | None]]]:
    """A loopback server that answers every GET with `code`; its base URL and the keys that it saw."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization") if self.path == "/v1/models" else self.path)
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1", seen
        finally:
            listening.shutdown()
            thread.join()


MODELS = {"data": [{"id": "gpt-5", "object": "model"}]}


@pytest.mark.parametrize(
    ("code", "body", "status", "said"),
    [
        (200, MODELS, "ok", "answers (HTTP 200)"),
        (200, {"data": [{"id": "other"}]}, "warn", "does not list the model gpt-5"),
        (200, ["anything"], "ok", "answers (HTTP 200)"),
        (401, {}, "fail", "key refused (HTTP 401)"),
        (403, {}, "fail", "key refused (HTTP 403)"),
        (404, {}, "ok", "no list of models"),
        (500, {}, "warn", "HTTP 500"),
        (302, {}, "warn", "HTTP 302"),
    ],
)
def test_a_server_is_asked_for_its_models(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, code: int, body: object, status: str, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with server(code, body) as (url, seen):
        ran, checks = examined(shell, "--base-url", url, "--model", "gpt-5")
    assert checks["server"][0] == status
    assert said in checks["server"][1]
    assert seen == [f"Bearer {KEY}"]
    assert checks["key"] == ("ok", "OPENAI_API_KEY is set")
    assert KEY not in ran.out


def test_a_server_that_wants_a_key_and_one_that_is_not_there(shell: Shell) -> None:
    with server(401) as (url, seen):
        _, checks = examined(shell, "--base-url", url, "--model", "m")
        assert (checks["server"][0], "it wants a key" in checks["server"][1]) == ("fail", True)
        assert seen == [None]
    ran, checks = examined(shell, "--base-url", url, "--model", "m")
    assert (checks["server"][0], "refused the connection" in checks["server"][1]) == ("fail", True)
    assert ran.code == exits.ERROR


def test_a_secret_in_the_address_is_never_shown(shell: Shell) -> None:
    with server(500) as (url, _):
        secret = url.replace("http://", f"http://user:{KEY}@")
        for words in (("--model", "m"), ()):
            ran, _ = examined(shell, "--base-url", secret, *words)
            assert KEY not in ran.out
    ran, checks = examined(shell, "--base-url", "scripted:no-such-scenario")
    assert (ran.code, checks["server"][0]) == (exits.ERROR, "fail")


# --- MCP servers -----------------------------------------------------------------------------------------


def test_mcp_servers_are_named_and_not_started(shell: Shell, tmp_path: Path) -> None:
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    trap.chmod(0o755)
    shell.home.mkdir()
    (shell.home / "config.toml").write_text(
        f"""
[mcp.trap]
command = "{trap}"
[mcp.gone]
command = "no-such-program"
[mcp.needed]
command = "no-such-program"
required = true
[mcp.web]
url = "https://example.org/mcp"
[mcp.off]
command = "no-such-program"
enabled = false
[mcp.keyed]
command = "sh"
env_vars = ["KEY_THAT_IS_NOT_SET", "PATH"]
[mcp.both]
command = "sh"
url = "https://example.org/mcp"
"""
    )
    ran = shell("doctor", "--json", "--base-url", "scripted:demo")
    found = [check for check in json.loads(ran.out)["checks"] if check["name"] == "mcp"]
    assert [(check["status"], check["detail"]) for check in found] == [
        ("warn", "both: it needs either a command or a url"),
        ("warn", "gone: its command no-such-program is not on the PATH"),
        ("warn", f"keyed: {shutil.which('sh')}, but KEY_THAT_IS_NOT_SET is not set"),
        ("fail", "needed (required): its command no-such-program is not on the PATH"),
        ("ok", "off: switched off"),
        ("ok", f"trap: {trap} (not started)"),
        ("ok", "web: https://example.org/mcp (not asked)"),
    ]
    assert ran.code == exits.ERROR
    assert not (tmp_path / "started").exists()


def test_without_the_package_mcp_it_says_how_to_get_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mcp" else found(name))
    _, checks = examined(shell, "--base-url", "scripted:demo", "-c", "mcp.docs.command=sh")
    assert checks["mcp"][0] == "warn"
    assert "pip install 'watchroom[mcp]'" in checks["mcp"][1]
