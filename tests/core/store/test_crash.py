"""kill -9 at any moment: what was acknowledged is there, and the file is whole."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from core.domain import events as e
from core.store.loading import load_state
from core.store.locks import owner_alive
from tests.core.domain.strategies import fold
from tests.core.store.tools import opened, query

SCRIPT = """
import asyncio, sys
from pathlib import Path
from core.clock import SystemClock
from core.domain import events as e
from core.store.store import Store

async def main(home, swarm):
    store = await Store.open(Path(home), clock=SystemClock(), redact=lambda text: text)
    await store.create(swarm)
    agents = [f"{swarm}-t{n}" for n in range(8)]
    await store.append(swarm, [e.SwarmStarted(title="t", cwd="/", model="m", source="exec")] + [
        e.AgentSpawned(agent=a, path=f"/root/a{n}" if n else "/root", nickname=a,
                       parent=agents[0] if n else None)
        for n, a in enumerate(agents)])
    async def work(agent):
        for n in range(100_000):
            done = await store.append(swarm, [
                e.TurnStarted(agent=agent, turn=str(n)),
                e.AssistantMessage(agent=agent, text="x" * 300),
                e.TurnCompleted(agent=agent, turn=str(n), message=str(n))])
            print(done[-1].seq, flush=True)
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(work(agent))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def kill_once(home: Path, number: int, lines: int) -> None:
    swarm = f"swarm{number}"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(home), swarm],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        acknowledged = [int(process.stdout.readline()) for _ in range(lines)]
        process.kill()
        acknowledged += [
            int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
        ]
        process.wait()
    assert query(home, "PRAGMA integrity_check") == [("ok",)]
    stored = [seq for (seq,) in query(home, "SELECT seq FROM events WHERE swarm = ? ORDER BY seq", swarm)]
    assert stored == list(range(1, len(stored) + 1))
    assert set(acknowledged) <= set(stored)
    # Each append was three events: none of them is there in part.
    assert (len(stored) - 9) % 3 == 0
    assert not owner_alive(home, swarm)
    asyncio.run(reopen(home, swarm, len(stored)))


async def reopen(home: Path, swarm: str, count: int) -> None:
    async with opened(home) as store:
        state = await store.reopen(swarm)
        events: list[e.AnyEvent] = []
        while page := (await store.reader.events(swarm, after=len(events), limit=5000)).events:
            events += page
        async with store.reader.snapshot() as db:
            assert fold(events) == await load_state(db, swarm) == state
        [event] = await store.append(swarm, [e.Notice(agent=f"{swarm}-t0", text="back")])
        assert event.seq == count + 1


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    for number in range(3):
        kill_once(tmp_path, number, random.Random(number).randint(1, 120))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_kill_9_many_times(tmp_path: Path) -> None:
    for number in range(60):
        kill_once(tmp_path, number, random.Random(number).randint(1, 1500))


def test_a_disk_that_is_full_ends_the_store_with_that_sentence(tmp_path: Path) -> None:
    script = """
import asyncio, resource, signal, sys
from pathlib import Path
from core.clock import SystemClock
from core.domain import events as e
from core.store.store import Store, StoreError

async def main(home):
    store = await Store.open(Path(home), clock=SystemClock(), redact=lambda text: text)
    await store.create("s")
    await store.append("s", [e.AgentSpawned(agent="t", path="/root", nickname="n")])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    try:
        for n in range(1000):
            await store.append("s", [e.AssistantMessage(agent="t", text="x" * 5000)])
    except StoreError as error:
        print(store.state("s").seq, error)
    finally:
        await store.aclose()

asyncio.run(main(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    seq, _, sentence = done.stdout.partition(" ")
    assert "cannot be written" in sentence
    assert query(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert query(tmp_path, "SELECT max(seq) FROM events") == [(int(seq),)]
