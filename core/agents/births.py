"""How agents come to be: from a spawn, a job's row, or the store, with what their role gives them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from core.agents.agent import Agent, AgentSpec
from core.agents.bounds import check_message
from core.agents.budget import unpriced_sentence
from core.agents.config import Role
from core.agents.errors import Refused
from core.agents.slots import Slot
from core.agents.startup import StartupError
from core.domain import events as e
from core.domain.ids import uuid7
from core.domain.limits import LimitError
from core.domain.paths import depth
from core.domain.state import AgentState
from core.safety.text import clean_line, shorten
from core.tools.base import Tool

if TYPE_CHECKING:
    from core.agents.swarm import Swarm

log = logging.getLogger("watchroom.agents")
TASK_CHARS = 200


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided about an agent before it exists."""

    parent: Agent | None
    name: str
    kind: str
    task: str
    """For people; `first` is what the agent is told."""
    model: str
    first: str | None = None
    fork: str = "none"
    role: str | None = None
    effort: str | None = None
    settings: Role = Role()
    call: str | None = None
    """The parent's spawn call."""
    thread: str | None = None
    """Its thread id, if that was given out before (a job's claim)."""
    tools: Sequence[Tool] = ()
    """Beside those of its kind."""
    job: str | None = None
    item: str | None = None


class Births:
    """Makes the agents of a swarm. `tools` is asked once per agent for those that its kind gets."""

    def __init__(self, swarm: Swarm, tools: Callable[[AgentSpec], Sequence[Tool]]) -> None:
        self._swarm = swarm
        self._config = swarm.config
        self._tools = tools

    async def start_root(self, task: str | None, title: str = "", by: str = "operator") -> Agent:
        """The root, running `task` if there is one, else idle until it is given input."""
        agent = await self._spawn(
            Birth(
                parent=None,
                name="root",
                kind="root",
                task=title or task or "",
                model=self._config.model,
            )
        )
        self._swarm.root = agent
        first: list[e.Event] = [
            e.Notice(agent=agent.thread, text=problem, level="warning")
            for problem in self._config.guide_problems
        ]
        if task is not None:
            # Whatever its start-up comes to: the task is there when it is tried again.
            first.append(self._swarm.mail(agent.thread, by, "INPUT", task, trigger=True))
        await self._swarm.append(first)
        return agent

    async def spawn(
        self,
        parent: Agent,
        *,
        name: str,
        message: str,
        fork: str = "none",
        role: str | None = None,
        model: str | None = None,
        effort: str | None = None,
        call: str | None = None,
    ) -> Agent:
        """A sub-agent with its first task. Raises PathError, LimitError or Refused; then nothing is left."""
        check_message(message)
        settings = self.role(role)
        return await self._spawn(
            Birth(
                parent=parent,
                name=name,
                kind="child",
                task=message,
                first=message,
                fork=fork,
                role=role,
                model=model or settings.model or self._config.subagent_model or parent.model,
                effort=effort or settings.reasoning_effort or self._config.subagent_effort or parent.effort,
                settings=settings,
                call=call,
            )
        )

    def role(self, name: str | None) -> Role:
        if name is None or name == "default":
            return self._config.roles.get("default", Role())
        try:
            return self._config.roles[name]
        except KeyError:
            known = ", ".join(sorted({"default", *self._config.roles}))
            raise Refused(f"there is no role {name!r}; the roles are: {known}") from None

    def _check_model(self, model: str, parent: Agent | None) -> None:
        known = self._config.known_models()
        if known is not None and model not in known and (parent is None or model != parent.model):
            raise Refused(f"there is no model {model!r}; the models are: {', '.join(known)}")

    async def _spawn(self, birth: Birth) -> Agent:
        parent = birth.parent
        self._swarm.refuse_when_ending()
        if parent is not None and self._swarm.slots.capacity < 1:
            held = "the root itself takes the only slot; do it yourself"
            raise LimitError("max_threads", self._config.limits.max_threads, held)
        if parent is not None and parent.closing:
            raise Refused(f"{parent.path} is being closed; nothing is started below it")
        budget = self._swarm.state.budget
        if (why := unpriced_sentence(budget, self._config.catalog, [birth.model])) is not None:
            raise Refused(why)
        if birth.kind == "child":
            self._check_model(birth.model, parent)
        path, nickname = self._swarm.registry.reserve(parent.path if parent else None, birth.name)
        spec = self._spec(birth, path, nickname)
        try:
            started = None
            if birth.kind == "child" and not self._config.async_startup:
                started = await self._start_first(spec, birth)
            agent = self._make(spec, birth)
            events = self._born(agent.spec, birth)
            if started is not None:
                tools, seconds = started
                agent.startup.given(tools)
                events.append(e.AgentReady(agent=spec.thread, seconds=seconds))
            self._swarm.take_slots([agent])
        except BaseException:
            self._swarm.registry.release(path)
            self._swarm.supplier.drop(spec.thread)
            raise
        await self._swarm.entered([agent], self._swarm.enter([agent], events))
        self._swarm.supplier.registered(spec.thread)
        return agent

    async def _start_first(self, spec: AgentSpec, birth: Birth) -> tuple[Sequence[Tool], float]:
        """Start up an agent that is not registered before that is done. Raises Refused with the reason."""
        swarm, began = self._swarm, self._swarm.clock.monotonic()
        swarm.check_room(1)
        tools = swarm.supplier.ready(spec)
        if tools is None:
            try:
                tools = await swarm.supplier.start(spec)
            except StartupError as error:
                raise Refused(f"{spec.path} could not start: {error}") from error
            swarm.refuse_when_ending()
            if birth.parent is not None and birth.parent.closing:
                raise Refused(f"{birth.parent.path} is being closed; nothing is started below it")
        return tools, round(swarm.clock.monotonic() - began, 3)

    def _spec(self, birth: Birth, path: str, nickname: str) -> AgentSpec:
        parent, settings = birth.parent, birth.settings
        return AgentSpec(
            thread=birth.thread or uuid7(),
            path=path,
            nickname=nickname,
            kind=birth.kind,
            parent=parent.thread if parent else None,
            model=birth.model,
            effort=birth.effort,
            max_tokens=settings.max_tokens,
            role_text=settings.instructions,
            allowed=_allowed(settings, birth.tools),
            servers=settings.mcp_servers,
            own_servers=settings.mcp == "own",
        )

    def _make(self, spec: AgentSpec, birth: Birth) -> Agent:
        parent = birth.parent
        agent = Agent(self._swarm, spec, [*self._tools(spec), *birth.tools], self._slot(spec))
        if parent is not None and birth.fork != "none":
            agent.history.inherit(parent.history, birth.fork)
        return agent

    def _slot(self, spec: AgentSpec) -> Slot:
        keeps = self._config.limits.slots == "spawned"
        return Slot(None if spec.kind == "root" else self._swarm.slots, keeps=keeps)

    def _born(self, spec: AgentSpec, birth: Birth) -> list[e.Event]:
        """An agent's registration, and its first task."""
        spawned = e.AgentSpawned(
            agent=spec.thread,
            path=spec.path,
            nickname=spec.nickname,
            role=birth.role or "default",
            model=spec.model,
            effort=spec.effort,
            parent=spec.parent,
            depth=depth(spec.path),
            task=shorten(clean_line(birth.task), TASK_CHARS),
            call=birth.call,
            job=birth.job,
            item=birth.item,
            fork=birth.fork,
            fork_seq=self._swarm.state.seq if birth.fork != "none" else 0,
        )
        if birth.first is None:
            return [spawned]
        author = birth.parent.path if birth.parent else "operator"
        return [spawned, self._swarm.mail(spec.thread, author, "NEW_TASK", birth.first, trigger=True)]

    def stored(self, known: AgentState) -> Agent:
        """An agent of the store, as it was: it reads its history when it needs it."""
        settings = self._config.roles.get(known.role)
        if settings is None:
            settings = Role()
            if known.role != "default":
                log.warning(
                    "swarm %s: %s had the role %s, which is gone", self._swarm.id, known.path, known.role
                )
        parent = self._swarm.agents.get(known.parent or "")
        # What its birth says of its effort is read with its history.
        effort = (
            settings.reasoning_effort or self._config.subagent_effort or (parent.effort if parent else None)
        )
        spec = AgentSpec(
            thread=known.thread,
            path=known.path,
            nickname=known.nickname,
            kind="root" if known.parent is None else "child",
            parent=known.parent,
            model=known.model,
            effort=effort if known.parent is not None else None,
            max_tokens=settings.max_tokens,
            role_text=settings.instructions,
            allowed=_allowed(settings),
            servers=settings.mcp_servers,
            own_servers=settings.mcp == "own",
        )
        return Agent(self._swarm, spec, self._tools(spec), self._slot(spec), reloaded=True)

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
        model: str | None = None,
        role: str | None = None,
    ) -> AgentState:
        """One job worker from birth to close; returns its state after its turn. Cancelling closes it."""
        parent = self._swarm.live(owner)
        if parent.closing:
            # Its job must see it closed before the next row is tried.
            await parent.done.wait()
            parent = self._swarm.live(owner)
        settings = self.role(role)
        over = asyncio.Event()
        try:
            await self._spawn(
                Birth(
                    parent=parent,
                    name=name,
                    kind="worker",
                    task=task,
                    first=message,
                    role=role,
                    model=model or settings.model or self._config.subagent_model or parent.model,
                    effort=settings.reasoning_effort or self._config.subagent_effort or parent.effort,
                    settings=settings,
                    thread=thread,
                    tools=tools,
                    job=job,
                    item=item,
                )
            )
            with self._swarm.watching([thread], over):
                while not self._swarm.settled(thread):
                    over.clear()
                    await over.wait()
            return self._swarm.state.agents[thread]
        finally:
            if thread in self._swarm.agents:
                await self._swarm.close(thread, by=f"job {job[:8]}")


def _allowed(settings: Role, given: Sequence[Tool] = ()) -> tuple[str, ...] | None:
    """The tools of a role, and those that an agent is given whatever its role says (a worker's report)."""
    return None if settings.tools is None else (*settings.tools, *(tool.name for tool in given))
