"""A swarm put together: its model, its sandbox, its tools, its jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from core.agents.agent import AgentSpec
from core.agents.config import SwarmConfig
from core.agents.swarm import Swarm
from core.agents.tools import control_tools
from core.clock import Clock
from core.config import Settings
from core.domain import commands as c
from core.domain.paths import depth
from core.engine.guide import read_guide
from core.engine.models import ModelPool
from core.engine.servers import SwarmServers
from core.engine.setup import environment_of
from core.engine.workers import JobWorkers
from core.jobs.asking import asking_tools
from core.jobs.service import JobService
from core.jobs.tools import SpawnAgentsOnCsv
from core.safety.redact import Redactor
from core.store.store import Store
from core.tools.base import Tool
from core.tools.sandbox import Sandbox, find_program, secrets_below
from core.tools.shell import ExecCommand, ShellPolicy

log = logging.getLogger("watchroom.engine")


class Hosted(msgspec.Struct, kw_only=True):
    """A swarm that this engine runs."""

    swarm: Swarm
    jobs: JobService
    settings: Settings
    policy: ShellPolicy
    touched: float
    """When something happened to it last, on the engine's clock."""
    over: asyncio.Event
    """Set when this engine serves it no more."""
    served: asyncio.Task[None] | None = None


class Hosting:
    """Puts the swarms of one engine together."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: ModelPool,
        redactor: Redactor,
        clock: Clock,
        hidden: Sequence[Path],
    ) -> None:
        """`hidden`: folders that no command in a sandbox may see, beside the home."""
        self._settings = settings
        self._store = store
        self.models = models
        self._redactor = redactor
        self._clock = clock
        self._hidden = tuple(hidden)
        self._sandboxes: dict[str | None, tuple[Sandbox | None, str]] = {}
        """By program; None: what is said where there is none."""

    async def host(
        self,
        held: AsyncExitStack,
        swarm_id: str,
        setup: c.Setup | None,
        settings: Settings,
        config: SwarmConfig,
        *,
        group: asyncio.TaskGroup,
        publish: Callable[[c.Delta], None],
    ) -> Hosted:
        """Everything that a swarm needs, put together; nothing runs or is recorded yet. `held`: closed after
        the swarm. `group` owns the tasks of its jobs; `publish` takes the text of answers as it comes."""
        if setup is not None:
            self._redactor.learn(setup.secrets)
        model = await held.enter_async_context(self.models.client(settings))
        sandbox = await self._find_sandbox(config)
        guide = await asyncio.to_thread(read_guide, config.cwd)
        config = msgspec.structs.replace(
            config,
            sandboxed=sandbox is not None,
            guide=self._store.redact(guide.text),
            guide_problems=guide.problems,
        )
        environment = environment_of(setup)
        servers = SwarmServers(
            settings.mcp,
            cwd=config.cwd,
            environment=environment,
            clock=self._clock,
            policy=settings.approval_policy,
        )
        self._redactor.learn(servers.secrets())
        swarm = servers.swarm = Swarm(
            swarm=swarm_id,
            store=self._store,
            model=model,
            config=config,
            clock=self._clock,
            tools=lambda spec: _tools(hosted, spec),
            publish=publish,
            supplier=servers,
        )
        held.push_async_callback(servers.aclose)
        jobs = JobService(
            swarm=swarm_id,
            store=self._store,
            workers=JobWorkers(swarm),
            clock=self._clock,
            settings=settings.jobs,
            slots=swarm.slots.capacity,
            group=group,
        )
        policy = ShellPolicy(
            approval_policy=settings.approval_policy,
            mode=settings.sandbox,
            sandbox=sandbox,
            workspace=config.cwd,
            # The starter's HOME need not be that of whoever started the engine.
            hidden=(self._settings.home, *self._hidden, *secrets_below(environment.get("HOME", ""))),
            environment=environment,
        )
        hosted = Hosted(
            swarm=swarm,
            jobs=jobs,
            settings=settings,
            policy=policy,
            touched=self._clock.monotonic(),
            over=asyncio.Event(),
        )
        return hosted

    async def _find_sandbox(self, config: SwarmConfig) -> Sandbox | None:
        """The sandbox for this swarm, or None where there is none or it is turned off. Each program is tried
        out once, and none that lies in the swarm's own workspace is used, whoever else uses it."""
        if config.sandbox == "off":
            return None
        program = find_program("bwrap", config.cwd)
        if program not in self._sandboxes:
            found, why = self._sandboxes[program] = await Sandbox.detect(config.cwd, self._clock)
            if found is None:
                log.warning("no sandbox: %s", why)
        return self._sandboxes[program][0]


def _tools(hosted: Hosted, spec: AgentSpec) -> list[Tool]:
    """What an agent may use: workers no agents and no jobs, everybody else all (decision 30)."""
    tools: list[Tool] = [ExecCommand(hosted.policy)]
    if spec.kind == "worker":
        return tools
    config = hosted.swarm.config
    if config.subagents:
        tools += control_tools(hosted.swarm)
    if hosted.settings.jobs.enabled and depth(spec.path) < config.limits.max_depth:
        tools += [
            SpawnAgentsOnCsv(hosted.jobs),
            *asking_tools(hosted.jobs, config.limits, hosted.swarm.words),
        ]
    return tools
