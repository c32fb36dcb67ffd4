"""A swarm with a real store and programmable workers, for the tests of jobs."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from core.config import JobsSettings
from core.domain.events import AgentSpawned, AnyEvent, SwarmStarted
from core.domain.state import JobState
from core.jobs.errors import JobInputError
from core.jobs.request import JobRequest
from core.jobs.service import JobService
from core.jobs.workers import Outcome
from core.store.store import Store
from core.tools.base import Tool, ToolOutput, Verdict, parse_args
from tests.clock import FakeClock

SWARM = "01900000-0000-7000-8000-000000000001"
ROOT = "01900000-0000-7000-8000-000000000002"


class Context:
    """`ToolContext` of a call in a test."""

    def __init__(self, *, cwd: Path, clock: FakeClock, thread: str = ROOT, path: str = "/root") -> None:
        self.thread = thread
        self.path = path
        self.call = "call-1"
        self.cwd = cwd
        self.clock = clock
        self.emitted: list[tuple[str, str]] = []
        self.blocks: list[str] = []

    async def emit(self, *, source: str, text: str = "", status: str = "", about: str | None = None) -> None:
        self.emitted.append((status, text))

    def blocked(self, reason: str, detail: str = "") -> AbstractAsyncContextManager[None]:
        return self._blocked(reason)

    @asynccontextmanager
    async def _blocked(self, reason: str) -> AsyncIterator[None]:
        self.blocks.append(f"in {reason}")
        try:
            yield
        finally:
            self.blocks.append(f"out {reason}")

    async def approve(self, *, command: str, argv: list[str], cwd: Path, reason: str) -> Verdict:
        raise AssertionError("a job asks for nothing")


class Worker:
    """One running worker, as its behaviour sees it."""

    def __init__(self, room: Room, given: dict[str, Any]) -> None:
        self.room = room
        self.thread: str = given["thread"]
        self.name: str = given["name"]
        self.message: str = given["message"]
        self.item: str = given["item"]
        self.job: str = given["job"]
        self.given = given
        self.tools: Sequence[Tool] = given["tools"]
        self.attempt = sum(w.item == self.item for w in room.workers) + 1

    async def call(self, **arguments: Any) -> ToolOutput:
        """Call the report tool as a model would, through its JSON arguments."""
        (tool,) = self.tools
        args = parse_args(tool, json.dumps(arguments))
        context = Context(
            cwd=self.room.folder, clock=self.room.clock, thread=self.thread, path=f"/root/{self.name}"
        )
        return await tool.run(args, context)

    async def report(self, result: Any = None, **more: Any) -> dict[str, Any]:
        """Report for the worker's own row; the tool's answer."""
        result = {"item": self.item} if result is None else result
        output = await self.call(**({"job_id": self.job, "item_id": self.item, "result": result} | more))
        answer = json.loads(output.text)
        assert isinstance(answer, dict)
        return answer


Behaviour = Callable[[Worker], Awaitable[Outcome]]
DONE = Outcome(status="completed", message="done")


async def reports(worker: Worker) -> Outcome:
    """The worker that does as it is told."""
    assert await worker.report() == {"accepted": True}
    return DONE


async def silent(worker: Worker) -> Outcome:
    return DONE


async def hangs(worker: Worker) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


class Room:
    """The store, the clock, the workers. `behave` says what each worker does."""

    def __init__(self, folder: Path, store: Store, clock: FakeClock) -> None:
        self.folder = folder
        self.store = store
        self.clock = clock
        self.behave: Behaviour = reports
        self.workers: list[Worker] = []
        """Every worker that was started."""
        self.closed: list[str] = []
        self.running = 0
        self.peak = 0
        self.events: list[AnyEvent] = []
        self.no_roles: set[str] = set()
        self.expected: list[int] = []
        """How many rows at a time the model client was told of."""
        self._changed = asyncio.Event()

    def check_role(self, role: str | None) -> None:
        if role in self.no_roles:
            raise JobInputError(f"there is no role {role!r}")

    def check_room(self) -> None:
        """There always is."""

    def expect(self, count: int) -> None:
        self.expected.append(count)

    async def run_worker(self, **given: Any) -> Outcome:
        worker = Worker(self, given)
        self.workers.append(worker)
        self.running += 1
        self.peak = max(self.peak, self.running)
        self._changed.set()
        try:
            return await self.behave(worker)
        finally:
            self.running -= 1
            self.closed.append(worker.thread)
            self._changed.set()

    def on_commit(self, swarm: str, events: Sequence[AnyEvent], bodies: Sequence[str] = ()) -> None:
        self.events.extend(events)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for commits and workers until `condition` holds; the suite's time-out ends a vain wait."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def job(self, job: str) -> JobState:
        return self.store.state(SWARM).jobs[job]

    def csv(self, rows: int, name: str = "in.csv") -> Path:
        path = self.folder / name
        path.write_text("n,word\n" + "".join(f"{i},w{i}\n" for i in range(1, rows + 1)))
        return path

    def request(self, **fields: Any) -> JobRequest:
        given: dict[str, Any] = {"input_path": "in.csv", "instruction": "Do {word}", "cwd": self.folder}
        return JobRequest(**(given | fields))

    def service(self, group: asyncio.TaskGroup, *, slots: int = 16, **settings: Any) -> JobService:
        return JobService(
            swarm=SWARM,
            store=self.store,
            workers=self,
            clock=self.clock,
            settings=JobsSettings(**settings),
            slots=slots,
            group=group,
        )

    async def run(self, *, rows: int = 0, slots: int = 16, **fields: Any) -> dict[str, Any]:
        """Run a job over a fresh file to its end; its summary."""
        if rows:
            self.csv(rows)
        async with asyncio.TaskGroup() as group:
            return await self.service(group, slots=slots).run(ROOT, self.request(**fields))

    async def stored(self, job: str) -> dict[str, Any]:
        """item → stored row."""
        return {row.item: row async for row in self.store.jobs.rows(job)}

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


@asynccontextmanager
async def open_room(folder: Path) -> AsyncIterator[Room]:
    clock = FakeClock()
    store = await Store.open(folder / "home", clock=clock, redact=lambda text: text)
    try:
        work = folder / "work"
        work.mkdir()
        room = Room(work, store, clock)
        store.on_commit = room.on_commit
        await store.create(SWARM)
        started = SwarmStarted(title="t", cwd=str(work), model="m", source="job")
        root = AgentSpawned(agent=ROOT, path="/root", nickname="root")
        await store.append(SWARM, [started, root])
        yield room
    finally:
        await store.aclose()


def read_output(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))
