from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.clock import Clock, SystemClock
from core.tools.environment import child_environment
from core.tools.process import GRACE_SECONDS, Capture, Finished, StartError, run
from tests.clock import FakeClock, settle
from tests.core.tools.processes import alive, descriptors, gone

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


async def sh(script: str, cwd: Path, *, clock: Clock | None = None, **options: object) -> Finished:
    settings: dict[str, object] = {"timeout": 30, "limit": 10_000} | options
    return await run(
        ["/bin/sh", "-c", script],
        cwd=cwd,
        env=child_environment(),
        clock=clock or SystemClock(),
        **settings,  # type: ignore[arg-type]
    )


async def until_ready(path: Path, clock: FakeClock | None = None) -> None:
    """Return when a command has written to the FIFO at `path`, and its time-out is set on `clock`."""
    await asyncio.to_thread(path.read_bytes)
    while clock is not None and not clock.sleeping:
        await settle()


@pytest.fixture
def marker() -> str:
    return f"marker-{uuid.uuid4().hex}"


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


async def test_output_is_one_stream_and_the_exit_code_is_told(tmp_path: Path) -> None:
    done = await sh("echo out; echo err >&2; pwd; exit 7", tmp_path)
    assert (done.code, done.output) == (7, f"out\nerr\n{tmp_path}\n")
    assert done.total == len(done.output)
    assert not done.left_out
    assert not done.timed_out
    assert not done.leftovers


async def test_stdin_is_empty(tmp_path: Path) -> None:
    assert (await sh("cat; echo end", tmp_path)).output == "end\n"


async def test_a_signal_is_a_negative_code(tmp_path: Path) -> None:
    assert (await sh("kill -KILL $$", tmp_path)).code == -signal.SIGKILL


async def test_bytes_that_are_no_utf8_are_replaced(tmp_path: Path) -> None:
    assert (await sh(r"printf 'a\377b\303'", tmp_path)).output == "a�b�"


async def test_a_program_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot start /nowhere/x: No such file or directory"):
        await run(["/nowhere/x"], cwd=tmp_path, env={}, clock=SystemClock(), timeout=1, limit=10, guard=False)


@linux
async def test_a_failed_start_leaks_nothing(tmp_path: Path) -> None:
    before = descriptors()
    for argv, guard in ((["/nowhere/x"], False), (["/bin/sh", "-c", "a\0b"], False), (["a\0b"], True)):
        with pytest.raises(StartError):
            await run(argv, cwd=tmp_path, env={}, clock=SystemClock(), timeout=1, limit=10, guard=guard)
    assert descriptors() == before


@linux
async def test_a_flood_of_output_needs_no_memory(tmp_path: Path) -> None:
    size = 200_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await sh(f"echo first; head -c {size} /dev/zero; echo last", tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert done.total == size + 11
    assert done.output.startswith("first\n")
    assert done.output.endswith("last\n")
    assert len(done.output) - len(f"\n… {done.left_out} bytes left out …\n") == size + 11 - done.left_out
    assert grown < 20_000, "kilobytes"


@linux
async def test_a_timeout_ends_the_whole_group(tmp_path: Path, marker: str) -> None:
    clock = FakeClock()
    task = asyncio.ensure_future(
        sh(f"yes {marker} >/dev/null & yes {marker} | cat >/dev/null; :", tmp_path, clock=clock, timeout=5)
    )
    while not clock.sleeping:
        await settle()
    await clock.advance(5)
    done = await task
    assert done.timed_out
    assert done.code == -signal.SIGTERM
    assert gone(marker)


@linux
async def test_what_ignores_sigterm_is_killed_after_the_grace(
    tmp_path: Path, marker: str, ready: Path
) -> None:
    clock = FakeClock()
    script = f"trap '' TERM; echo {marker} > {ready}; while :; do sleep 100; done"
    task = asyncio.ensure_future(sh(script, tmp_path, clock=clock, timeout=5))
    await until_ready(ready, clock)
    await clock.advance(5)
    assert alive(marker)
    await clock.advance(GRACE_SECONDS)
    done = await task
    assert (done.code, done.timed_out) == (-signal.SIGKILL, True)
    assert gone(marker)


@linux
@pytest.mark.parametrize("redirect", ["", ">/dev/null 2>&1"])
async def test_background_children_end_with_their_leader(tmp_path: Path, marker: str, redirect: str) -> None:
    done = await sh(f"sh -c 'sleep 1000; : {marker}' {redirect} & echo started", tmp_path)
    assert (done.code, done.output, done.leftovers) == (0, "started\n", True)
    assert gone(marker)


@linux
async def test_cancelling_ends_the_group_and_closes_everything(
    tmp_path: Path, marker: str, ready: Path
) -> None:
    before = descriptors()
    task = asyncio.ensure_future(sh(f"echo x > {ready}; sleep 1000; : {marker}", tmp_path))
    await until_ready(ready)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(marker)
    assert descriptors() == before


@linux
async def test_a_second_cancellation_cuts_the_grace_short(tmp_path: Path, marker: str, ready: Path) -> None:
    clock = FakeClock()
    script = f"trap '' TERM; echo {marker} > {ready}; while :; do sleep 100; done"
    task = asyncio.ensure_future(sh(script, tmp_path, clock=clock, timeout=900))
    await until_ready(ready, clock)
    task.cancel()
    await settle()
    assert not task.done()
    assert alive(marker)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.monotonic() == 0, "the grace did not have to pass"
    assert gone(marker)


@linux
@pytest.mark.parametrize("rounds", range(6))
async def test_cancelling_during_the_start_leaves_nothing(tmp_path: Path, marker: str, rounds: int) -> None:
    before = descriptors()
    task = asyncio.ensure_future(sh(f"sleep 1000; : {marker}", tmp_path))
    for _ in range(rounds):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(marker)
    assert descriptors() == before


@linux
async def test_many_at_once_leave_no_zombie_and_no_descriptor(tmp_path: Path) -> None:
    before = descriptors()
    done = await asyncio.gather(*(sh(f"echo {n}", tmp_path) for n in range(30)))
    assert [d.output for d in done] == [f"{n}\n" for n in range(30)]
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 (it does not block)


ENGINE = """
import asyncio, sys
from pathlib import Path
from core.clock import SystemClock
from core.tools.process import run

asyncio.run(run(["/bin/sh", "-c", sys.argv[1]], cwd=Path.cwd(), env={"PATH": "/usr/bin:/bin"},
                clock=SystemClock(), timeout=None, limit=100))
"""


@linux
async def test_a_killed_engine_takes_the_whole_group_with_it(marker: str, ready: Path) -> None:
    script = f"sh -c 'sleep 1000; : {marker}' & echo x > {ready}; sleep 1000; : {marker}"
    engine = subprocess.Popen(  # noqa: ASYNC220 (the test has nothing else to do)
        [sys.executable, "-c", ENGINE, script], stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[3]
    )
    try:
        await until_ready(ready)
        assert alive(marker)
    finally:
        engine.kill()
        engine.wait()
    assert gone(marker)


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(min_value=1, max_value=200))
def test_capture_keeps_the_ends_and_counts_the_rest(chunks: list[bytes], limit: int) -> None:
    capture = Capture(limit)
    for chunk in chunks:
        capture.feed(chunk)
    whole = b"".join(chunks)
    text, missing = capture.result()
    assert capture.total == len(whole)
    if len(whole) <= limit:
        assert (text, missing) == (whole.decode(errors="replace"), 0)
    else:
        assert missing >= len(whole) - limit
        assert f"… {missing} bytes left out …" in text


@given(st.text(), st.integers(min_value=8, max_value=60))
def test_capture_never_cuts_a_character(text: str, limit: int) -> None:
    text = text.encode("utf-8", "ignore").decode().replace("�", "?")
    capture = Capture(limit)
    for byte in text.encode():
        capture.feed(bytes([byte]))
    kept, missing = capture.result()
    assert "�" not in kept
    if missing:
        head, tail = kept.split(f"\n… {missing} bytes left out …\n")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head.encode()) + len(tail.encode()) + missing == len(text.encode())
