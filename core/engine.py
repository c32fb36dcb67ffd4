"""Puts the rooms together: one engine owns a store, a model client, and the swarms it has started."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from core.agents.agent import AgentSpec
from core.agents.approvals import AlreadyDecided, UnknownApproval
from core.agents.config import Role, SwarmConfig
from core.agents.registry import UnknownAgent
from core.agents.swarm import Refused, Swarm, SwarmEnding
from core.agents.tools import control_tools
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.domain.ids import uuid7
from core.domain.limits import LimitError
from core.domain.paths import PathError, depth
from core.domain.state import SwarmState
from core.jobs.errors import JobInputError
from core.jobs.service import JobRequest, JobService, check_request
from core.jobs.tools import SpawnAgentsOnCsv
from core.jobs.workers import Outcome, WorkersGone
from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import ModelClient, ModelError
from core.safety.redact import Redactor
from core.safety.text import clean_line, shorten
from core.scripted.scenario import ScenarioError, load_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport
from core.store.errors import NotFound, StoreError
from core.store.store import Store
from core.tools.base import Tool
from core.tools.sandbox import Sandbox
from core.tools.shell import ExecCommand, ShellPolicy

log = logging.getLogger("watchroom.engine")
TITLE_CHARS = 60


class EngineError(Exception):
    """The engine cannot start, cannot go on, or cannot answer; one sentence."""


class CommandError(Exception):
    """A command that cannot be carried out; becomes the reply's error and code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


_CODES: dict[type[Exception], str] = {
    UnknownAgent: "not_found",
    UnknownApproval: "not_found",
    NotFound: "not_found",
    AlreadyDecided: "decided",
    PathError: "usage",
    JobInputError: "usage",
    LimitError: "limit",
    Refused: "refused",
    StoreError: "error",
}


class Engine:
    """Owned by `running`. Commands in by `handle`; committed events and deltas out by the two sinks."""

    def __init__(self, settings: Settings, store: Store, model: ModelClient, clock: Clock) -> None:
        self.settings = settings
        self.store = store
        self.model = model
        self.clock = clock
        self.on_events: Callable[[str, Sequence[e.AnyEvent]], None] = lambda swarm, events: None
        self.on_delta: Callable[[str, c.Delta], None] = lambda swarm, delta: None
        self._swarms: dict[str, Swarm] = {}
        self._jobs: dict[str, JobService] = {}
        self._sandbox: tuple[Sandbox | None, str] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        store.on_commit = self._committed

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: Settings, clock: Clock | None = None) -> AsyncIterator[Engine]:
        """An engine at work. On leaving, running turns are interrupted and recorded, processes are ended,
        everything is flushed. Raises EngineError if it cannot start, or if its store broke."""
        try:
            async with cls._running(settings, clock or SystemClock()) as engine:
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
    async def _running(cls, settings: Settings, clock: Clock) -> AsyncIterator[Engine]:
        async with AsyncExitStack() as stack:
            redact = Redactor(os.environ, [settings.api_key_env])
            model = await stack.enter_async_context(open_model(settings, clock))
            store = await Store.open(settings.home, clock=clock, redact=redact)
            stack.push_async_callback(store.aclose)
            engine = cls(settings, store, model, clock)
            raised: BaseException | None = None
            async with asyncio.TaskGroup() as group:
                engine._group = group
                watch = group.create_task(engine._watch_store())
                try:
                    yield engine
                except BaseException as error:
                    # What the body raised is the face's own matter: the swarms end in order first, and it
                    # goes on without a group around it.
                    raised = error
                engine._stop.set()
                watch.cancel()
            if raised is not None:
                raise raised

    # --- commands ----------------------------------------------------------------------------------------

    async def handle(self, command: c.AnyCommand) -> c.Reply:
        """Carry out one command; every failure is a reply."""
        try:
            return c.Reply(value=await self._dispatch(command))
        except CommandError as error:
            return c.Reply(ok=False, error=str(error), code=error.code)
        except tuple(_CODES) as error:
            code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
            return c.Reply(ok=False, error=clean_line(str(error)), code=code)

    async def _dispatch(self, command: c.AnyCommand) -> dict[str, Any]:
        by = command.author
        match command:
            case c.StartSwarm():
                return await self._start_swarm(command)
            case c.RunJob():
                return await self._run_job(command)
            case c.SendInput():
                if not command.text.strip():
                    raise CommandError("there is nothing to send", "usage")
                await self._swarm(command.swarm).send_input(command.thread, command.text, by)
                return {}
            case c.Interrupt():
                swarm = self._swarm(command.swarm)
                stopped = await swarm.interrupt(command.thread, by=by, cascade=command.cascade)
                return {"stopped": stopped}
            case c.Close():
                return {"closed": await self._swarm(command.swarm).close(command.thread, by=by)}
            case c.Decide():
                approvals = self._swarm(command.swarm).approvals
                await approvals.decide(command.approval, approve=command.approve, by=by)
                return {}
            case c.ListSwarms():
                states = [swarm.state for swarm in self._swarms.values()]
                return {
                    "swarms": [{"swarm": s.swarm, "title": s.title, "live": not s.quiet()} for s in states]
                }

    def _swarm(self, swarm: str) -> Swarm:
        found = self._swarms.get(swarm)
        if found is None:
            raise CommandError(f"this engine runs no swarm {clean_line(swarm)}", "not_found")
        return found

    async def _start_swarm(self, command: c.StartSwarm) -> dict[str, Any]:
        title = command.title or title_of(command.task)
        config = self._config(command.cwd, command.unattended)
        swarm = await self._open_swarm(config, title=title, source=command.source)
        root = await swarm.start_root(command.task, title)
        return {"swarm": swarm.id, "thread": root.thread}

    async def _run_job(self, command: c.RunJob) -> dict[str, Any]:
        """A job below a root that has no turns (decision 30); checked before anything is stored."""
        request = JobRequest.of(command)
        wanted = command.max_concurrency or self.settings.jobs.max_concurrency
        config = self._config(command.cwd, command.unattended, threads=wanted + 1)
        request = msgspec.structs.replace(request, cwd=config.cwd)
        checked = await check_request(request, self.settings.jobs, wanted)
        swarm = await self._open_swarm(config, title=f"job {checked.name}", source="job")
        root = await swarm.start_root(None, f"job {checked.name}")
        job = await self._jobs[swarm.id].launch(root.thread, checked)
        return {"swarm": swarm.id, "thread": root.thread, "job": job}

    # --- swarms ------------------------------------------------------------------------------------------

    def _config(self, cwd: str, unattended: Any, *, threads: int | None = None) -> SwarmConfig:
        settings, agents = self.settings, self.settings.agents
        folder = Path(cwd).expanduser()
        folder = (settings.cwd / folder).resolve()
        if not folder.is_dir():
            raise CommandError(f"the folder {clean_line(str(folder))} does not exist", "usage")
        limits = agents.limits()
        if threads is not None:
            # A worker is still open for a moment after its row has ended and the next one has started.
            most = max(limits.max_agents, 2 * threads)
            limits = msgspec.structs.replace(limits, max_threads=threads, max_agents=most)
        roles = {
            name: Role(
                description=role.description,
                instructions=role.instructions,
                model=role.model,
                reasoning_effort=role.reasoning_effort,
                max_tokens=role.max_tokens,
                tools=tuple(role.tools) if role.tools is not None else None,
            )
            for name, role in agents.roles.items()
        }
        return SwarmConfig(
            cwd=folder,
            model=settings.model or "scripted",
            limits=limits,
            unattended=settings.unattended or unattended,
            approval_policy=settings.approval_policy,
            sandbox=settings.sandbox,
            subagents=agents.enabled,
            subagent_model=agents.default_subagent_model,
            subagent_effort=agents.default_subagent_reasoning_effort,
            roles=roles,
            interrupt_message=agents.interrupt_message,
        )

    async def _open_swarm(self, config: SwarmConfig, *, title: str, source: str) -> Swarm:
        """A new swarm, recorded and served by a task of its own."""
        assert self._group is not None, "an engine runs before it starts swarms"
        if self._stop.is_set():
            raise CommandError("the engine is stopping; nothing new is started", "closed")
        sandbox = await self._find_sandbox(config)
        config = msgspec.structs.replace(config, sandboxed=sandbox is not None)
        policy = ShellPolicy(
            approval_policy=self.settings.approval_policy,
            mode=self.settings.sandbox,
            sandbox=sandbox,
            workspace=config.cwd,
            hidden=(self.settings.home,),
        )
        id_ = uuid7()
        swarm = Swarm(
            swarm=id_,
            store=self.store,
            model=self.model,
            config=config,
            clock=self.clock,
            tools=lambda spec: self._tools(id_, spec, policy),
            publish=lambda delta: self.on_delta(id_, delta),
        )
        await self.store.create(id_)
        self._swarms[id_] = swarm
        self._jobs[id_] = JobService(
            swarm=id_,
            store=self.store,
            workers=JobWorkers(swarm),
            clock=self.clock,
            settings=self.settings.jobs,
            slots=swarm.slots.capacity,
            group=self._group,
        )
        await swarm.append(
            [
                e.SwarmStarted(
                    title=title,
                    cwd=str(config.cwd),
                    model=config.model,
                    source=source,
                    server=self.model.server,
                    approval_policy=config.approval_policy,
                    sandbox=config.sandbox,
                    sandboxed=config.sandboxed,
                    unattended=config.unattended,
                    slots=config.limits.max_threads,
                )
            ]
        )
        ready = asyncio.Event()
        self._group.create_task(self._serve(swarm, ready), name=f"swarm {id_}")
        await ready.wait()
        return swarm

    async def _find_sandbox(self, config: SwarmConfig) -> Sandbox | None:
        """This machine's sandbox, looked for once; None when there is none or it is turned off."""
        if config.sandbox == "off":
            return None
        if self._sandbox is None:
            self._sandbox = await Sandbox.detect(config.cwd, self.clock)
            if self._sandbox[0] is None:
                log.warning("no sandbox: %s", self._sandbox[1])
        return self._sandbox[0]

    async def _watch_store(self) -> None:
        """A store that cannot be written is fatal (decision 13)."""
        # Shielded: the future is the store's own and must outlive this watch.
        raise await asyncio.shield(self.store.failed)

    async def _serve(self, swarm: Swarm, ready: asyncio.Event) -> None:
        """One swarm until the engine stops."""
        async with swarm.serve():
            ready.set()
            try:
                await self._stop.wait()
            finally:
                # Before the agents end: no row fails because the engine does.
                await self._jobs[swarm.id].aclose()

    def _tools(self, id_: str, spec: AgentSpec, policy: ShellPolicy) -> list[Tool]:
        """What an agent may use: workers no agents and no jobs, everybody else all (decision 30)."""
        swarm = self._swarms[id_]
        tools: list[Tool] = [ExecCommand(policy)]
        if spec.kind == "worker":
            return tools
        if swarm.config.subagents:
            tools += control_tools(swarm)
        if self.settings.jobs.enabled and depth(spec.path) < swarm.config.limits.max_depth:
            tools.append(SpawnAgentsOnCsv(self._jobs[id_]))
        return tools

    # --- what faces read ---------------------------------------------------------------------------------

    def runs(self, swarm: str) -> bool:
        return swarm in self._swarms

    def state(self, swarm: str) -> SwarmState:
        """The live, committed state. Raises KeyError for a swarm that is not this engine's."""
        return self._swarms[swarm].state

    async def page(self, request: c.PageRequest) -> c.Page:
        """Raises EngineError."""
        try:
            match request:
                case c.GetTranscript():
                    return await self.store.reader.transcript(
                        request.swarm, request.thread, request.before, request.limit
                    )
                case c.GetEvents():
                    return await self.store.reader.events(request.swarm, request.after, request.limit)
                case c.GetJobRows():
                    state = self.state(request.swarm)
                    rows = await self.store.jobs.page(request.job, request.start, request.limit)
                    job = state.jobs.get(request.job)
                    return c.JobRowsPage(
                        rows=tuple(rows), total=job.total if job else len(rows), seq=state.seq, job=job
                    )
        except (NotFound, StoreError) as error:
            raise EngineError(str(error)) from error
        except KeyError:
            raise EngineError(f"this engine runs no swarm {clean_line(request.swarm)}") from None

    def _committed(self, swarm: str, events: Sequence[e.AnyEvent]) -> None:
        if (found := self._swarms.get(swarm)) is not None:
            found.on_commit(events)
        self.on_events(swarm, events)


def _leaf(error: BaseException) -> BaseException:
    """The first exception inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class JobWorkers:
    """`core.jobs.workers.Workers` on a swarm's control plane."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    async def run_worker(
        self,
        *,
        owner: str,
        thread: str,
        name: str,
        task: str,
        message: str,
        tools: Sequence[Tool],
        job: str,
        item: str,
        model: str | None,
        role: str | None,
    ) -> Outcome:
        try:
            state = await self._swarm.run_worker(
                owner=owner,
                thread=thread,
                name=name,
                task=task,
                message=message,
                tools=tools,
                job=job,
                item=item,
                model=model,
                role=role,
            )
        except SwarmEnding as error:
            raise WorkersGone(str(error)) from error
        status = state.status if state.status in ("completed", "interrupted") else "errored"
        return Outcome(status=status, message=state.status_message)


def title_of(task: str | None) -> str:
    """A swarm's title: the first line of its task; empty without one (its first input names it then)."""
    lines = (task or "").strip().splitlines()
    return shorten(clean_line(lines[0]), TITLE_CHARS) if lines else ""


@asynccontextmanager
async def open_model(settings: Settings, clock: Clock) -> AsyncIterator[ModelClient]:
    """The model client that the settings ask for: a server, or the embedded scripted model."""
    scenario = settings.scripted
    if scenario is not None:
        http = make_http(ScriptedTransport(load_scenario(scenario), clock))
        client = ResponsesClient(BASE_URL, None, http, clock=clock, label=f"scripted:{scenario}")
    else:
        http = make_http()
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        client = ResponsesClient(settings.base_url, key, http, clock=clock)
    try:
        yield client
    finally:
        await http.aclose()
