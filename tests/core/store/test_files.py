from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core.store import connection, schema
from core.store.connection import FILE_NAME
from core.store.errors import NotFound
from core.store.locks import SwarmLock, owner_alive, owner_pid
from core.store.readers import Reader
from core.store.store import StoreError
from tests.core.store.tools import new_swarm, opened, query


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_folder_and_files_are_the_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    old = os.umask(0)
    try:
        async with opened(home) as store:
            await new_swarm(store)
            assert mode(home) == 0o700
            files = [path for path in home.rglob("*") if path.is_file()]
            assert {FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"} <= {path.name for path in files}
            assert {mode(path) for path in files} == {0o600}
            assert mode(home / "locks") == 0o700
    finally:
        os.umask(old)


async def test_files_protect_themselves_in_a_wider_folder(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    os.close(os.open(tmp_path / FILE_NAME, os.O_CREAT, 0o644))
    async with opened(tmp_path) as store:
        await new_swarm(store)
        assert mode(tmp_path / FILE_NAME) == 0o600
        assert mode(tmp_path / f"{FILE_NAME}-wal") == 0o600


async def test_opening_again_finds_everything_and_migrates_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await new_swarm(store)
    before = query(tmp_path, "SELECT name, sql FROM sqlite_schema ORDER BY name")
    async with opened(tmp_path):
        assert query(tmp_path, "SELECT name, sql FROM sqlite_schema ORDER BY name") == before
        assert query(tmp_path, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
        assert query(tmp_path, "PRAGMA journal_mode") == [("wal",)]


async def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path):
        pass
    monkeypatch.setattr(
        schema, "MIGRATIONS", [*schema.MIGRATIONS, ["CREATE TABLE extra (a)", "CREATE TABLE swarms (a)"]]
    )
    with pytest.raises(StoreError, match="cannot be brought up to date"):
        async with opened(tmp_path):
            pass
    assert query(tmp_path, "SELECT 1 FROM sqlite_schema WHERE name = 'extra'") == []
    assert query(tmp_path, "PRAGMA user_version") == [(1,)]


async def test_an_older_store_is_brought_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        await new_swarm(store)
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, ["CREATE TABLE extra (a)"]])
    with pytest.raises(StoreError, match="older Watchroom"):
        await Reader.open(tmp_path)
    async with opened(tmp_path):
        assert query(tmp_path, "SELECT count(*) FROM extra") == [(0,)]
        assert query(tmp_path, "SELECT count(*) FROM swarms") == [(1,)]


def change(home: Path, sql: str) -> None:
    with sqlite3.connect(home / FILE_NAME) as other:
        other.execute(sql)
    other.close()


async def test_a_newer_schema_is_refused_by_writer_and_reader(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    change(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        async with opened(tmp_path):
            pass
    with pytest.raises(StoreError, match="schema 99"):
        await Reader.open(tmp_path)


async def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    change(tmp_path, "CREATE TABLE recipes (name)")
    with pytest.raises(StoreError, match="not a Watchroom store"):
        async with opened(tmp_path):
            pass
    assert query(tmp_path, "SELECT name FROM sqlite_schema") == [("recipes",)]


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("this is not a database at all, whatever its name says\n" * 40)
    with pytest.raises(StoreError, match=r"watchroom\.db.*not an SQLite database"):
        async with opened(tmp_path):
            pass
    with pytest.raises(StoreError, match="not an SQLite database"):
        await Reader.open(tmp_path)


async def test_a_home_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError, match="cannot be opened: "):
        async with opened(tmp_path / "home"):
            pass


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "NEEDED", (99, 0, 0))
    with pytest.raises(StoreError, match=r"needs 99\.0\.0 or newer"):
        async with opened(tmp_path):
            pass


# --- locks -----------------------------------------------------------------------------------------------


async def test_a_swarm_has_one_owner_and_the_message_names_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        swarm, _ = await new_swarm(store)
        assert owner_alive(tmp_path, swarm)
        assert owner_pid(tmp_path, swarm) == os.getpid()
        with pytest.raises(StoreError, match=rf"another engine \(process {os.getpid()}\)"):
            await other.reopen(swarm)
        await store.release(swarm)
        assert not owner_alive(tmp_path, swarm)
        state = await other.reopen(swarm)
        assert state.seq == 3


async def test_two_stores_of_one_home_write_their_own_swarms(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        (first, _), (second, _) = await new_swarm(one), await new_swarm(two)
        assert one.state(first).seq == two.state(second).seq == 3
        listed = await one.reader.sessions()
        assert len(listed["sessions"]) == 2


async def test_an_existing_swarm_is_not_created_again_nor_an_unknown_one_reopened(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, _ = await new_swarm(store)
        with pytest.raises(StoreError, match="is open already"):
            await store.create(swarm)
        await store.release(swarm)
        with pytest.raises(StoreError, match="exists already"):
            await store.create(swarm)
        with pytest.raises(NotFound):
            await store.reopen("01900000-0000-7000-8000-000000000000")
        assert not owner_alive(tmp_path, swarm)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 101, "a\n"])
async def test_a_swarms_id_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError, match="is not the id of a swarm"):
            await store.create(name)


def test_many_swarms_leave_no_handle_and_no_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(300):
        lock = SwarmLock.acquire(tmp_path, f"s{number}")
        lock.release()
        lock.release()
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
    assert list((tmp_path / "locks").iterdir()) == []


def test_readers_that_look_never_keep_an_owner_out(tmp_path: Path) -> None:
    lock = SwarmLock.acquire(tmp_path, "s")
    assert all(owner_alive(tmp_path, "s") for _ in range(10))
    lock.release()
    assert not owner_alive(tmp_path, "s")
    SwarmLock.acquire(tmp_path, "s").release()


def test_a_killed_owner_frees_its_swarm(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from core.store.locks import SwarmLock\n"
        "lock = SwarmLock.acquire(Path(sys.argv[1]), 's'); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "held\n"
        assert owner_alive(tmp_path, "s")
        assert owner_pid(tmp_path, "s") == process.pid
        with pytest.raises(StoreError, match=f"process {process.pid}"):
            SwarmLock.acquire(tmp_path, "s")
        process.kill()
        process.wait()
    assert not owner_alive(tmp_path, "s")
    SwarmLock.acquire(tmp_path, "s").release()
