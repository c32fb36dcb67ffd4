"""One engine: commands in, committed events and deltas out. It owns a store and the swarms it runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from core.agents.bounds import check_message
from core.agents.config import SwarmConfig
from core.agents.swarm import Swarm
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.domain.ids import uuid7
from core.domain.state import SwarmState
from core.engine.errors import REFUSALS, CommandError, EngineError, check_author, refusal
from core.engine.hosting import Hosted, Hosting
from core.engine.models import ModelPool
from core.engine.pages import agents_page
from core.engine.resume import take_over, threads_of, unattended_of, with_budget
from core.engine.setup import settings_of, swarm_config
from core.engine.steer import set_budget, steer
from core.engine.steer_jobs import steer_job
from core.jobs.request import JobRequest, check_request
from core.models.limiter import LimiterView
from core.models.types import ModelError
from core.safety.redact import Redactor
from core.safety.text import clean_line, shorten
from core.scripted.scenario import ScenarioError, load_scenario
from core.store.errors import NotFound, StoreError
from core.store.store import Store

log = logging.getLogger("watchroom.engine")
TITLE_CHARS = 60


class Engine:
    """Owned by `running`. Commands in by `handle`; committed events and deltas out by the two sinks."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: ModelPool,
        redactor: Redactor,
        clock: Clock,
        hidden: Sequence[Path] = (),
    ) -> None:
        self.settings = settings
        self.store = store
        self.clock = clock
        self.on_events: Callable[[str, Sequence[e.AnyEvent], Sequence[str]], None] = lambda *_: None
        """Called with (swarm, events, their JSON) after each commit, in order."""
        self.on_delta: Callable[[str, c.Delta], None] = lambda swarm, delta: None
        self.on_given_up: Callable[[str], None] = lambda swarm: None
        """Called with a swarm that this engine runs no more, though it goes on itself."""
        self.watched: Callable[[str], bool] = lambda swarm: True
        """Asked whether somebody follows a swarm."""
        self.changed = asyncio.Event()
        """Set whenever `busy()` may have changed; whoever waits clears it."""
        self.stop_asked = asyncio.Event()
        """Somebody asked for the end of this engine."""
        self._hosting = Hosting(settings, store, models, redactor, clock, hidden)
        self._hosted: dict[str, Hosted] = {}
        self._opening: set[str] = set()
        """Swarms on their way: being resumed."""
        self._moving = asyncio.Lock()
        """Held while a swarm of the store comes or goes."""
        self._group: asyncio.TaskGroup | None = None
        self._stopping = False
        self._serving_tasks: set[asyncio.Task[None]] = set()
        store.on_commit = self._committed

    @classmethod
    @asynccontextmanager
    async def running(
        cls, settings: Settings, clock: Clock | None = None, *, hidden: Sequence[Path] = ()
    ) -> AsyncIterator[Engine]:
        """An engine at work. On leaving, running turns are interrupted and recorded, processes are ended,
        everything is flushed. `hidden`: folders that no command in a sandbox may see, beside the home.
        Raises EngineError if it cannot start, or if its store broke."""
        try:
            async with cls._running(settings, clock or SystemClock(), hidden) as engine:
                yield engine
        except (StoreError, ScenarioError, ModelError) as error:
            raise EngineError(str(error)) from error
        except BaseExceptionGroup as group:
            broken, rest = group.split(StoreError)
            if broken is None or rest is not None:
                raise
            raise EngineError(str(_leaf(broken))) from group

    @classmethod
    @asynccontextmanager
    async def _running(
        cls, settings: Settings, clock: Clock, hidden: Sequence[Path]
    ) -> AsyncIterator[Engine]:
        async with AsyncExitStack() as stack:
            redactor = Redactor(os.environ, [settings.api_key_env])
            if settings.scripted is not None:
                load_scenario(settings.scripted)  # a wrong one is refused before anything is made
            models = await stack.enter_async_context(ModelPool(clock))
            store = await Store.open(settings.home, clock=clock, redact=redactor)
            stack.push_async_callback(store.aclose)
            engine = cls(settings, store, models, redactor, clock, hidden)
            raised: BaseException | None = None
            async with asyncio.TaskGroup() as group:
                engine._group = group
                watches = [
                    group.create_task(engine._watch_store()),
                    group.create_task(engine._give_up_quiet()),
                ]
                try:
                    yield engine
                except BaseException as error:
                    # What the body raised is the face's own matter: the swarms end in order first, and it
                    # goes on without a group around it.
                    raised = error
                engine._stop()
                for watch in watches:
                    watch.cancel()
            if raised is not None:
                raise raised

    # --- commands ----------------------------------------------------------------------------------------

    async def handle(self, command: c.AnyCommand) -> c.Reply:
        """Carry out one command; every failure is a reply."""
        try:
            return c.Reply(value=await self._dispatch(command))
        except REFUSALS as error:
            return refusal(error)

    async def _dispatch(self, command: c.AnyCommand) -> dict[str, Any]:
        check_author(command.author)
        match command:
            case c.StartSwarm():
                return await self._start_swarm(command)
            case c.RunJob():
                return await self._run_job(command)
            case c.ResumeSwarm():
                return await self._resume_swarm(command)
            case c.StopEngine():
                self.stop_asked.set()
                return {"pid": os.getpid()}
            case c.ListSwarms():
                return {"swarms": [_listed(hosted.swarm.state) for hosted in reversed(self._hosted.values())]}
            case c.PauseJob() | c.ContinueJob() | c.CancelJob() | c.RetryRows() | c.SkipRows() | c.SetJob():
                swarm = self._swarm(command.swarm)
                return await steer_job(command, self._hosted[swarm.id].jobs, swarm.state)
            case c.SetBudget():
                swarm = self._swarm(command.swarm)
                return await set_budget(command, swarm, self._hosted[swarm.id].jobs)
            case _:
                return await steer(command, self._swarm(command.swarm))

    def _swarm(self, swarm: str) -> Swarm:
        found = self._hosted.get(swarm)
        if found is None:
            raise CommandError(f"this engine runs no swarm {clean_line(swarm)}", "not_found")
        found.touched = self.clock.monotonic()
        return found.swarm

    async def _start_swarm(self, command: c.StartSwarm) -> dict[str, Any]:
        check_message(command.task or "")
        title = command.title or title_of(command.task)
        settings = settings_of(command.setup, self.settings)
        config = swarm_config(settings, command.cwd, command.unattended)
        hosted = await self._new_swarm(command, settings, config, title, command.source)
        root = await hosted.swarm.births.start_root(command.task, title, by=command.author)
        return {"swarm": hosted.swarm.id, "thread": root.thread}

    async def _run_job(self, command: c.RunJob) -> dict[str, Any]:
        """A job below a root that has no turns (decision 30); checked before anything is stored."""
        settings = settings_of(command.setup, self.settings)
        request = JobRequest.of(command)
        wanted = command.max_concurrency or settings.jobs.max_concurrency
        config = swarm_config(settings, command.cwd, command.unattended, threads=wanted + 1)
        request = msgspec.structs.replace(request, cwd=config.cwd)
        checked = await check_request(request, settings.jobs, wanted)
        hosted = await self._new_swarm(command, settings, config, f"job {checked.name}", "job")
        root = await hosted.swarm.births.start_root(None, f"job {checked.name}")
        job = await hosted.jobs.launch(root.thread, checked)
        return {"swarm": hosted.swarm.id, "thread": root.thread, "job": job}

    async def _resume_swarm(self, command: c.ResumeSwarm) -> dict[str, Any]:
        """One at a time, so that a second ask for the same swarm finds it running."""
        async with self._moving:
            hosted = self._hosted.get(command.swarm)
            changed = hosted is None
            if hosted is None:
                self._opening.add(command.swarm)
                try:
                    hosted = await self._reopen(command)
                finally:
                    self._opening.discard(command.swarm)
                    self.changed.set()
        state = hosted.swarm.state
        return {"swarm": state.swarm, "thread": state.root, "changed": changed}

    async def _reopen(self, command: c.ResumeSwarm) -> Hosted:
        """A swarm of the store: taken over, then served. Until it is ours nothing of it is changed."""
        found = await self.store.reader.load_state(command.swarm)
        settings = settings_of(command.setup, self.settings)
        config = swarm_config(
            settings,
            found.cwd,
            command.unattended or unattended_of(found),
            threads=threads_of(found, settings),
        )
        config = with_budget(config, found)
        async with AsyncExitStack() as held:
            hosted = await self._host(held, found.swarm, command.setup, settings, config)
            begin = await take_over(hosted.swarm, hosted.jobs, by=command.author)
            try:
                self._refuse_when_stopping()
                self._hosted[found.swarm] = hosted
                begin.restore()
            except BaseException:
                self._hosted.pop(found.swarm, None)
                await self.store.release(found.swarm)
                raise
            await self._serving(hosted, held.pop_all(), begin.go_on)
        if hosted.swarm.state.root is None:
            # Its first owner died between its first event and its root.
            await hosted.swarm.births.start_root(None, found.title)
        return hosted

    # --- swarms ------------------------------------------------------------------------------------------

    async def end_swarms(self) -> None:
        """Interrupt what runs and record it, as on leaving; whoever listens still hears of it. Nothing starts
        after this."""
        self._stop()
        if self._serving_tasks:
            await asyncio.wait(set(self._serving_tasks))

    def _stop(self) -> None:
        self._stopping = True
        for hosted in self._hosted.values():
            hosted.over.set()

    async def _new_swarm(
        self,
        command: c.StartSwarm | c.RunJob,
        settings: Settings,
        config: SwarmConfig,
        title: str,
        source: str,
    ) -> Hosted:
        """A new swarm, recorded and served by a task of its own."""
        async with AsyncExitStack() as held:
            hosted = await self._host(held, uuid7(), command.setup, settings, config)
            swarm, config = hosted.swarm, hosted.swarm.config
            await self.store.create(swarm.id)
            self._hosted[swarm.id] = hosted
            budget = [e.BudgetSet(budget=config.budget, by=command.author)] if config.budget else []
            await swarm.append(
                [
                    e.SwarmStarted(
                        title=title,
                        cwd=str(config.cwd),
                        model=config.model,
                        source=source,
                        server=swarm.model.server,
                        approval_policy=config.approval_policy,
                        sandbox=config.sandbox,
                        sandboxed=config.sandboxed,
                        unattended=config.unattended,
                        slots=config.limits.max_threads,
                    ),
                    *budget,
                ]
            )
            await self._serving(hosted, held.pop_all())
        return hosted

    async def _host(
        self,
        held: AsyncExitStack,
        swarm: str,
        setup: c.Setup | None,
        settings: Settings,
        config: SwarmConfig,
    ) -> Hosted:
        assert self._group is not None, "an engine runs before it starts swarms"
        self._refuse_when_stopping()
        hosted = await self._hosting.host(
            held,
            swarm,
            setup,
            settings,
            config,
            group=self._group,
            publish=lambda delta: self.on_delta(swarm, delta),
        )
        self._refuse_when_stopping()
        return hosted

    def _refuse_when_stopping(self) -> None:
        if self._stopping or self.stop_asked.is_set():
            raise CommandError("the engine is stopping; nothing new is started", "closed")

    async def _serving(
        self, hosted: Hosted, held: AsyncExitStack, begin: Callable[[], None] = lambda: None
    ) -> None:
        """Start the task that serves a swarm until it is over; returns once it takes agents. `held` is closed
        then; `begin`: what the task does first."""
        assert self._group is not None
        ready = asyncio.Event()
        served = self._serve(hosted, held, ready, begin)
        task = hosted.served = self._group.create_task(served, name=f"swarm {hosted.swarm.id}")
        self._serving_tasks.add(task)
        task.add_done_callback(self._serving_tasks.discard)
        # It may fail before it takes any; whoever asked for the swarm must not wait for ever.
        task.add_done_callback(lambda _: ready.set())
        await ready.wait()
        if task.done() and (task.cancelled() or task.exception() is not None):
            raise CommandError("the engine ends before the swarm could begin", "closed")

    async def _watch_store(self) -> None:
        """A store that cannot be written is fatal (decision 13)."""
        # Shielded: the future is the store's own and must outlive this watch.
        raise await asyncio.shield(self.store.failed)

    async def _serve(
        self, hosted: Hosted, held: AsyncExitStack, ready: asyncio.Event, begin: Callable[[], None]
    ) -> None:
        """One swarm until the engine stops, or gives it up."""
        if self._stopping:
            hosted.over.set()
        async with held, hosted.swarm.serve():
            begin()
            ready.set()
            try:
                await hosted.over.wait()
            finally:
                # Before the agents end: no row fails because the engine does.
                await hosted.jobs.aclose()

    async def _give_up_quiet(self) -> None:
        """What an engine that lives for days does not keep in memory: a swarm in which nothing has happened,
        and that nobody has followed, for as long as the engine would wait for work itself. It stays in the
        store as it is, and is resumed like one whose engine has ended."""
        while True:
            await self.clock.sleep(self.settings.engine.idle_seconds)
            async with self._moving:
                await self._sweep(self.clock.monotonic() - self.settings.engine.idle_seconds)

    async def _sweep(self, since: float) -> None:
        for hosted in list(self._hosted.values()):
            if not self._stopping and hosted.touched <= since and not self._needed(hosted):
                await self._give_up(hosted)

    def _needed(self, hosted: Hosted) -> bool:
        swarm = hosted.swarm
        return hosted.served is None or swarm.state.active() or self.watched(swarm.id)

    async def _give_up(self, hosted: Hosted) -> None:
        """From its first step on no command reaches the swarm."""
        swarm = hosted.swarm.id
        log.info("swarm %s is quiet and nobody follows it: it is given up", swarm)
        del self._hosted[swarm]
        self.on_given_up(swarm)
        assert hosted.served is not None
        hosted.over.set()
        await asyncio.wait({hosted.served})
        await self.store.release(swarm)

    # --- what faces read ---------------------------------------------------------------------------------

    def touch(self, swarm: str) -> None:
        """Somebody was here: the time after which a quiet swarm is given up begins again."""
        if (hosted := self._hosted.get(swarm)) is not None:
            hosted.touched = self.clock.monotonic()

    def runs(self, swarm: str) -> bool:
        return swarm in self._hosted

    def state(self, swarm: str) -> SwarmState:
        """The live, committed state. Raises KeyError for a swarm that is not this engine's."""
        return self._hosted[swarm].swarm.state

    def limits(self) -> list[tuple[str, LimiterView]]:
        """How many requests go where at the moment: servers, and what is known of each model there."""
        return self._hosting.models.limits()

    def busy(self) -> bool:
        """Whether something still happens in a swarm of this engine, or will without anything new."""
        return bool(self._opening) or any(hosted.swarm.state.active() for hosted in self._hosted.values())

    async def page(self, request: c.PageRequest) -> c.Page:
        """Raises EngineError."""
        try:
            match request:
                case c.GetTranscript():
                    return await self.store.reader.transcript(
                        request.swarm, request.thread, request.before, request.limit, after=request.after
                    )
                case c.GetEvents():
                    return await self.store.reader.events(
                        request.swarm,
                        request.after,
                        request.limit,
                        before=request.before,
                        agent=request.agent,
                    )
                case c.GetJobRows() | c.GetJobOrder():
                    return await self._job_page(request)
                case c.GetAgents():
                    return agents_page(self.state(request.swarm), request)
        except (NotFound, StoreError) as error:
            raise EngineError(str(error)) from error
        except KeyError:
            raise EngineError(f"this engine runs no swarm {clean_line(request.swarm)}") from None

    async def _job_page(self, request: c.GetJobRows | c.GetJobOrder) -> c.JobRowsPage | c.JobOrderPage:
        state = self.state(request.swarm)
        job = state.jobs.get(request.job)
        if job is None:
            raise NotFound(f"there is no job {clean_line(request.job)} in swarm {request.swarm}")
        seq = state.seq  # read before the rows: what is committed meanwhile is told again by the feed
        jobs = self.store.jobs
        if isinstance(request, c.GetJobOrder):
            text = shorten(request.text, 200)
            order, cut = await jobs.order(
                job.job, request.status, text, request.sort, descending=request.descending
            )
            return c.JobOrderPage(rows=tuple(order), total=job.total, seq=seq, truncated=cut)
        if request.rows:
            rows, more = await jobs.chosen(job.job, request.rows)
        else:
            rows, more = await jobs.page(job.job, request.start, request.limit)
        return c.JobRowsPage(rows=tuple(rows), total=job.total, seq=seq, job=job, more=more)

    def _committed(self, swarm: str, events: Sequence[e.AnyEvent], bodies: Sequence[str]) -> None:
        if (found := self._hosted.get(swarm)) is not None:
            found.touched = self.clock.monotonic()
            found.swarm.on_commit(events)
        self.changed.set()
        self.on_events(swarm, events, bodies)


def _listed(state: SwarmState) -> dict[str, Any]:
    return {
        "swarm": state.swarm,
        "title": state.title,
        "root": state.root,
        "live": state.active(),
        "running": sum(1 for agent in state.agents.values() if agent.live),
        "asks": len(state.approvals),
        "started_at": state.started_at,
    }


def _leaf(error: BaseException) -> BaseException:
    """The first exception inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def title_of(task: str | None) -> str:
    """A swarm's title: the first line of its task; empty without one (its first input names it then)."""
    lines = (task or "").strip().splitlines()
    return shorten(clean_line(lines[0]), TITLE_CHARS) if lines else ""
