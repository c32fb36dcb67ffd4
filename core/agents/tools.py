"""The tools by which agents manage agents (decision 23). A rule or limit that is broken is an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from pydantic import Field, field_validator

from core.agents.agent import Agent
from core.agents.errors import Refused
from core.agents.prompts import TOOLS, choices
from core.agents.registry import UnknownAgent
from core.agents.swarm import Swarm
from core.domain.limits import LimitError
from core.domain.paths import PathError, is_within, resolve
from core.domain.state import AgentState
from core.safety.text import clean_line, shorten
from core.tools.base import MAX_OUTPUT_CHARS, Tool, ToolArgs, ToolContext, ToolError, ToolOutput
from core.view.words import waits_for

LIST_CHARS = MAX_OUTPUT_CHARS - 500
"""A list is cut between agents, not in the middle of one."""
STATUS_CHARS = 300
"""Of an answer in a list; wait_agent and the mail have all of it."""
NAME_CHARS = 200
"""Of a role, a model or an effort."""
TURNS_CHARS = 9
RULES = (PathError, LimitError, Refused, UnknownAgent)


def status_json(agent: AgentState | None) -> str | dict[str, str]:
    """A status as agents read it: a word, or {completed: answer}, {errored: message}."""
    if agent is None:
        return "not_found"
    if agent.status in ("completed", "errored"):
        return {agent.status: agent.status_message}
    return agent.status


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


class SwarmTool(Tool):
    """A control tool, bound to its swarm."""

    timeout: float | None = 60.0

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.description = TOOLS[self.name]  # type: ignore[misc]


class SpawnArgs(ToolArgs):
    task_name: str = Field(
        description="Short name of the task: a-z, 0-9 and _; the last part of the agent's path."
    )
    message: str = Field(min_length=1, description="The whole task, with everything the agent needs to know.")
    fork_turns: str = Field(
        default="none",
        description="How much of your history it sees: none, all, or a number of your last turns.",
    )
    agent_type: str | None = Field(default=None, description="A role by name.")
    model: str | None = Field(default=None, description="A model by name; without it the role's, else yours.")
    reasoning_effort: str | None = None

    @field_validator("message")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        return _said(value)

    @field_validator("agent_type", "model", "reasoning_effort")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        """It is in the journal, in requests and in every list: no text of any kind and length."""
        if value and (len(value) > NAME_CHARS or not value.strip() or value != clean_line(value)):
            raise ValueError(f"must be a plain name of at most {NAME_CHARS} characters")
        return value

    @field_validator("fork_turns")
    @classmethod
    def _turns(cls, value: str) -> str:
        word = value.strip().lower()
        if len(word) > TURNS_CHARS:
            raise ValueError(f"must be none, all or a number of at most {TURNS_CHARS} digits")
        if word in ("", "none"):
            return "none"
        if word == "all" or (word.isascii() and word.isdigit() and int(word) > 0):
            return word
        raise ValueError("must be none, all or a positive number")


class SpawnAgent(SwarmTool):
    name = "spawn_agent"
    Args = SpawnArgs
    category = "task"

    def __init__(self, swarm: Swarm) -> None:
        super().__init__(swarm)
        config = swarm.config
        roles = {name: role.description for name, role in config.roles.items()}
        self.description += choices(roles, config.known_models() or [])  # type: ignore[misc]
        if not config.async_startup:
            self.timeout = None  # each server's start-up has a limit of its own

    def brief(self, args: Mapping[str, Any]) -> str:
        return f"{args.get('task_name', '')}  “{args.get('message', '')}”"

    async def run(self, args: SpawnArgs, ctx: ToolContext) -> ToolOutput:
        parent = self.swarm.live(ctx.thread)
        try:
            child = await self.swarm.births.spawn(
                parent,
                name=args.task_name,
                message=args.message,
                fork=args.fork_turns,
                role=args.agent_type,
                model=args.model,
                effort=args.reasoning_effort,
                call=ctx.call,
            )
        except RULES as error:
            raise ToolError(str(error)) from error
        text = _json({"task_name": child.path, "nickname": child.spec.nickname})
        await ctx.emit(source="spawn", status="spawned", text=child.path, about=child.thread)
        return ToolOutput(text=text, recorded=True)


class MessageArgs(ToolArgs):
    target: str = Field(description="Path (absolute, or below your own) or id of the agent.")
    message: str = Field(min_length=1)

    @field_validator("message")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        return _said(value)


class SendMessage(SwarmTool):
    name = "send_message"
    Args = MessageArgs
    category = "message"
    trigger = False

    def brief(self, args: Mapping[str, Any]) -> str:
        return f"{args.get('target', '')}  “{args.get('message', '')}”"

    async def run(self, args: MessageArgs, ctx: ToolContext) -> ToolOutput:
        sender = self.swarm.live(ctx.thread)
        try:
            target = self.swarm.find(sender.path, args.target)
        except RULES as error:
            raise ToolError(str(error)) from error
        if target.closing:
            raise ToolError(f"{target.path} is being closed; it reads nothing more")
        if self.trigger and target is self.swarm.root:
            raise ToolError("the root takes no tasks from its sub-agents; use send_message")
        if target is sender:
            raise ToolError("this is your own path; choose another target")
        try:
            await self.swarm.send_message(sender, target, args.message, trigger=self.trigger)
        except RULES as error:
            raise ToolError(str(error)) from error
        await ctx.emit(source=self.name, status="queued", text=args.message, about=target.thread)
        deaf = self.swarm.deaf_because(target)
        return ToolOutput(text=f"queued, but {deaf}" if deaf else "", recorded=True)


class FollowupTask(SendMessage):
    name = "followup_task"
    trigger = True


class WaitArgs(ToolArgs):
    targets: list[str] | None = Field(
        default=None, min_length=1, description="Agents to wait for; without it, any message ends the wait."
    )
    mode: Literal["any", "all"] = Field(default="any", description="Whether one outcome is enough.")
    timeout_ms: int | None = Field(default=None, gt=0, description="How long to wait at most.")


class WaitAgent(SwarmTool):
    name = "wait_agent"
    Args = WaitArgs
    category = "wait"
    timeout = None

    def brief(self, args: Mapping[str, Any]) -> str:
        targets = args.get("targets")
        names = ", ".join(str(t) for t in targets) if isinstance(targets, list) else "any message"
        return f"{args['mode']} of {names}" if args.get("mode") == "all" and targets else names

    async def run(self, args: WaitArgs, ctx: ToolContext) -> ToolOutput:
        limits = self.swarm.config.limits
        asked = args.timeout_ms if args.timeout_ms is not None else limits.default_wait_ms
        if asked > limits.max_wait_ms:
            raise ToolError(f"timeout_ms may be at most {limits.max_wait_ms}")
        seconds = max(asked, limits.min_wait_ms) / 1000
        note = f" (the shortest wait is {limits.min_wait_ms} ms)" if asked < limits.min_wait_ms else ""
        if args.targets is None:
            return await self._for_mail(ctx, seconds, note)
        return await self._for_targets(args, ctx, seconds, note)

    async def _for_mail(self, ctx: ToolContext, seconds: float, note: str) -> ToolOutput:
        me = self.swarm.live(ctx.thread)
        timed_out = False
        if not me.mail_came.is_set():
            try:
                async with ctx.blocked("agents", "any message"), ctx.clock.timeout(seconds):
                    await me.mail_came.wait()
            except TimeoutError:
                timed_out = True
        message = f"nothing arrived within {seconds:g} s{note}" if timed_out else "a message arrived"
        return ToolOutput(text=_json({"message": message, "timed_out": timed_out}))

    async def _for_targets(self, args: WaitArgs, ctx: ToolContext, seconds: float, note: str) -> ToolOutput:
        me = self.swarm.live(ctx.thread)
        threads = self._threads(args, me)
        timed_out = False
        if not self._enough(threads, args.mode, me):
            happened = asyncio.Event()
            detail = ", ".join(self._name(thread) for thread in threads)
            try:
                async with ctx.blocked("agents", detail), ctx.clock.timeout(seconds):
                    await self._until(threads, args.mode, me, happened)
            except TimeoutError:
                timed_out = True
        statuses: dict[str, Any] = {}
        for thread, target in threads.items():
            agent = self.swarm.state.agents.get(thread)
            if agent is None or not self.swarm.settled(thread):
                continue
            statuses[target] = status_json(agent)
            text = agent.status_message
            await ctx.emit(source="wait_output", status=agent.status, text=text, about=thread)
        if not statuses:
            word = f"timed out after {seconds:g} s{note}" if timed_out else "new input arrived"
            await ctx.emit(source="wait_output", status="timed_out" if timed_out else "", text=word)
        answer = {"status": statuses, "timed_out": timed_out and not self._enough(threads, args.mode, me)}
        return ToolOutput(text=_json(answer), recorded=True)

    async def _until(self, threads: Mapping[str, str], mode: str, me: Any, happened: asyncio.Event) -> None:
        """Return when enough targets have an outcome, or the operator typed something."""
        with self.swarm.watching([*threads, me.thread], happened):
            while not self._enough(threads, mode, me):
                happened.clear()
                await happened.wait()

    def _enough(self, threads: Mapping[str, str], mode: str, me: Any) -> bool:
        settled = [self.swarm.settled(thread) for thread in threads]
        return (all(settled) if mode == "all" else any(settled)) or me.has_input()

    def _threads(self, args: WaitArgs, me: Agent) -> dict[str, str]:
        """Thread id → target as it was given. A closed agent still answers with its last status."""
        found: dict[str, str] = {}
        for target in args.targets or []:
            try:
                found[self.swarm.thread_of(me.path, target)] = target
            except (UnknownAgent, PathError) as error:
                raise ToolError(str(error)) from error
        if (own := found.get(me.thread)) is not None:
            raise ToolError(f"{own!r} is your own path; you cannot wait for yourself")
        return found

    def _name(self, thread: str) -> str:
        agent = self.swarm.state.agents.get(thread)
        return agent.nickname if agent is not None else thread


class ListArgs(ToolArgs):
    path_prefix: str | None = Field(default=None, description="Only agents at or below this path.")


class ListAgents(SwarmTool):
    name = "list_agents"
    Args = ListArgs
    category = "other"

    async def run(self, args: ListArgs, ctx: ToolContext) -> ToolOutput:
        prefix = None
        if args.path_prefix:
            try:
                prefix = resolve(ctx.path, args.path_prefix)
            except PathError as error:
                raise ToolError(str(error)) from error
        rows = sorted(
            (
                a
                for a in self.swarm.state.agents.values()
                if a.status != "shutdown" and a.job is None and (prefix is None or is_within(a.path, prefix))
            ),
            key=lambda a: (a.path != "/root", a.path, a.order),
        )
        places = self.swarm.state.places()
        listed: list[msgspec.Raw] = []
        room = LIST_CHARS
        for agent in rows:
            row = msgspec.json.encode(self._row(agent, places.get(agent.thread)))
            room -= len(row)
            if room < 0:
                break
            listed.append(msgspec.Raw(row))
        answer: dict[str, Any] = {"agents": listed}
        if left := len(rows) - len(listed):
            answer["left_out"] = f"{left} more agents; path_prefix lists those below one path"
        return ToolOutput(text=_json(answer))

    def _row(self, agent: AgentState, place: int | None) -> dict[str, Any]:
        status = status_json(agent)
        if isinstance(status, dict):
            status = {word: shorten(text, STATUS_CHARS) for word, text in status.items()}
        row = {
            "agent_name": agent.path,
            "nickname": agent.nickname,
            "agent_status": status,
            "task": agent.task,
            "tokens": agent.tokens.total if agent.tokens is not None else None,
        }
        if waiting := waits_for(agent.wait, place, self.swarm.clock.now()):
            row["waiting"] = waiting
        return row


class TargetArgs(ToolArgs):
    target: str = Field(description="Path (absolute, or below your own) or id of the agent.")


class StopTool(SwarmTool):
    """Common rules of interrupt and close: not the root, not oneself or those one stands below."""

    Args = TargetArgs
    category = "task"

    def target(self, args: TargetArgs, ctx: ToolContext) -> str:
        try:
            agent = self.swarm.find(ctx.path, args.target)
        except RULES as error:
            raise ToolError(str(error)) from error
        if agent is self.swarm.root:
            raise ToolError(f"{self.name}: the root can only be stopped by the operator")
        if is_within(ctx.path, agent.path):
            raise ToolError(f"{self.name}: an agent cannot stop itself or an agent it works for")
        return agent.thread


class InterruptAgent(StopTool):
    name = "interrupt_agent"

    async def run(self, args: TargetArgs, ctx: ToolContext) -> ToolOutput:
        thread = self.target(args, ctx)
        previous = status_json(self.swarm.state.agents.get(thread))
        stopped = await self.swarm.interrupt(thread, by=ctx.path, tell=False)
        word = "interrupted" if stopped else "nothing was running"
        await ctx.emit(source=self.name, status=word, about=thread)
        return ToolOutput(text=_json({"previous_status": previous}), recorded=True)


class CloseAgent(StopTool):
    name = "close_agent"

    async def run(self, args: TargetArgs, ctx: ToolContext) -> ToolOutput:
        thread = self.target(args, ctx)
        previous = status_json(self.swarm.state.agents.get(thread))
        closed = await self.swarm.close(thread, by=ctx.path)
        for one in reversed(closed):
            await ctx.emit(source=self.name, status="shutdown", about=one)
        return ToolOutput(text=_json({"previous_status": previous}), recorded=True)


class ResumeAgent(SwarmTool):
    """Any closed agent but a job's worker; of an open one (the caller, say) it tells the status."""

    name = "resume_agent"
    Args = TargetArgs
    category = "task"

    async def run(self, args: TargetArgs, ctx: ToolContext) -> ToolOutput:
        try:
            thread = self.swarm.thread_of(ctx.path, args.target)
            back = await self.swarm.comeback.resume(thread, by=ctx.path)
        except RULES as error:
            raise ToolError(str(error)) from error
        agents = self.swarm.state.agents
        for one in back or [thread]:
            known = agents.get(one)  # None: it is only just being started
            await ctx.emit(source=self.name, status=known.status if known else "pending_init", about=one)
        answer = {"status": status_json(agents.get(thread)), "resumed": [agents[one].path for one in back]}
        return ToolOutput(text=_json(answer), recorded=True)


def control_tools(swarm: Swarm) -> list[Tool]:
    return [
        kind(swarm)
        for kind in (
            SpawnAgent,
            SendMessage,
            FollowupTask,
            WaitAgent,
            ListAgents,
            InterruptAgent,
            CloseAgent,
            ResumeAgent,
        )
    ]
