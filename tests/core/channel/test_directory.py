"""Where engines listen and how they are found: by locks, whatever lies around in the folders."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.channel import directory, sockets
from core.channel.client import ClientError
from core.channel.directory import Claim
from core.store.errors import StoreError
from core.store.locks import Owner, SwarmLock, held
from tests.core.channel import homes

SWARM = "019a0000-0000-7000-8000-000000000001"


@pytest.fixture
def short() -> Iterator[Path]:
    with homes.short_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def _folders(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sockets of these tests lie beside nobody else's."""
    (short / "run").mkdir(mode=0o700)
    (short / "tmp").mkdir(mode=0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "run"))
    monkeypatch.setattr(sockets, "FALLBACK", short / "tmp")


def fallback(short: Path) -> Path:
    return short / "tmp" / f"watchroom-{os.getuid()}"


# --- sockets ---------------------------------------------------------------------------------------------


def test_a_socket_lies_in_the_runtime_folder(short: Path) -> None:
    path = sockets.socket_path("e1")
    assert path.parent == short / "run" / "watchroom"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent in sockets.socket_folders()
    assert path == sockets.socket_path("e1") != sockets.socket_path("e2")


@given(engine=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_id_makes_a_short_plain_name(engine: str) -> None:
    if not engine.isascii():
        engine = engine.encode("utf-8", "replace").decode()
    path = sockets.socket_path(engine)
    assert len(os.fsencode(path)) < sockets.MOST_BYTES
    assert path.parent in sockets.socket_folders()


@pytest.mark.parametrize(
    "wrong", ["unset", "relative", "missing", "open", "long", "link", "inside open", "seen in sandboxes"]
)
def test_a_runtime_folder_that_does_not_fit_is_not_used(
    short: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    run = short / "run"
    match wrong:
        case "unset":
            monkeypatch.delenv("XDG_RUNTIME_DIR")
        case "relative":
            monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
        case "missing":
            run.rmdir()
        case "open":
            run.chmod(0o755)
        case "long":
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(run / ("x" * 80)))
            (run / ("x" * 80)).mkdir(mode=0o700)
        case "link":
            run.rename(short / "real")
            run.symlink_to(short / "real")
        case "inside open":
            (run / "watchroom").mkdir(mode=0o700)
            (run / "watchroom").chmod(0o750)
        case "seen in sandboxes":
            monkeypatch.setattr(sockets, "PRIVATE", ("/run",))
    assert sockets.socket_path("e").parent == fallback(short)
    assert stat.S_IMODE(fallback(short).stat().st_mode) == 0o700
    assert fallback(short) in sockets.socket_folders()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("link", "is not a real folder"),
        ("file", "is not a real folder"),
        ("open", r"is not closed to others \(mode 0755\): chmod 700 it"),
        ("other", "belongs to another user"),
        ("gone", "cannot be made: No such file"),
    ],
)
def test_a_fallback_that_somebody_prepared_is_refused(
    short: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    place = fallback(short)
    match wrong:
        case "link":
            (short / "theirs").mkdir(mode=0o700)
            place.symlink_to(short / "theirs")
        case "file":
            place.touch()
        case "open":
            place.mkdir()
            place.chmod(0o755)
        case "other":
            uid = os.getuid() + 1
            monkeypatch.setattr(os, "getuid", lambda: uid)
            fallback(short).mkdir(mode=0o700)
        case "gone":
            (short / "tmp").rmdir()
    with pytest.raises(ClientError, match=said) as caught:
        sockets.socket_path("e")
    assert "\n" not in str(caught.value)


# --- records ---------------------------------------------------------------------------------------------


def test_an_engine_is_known_while_it_is_announced(tmp_path: Path) -> None:
    assert directory.living(tmp_path) == []
    mine = homes.record(kind="exec")
    announcement = directory.announce(tmp_path, mine)
    (file,) = (tmp_path / "engines").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert directory.living(tmp_path) == [mine]
    assert mine.here
    directory.sweep(tmp_path)
    assert directory.living(tmp_path) == [mine]
    announcement.close()
    announcement.close()
    assert directory.living(tmp_path) == []
    assert not file.exists()


def test_the_newest_comes_first_and_only_one_is_the_homes_own(tmp_path: Path) -> None:
    first = homes.record()
    later = homes.record(kind="exec", started_at=first.started_at.replace(year=2027))
    with ExitStack() as stack:
        for one in (first, later):
            stack.callback(directory.announce(tmp_path, one).close)
        assert directory.living(tmp_path) == [later, first]
        assert directory.background(tmp_path) == first
    assert directory.background(tmp_path) is None


def test_a_killed_engine_is_dead_at_once_and_swept_with_its_socket(tmp_path: Path) -> None:
    script = (
        "import sys, socket; from pathlib import Path; from core.channel import directory, sockets\n"
        "from tests.core.channel import homes\n"
        "one = homes.record(); path = sockets.socket_path(one.engine)\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(str(path)); listener.listen()\n"
        "kept = directory.announce(Path(sys.argv[1]), one)\n"
        "print(path, flush=True); sys.stdin.read()"
    )
    with homes.process(script, tmp_path) as child:
        path = Path(homes.line(child))
        assert [found.pid for found in directory.living(tmp_path)] == [child.pid]
        directory.sweep(tmp_path)
        assert path.is_socket()
        child.kill()
        child.wait()
    assert directory.living(tmp_path) == []
    assert path.is_socket()
    directory.sweep(tmp_path)
    assert not path.exists()
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_copied_home_has_no_engine_and_leaves_the_originals_alone(tmp_path: Path) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    here.mkdir()
    mine = homes.record()
    path = sockets.socket_path(mine.engine)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        announcement = directory.announce(here, mine)
        shutil.copytree(here, copy)
        assert directory.living(copy) == []
        directory.sweep(copy)
        assert list((copy / "engines").iterdir()) == []
        assert path.is_socket(), "the original's engine listens there"
        assert directory.living(here) == [mine]
        announcement.close()


def test_a_record_cannot_make_a_sweep_remove_anything_else(tmp_path: Path) -> None:
    victim = tmp_path / "victim.sock"
    with socket.socket(socket.AF_UNIX) as listener, homes.short_folder() as folder:
        listener.bind(str(folder / "s"))
        victim.write_text("keep me")
        for place in (victim, folder / "s"):
            dead = homes.record(socket=str(place))
            directory.announce(tmp_path, dead).close()
            (tmp_path / "engines" / f"{dead.engine}.json").write_bytes(msgspec.json.encode(dead))
        directory.sweep(tmp_path)
        assert list((tmp_path / "engines").iterdir()) == []
        assert victim.read_text() == "keep me"
        assert (folder / "s").is_socket()


@given(data=st.binary(max_size=200) | st.just(b"[" * 20_000))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_in_the_folder_hides_the_engines(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "engines"
    mine = homes.record()
    announcement = directory.announce(tmp_path, mine)
    try:
        (folder / "junk.json").write_bytes(data)
        with open(folder / "junk.json", "rb") as kept:
            import fcntl

            fcntl.flock(kept, fcntl.LOCK_EX)  # locked, as if it lived
            assert directory.living(tmp_path) == [mine]
    finally:
        announcement.close()


def test_links_folders_and_pipes_in_the_folder_are_no_engines(tmp_path: Path) -> None:
    mine = homes.record()
    announcement = directory.announce(tmp_path, mine)
    folder = tmp_path / "engines"
    (folder / "link.json").symlink_to(folder / f"{mine.engine}.json")
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    shutil.copy(folder / f"{mine.engine}.json", folder / "other.json")
    assert directory.living(tmp_path) == [mine]
    directory.sweep(tmp_path)
    assert directory.living(tmp_path) == [mine]
    announcement.close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(ClientError, match="cannot be announced"):
        directory.announce(tmp_path, homes.record())


# --- owners ----------------------------------------------------------------------------------------------


def test_the_owner_of_a_swarm_is_found_by_its_lock(tmp_path: Path) -> None:
    mine, other = homes.record(kind="exec"), homes.record()
    with ExitStack() as stack:
        for one in (mine, other):
            stack.callback(directory.announce(tmp_path, one).close)
        assert directory.owner_of(tmp_path, SWARM) is None
        lock = SwarmLock.acquire(tmp_path, SWARM, Owner(pid=1, engine=mine.engine, kind="exec"))
        assert directory.owner_of(tmp_path, SWARM) == mine
        lock.release()
        assert directory.owner_of(tmp_path, SWARM) is None


def test_an_owner_that_died_owns_nothing(tmp_path: Path) -> None:
    mine = homes.record()
    announcement = directory.announce(tmp_path, mine)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{SWARM}.lock").write_text(f"1\n{mine.engine}\nexec\n")
    assert directory.owner_of(tmp_path, SWARM) is None
    announcement.close()


@pytest.mark.parametrize("text", ["", "x", "1", "1\n\n\n", "1\n" + "e" * 500, "\xff"])
def test_a_lock_says_what_it_can(tmp_path: Path, text: str) -> None:
    lock = SwarmLock.acquire(tmp_path, SWARM)
    (tmp_path / "locks" / f"{SWARM}.lock").write_text(text, encoding="latin-1")
    assert directory.owner_of(tmp_path, SWARM) is None
    lock.release()


# --- one per home ----------------------------------------------------------------------------------------

CLAIMS = """
import sys
from pathlib import Path
from core.channel import directory
from tests.core.channel import homes
home = Path(sys.argv[1])
print("here", flush=True)
sys.stdin.readline()
found = directory.claim(home)
if isinstance(found, directory.Claim):
    kept = directory.announce(home, homes.record())
    found.started()
    print("won", flush=True)
else:
    print(found.pid, flush=True)
sys.stdin.read()
"""


def test_of_many_that_start_in_the_same_moment_one_is_the_engine(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(homes.process(CLAIMS, tmp_path)) for _ in range(6)]
        assert [homes.line(child) for child in children] == ["here"] * 6
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        said = {child.pid: homes.line(child) for child in children}
        (winner,) = [pid for pid, text in said.items() if text == "won"]
        assert {text for text in said.values() if text != "won"} == {str(winner)}
        assert [found.pid for found in directory.living(tmp_path)] == [winner]


def test_who_comes_while_an_engine_ends_waits_and_is_next(tmp_path: Path) -> None:
    ending = directory.claim(tmp_path)
    assert isinstance(ending, Claim)
    ending.started()  # and without a record: it is on its way out
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(directory.claim(tmp_path)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    ending.close()
    thread.join(10)
    (mine,) = found
    assert isinstance(mine, Claim)
    mine.close()


def test_waiting_for_the_end_of_an_engine(tmp_path: Path) -> None:
    directory.wait_until_gone(tmp_path)  # there never was one
    assert list(tmp_path.iterdir()) == []
    engine = directory.claim(tmp_path)
    assert isinstance(engine, Claim)
    thread = threading.Thread(target=directory.wait_until_gone, args=(tmp_path,))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    engine.close()
    thread.join(10)
    assert not thread.is_alive()


def test_who_waits_for_an_end_does_not_wait_for_the_next_engine(tmp_path: Path) -> None:
    """The next one may be waiting already, and get the home first."""
    ending = directory.claim(tmp_path)
    assert isinstance(ending, Claim)
    ending.started()
    found: list[object] = []
    following = threading.Thread(target=lambda: found.append(directory.claim(tmp_path)))
    with directory.watching(tmp_path) as wait:
        following.start()
        following.join(0.1)
        assert following.is_alive()
        ending.close()
        following.join(10)
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()
    (mine,) = found
    assert isinstance(mine, Claim)
    assert held(tmp_path / directory.LOCK_NAME)
    mine.close()
    assert not (tmp_path / directory.LOCK_NAME).exists()


def test_a_lock_file_left_by_a_killed_engine_is_taken(tmp_path: Path) -> None:
    (tmp_path / directory.LOCK_NAME).touch()
    directory.wait_until_gone(tmp_path)
    mine = directory.claim(tmp_path)
    assert isinstance(mine, Claim)
    mine.close()


def test_an_engine_can_be_watched_in_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / directory.LOCK_NAME).touch()
    monkeypatch.setattr(os, "open", reads_only(os.open))
    directory.wait_until_gone(tmp_path)


def test_what_another_user_left_hinders_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    theirs = folder / f"{homes.record().engine}.json"
    theirs.write_text("{}")
    monkeypatch.setattr(os, "open", reads_only(os.open))
    directory.sweep(tmp_path)
    assert theirs.exists()


def reads_only(opened: Callable[..., int]) -> Callable[..., int]:
    """`os.open` as it is for somebody who may only read; root may do all, so it is told here."""

    def open_(path: object, flags: int, *args: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *args, **named)

    return open_


def test_who_asks_for_an_owned_swarm_hears_who_has_it(tmp_path: Path) -> None:
    lock = SwarmLock.acquire(tmp_path, SWARM, Owner(pid=4711, engine="e", kind="exec"))
    with pytest.raises(StoreError, match=r"belongs to another engine \(process 4711, exec\)"):
        SwarmLock.acquire(tmp_path, SWARM)
    lock.release()
    SwarmLock.acquire(tmp_path, SWARM).release()


def test_a_lock_that_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: once there is room again the swarm can be taken."""

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="cannot be taken: No space left"):
            SwarmLock.acquire(tmp_path, SWARM)
    SwarmLock.acquire(tmp_path, SWARM).release()
