"""Servers at their start and their end: side by side, named when they fail, none left."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from core.config import McpSettings
from core.tools.mcp import server as server_module
from core.tools.mcp.errors import McpStartError
from tests.core.tools.mcp.fakes import Fixture, fake
from tests.core.tools.processes import alive, descriptors, gone

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def marker() -> str:
    return f"mcp-{uuid.uuid4().hex}"


async def test_required_servers_that_fail_are_one_error_in_order(mcp: Fixture, marker: str) -> None:
    settings = {
        "c": fake("dies", required=True),
        "a": McpSettings(command="no-such-program-here", required=True),
        "good": fake("good", marker),
        "optional": fake("dies"),
        "off": fake("dies", required=True, enabled=False),
    }
    with pytest.raises(McpStartError) as caught:
        await mcp.build(settings).start()
    assert str(caught.value) == (
        "a: its command no-such-program-here is not on the PATH; "
        'c: it ended with exit code 1 ("cannot open the database")'
    )
    if sys.platform == "linux":
        assert gone(marker)


async def test_each_start_up_is_a_status_with_its_time(mcp: Fixture) -> None:
    async with mcp.running({"good": fake(), "bad": fake("dies")}) as servers:
        states = {s.server: s for s in servers.statuses}
        assert states["good"].state == "ready"
        assert states["good"].tools == len(servers.tools)
        assert states["bad"].state == "failed"
        assert states["bad"].detail == 'it ended with exit code 1 ("cannot open the database")'
        assert all(s.seconds is not None and 0 < s.seconds < 10 for s in servers.statuses)
        assert servers.starting == []
    assert [(s.server, s.state) for s in mcp.statuses][:2] == [("bad", "starting"), ("good", "starting")]
    assert mcp.statuses[-1].state == "ended"
    assert mcp.statuses[-1].detail == "it was stopped"


@linux
@pytest.mark.parametrize("behaviour", ["hangs", "stubborn"])
async def test_a_server_that_does_not_start_in_time_is_ended(
    mcp: Fixture, marker: str, behaviour: str
) -> None:
    settings = {"slow": fake(behaviour, marker, startup_timeout_sec=0.3)}
    async with mcp.running(settings) as servers:
        assert servers.statuses[0].detail == (
            "it did not start within 0.3 s (startup_timeout_sec sets how long it may take)"
        )
        assert not alive(marker)


@linux
async def test_nothing_is_left_of_a_server_and_its_children(mcp: Fixture, marker: str) -> None:
    before = descriptors()
    async with mcp.running({"s": fake("family", marker)}):
        assert len(alive(marker)) == 2
    assert not alive(marker)
    assert descriptors() - before == set()


@linux
async def test_a_start_that_is_cancelled_leaves_none(mcp: Fixture, marker: str) -> None:
    servers = mcp.build({"good": fake("good", marker), "slow": fake("hangs", marker)})
    starting = asyncio.create_task(servers.start())
    await mcp.until("ready")
    assert alive(marker)
    assert servers.starting == ["slow"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(marker)


@linux
async def test_they_may_be_closed_from_another_task_and_twice(mcp: Fixture, marker: str) -> None:
    servers = mcp.build({name: fake("good", marker) for name in "abc"})
    await asyncio.create_task(servers.start())
    await asyncio.create_task(servers.aclose())
    await servers.aclose()
    assert not alive(marker)
    assert await mcp.failure("a__echo") == (
        "the MCP server a is gone: it was stopped; it is not restarted while the swarm runs"
    )


@linux
def test_kill_9_of_the_engine_ends_its_servers(tmp_path: Path, marker: str) -> None:
    code = """
import asyncio, os, sys
from pathlib import Path
from tests.core.tools.mcp.fakes import Fixture, fake
async def main():
    mcp = Fixture(Path(sys.argv[1]))
    async with mcp.running({"s": fake("family", sys.argv[2])}):
        print("up", flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), marker], cwd=Path.cwd(), capture_output=True, timeout=30
    )
    assert done.stdout == b"up\n", done.stderr
    assert gone(marker)


async def test_a_server_gets_what_is_listed_and_nothing_else(mcp: Fixture, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    environment = {
        "PATH": f".:{os.environ['PATH']}",
        "HOME": "/home/x",
        "OPENAI_API_KEY": "sk-secret-of-the-engine",
        "TOKEN": "for-the-server-only",
    }
    settings = fake(env={"GIVEN": "1"}, env_vars=["TOKEN", "MISSING"], cwd="sub")
    async with mcp.running({"s": settings}, environment=environment) as servers:
        told = json.loads((await mcp.call("s__env")).text)
        # The interpreter adds this one itself.
        told["env"].pop("LC_CTYPE", None)
        assert {k: v for k, v in told["env"].items() if k not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")} == {
            "HOME": "/home/x",
            "TOKEN": "for-the-server-only",
            "GIVEN": "1",
        }
        assert "." not in told["env"]["PATH"].split(":")
        assert Path(told["cwd"]) == (tmp_path / "sub").resolve()
        assert servers.secrets() == {"for-the-server-only"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (McpSettings(), "it needs either a command or a url"),
        (McpSettings(command="x", url="http://localhost/"), "it needs either a command or a url"),
        (McpSettings(url="ftp://localhost/"), "its url must look like https://HOST/PATH"),
        (McpSettings(command="./nothing"), "its command ./nothing is not a program that can be run"),
        (McpSettings(command="sh", cwd="nowhere"), "nowhere is not a folder"),
        (fake("dies_listing"), 'it ended with exit code 1 ("no tools today")'),
        (fake("pages"), "its list of tools has more than 20 pages"),
        (fake("wrong_greeting"), "its answer does not follow the protocol"),
        (fake("unwilling"), "it says: not today"),
        (fake("wrong_list"), "its answer does not follow the protocol"),
    ],
)
async def test_what_cannot_be_started_is_said(mcp: Fixture, settings: McpSettings, said: str) -> None:
    async with mcp.running({"s": settings}) as servers:
        (status,) = servers.statuses
        assert status.detail.endswith(said)
        assert servers.tools == {}


async def test_without_the_package_there_is_one_sentence(
    mcp: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(McpStartError) as caught:
        await mcp.build({"s": fake(required=True)}).start()
    assert str(caught.value) == f"s: {server_module.INSTALL}"
    assert "pip install 'watchroom[mcp]'" in server_module.INSTALL


def test_nothing_of_it_is_imported_before_a_server_starts() -> None:
    code = (
        "import sys, core.tools.mcp.servers\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mcp', 'mcp_types', 'anyio', 'httpx2')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


async def test_no_server_no_cost(mcp: Fixture) -> None:
    async with mcp.running({"off": fake(enabled=False)}) as servers:
        assert servers.tools == {}
        assert servers.statuses == []
    assert mcp.statuses == []


# --- what they offer -------------------------------------------------------------------------------------


async def test_allow_and_deny_lists(mcp: Fixture) -> None:
    settings = fake(enabled_tools=["echo", "write", "nothing"], disabled_tools=["write", "env"])
    async with mcp.running({"s": settings}) as servers:
        assert list(servers.tools) == ["s__echo"]
        assert servers.statuses[0].detail == "it has no tool nothing"


async def test_hostile_names_descriptions_and_schemas(mcp: Fixture) -> None:
    async with mcp.running({"my server": fake("hostile")}) as servers:
        names = list(servers.tools)
        assert len(names) == 4
        assert all(name.startswith("my_server__") and len(name) <= 64 for name in names)
        assert all(name.replace("_", "").isalnum() and name.isascii() for name in names)
        for tool in servers.tools.values():
            definition = json.dumps(tool.definition())
            assert "\\u001b" not in definition
            assert "\\u202e" not in definition
            assert "\\u0007" not in definition
        detail = servers.statuses[0].detail
        assert "\x1b" not in detail
        for said in (
            "a.b is listed twice",
            "outside has a schema that refers to http://127.0.0.1:9/x.json, outside itself",
            "none has a schema that is none: at $.properties.a.type",
            "more than 32,768",
            "has no name of 1 to 256 characters",
            "deep has a schema nested deeper than 32 levels",
        ):
            assert said in detail
