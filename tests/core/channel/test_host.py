"""An engine that others can reach: who sees it, what they may do, when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.channel import directory, sockets
from core.channel.client import ClientError
from core.channel.host import EngineRuns, host_engine, run_background
from core.channel.remote import connect
from core.clock import Clock
from core.config import Settings
from core.domain import events as e
from core.domain.commands import Batch, Close, ListSwarms, Snapshot, StartSwarm, StopEngine
from core.store import locks
from core.tools.sandbox import Sandbox
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, scenario, step
from tests.core.channel import homes
from tests.core.harness import swarm

PYTHON = Path(sys.executable).resolve()
"""The program itself: a virtual environment may lie where a sandbox shows nothing."""


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


@asynccontextmanager
async def background(settings: Settings, clock: Clock | None = None) -> AsyncIterator[tuple[Any, Path]]:
    """The task of a background engine that is ready, and its socket."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_background(settings, ready=ready.set_result, clock=clock))
    try:
        async with asyncio.timeout(20):
            await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield task, Path(ready.result())
    finally:
        task.cancel()
        await asyncio.wait({task})


def ours(settings: Settings) -> list[Path]:
    """Everything that an engine leaves where others look for it."""
    folders = [settings.home / "engines", *sockets.socket_folders()[:1]]
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]


# --- in the process of a verb ----------------------------------------------------------------------------


async def test_a_run_can_be_watched_and_is_its_own_masters(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    async with host_engine(settings, kind="exec") as client, swarm(client, "go") as own:
        (found,) = directory.living(settings.home)
        assert (found.engine, found.kind, found.pid) == (client.engine.engine, "exec", os.getpid())
        assert directory.owner_of(settings.home, own.swarm) == found
        owner = locks.owner_of(settings.home, own.swarm)
        assert owner is not None
        assert owner.text == f"process {os.getpid()}, exec"
        async with connect(Path(found.socket)) as other:
            assert (other.engine, other.outlives, client.outlives) == (client.engine, True, False)
            listed = await other.send(ListSwarms())
            assert [one["swarm"] for one in listed.value["swarms"]] == [own.swarm]
            for command in (StartSwarm(task="mine"), StopEngine()):
                reply = await other.send(command)
                assert (reply.ok, reply.code) == (False, "refused")
                assert "watchroom exec" in reply.error
            assert (await other.send(Close(swarm=own.swarm, thread=own.root))).ok
    assert ours(settings) == []
    assert directory.owner_of(settings.home, own.swarm) is None


async def test_who_watches_sees_how_it_ends(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    seen: list[object] = []

    async def watch(socket: str, swarm_id: str, watching: asyncio.Event) -> None:
        async with connect(Path(socket)) as other, other.subscribe(swarm_id) as feed:
            async for item in feed:
                seen.extend(item.events if isinstance(item, Batch) else [item])
                watching.set()

    watching = asyncio.Event()
    async with asyncio.timeout(20), host_engine(settings, kind="exec") as client:
        reply = await client.send(StartSwarm(task="go"))
        (found,) = directory.living(settings.home)
        task = asyncio.create_task(watch(found.socket, reply.value["swarm"], watching))
        await watching.wait()
    await task
    assert isinstance(seen[0], Snapshot)
    assert any(isinstance(event, e.TurnInterrupted) for event in seen)


async def test_a_run_without_a_socket_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = homes.home_at(tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(sockets, "FALLBACK", tmp_path / "missing")
    with caplog.at_level(logging.WARNING, "watchroom.host"):
        async with host_engine(settings, kind="exec") as client:
            assert (await client.send(ListSwarms())).ok
            assert directory.living(settings.home) == []
    assert [text.split(":")[0] for text in caplog.messages] == ["no console can attach to this run"]
    with pytest.raises(ClientError, match="no socket can be opened"):
        await run_background(settings, ready=lambda _: None)
    assert not locks.held(settings.home / "engine.lock")


async def test_a_body_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)

    async def fail() -> None:
        async with host_engine(settings, kind="exec") as client:
            await client.send(StartSwarm(task="go"))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    assert ours(settings) == []


async def test_engines_side_by_side_serve_one_store(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    async with (
        background(settings) as (_, socket),
        host_engine(settings, kind="exec") as one,
        host_engine(settings, kind="job") as two,
        connect(socket) as three,
    ):
        kinds = {record.kind: record for record in directory.living(settings.home)}
        assert set(kinds) == {"background", "exec", "job"}
        for client, kind in ((one, "exec"), (two, "job"), (three, "background")):
            reply = await client.send(StartSwarm(task="go"))
            assert directory.owner_of(settings.home, reply.value["swarm"]) == kinds[kind]


async def test_a_command_in_the_sandbox_cannot_reach_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (await Sandbox.detect(tmp_path))[0] is None:
        pytest.skip("no bubblewrap here")
    with homes.short_folder() as work:
        # The worst place: in the agents' own workspace, which they can read and write.
        (work / "run").mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(work / "run"))
        (work / "knock.py").write_text(
            "import socket, sys\n"
            "door = socket.socket(socket.AF_UNIX)\n"
            "try:\n    door.connect(sys.argv[1])\n"
            "except OSError as error:\n    print('shut:', type(error).__name__)\n"
            "else:\n    print('open')\n"
        )
        socket = sockets.socket_path("x").parent
        command = f"{PYTHON} knock.py $(cat where)"
        script = scenario({"/root": [step(call("exec_command", cmd=command)), step(text="done")]})
        settings = homes.home_at(
            tmp_path, script, approval_policy="never", sandbox="workspace-write"
        ).model_copy(update={"cwd": work})
        async with host_engine(settings, kind="exec") as client:
            (found,) = directory.living(settings.home)
            assert Path(found.socket).parent == socket
            (work / "where").write_text(found.socket)
            said = await _outside(command, work)
            assert said == "open"
            async with swarm(client, "go", cwd=str(work)) as own:
                await own.quiet()
                (result,) = own.of(e.ToolResult)
    assert "shut: FileNotFoundError" in result.text


async def _outside(command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_shell(command, cwd=cwd, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().strip()


# --- the background engine -------------------------------------------------------------------------------


async def test_one_per_home(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    async with background(settings):
        with pytest.raises(EngineRuns, match=rf"runs already \(process {os.getpid()}\)"):
            await run_background(settings, ready=lambda _: None)
        (tmp_path / "other").mkdir()
        other = homes.home_at(tmp_path / "other")
        async with background(other):
            assert directory.background(other.home) != directory.background(settings.home)


async def test_it_stops_when_it_is_asked(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    async with background(settings) as (task, socket):
        async with connect(socket) as client:
            reply = await client.send(StartSwarm(task="go"))
            assert reply.ok, reply.error
            assert (await client.send(StopEngine())).value == {"pid": os.getpid()}
        assert await task == "it was stopped"
        assert ours(settings) == []
        assert not locks.held(settings.home / "engine.lock")
        assert locks.owned_swarms(settings.home) == set()
    async with background(settings):
        pass  # and another one can start


async def test_being_cancelled_is_an_orderly_end(tmp_path: Path) -> None:
    settings = homes.home_at(tmp_path)
    async with background(settings) as (task, socket):
        async with connect(socket) as client:
            await client.send(StartSwarm(task="go"))
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert ours(settings) == []
    assert not locks.held(settings.home / "engine.lock")


async def test_it_ends_after_a_time_without_work_and_clients(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = homes.home_at(tmp_path)
    seconds = settings.engine.idle_seconds
    async with background(settings, clock) as (task, _):
        await settle()
        await clock.advance(seconds - 2)
        assert not task.done()
        await clock.advance(4)
        assert await task == f"nothing to do and no client for {seconds:g} seconds"
    assert ours(settings) == []


async def test_a_client_keeps_it_alive_and_the_time_begins_when_it_leaves(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = homes.home_at(tmp_path)
    seconds = settings.engine.idle_seconds
    async with background(settings, clock) as (task, socket):
        async with connect(socket) as client:
            assert (await client.send(ListSwarms())).ok
            for _ in range(3):
                await clock.advance(seconds)
            assert not task.done()
            assert (await client.send(ListSwarms())).ok
        await _left(clock)
        await clock.advance(seconds - 2)
        assert not task.done()
        await clock.advance(4)
        await task


async def _left(clock: FakeClock) -> None:
    """Let the engine see that its client left, and look again."""
    await settle(300)
    await clock.advance(1)


async def test_work_keeps_it_alive(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = homes.home_at(tmp_path)
    seconds = settings.engine.idle_seconds
    async with background(settings, clock) as (task, socket):
        async with connect(socket) as client:
            started = (await client.send(StartSwarm(task="go"))).value
        await _left(clock)
        for _ in range(3):
            await clock.advance(10)
        assert not task.done()
        async with connect(socket) as client:
            assert (await client.send(Close(swarm=started["swarm"], thread=started["thread"]))).ok
        await _left(clock)
        await clock.advance(seconds + 2)
        await task
