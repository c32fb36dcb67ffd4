"""Running the tool calls of one response: beside each other where they may, each with its result events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from core.agents import images
from core.clock import Clock
from core.domain import events as e
from core.domain.status import Wait
from core.safety.text import clean_line, head_and_tail, shorten
from core.store.blobs import Blob
from core.store.errors import StoreError
from core.tools.base import MAX_OUTPUT_CHARS, Tool, ToolError, ToolOutput, Verdict, parse_args

if TYPE_CHECKING:
    from core.agents.agent import Agent

log = logging.getLogger("watchroom.agents")
OUTPUT_SOURCE = "function_call_output"


class CallContext:
    """`core.tools.base.ToolContext` of one running call."""

    def __init__(self, agent: Agent, calls: CallRunner, call: str) -> None:
        self.thread = agent.thread
        self.path = agent.path
        self.call = call
        self.cwd: Path = agent.swarm.config.cwd
        self.clock: Clock = agent.swarm.clock
        self._agent = agent
        self._calls = calls
        self._index = 0

    def result(self, *, source: str, text: str, status: str, about: str | None = None) -> e.ToolResult:
        """The next result event of this call; whoever makes it must append it."""
        event = e.ToolResult(
            agent=self.thread,
            call=self.call,
            index=self._index,
            source=source,
            status=status,
            text=head_and_tail(text, MAX_OUTPUT_CHARS),
            about=about,
        )
        self._index += 1
        return event

    async def emit(self, *, source: str, text: str = "", status: str = "", about: str | None = None) -> None:
        await self._agent.swarm.append([self.result(source=source, text=text, status=status, about=about)])

    @asynccontextmanager
    async def blocked(
        self, reason: Literal["agents", "job", "approval"], detail: str = ""
    ) -> AsyncIterator[None]:
        wait = Wait(reason=reason, detail=shorten(clean_line(detail), 200))
        try:
            await self._calls.block(self.call, wait)
            yield
        finally:
            self._calls.unblock(self.call)
        await self._calls.tell_wait()

    async def approve(self, *, command: str, argv: list[str], cwd: Path, reason: str) -> Verdict:
        ask = self._agent.swarm.approvals.ask(
            thread=self.thread, call=self.call, command=command, argv=argv, cwd=cwd, reason=reason
        )
        if self._agent.swarm.config.unattended == "refuse":
            return await ask
        async with self.blocked("approval", command):
            return await ask


class CallRunner:
    """The calls of one response. The turn's slot is lent while every running call is blocked."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._active: set[str] = set()
        self._blocked: dict[str, Wait] = {}
        self._told: Wait | None = None
        """What was recorded last of what the agent waits for."""

    async def run(self, calls: Sequence[e.ToolCalled]) -> bool:
        """Run them all; returns whether one of them ends the turn. Each ends with a recorded output."""
        ended = False
        for batch in self._batches(calls):
            # All of them count as running before the first can block.
            self._active = {call.call for call in batch}
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(call)) for call in batch]
            ended = any(task.result() for task in tasks) or ended
        return ended

    def _batches(self, calls: Sequence[e.ToolCalled]) -> list[list[e.ToolCalled]]:
        """Neighbours that may run in parallel together; every other call alone."""
        batches: list[list[e.ToolCalled]] = []
        together = False
        for call in calls:
            tool = self._agent.tools.get(call.name)
            parallel = tool is None or tool.parallel
            if parallel and together:
                batches[-1].append(call)
            else:
                batches.append([call])
            together = parallel
        return batches

    async def _one(self, call: e.ToolCalled) -> bool:
        clock = self._agent.swarm.clock
        started = self._agent.call_begun[call.call] = clock.monotonic()
        context = CallContext(self._agent, self, call.call)
        try:
            output = await self._execute(call, context)
        finally:
            self._active.discard(call.call)
            self._lend_if_blocked()
        ended: list[e.Event] = []
        if self._told != (wait := self._wait()):
            # A call that timed out while it was blocked could not say that it goes on.
            self._told = wait
            ended.append(e.AgentWaits(agent=self._agent.thread, wait=wait))
        said = output.text
        kept: list[Blob] = []
        if output.images:
            kept, problems = await images.keep(output.images)
            said = "\n".join([said, *problems])
        text: str | None = head_and_tail(said, MAX_OUTPUT_CHARS)
        if not output.recorded:
            status = "" if output.status == "ok" else output.status
            ended.append(context.result(source=OUTPUT_SOURCE, text=said, status=status))
            text = None
        ended.append(
            e.ToolEnded(
                agent=self._agent.thread,
                call=call.call,
                status=output.status,
                output=text,
                seconds=round(clock.monotonic() - started, 3),
                images=images.names_of(kept),
            )
        )
        await self._agent.swarm.append(ended, blobs=kept)
        return output.end_turn

    async def _execute(self, call: e.ToolCalled, context: CallContext) -> ToolOutput:
        """The call's output. Whatever goes wrong in a tool becomes an output, but for a broken store."""
        tool = self._agent.tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self._agent.tools))
            return ToolOutput(text=f"there is no tool {call.name!r}; the tools are: {known}", status="error")
        try:
            args = parse_args(tool, call.arguments)
            async with self._agent.swarm.clock.timeout(tool.timeout):
                return await _run(tool, args, context)
        except ToolError as error:
            return ToolOutput(text=str(error), status="error")
        except TimeoutError:
            return ToolOutput(text=f"{tool.name} timed out after {tool.timeout:g} s", status="error")
        except StoreError:
            raise
        except Exception as error:
            return _broken(tool, error)

    async def block(self, call: str, wait: Wait) -> None:
        self._blocked[call] = wait
        self._lend_if_blocked()
        await self.tell_wait()

    def unblock(self, call: str) -> None:
        self._blocked.pop(call, None)

    async def tell_wait(self) -> None:
        """Record what the agent waits for now: the newest block, or nothing."""
        self._told = wait = self._wait()
        await self._agent.swarm.append([e.AgentWaits(agent=self._agent.thread, wait=wait)])

    def _wait(self) -> Wait | None:
        return next(reversed(self._blocked.values()), None)

    def _lend_if_blocked(self) -> None:
        if self._active and self._active <= self._blocked.keys():
            self._agent.slot.lend()


async def _run(tool: Tool, args: Any, context: CallContext) -> ToolOutput:
    """A time-out or a cancellation that comes from within the tool is neither the call's time limit nor an
    interrupt of its turn."""
    try:
        return await tool.run(args, context)
    except TimeoutError as error:
        return _broken(tool, error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _broken(tool, error)


def _broken(tool: Tool, error: BaseException) -> ToolOutput:
    log.error("tool %s failed", tool.name, exc_info=error)
    return ToolOutput(text=f"{tool.name} failed inside: {error!r}", status="error")


def brief_of(tools: Mapping[str, Tool], name: str, arguments: str) -> str:
    """One line for people about a call whose arguments nobody has checked yet."""
    try:
        parsed: Any = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return shorten(clean_line(arguments), 120)
    tool = tools.get(name)
    if tool is None or not isinstance(parsed, dict):
        return shorten(clean_line(arguments), 120)
    return shorten(clean_line(tool.brief(parsed)), 200)
