"""Coming to an engine in a process of its own: real processes, started, killed and left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.channel import directory, launch, sockets
from core.channel.client import ClientError, EngineBusy, EngineGone
from core.channel.directory import Claim
from core.channel.host import host_engine
from core.channel.launch import VARIABLE, described, engine_environment, engine_of, home_engine
from core.channel.setup import setup_of
from core.config import EngineSettings, Settings
from core.domain.commands import ListSwarms, StartSwarm, StopEngine
from core.store.locks import Owner, SwarmLock
from tests.clock import FakeClock
from tests.core.channel import homes

ROOT = Path(__file__).parents[3]
SWARM = "019a0000-0000-7000-8000-000000000001"


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with homes.short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A home whose engine, if the test starts one, does not outlive the test."""
    settings = homes.home_at(tmp_path)
    yield settings
    homes.end_engines(settings.home)


def listening() -> set[str]:
    """The sockets of this test's engines."""
    folder = sockets.socket_folders()[0]
    return {entry.path for entry in os.scandir(folder)}


# --- starting --------------------------------------------------------------------------------------------


async def test_two_that_come_at_once_share_one_engine_and_it_outlives_them(settings: Settings) -> None:
    async with home_engine(settings) as one, home_engine(settings) as two:
        assert one.engine == two.engine
    first, second = home_engine(settings), home_engine(settings)
    async with asyncio.timeout(40):
        clients = await asyncio.gather(first.__aenter__(), second.__aenter__())
        assert {client.engine.engine for client in clients} == {one.engine.engine}
        for manager in (first, second):
            await manager.__aexit__(None, None, None)
    (found,) = directory.living(settings.home)
    assert found.pid == one.engine.pid != os.getpid()
    assert one.engine.kind == "background"
    assert one.outlives


async def test_two_that_start_at_once_end_with_one_engine(settings: Settings) -> None:
    async def come() -> str:
        async with home_engine(settings) as client:
            return client.engine.engine

    async with asyncio.timeout(40):
        assert len(set(await asyncio.gather(*(come() for _ in range(3))))) == 1
    assert len(directory.living(settings.home)) == 1


async def test_it_runs_apart_from_whoever_started_it(settings: Settings) -> None:
    settings.home.rmdir()
    async with home_engine(settings.model_copy(update={"logs": settings.home / "logs"})) as client:
        pid = client.engine.pid
    for folder in (settings.home, settings.home / "logs"):  # a home that begins with its log is as private
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= os.getpriority(os.PRIO_PROCESS, 0) + launch.NICE
    async with home_engine(settings, start=False) as client:
        os.kill(pid, signal.SIGHUP)  # a terminal that goes away is none of its business
        for _ in range(20):
            assert (await client.send(ListSwarms())).ok
    assert [found.pid for found in directory.living(settings.home)] == [pid]


async def test_a_killed_engine_is_followed_by_a_new_one(settings: Settings) -> None:
    async with home_engine(settings) as client:
        started = await client.send(StartSwarm(task="go", cwd=str(settings.cwd), setup=setup_of(settings)))
        assert started.ok, started.error
        swarm, old = started.value["swarm"], client.engine.pid
        sockets_of_old = listening()
        async with engine_of(settings.home, swarm) as owner:
            assert owner.engine == client.engine
        os.kill(old, signal.SIGKILL)
        await asyncio.to_thread(directory.wait_until_gone, settings.home)
        with pytest.raises(EngineGone):
            await client.send(ListSwarms())
    assert listening() == sockets_of_old, "it had no time to clean up"
    with pytest.raises(ClientError, match=rf"is not running; to go on with it: watchroom resume {swarm}"):
        async with engine_of(settings.home, swarm):
            pass
    async with home_engine(settings) as client:
        assert client.engine.pid != old
        assert len(listening() - sockets_of_old) == len(listening()) == 1
        assert [record.pid for record in directory.living(settings.home)] == [client.engine.pid]


async def test_who_comes_while_it_ends_gets_a_new_one(settings: Settings) -> None:
    async with home_engine(settings) as client:
        old = client.engine.engine
        assert (await client.send(StopEngine())).ok
    async with asyncio.timeout(40), home_engine(settings) as client:
        if client.engine.engine == old:  # it had not begun to end
            await asyncio.to_thread(directory.wait_until_gone, settings.home)
    async with asyncio.timeout(40), home_engine(settings) as client:
        assert client.engine.engine != old


async def test_nothing_is_started_where_nothing_shall_be(settings: Settings) -> None:
    with pytest.raises(ClientError, match="no engine runs here"):
        async with home_engine(settings, start=False):
            pass
    assert directory.living(settings.home) == []
    assert not settings.logs.exists()


async def test_a_home_with_a_very_long_name_that_is_no_text_works(tmp_path: Path) -> None:
    deep = tmp_path / os.fsdecode(b"caf\xe9\n")
    for _ in range(4):
        deep /= "d" * 100
    deep.mkdir(parents=True)
    settings = homes.home_at(deep)
    try:
        async with home_engine(settings) as client:
            assert (await client.send(ListSwarms())).ok
            (found,) = directory.living(settings.home)
            assert len(found.socket) < sockets.MOST_BYTES
    finally:
        homes.end_engines(settings.home)


# --- what it inherits ------------------------------------------------------------------------------------


def test_no_key_and_nothing_unlisted_is_inherited(settings: Settings) -> None:
    secret = {"OPENAI_API_KEY": "sk-1", "GITHUB_TOKEN": "t", "WATCHROOM_MODEL": "m", "PYTHONSTARTUP": "/x"}
    kept = {
        "PATH": "/bin",
        "HOME": "/h",
        "XDG_RUNTIME_DIR": "/run/u",
        "https_proxy": "http://p:1",
        "LC_ALL": "C",
    }
    env = engine_environment(settings, secret | kept | {"PYTHONPATH": "/elsewhere"})
    assert set(secret).isdisjoint(env)
    assert kept.items() <= env.items()
    assert "/elsewhere" not in env.get("PYTHONPATH", "")
    assert set(env) - set(kept) <= {VARIABLE, "PYTHONPATH"}


def test_only_our_own_entry_of_pythonpath_is_kept(settings: Settings) -> None:
    env = engine_environment(settings, {"PYTHONPATH": f"/elsewhere{os.pathsep}{ROOT}"})
    assert env["PYTHONPATH"] == str(ROOT)


def test_only_its_own_settings_reach_it(settings: Settings) -> None:
    odd = settings.model_copy(
        update={
            "home": Path("/a b/'\"\\\n\udcff"),
            "engine": EngineSettings(idle_seconds=2.5),
            "model": "secret-model",
        }
    )
    found = described(engine_environment(odd, {})[VARIABLE])
    assert (found.home, found.logs, found.engine) == (odd.home, odd.logs, odd.engine)
    assert (found.model, found.api_key, found.cwd) == (None, None, Path("/"))


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"home": 1, "logs": "", "engine": {}}'])
def test_settings_that_cannot_be_read_are_one_sentence(text: str) -> None:
    with pytest.raises(ClientError, match="settings that cannot be read"):
        described(text)


async def test_nothing_of_a_users_folder_is_imported(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with packages of our names, in the way in every manner there is."""
    trap = tmp_path / "work"
    for name in ("core", "tui", "asyncio", "msgspec"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'w').close()\n")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(trap)]))
    async with home_engine(settings) as client:
        reply = await client.send(StartSwarm(task="go", cwd=str(trap), setup=setup_of(settings)))
        assert reply.ok, reply.error
    assert not (tmp_path / "caught").exists()


def test_coming_to_an_engine_loads_nothing_of_it() -> None:
    heavy = ("httpx", "aiohttp", "polars", "aiosqlite", "textual", "core.engine", "core.agents")
    script = (
        "import sys, core.channel.launch, core.channel.directory\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


# --- what goes wrong -------------------------------------------------------------------------------------


async def test_an_engine_that_cannot_start_says_why(settings: Settings) -> None:
    (settings.home / "watchroom.db").write_text(
        "this is not a database, and long enough to be looked at" * 40
    )
    with pytest.raises(ClientError, match=r"damaged|not an SQLite database"):
        async with home_engine(settings):
            pass
    assert directory.living(settings.home) == []


async def test_a_log_folder_that_is_a_file_is_one_sentence(settings: Settings) -> None:
    settings.logs.parent.mkdir(parents=True, exist_ok=True)
    settings.logs.write_text("a file")
    with pytest.raises(ClientError, match=r"the log .* cannot be written"):
        async with home_engine(settings):
            pass


async def test_an_engine_that_dies_while_it_starts_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ClientError, match=r"ended while it started; see .*engine\.err"):
        async with home_engine(settings):
            pass
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ClientError, match="cannot be started: No such file"):
        async with home_engine(settings):
            pass


async def test_an_engine_that_never_gets_ready_is_given_up(settings: Settings) -> None:
    """Another one holds the home and never ends: the waiting child is ended, not left."""
    held = directory.claim(settings.home)
    assert isinstance(held, Claim)
    held.started()
    clock = FakeClock()
    task = asyncio.create_task(launch.start_engine(settings, clock))
    try:
        async with asyncio.timeout(20):
            while not clock.sleeping:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await clock.advance(launch.START_SECONDS + 1)
            with pytest.raises(EngineBusy, match="is not ready after 30 seconds"):
                await task
    finally:
        task.cancel()
        await asyncio.wait({task})
        held.close()
    # Had the child lived on, the home were its own now.
    again = await asyncio.to_thread(directory.claim, settings.home)
    assert isinstance(again, Claim)
    again.close()


async def test_an_engine_on_another_machine_is_named(settings: Settings) -> None:
    announcement = directory.announce(settings.home, homes.record(host="elsewhere\x1b[2J", pid=77))
    with pytest.raises(ClientError) as caught:
        async with home_engine(settings):
            pass
    announcement.close()
    assert "(process 77) runs on elsewhere, not on this machine" in str(caught.value)
    assert "--ssh elsewhere" in str(caught.value)


async def test_an_engine_whose_socket_was_removed_is_said_to_live(settings: Settings) -> None:
    async with host_engine(settings, kind="exec") as client:
        started = await client.send(StartSwarm(task="go"))
        for name in listening():
            os.unlink(name)
        with pytest.raises(ClientError, match=rf"\(process {os.getpid()}, exec\) lives, but its socket"):
            async with engine_of(settings.home, started.value["swarm"]):
                pass


async def test_an_owner_without_a_record_is_named(settings: Settings) -> None:
    lock = SwarmLock.acquire(settings.home, SWARM, Owner(pid=4711, engine="gone", kind="exec"))
    with pytest.raises(ClientError, match=r"cannot be reached \(process 4711, exec\)"):
        async with engine_of(settings.home, SWARM):
            pass
    lock.release()
    with pytest.raises(ClientError, match="is not running"):
        async with engine_of(settings.home, SWARM):
            pass
    with pytest.raises(ClientError, match="is not the id of a swarm"):
        async with engine_of(settings.home, "../x"):
            pass


async def test_a_starter_that_is_cancelled_leaves_no_pipe_and_no_child(settings: Settings) -> None:
    task = asyncio.create_task(launch.start_engine(settings, FakeClock()))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222
    # Whoever comes next finds a home that works, with that engine or with another.
    async with asyncio.timeout(40), home_engine(settings) as client:
        assert (await client.send(ListSwarms())).ok
