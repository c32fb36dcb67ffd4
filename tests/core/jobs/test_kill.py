"""A job of 300 rows in a process of its own, against the scripted server. SIGKILL ends it at moments that
nobody chose; another process goes on, until the job has ended. Nothing may be lost, or done twice."""

from __future__ import annotations

import asyncio
import csv
import os
import random
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.domain import events as e
from core.scripted.scenario import parse_scenario
from core.scripted.server import ScriptedServer, serve
from core.store.readers import Reader
from tests.core.crash import check_events

ROOT = Path(__file__).resolve().parents[3]
ROWS = 300
EVENTS = 4000
"""An undisturbed run has a few hundred fewer."""
SCENARIO = r"""
chunk_chars = 200
latency_ms = 5
[[agents]]
path = "*/job_*"
closing = "done"
[agents.captures]
job = { in = "first", match = '^Job ID: (\S+)' }
item = { in = "first", match = '^Item ID: (.+)$' }
n = { in = "first", match = '"n": "(\d+)"' }
[[agents.steps]]
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = { job_id = "{job}", item_id = "{item}", result = { n = "{n:int}" } }
"""
SCRIPT = """
import asyncio, sys
from pathlib import Path
from core.config import load_settings
from core.domain.commands import ResumeSwarm, RunJob
from core.domain.events import JobEnded
from core.engine.engine import Engine

base_url, home, cwd, swarm = sys.argv[1:]

async def main():
    settings = load_settings(
        options={"base_url": base_url, "model": "scripted", "sandbox": "off"},
        home=Path(home), cwd=Path(cwd), environ={})
    over = asyncio.Event()

    def told(swarm, events, bodies):
        print(*bodies, sep="\\n", flush=True)
        if any(isinstance(event, JobEnded) for event in events):
            over.set()

    async with Engine.running(settings) as engine:
        engine.on_events = told
        if swarm:
            command = ResumeSwarm(swarm=swarm)
        else:
            command = RunJob(input_path="in.csv", instruction="Do {n}.", output_path="out.csv")
        reply = await engine.handle(command)
        assert reply.ok, reply.error
        if not any(job.ended for job in engine.state(reply.value["swarm"]).jobs.values()):
            await over.wait()

asyncio.run(main())
"""


class Home:
    """A home, a working folder with the input, and the processes that work there one after the other."""

    def __init__(self, folder: Path, server: ScriptedServer) -> None:
        self.home, self.cwd = folder / "home", folder / "work"
        self.cwd.mkdir(parents=True)
        with (self.cwd / "in.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["n"], *([n] for n in range(ROWS))])
        self._server = server
        self.swarm = ""
        self.told: list[e.AnyEvent] = []
        """What the processes said that they had stored."""

    async def run(self, kill_after: int | None) -> bool:
        """One process, until it has told so many events and is killed, or until the job has ended (True)."""
        environ = {name: text for name, text in os.environ.items() if not name.startswith("WATCHROOM_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, self._server.base_url, str(self.home), str(self.cwd), self.swarm),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**environ, "OPENAI_API_KEY": "none"},
            limit=2**24,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.create_task(process.stderr.read())
        count = 0
        try:
            async with asyncio.timeout(60):
                while line := await process.stdout.readline():
                    if not line.endswith(b"\n"):
                        break  # cut by the kill
                    self.told.append(event := e.decode(line))
                    self.swarm = event.swarm
                    count += 1
                    if count == kill_after:
                        process.kill()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            errors = (await said).decode()
        assert process.returncode == 0 or (kill_after is not None and count >= kill_after), errors[-2000:]
        return process.returncode == 0

    def rows(self) -> list[dict[str, str]]:
        """The CSV without what may differ between two runs."""
        with (self.cwd / "out.csv").open(newline="") as file:
            return [
                {name: text for name, text in row.items() if name not in VARYING}
                for row in csv.DictReader(file, strict=True)
            ]


VARYING = ("job_id", "attempt_count", "reported_at", "completed_at")


async def check(home: Home) -> None:
    """What must hold of the job when it has ended, however often it was interrupted."""
    async with Reader.open(home.home) as reader:
        state = await reader.load_state(home.swarm)
        journal: list[e.AnyEvent] = []
        while page := (await reader.events(home.swarm, after=len(journal), limit=5000)).events:
            journal += page
        (job,) = state.jobs.values()
        async with aclosing(reader.job_rows(job.job)) as rows:
            stored: list[dict[str, Any]] = [row async for row in rows]
    check_events(journal, state)
    assert [event for event in home.told if journal[event.seq - 1] != event] == [], "told, and not stored"
    assert (job.status, job.total) == ("completed", ROWS)
    # Counters are what a recount gives.
    counted = Counter(row["status"] for row in stored)
    assert counted == {"completed": ROWS}
    assert (job.pending, job.running, job.completed, job.failed, job.skipped) == (0, 0, ROWS, 0, 0)
    # Every row was reported once, and nobody worked on it after that.
    reported = Counter(r.item for r in journal if isinstance(r, e.JobRowEnded) and r.status == "completed")
    assert reported == {f"row-{n}": 1 for n in range(1, ROWS + 1)}
    over: set[str] = set()
    for event in journal:
        if isinstance(event, e.JobRowEnded) and event.status == "completed":
            over.add(event.item)
        elif isinstance(event, e.JobRowClaimed):
            assert event.item not in over, f"{event.item} was repeated although it was reported"
    assert not [event for event in journal if isinstance(event, e.JobReportRefused)]
    assert {agent.status for agent in state.agents.values() if agent.job} == {"shutdown"}
    # An engine's death is no honest try: with one attempt allowed none of them failed a row.
    assert len([event for event in journal if isinstance(event, e.JobEnded)]) == 1


async def killed_and_gone_on_with(folder: Path, seed: int, kills: int) -> int:
    """Kill a job so often, let it end, and compare it with one that was left in peace; how many kills hit."""
    moments = random.Random(seed)
    async with serve(parse_scenario(SCENARIO)) as server:
        peace, home = Home(folder / "peace", server), Home(folder / "killed", server)
        assert await peace.run(None)
        await check(peace)
        hit = 0
        for _ in range(kills):
            # By chance also during its start, and while it takes over what the last one left.
            if await home.run(moments.randrange(1, 2 * EVENTS // kills)):
                break
            hit += 1
        else:
            assert await home.run(None)
    await check(home)
    assert home.rows() == peace.rows()
    assert [row["result_json"] for row in home.rows()] == [
        msgspec.json.format(msgspec.json.encode({"n": n}), indent=0).decode() for n in range(ROWS)
    ]
    return hit


async def test_a_job_killed_at_five_moments_is_as_one_that_was_not(tmp_path: Path) -> None:
    assert await killed_and_gone_on_with(tmp_path, 1, 5) >= 3


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 22))
async def test_a_job_killed_at_a_hundred_moments_is_as_one_that_was_not(tmp_path: Path, seed: int) -> None:
    assert await killed_and_gone_on_with(tmp_path, seed, 5) >= 1
