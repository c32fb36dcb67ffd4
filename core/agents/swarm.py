"""The control plane of one swarm: who exists, who runs, who talks to whom, who stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from core.agents.agent import STOPPED, Agent, AgentSpec, Interruption
from core.agents.approvals import Approvals
from core.agents.births import Births
from core.agents.bounds import check_message
from core.agents.budget import Budgets
from core.agents.comeback import ComeBack
from core.agents.config import SwarmConfig
from core.agents.errors import Refused, SwarmEnding
from core.agents.images import Images
from core.agents.registry import Registry, UnknownAgent
from core.agents.residency import Residency
from core.agents.slots import SlotPool
from core.agents.startup import Nothing, Supplier, not_ready
from core.clock import Clock
from core.domain import events as e
from core.domain.commands import Delta
from core.domain.ids import uuid7
from core.domain.limits import LimitError
from core.domain.paths import resolve
from core.domain.state import SwarmState
from core.domain.status import SETTLED
from core.models.types import ModelClient
from core.store.blobs import Blob
from core.store.store import Store
from core.tools.base import Tool

log = logging.getLogger("watchroom.agents")
WIND_DOWN_SECONDS = 20
_OUTCOMES = (e.TurnCompleted, e.TurnFailed, e.TurnInterrupted, e.AgentClosed, e.AgentFailed)


class Swarm:
    """One swarm. `serve` owns every task of it; the other methods are called from anywhere on its loop."""

    def __init__(
        self,
        *,
        swarm: str,
        store: Store,
        model: ModelClient,
        config: SwarmConfig,
        clock: Clock,
        tools: Callable[[AgentSpec], Sequence[Tool]],
        publish: Callable[[Delta], None],
        supplier: Supplier | None = None,
    ) -> None:
        self.id = swarm
        self.store = store
        self.model = model
        self.config = config
        self.clock = clock
        self.publish = publish
        self.supplier: Supplier = supplier or Nothing()
        """Starts what agents need before their first turn."""
        self.registry = Registry(config.limits)
        self.slots = SlotPool(max(config.limits.max_threads - 1, 0))
        self.residency = Residency(config.limits.max_resident)
        self.images = Images(store.reader)
        self.approvals = Approvals(self.append, config.unattended)
        self.budgets = Budgets(lambda: self.state)
        self.agents: dict[str, Agent] = {}
        """Live agents by thread id."""
        self.root: Agent | None = None
        self.spoken = 0
        """How often the operator wrote, to anybody."""
        self.births = Births(self, tools)
        self.comeback = ComeBack(self)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = {}

    # --- life --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Swarm]:
        """Inside, the swarm lives; on leaving, every turn is interrupted and recorded, every task awaited."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield self
            finally:
                await self._wind_down()

    async def _wind_down(self) -> None:
        """Nothing here creates tasks in the group: it may be the group that is failing."""
        self._ending.set()
        stops = [
            agent.interrupt(Interruption("engine", STOPPED, wake_parent=False))
            for agent in self.agents.values()
            if agent.busy
        ]
        try:
            async with self.clock.timeout(WIND_DOWN_SECONDS):
                await asyncio.gather(*stops)
        except TimeoutError:
            log.warning("swarm %s: some turns did not stop within %d s", self.id, WIND_DOWN_SECONDS)
        for task in self._tasks:
            task.cancel()

    @property
    def ending(self) -> bool:
        """No turn is started any more."""
        return self._ending.is_set()

    @property
    def state(self) -> SwarmState:
        return self.store.state(self.id)

    async def append(self, events: Sequence[e.Event], *, blobs: Sequence[Blob] = ()) -> Sequence[e.AnyEvent]:
        """Record events of this swarm, atomically, with the pictures that they name; returns when they are
        durable."""
        if not events:
            return []
        return await self.store.append(self.id, events, blobs=blobs)

    def on_commit(self, events: Sequence[e.AnyEvent]) -> None:
        """Called for every committed batch, in order, before those who appended it go on."""
        for event in events:
            if event.agent is None:
                continue
            if (agent := self.agents.get(event.agent)) is not None:
                agent.on_event(event)
                if isinstance(event, e.AgentClosed):
                    self._gone(agent)
            typed = isinstance(event, e.MailQueued) and event.kind == "INPUT"
            self.spoken += typed
            if typed or isinstance(event, _OUTCOMES):
                for watcher in self._watchers.get(event.agent, ()):
                    watcher.set()
        self.budgets.on_commit(events)

    # --- entering -----------------------------------------------------------------------------------------

    def take_slots(self, agents: Sequence[Agent]) -> None:
        """With `slots = "spawned"`, the slots that agents will hold until they are closed: all or none. A
        job's worker stands in line instead: those before it come to their end. Raises LimitError."""
        wanted = [agent for agent in agents if agent.spec.kind == "child"]
        self.check_room(len(wanted))
        if self.config.limits.slots == "spawned":
            for agent in wanted:
                agent.slot.take()

    def check_room(self, count: int) -> None:
        """Raises LimitError if slots are held from spawn to close, and fewer than `count` are free."""
        limits = self.config.limits
        if limits.slots == "spawned" and self.slots.free < count:
            more = f", and {count} would come" if count > 1 else ""
            held = f"agents hold them until they are closed{more}: {self._holders()}; close some first"
            raise LimitError("max_threads", limits.max_threads, held)

    def _holders(self) -> str:
        holders = [agent for agent in self.agents.values() if agent.slot.held or agent is self.root]
        known = self.state.agents
        names = [
            f"{agent.path} ({known[agent.thread].status})" if agent.thread in known else agent.path
            for agent in sorted(holders, key=lambda agent: agent.path)
        ]
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

    def enter(
        self, agents: Sequence[Agent], events: Sequence[e.Event]
    ) -> asyncio.Future[Sequence[e.AnyEvent]]:
        """Let agents in whose paths are reserved, parents before children, and record it: then they start.
        Whoever waits for it may be cancelled meanwhile: that leaves no half of it."""
        # From here on their events reach them; the tasks that run them start once this is on disk.
        for agent in agents:
            self._admit(agent)
            self.registry.commit(agent.path, agent.thread)
        write = asyncio.ensure_future(self.append(events))

        def recorded(done: asyncio.Future[Sequence[e.AnyEvent]]) -> None:
            failed = done.cancelled() or done.exception() is not None or self.ending
            for agent in agents:
                if failed:
                    self._gone(agent)
                    agent.abandon()
                else:
                    self._start(agent)

        write.add_done_callback(recorded)
        return write

    async def entered(self, agents: Sequence[Agent], write: asyncio.Future[Sequence[e.AnyEvent]]) -> None:
        """Returns once it is on disk. Raises StoreError or SwarmEnding; then none of them is there."""
        await asyncio.shield(write)
        if agents[0].done.is_set():
            self.refuse_when_ending()

    def refuse_when_ending(self) -> None:
        if self.ending:
            raise SwarmEnding("the swarm is ending; nothing new is started")

    def _admit(self, agent: Agent) -> None:
        self.agents[agent.thread] = agent
        if agent.resident:
            self.residency.entered(agent)
        if (parent := self.agents.get(agent.spec.parent or "")) is not None:
            parent.children[agent.thread] = agent
        if agent.thread == self.state.root:
            self.root = agent

    def _start(self, agent: Agent) -> None:
        assert self._group is not None, "a swarm serves before it spawns"
        task = self._group.create_task(agent.run(), name=f"agent {agent.path}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _gone(self, agent: Agent) -> None:
        """An agent is closed, or never came to be: its path and its place are free."""
        if self.agents.pop(agent.thread, None) is None:
            return
        self.registry.release(agent.path)
        self.residency.gone(agent)
        if (parent := self.agents.get(agent.spec.parent or "")) is not None:
            parent.children.pop(agent.thread, None)

    # --- coming back -------------------------------------------------------------------------------------

    def restore(self, mail: Iterable[e.MailQueued], turn: str | None) -> None:
        """Everybody in the store who is not closed, with the mail that waits for them. Nothing runs before
        `go_on`. `turn`: the root's turn that is recorded as begun."""
        known = self.state.agents.values()
        for agent in known:
            if agent.status != "shutdown":
                self._admit(back := self.births.stored(agent))
                if self.config.limits.slots == "spawned":
                    back.slot.claim()
        self.registry.restore(
            {agent.path: agent.thread for agent in self.agents.values()}, (agent.nickname for agent in known)
        )
        for queued in mail:
            if (reader := self.agents.get(queued.agent or "")) is not None:
                reader.on_event(queued)
        if turn is not None and self.root is not None:
            self.root.go_on_with(turn)

    def go_on(self) -> None:
        """Start the tasks of those who were restored."""
        for agent in self.agents.values():
            self._start(agent)

    # --- finding -----------------------------------------------------------------------------------------

    def find(self, caller: str, target: str) -> Agent:
        """The live agent that a tool's `target` means. Raises UnknownAgent or PathError."""
        return self.agents[self.registry.find(caller, target)]

    def thread_of(self, caller: str, target: str) -> str:
        """The thread of the agent that a tool's `target` means, also of a closed one. Raises UnknownAgent or
        PathError."""
        try:
            return self.registry.find(caller, target)
        except UnknownAgent:
            known = self.state.agents.get(target) or self.state.by_path(resolve(caller, target))
            if known is None:
                raise
            return known.thread

    def live(self, thread: str) -> Agent:
        """Raises UnknownAgent, with the reason, if no such agent is open."""
        agent = self.agents.get(thread)
        if agent is None:
            known = self.state.agents.get(thread)
            what = f"{known.nickname} ({known.path}) is closed" if known else f"there is no agent {thread}"
            raise UnknownAgent(what)
        return agent

    def below(self, agent: Agent) -> list[Agent]:
        """Live descendants, parents before children."""
        found, level = [], [agent]
        while level:
            level = [child for above in level for child in above.children.values()]
            found += level
        return found

    # --- talking -----------------------------------------------------------------------------------------

    async def send_input(self, thread: str, text: str, by: str) -> None:
        """The operator's words: they start a turn of an idle agent and join a running one. Raises Refused for
        a sub-agent that starts up, or an agent that could not."""
        agent = self._taking_input(self.live(thread))
        await self.append([self.mail(agent.thread, by, "INPUT", text, trigger=True)])

    def check_input(self, thread: str) -> None:
        """Raises what `send_input` would."""
        self._taking_input(self.live(thread))

    def _taking_input(self, agent: Agent) -> Agent:
        why = not_ready(self.state.agents.get(agent.thread), agent.path)
        # The root's first words wait for its start-up: there is nobody else to talk to.
        if why is not None and not (agent is self.root and agent.initializing):
            raise Refused(why)
        return self._taking_mail(agent)

    def deaf_because(self, agent: Agent) -> str | None:
        """Why an agent reads no mail before it is resumed; None if it does."""
        return not_ready(self.state.agents.get(agent.thread), agent.path) if agent.deaf else None

    async def send_message(self, sender: Agent, target: Agent, text: str, *, trigger: bool) -> None:
        kind: Literal["NEW_TASK", "MESSAGE"] = "NEW_TASK" if trigger else "MESSAGE"
        self._taking_mail(target)
        check_message(text)
        await self.append([self.mail(target.thread, sender.path, kind, text, trigger=trigger)])

    def _taking_mail(self, agent: Agent) -> Agent:
        if agent.closing:
            raise Refused(f"{agent.path} is being closed; it reads nothing more")
        return agent

    def mail(
        self,
        thread: str,
        author: str,
        kind: Literal["INPUT", "NEW_TASK", "MESSAGE", "FINAL_ANSWER"],
        text: str,
        *,
        trigger: bool,
    ) -> e.MailQueued:
        return e.MailQueued(agent=thread, mail=uuid7(), author=author, kind=kind, text=text, trigger=trigger)

    # --- waiting -----------------------------------------------------------------------------------------

    def settled(self, thread: str) -> bool:
        """Whether an agent has an outcome and nothing queued that will change it."""
        state = self.state.agents.get(thread)
        agent = self.agents.get(thread)
        if state is None:
            return agent is None  # else its birth is being recorded
        if state.status == "shutdown":
            return True
        if agent is not None and agent.will_run():
            return False
        return state.status in SETTLED

    @contextmanager
    def watching(self, threads: Iterable[str], event: asyncio.Event) -> Iterator[None]:
        """While inside, `event` is set when one of the agents gets an outcome or the operator's words."""
        threads = set(threads)
        for thread in threads:
            self._watchers.setdefault(thread, set()).add(event)
        try:
            yield
        finally:
            for thread in threads:
                watchers = self._watchers[thread]
                watchers.discard(event)
                if not watchers:
                    del self._watchers[thread]

    async def words(self, thread: str) -> None:
        """Wait until the operator has typed something for an agent that no turn has taken yet."""
        agent = self.live(thread)
        happened = asyncio.Event()
        with self.watching([thread], happened):
            while not agent.has_input():
                happened.clear()
                await happened.wait()

    # --- stopping ----------------------------------------------------------------------------------------

    def is_closed(self, thread: str) -> bool:
        known = self.state.agents.get(thread)
        return known is not None and known.status == "shutdown"

    def would_stop(self, thread: str, cascade: bool) -> list[str]:
        """Whose turns `interrupt` would stop now."""
        agent = self.live(thread)
        targets = [agent, *self.below(agent)] if cascade else [agent]
        return [a.thread for a in targets if a.busy or a.will_run()]

    def would_close(self, thread: str) -> list[str]:
        agent = self.live(thread)
        return [a.thread for a in (*reversed(self.below(agent)), agent)]

    async def interrupt(self, thread: str, *, by: str, cascade: bool = False, tell: bool = True) -> list[str]:
        """Stop the turn of one agent, or with `cascade` of everything below it too; who was stopped."""
        agent = self.live(thread)
        targets = [agent, *self.below(agent)] if cascade else [agent]
        stopped = {a.thread for a in targets}
        results = await asyncio.gather(
            *(
                a.interrupt(Interruption(by, "", wake_parent=tell and a.spec.parent not in stopped))
                for a in targets
            )
        )
        return [a.thread for a, hit in zip(targets, results, strict=True) if hit]

    async def close(self, thread: str, *, by: str) -> list[str]:
        """End an agent and everything below it, deepest first; frees paths and totals.

        All are told before anything is awaited: nothing is spawned among them meanwhile, and they end also
        when whoever asked for it is stopped.
        """
        agent = self.live(thread)
        targets = [*reversed(self.below(agent)), agent]
        for target in targets:
            target.begin_close(by, thread)
        for target in targets:
            await target.done.wait()
        return [target.thread for target in targets]
