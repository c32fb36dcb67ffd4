"""One live agent: its mailbox, its history, and the task in which its turns run one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec

from core.agents import prompts
from core.agents.bounds import TurnBound
from core.agents.budget import BudgetSpent, Meter
from core.agents.history import History
from core.agents.reload import read_history
from core.agents.slots import Slot
from core.agents.startup import Startup, StartupError
from core.agents.turn import Turn, TurnEnd
from core.domain import events as e
from core.domain.ids import uuid7
from core.domain.limits import LimitError
from core.domain.status import Wait
from core.models.types import ModelError
from core.store.errors import NotFound, StoreError
from core.tools.base import Tool

if TYPE_CHECKING:
    from core.agents.swarm import Swarm

log = logging.getLogger("watchroom.agents")
ERROR_CHARS = 3600
STOPPED = "the engine was stopped"


class HistoryError(Exception):
    """An agent's history is in the store and cannot be read."""


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is, once and for all."""

    thread: str
    path: str
    nickname: str
    kind: str
    """root, child or worker."""
    parent: str | None
    model: str
    effort: str | None = None
    max_tokens: int | None = None
    role_text: str = ""
    allowed: tuple[str, ...] | None = None
    """Names of the tools it may use, or patterns like `docs__*`; None: all."""
    servers: tuple[str, ...] | None = None
    """The MCP servers whose tools it gets; None: all."""
    own_servers: bool = False
    """It has server processes of its own."""


class Interruption(msgspec.Struct, frozen=True):
    by: str
    reason: str = ""
    wake_parent: bool = True


class Agent:
    """Owned by the swarm's task group through `run`. Only `run` ends turns; others ask it to.

    One that comes back from the store (`reloaded`) reads its history when it needs it: with its next turn.
    """

    def __init__(
        self, swarm: Swarm, spec: AgentSpec, tools: Sequence[Tool], slot: Slot, *, reloaded: bool = False
    ) -> None:
        self.swarm = swarm
        self.spec = spec
        self.thread, self.path = spec.thread, spec.path
        self.model, self.effort, self.max_tokens = spec.model, spec.effort, spec.max_tokens
        self._own_tools = tuple(tools)
        self._brought: Sequence[Tool] | None = None
        """The tools that its start-up brought."""
        self.provide(())
        self.slot = slot
        self.history = History(spec.path)
        self.mail_came = asyncio.Event()
        """Set while there is mail that this agent has not taken."""
        self._mail: dict[str, e.MailQueued] = {}
        self._open_calls: dict[str, int] = {}
        self.call_begun: dict[str, float] = {}
        """When each open call began, on the swarm's clock; not those that still wait for others to end."""
        self.turn_bound = TurnBound(swarm)
        self.meter = Meter()
        self.startup = Startup(self)
        self._wake = asyncio.Event()
        self.children: dict[str, Agent] = {}
        """Open agents right below, by thread id."""
        self._fresh = spec.kind != "root" and not reloaded
        """Born with a task and without a turn yet: its first turn will come."""
        self._reloaded = reloaded
        self._unread: list[e.Event] | None = [] if reloaded else None
        """While the history is still in the store: what came since."""
        self._begun: str | None = None
        """A turn that is recorded as begun and waits to be gone on with."""
        self._closing: str | None = None
        self._closing_top: str | None = None
        self._turn: asyncio.Task[TurnEnd] | None = None
        self._turn_id = ""
        self._interruption: Interruption | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.done = asyncio.Event()
        """Set when the agent's task is over."""

    # --- what others see and do --------------------------------------------------------------------------

    @property
    def instructions(self) -> str:
        """Put together for each request: of ten thousand agents each would hold the same long text."""
        config = self.swarm.config
        return prompts.instructions(
            path=self.path,
            nickname=self.spec.nickname,
            kind=self.spec.kind,
            cwd=str(config.cwd),
            hint=config.usage_hint and config.subagents,
            guide=config.guide,
            role_text=self.spec.role_text,
        )

    @property
    def busy(self) -> bool:
        """In a turn, in line for one, or about to go on with one that is recorded as begun."""
        return self._turn is not None or self._begun is not None

    @property
    def closing(self) -> bool:
        """Closed, or about to be: it takes nothing more, and nothing is spawned below it."""
        return self._closing is not None

    @property
    def stopping(self) -> bool:
        """Closed, or its turn (one that is about to start, too) is interrupted."""
        return self._closing is not None or self._interruption is not None

    @property
    def initializing(self) -> bool:
        """Registered, and not ready for its first turn."""
        state = self.swarm.state.agents.get(self.thread)
        return state is None or state.status == "pending_init"

    @property
    def deaf(self) -> bool:
        """Its start-up failed: no mail starts a turn before it is resumed."""
        state = self.swarm.state.agents.get(self.thread)
        return state is not None and state.start_failed

    @property
    def resident(self) -> bool:
        """Whether its history is in memory."""
        return self._unread is None

    @property
    def evictable(self) -> bool:
        """Whether it has nothing to do, whatever its status and whatever mail it has that wakes nobody."""
        state = self.swarm.state.agents.get(self.thread)
        ready = state is not None and state.status != "pending_init"
        return ready and self.resident and not self.busy and not self._next_is_due()

    def evict(self) -> None:
        """Leave the history to the store until the next turn."""
        self.history = History(self.path)
        self.meter = Meter()
        self._unread = []
        self.startup.lost()

    def provide(self, tools: Sequence[Tool]) -> None:
        """Have these tools beside those of its kind, as far as its role allows."""
        if tools == self._brought:
            return
        self._brought = tools
        allowed = [tool for tool in (*self._own_tools, *tools) if _allowed(tool, self.spec.allowed)]
        self.tools = {tool.name: tool for tool in allowed}
        self.definitions = [tool.definition() for tool in allowed]

    def will_run(self) -> bool:
        """Whether queued mail will start a turn."""
        return self._trigger() is not None

    def on_event(self, event: e.Event) -> None:
        """Take in one committed event of this agent, in order."""
        if self._unread is None:
            self.history.add(event)
        else:
            self._unread.append(event)
        match event:
            case e.MailQueued():
                self._mail[event.mail] = event
                self.mail_came.set()
                if event.trigger:
                    self._wake.set()
            case e.AgentResumed():
                self._wake.set()
            case e.UserMessage() | e.AgentMessage():
                self._mail.pop(event.mail or "", None)
                if not self._mail:
                    self.mail_came.clear()
            case e.ToolCalled():
                self._open_calls[event.call] = 0
            case e.ToolResult():
                if event.call in self._open_calls:
                    self._open_calls[event.call] = event.index + 1
            case e.ToolEnded():
                self._open_calls.pop(event.call, None)
                self.call_begun.pop(event.call, None)
            case _:
                return

    def go_on_with(self, turn: str) -> None:
        """Run a turn whose begin is recorded already."""
        self._begun = turn
        self._idle.clear()

    async def load(self) -> None:
        """Have the history in memory. Raises HistoryError."""
        if self._unread is None:
            return
        upto = self.swarm.state.seq
        try:
            history, born = await read_history(self.swarm.store, self.swarm.id, self.thread, upto)
        except (NotFound, StoreError) as error:
            # Not the end of the engine: other agents, other swarms can go on.
            raise HistoryError(f"the history of {self.path} cannot be read: {error}") from error
        for event in self._unread:
            if event.seq > upto:
                history.add(event)
        self._unread = None
        self.history = history
        self.effort = born.effort
        self.swarm.residency.entered(self)

    def has_input(self) -> bool:
        """Whether the operator typed something that no turn has taken yet."""
        return any(mail.kind == "INPUT" for mail in self._mail.values())

    def peek_mail(self) -> Sequence[e.MailQueued]:
        return tuple(self._mail.values())

    def take_mail(self) -> list[e.Event]:
        """Everything queued, as the events that put it into the history: the operator's words first.

        It stays queued until those events are committed, so that nothing is lost with a cancelled turn.
        """
        typed = [m for m in self._mail.values() if m.kind == "INPUT"]
        others = [m for m in self._mail.values() if m.kind != "INPUT"]
        delivered: list[e.Event] = [
            e.UserMessage(agent=self.thread, text=m.text, author=m.author, mail=m.mail) for m in typed
        ]
        for m in others:
            assert m.kind != "INPUT"
            delivered.append(
                e.AgentMessage(agent=self.thread, kind=m.kind, author=m.author, text=m.text, mail=m.mail)
            )
        return delivered

    async def interrupt(self, interruption: Interruption) -> bool:
        """Stop the turn that runs, waits for its slot or is about to start; returns when that is recorded.

        False: there was none, or it ended by itself first.
        """
        if self._turn is None and not self._next_is_due():
            return False
        self._stop(interruption)
        await self._idle.wait()
        state = self.swarm.state.agents.get(self.thread)
        return state is not None and state.status == "interrupted"

    def _stop(self, interruption: Interruption) -> None:
        if self._interruption is None:
            self._interruption = interruption
            self._idle.clear()
            self.startup.cancel()
            if self._turn is not None:
                self._turn.cancel()

    def begin_close(self, by: str, top: str) -> None:
        """Let the agent end by itself: its turn stops, those below end, its close is recorded (`done`).

        `top`: the thread id of the agent that is closed, this one or one above it."""
        if self._closing is None:
            self._closing = by
            self._closing_top = top if top != self.thread else None
            self._wake.set()
            self.startup.cancel()
            if self._turn is not None:
                self._stop(Interruption(by, "closed", wake_parent=False))

    def abandon(self) -> None:
        """It will never run: its birth could not be recorded, or came too late."""
        self.swarm.supplier.drop(self.thread)
        self.slot.end()
        self._idle.set()
        self.done.set()

    # --- the task ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            while self._closing is None:
                if self.initializing and self._interruption is None and not self.swarm.ending:
                    await self.startup.first()
                    continue
                if not self._next_is_due():
                    # An interrupt whose turn will not come, for whatever reason, is over too.
                    self._interruption = None
                    self._idle.set()
                    self.slot.release()
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                await self._one_turn()
            self.slot.release()
            if self._begun is not None:
                # Closed in the moment between its return and its turn.
                cut = e.TurnInterrupted(
                    agent=self.thread, turn=self._begun, by=self._closing, reason="closed"
                )
                await self.swarm.append([cut])
            for child in list(self.children.values()):
                await child.done.wait()
            await self.swarm.supplier.end(self.thread)
            await self.swarm.append(
                [e.AgentClosed(agent=self.thread, by=self._closing, top=self._closing_top)]
            )
        finally:
            self.slot.end()
            self._idle.set()
            self.done.set()

    def _next_is_due(self) -> bool:
        """Whether, after the present turn if there is one, another starts without anything new."""
        if self._closing is not None:
            return False
        if self._begun is not None:
            return True  # also in a swarm that ends: its end must be recorded
        if self.swarm.ending or self.deaf:
            return False
        return self._fresh or self._trigger() is not None

    def _trigger(self) -> e.MailQueued | None:
        """The mail that starts the next turn. After an interrupt only newer mail counts (decision 20)."""
        state = self.swarm.state.agents.get(self.thread)
        if state is not None and state.start_failed:
            return None
        floor = state.outcome_seq if state is not None and state.status == "interrupted" else 0
        return next((mail for mail in self._mail.values() if mail.trigger and mail.seq > floor), None)

    async def _one_turn(self) -> None:
        trigger = self._trigger()
        cause = "input" if trigger is not None and trigger.kind == "INPUT" else "mail"
        begun, self._begun = self._begun, None
        self._turn_id = begun or uuid7()
        self._fresh = False
        self._idle.clear()
        started = self.swarm.clock.monotonic()
        self._turn = task = asyncio.create_task(
            self._turn_body(None if begun else cause), name=f"turn {self.path}"
        )
        if self._interruption is not None:
            task.cancel()
        try:
            await asyncio.wait({task})
            seconds = round(self.swarm.clock.monotonic() - started, 3)
            await self._settle(task, seconds)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            due = self._next_is_due()
            if not (due and self.slot.held):
                self.slot.release()
            self._turn = None
            self.swarm.residency.idle(self)
            if task.cancelled() or not due or self._interruption is None:
                self._interruption = None
                self._idle.set()
            # Else it came when the turn was over: it is for the next one, which is about to start.

    async def _turn_body(self, cause: str | None) -> TurnEnd:
        await self.ensure_slot()
        return await Turn(self, self._turn_id).run(cause)

    async def ensure_slot(self) -> None:
        """Hold an execution slot; say so while that means waiting in line."""
        if self.slot.take():
            return
        wait = Wait(reason="slot", line=self.slot.ticket())
        await self.swarm.append([e.AgentWaits(agent=self.thread, wait=wait)])
        await self.slot.acquire()
        await self.swarm.append([e.AgentWaits(agent=self.thread, wait=None)])

    async def _settle(self, task: asyncio.Task[TurnEnd], seconds: float) -> None:
        """Record how the turn ended, with the mail that tells the parent, in one transaction."""
        turn = self._turn_id
        if task.cancelled():
            await self._settle_interrupted(turn, seconds)
            return
        error = task.exception()
        if error is None:
            end = task.result()
            done = e.TurnCompleted(agent=self.thread, turn=turn, message=end.message, seconds=seconds)
            try:
                await self.swarm.append([*end.events, done, *self._tell_parent(end.message or "")])
                return
            except StoreError as unwritten:
                error = unwritten
        if isinstance(error, BudgetSpent):
            wakes = not error.shared  # of the swarm's own limit its parent has nothing left either
            await self._settle_interrupted(turn, seconds, Interruption("budget", str(error), wakes))
            return
        if isinstance(error, ModelError | HistoryError | LimitError | StartupError | StoreError):
            # One event that could not be written fails its turn; a store that is lost refuses this too.
            text = str(error)
        else:
            log.error("turn of %s failed", self.path, exc_info=error)
            text = f"internal error: {error!r}"
        text = text[:ERROR_CHARS]
        kind = error.kind if isinstance(error, ModelError) else ""
        failed = e.TurnFailed(agent=self.thread, turn=turn, error=text, kind=kind, seconds=seconds)
        closing = await self._abort_calls(f"the turn failed: {text}")
        models = sorted(self.swarm.config.models()) if kind == "not_found" else []
        told = self._tell_parent(prompts.errored_notice(self.path, text, models))
        await self.swarm.append([*closing, failed, *told])

    async def cannot_start(self, why: str) -> None:
        """Record that the start-up failed, with the mail that tells the parent, in one transaction."""
        error = why[:ERROR_CHARS]
        told = self._tell_parent(prompts.start_failed_notice(self.path, error))
        await self.swarm.append([e.AgentFailed(agent=self.thread, error=error), *told])

    async def _settle_interrupted(self, turn: str, seconds: float, why: Interruption | None = None) -> None:
        why = why or self._interruption or Interruption("engine", STOPPED, wake_parent=False)
        aborted = await self._abort_calls(f"interrupted by {why.by}")
        ended: list[e.Event] = [*aborted]
        if self.swarm.config.interrupt_message:
            marker = prompts.INTERRUPTED.format(who=f"by {why.by}")
            ended.append(e.Notice(agent=self.thread, text=marker, level="warning", hidden=False))
        ended.append(
            e.TurnInterrupted(agent=self.thread, turn=turn, by=why.by, reason=why.reason, seconds=seconds)
        )
        told = prompts.interrupted_notice(self.path, why.by, why.reason if why.by == "budget" else "")
        ended += self._tell_parent(told, wake=why.wake_parent)
        await self.swarm.append(ended)

    async def _abort_calls(self, why: str) -> list[e.Event]:
        """Withdraw approvals, let writes on their way land, then give every open call an aborted end."""
        settled: list[e.Event] = [e.AgentWaits(agent=self.thread, wait=None)]
        await self.swarm.append(settled + self.swarm.approvals.abort(self.thread, "the turn ended"))
        events: list[e.Event] = self.swarm.budgets.unsettled(self.thread, "the request was cut short")
        now = self.swarm.clock.monotonic()
        for call, index in self._open_calls.items():
            begun = self.call_begun.get(call)
            seconds = round(now - begun, 3) if begun is not None else 0.0
            when = f"after {seconds:.1f} s" if begun is not None else "before it began"
            text = f"aborted {when}: {why}"
            events.append(
                e.ToolResult(
                    agent=self.thread, call=call, index=index, source="engine", status="aborted", text=text
                )
            )
            events.append(e.ToolEnded(agent=self.thread, call=call, status="aborted", seconds=seconds))
        return events

    def _tell_parent(self, text: str, *, wake: bool = True) -> list[e.Event]:
        """The mail that brings a child's outcome to its parent; none for roots, workers and closed agents."""
        if self.spec.kind != "child" or self.spec.parent is None or self._closing is not None:
            return []
        return [
            e.MailQueued(
                agent=self.spec.parent,
                mail=uuid7(),
                author=self.path,
                kind="FINAL_ANSWER",
                text=text,
                trigger=wake and self.swarm.config.limits.wake_parent,
            )
        ]


def _allowed(tool: Tool, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatchcase(tool.name, pattern) for pattern in patterns)
