"""A swarm run without a console: started, followed to its end, told in lines or JSON."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from core.channel.client import Client
from core.config import Settings
from core.domain.commands import Decide, Reply, ResumeSwarm, StartSwarm
from core.domain.events import (
    AnyEvent,
    ApprovalRequested,
    JobEnded,
    JobPaused,
    JobStarted,
    TurnInterrupted,
    encode,
)
from core.domain.state import SwarmState
from core.safety.text import clean, clean_line
from core.view.swarm import SwarmView
from tui import exits, signals, spent
from tui.farewell import short_id
from tui.follow import follow
from tui.output import Out, escape_json
from tui.plain import PlainLines
from tui.setup import Connect, glyphs_fit

Mode = Literal["json", "headless", "plain"]
"""json: events on stdout. headless: progress on stderr, the answer on stdout. plain: every line on stdout."""
OUT_OF_MEANS = ("budget", "quota")
"""Who pauses a job that a resume goes on with by itself."""


@dataclass
class Outcome:
    """What is known of a run, also when it was cut short."""

    swarm: str = ""
    thread: str = ""
    status: str = ""
    message: str = ""
    spent: str | None = None
    """What the budget said, if it stopped the run."""
    begun: bool = True
    """Whether the root could start up."""
    stopped: set[str] = field(default_factory=set)
    """Agents whose turn it ended in this run."""
    moved: set[str] = field(default_factory=set)
    """Jobs that were started, paused or ended in this run."""


def run(
    settings: Settings,
    command: StartSwarm | ResumeSwarm,
    mode: Mode,
    *,
    engine: Connect,
    approve: bool = False,
    after: int = 0,
) -> int:
    """Run `command` to its end and print what `mode` asks for. With `approve` every ask is approved at once
    (the demo's own, decision 28). Of a swarm that is resumed only events behind `after` are told."""
    outcome = Outcome()
    code = exits.ERROR
    try:
        code = signals.run(lambda: _run(settings, command, mode, approve, engine, after, outcome))
    except BrokenPipeError:
        code = exits.PIPE
        raise
    finally:
        _close(outcome, code, mode)
    return code


async def _run(
    settings: Settings,
    command: StartSwarm | ResumeSwarm,
    mode: Mode,
    approve: bool,
    engine: Connect,
    after: int,
    outcome: Outcome,
) -> int:
    async with engine(settings) as client:
        reply = accepted(await client.send(command))
        outcome.swarm, outcome.thread = str(reply.value["swarm"]), str(reply.value["thread"])
        view = SwarmView()
        tell = _teller(view, mode)
        if approve:
            tell = _approving(client, outcome.swarm, tell)
        tell = _noting(outcome, tell)
        # A root without a task never ends, so of a swarm that is resumed only what goes on is waited for.
        resumed = isinstance(command, ResumeSwarm)
        over = (lambda state: _at_rest(state, outcome)) if resumed else SwarmState.quiet
        await until_quiet(client, outcome.swarm, view, tell, over, after=after)
        return _judge(view.state, outcome)


Tell = Callable[[AnyEvent], Awaitable[None]]


async def until_quiet(
    client: Client,
    swarm: str,
    view: SwarmView,
    tell: Tell,
    quiet: Callable[[SwarmState], bool] = SwarmState.quiet,
    after: int = 0,
) -> None:
    """Fold every event into `view`, tell those behind `after`, and return once the swarm is quiet. Raises
    Quit if the engine ends before that."""
    async with aclosing(follow(client, swarm, after, view.feed)) as batches:
        async for batch in batches:
            for event in batch:
                view.apply(event)
                await tell(event)
                after = event.seq
            if after >= view.state.seq and quiet(view.state):
                return
    raise exits.Quit(exits.ERROR, f"the engine ended before swarm {swarm} was done")


def accepted(reply: Reply) -> Reply:
    """`reply`, or Quit with its sentence."""
    if not reply.ok:
        raise exits.Quit(exits.USAGE if reply.code == "usage" else exits.ERROR, reply.error)
    return reply


def _teller(view: SwarmView, mode: Mode) -> Tell:
    if mode == "json":
        out = Out.stdout()

        async def tell_json(event: AnyEvent) -> None:
            await out.write(escape_json(encode(event).decode()) + "\n")

        return tell_json
    out = Out.stdout() if mode == "plain" else Out.stderr()
    lines = PlainLines(view, "all" if mode == "plain" else "headless", glyphs=glyphs_fit())

    async def tell_lines(event: AnyEvent) -> None:
        for line in lines.lines(event):
            await out.line(line)

    return tell_lines


def _approving(client: Client, swarm: str, tell: Tell) -> Tell:
    async def tell_and_decide(event: AnyEvent) -> None:
        await tell(event)
        if isinstance(event, ApprovalRequested):
            accepted(
                await client.send(Decide(author="demo", swarm=swarm, approval=event.approval, approve=True))
            )

    return tell_and_decide


def _noting(outcome: Outcome, tell: Tell) -> Tell:
    """Notes whom the budget stops and which jobs move in this run."""

    async def tell_and_note(event: AnyEvent) -> None:
        await tell(event)
        if isinstance(event, TurnInterrupted) and event.by == "budget" and event.agent is not None:
            outcome.stopped.add(event.agent)
        elif isinstance(event, JobStarted | JobPaused | JobEnded):
            outcome.moved.add(event.job)

    return tell_and_note


def _at_rest(state: SwarmState, outcome: Outcome) -> bool:
    """Whether nothing goes on. A job that was out of means is tried again, shortly after the resume."""
    waits = (job for job in state.jobs.values() if job.status == "paused" and job.paused_by in OUT_OF_MEANS)
    return not state.active() and all(job.job in outcome.moved for job in waits)


def _judge(state: SwarmState, outcome: Outcome) -> int:
    root = state.agents.get(outcome.thread)
    if root is None:
        raise exits.Quit(exits.ERROR, f"swarm {outcome.swarm} has lost its root")
    outcome.spent = spent.stopped(state, outcome.stopped)
    if root.status == "idle" and state.jobs:  # a root that only holds a job (decision 30)
        return _judge_jobs(state, outcome)
    if root.status == "idle":
        again = f"watchroom resume {short_id(outcome.swarm)}"
        raise exits.Quit(exits.ERROR, f"the root waits for its first input: {again} on a terminal")
    outcome.status, outcome.message = root.status, root.status_message
    outcome.begun = not root.start_failed
    if outcome.spent is not None:
        return exits.BUDGET
    return exits.OK if root.status == "completed" else exits.ERROR


def _judge_jobs(state: SwarmState, outcome: Outcome) -> int:
    """The exit code of `job run`, for a job that was resumed."""
    for job in state.jobs.values():
        _say(f"job {job.name}: {job.completed} of {job.total} rows done, {job.failed} failed")
        _say(f"its results: watchroom job show {job.job[:8]}")
    for job in state.jobs.values():
        if job.status == "paused" and job.paused_by != "budget":
            why = f": {job.pause_reason}" if job.pause_reason else ""
            _say(f"it is paused by {job.paused_by}{why}")
            _say(f"go on with: watchroom job resume {job.job[:8]}")
            return exits.QUOTA if job.paused_by == "quota" else exits.ERROR
    if any(job.status == "paused" for job in state.jobs.values()):
        outcome.spent = spent.paused(state)
        return exits.BUDGET
    if any(job.status == "failed" for job in state.jobs.values()):
        return exits.ERROR
    whole = all(job.status == "completed" and not job.failed for job in state.jobs.values())
    return exits.OK if whole else exits.FAILED_ROWS


def _close(outcome: Outcome, code: int, mode: Mode) -> None:
    """The last words, after the engine has ended: the answer, or what went wrong and what is kept."""
    if code == exits.OK:
        if mode == "headless" and outcome.message:
            print(clean(outcome.message).rstrip("\n"), flush=True)
        return
    if code == exits.PIPE:
        return
    if code == exits.BUDGET and outcome.spent is not None:
        _say(f"the budget stopped it: {outcome.spent}")
    elif outcome.status == "errored":
        _say(outcome.message)
    elif outcome.status:
        _say(f"the root ended as {outcome.status} {outcome.message}")
    if outcome.thread:
        _say(f"what happened so far is stored: watchroom session show {outcome.thread}")
    if outcome.swarm and outcome.spent is not None:
        _say(f"go on with: {spent.way_on(outcome.swarm, outcome.spent)}")
    elif outcome.swarm and not outcome.begun:
        _say(f"once that is mended, go on with: watchroom resume {short_id(outcome.swarm)}")
    elif outcome.swarm and outcome.status in ("", "interrupted"):
        _say(f"go on with: watchroom resume {short_id(outcome.swarm)}")


def _say(text: str) -> None:
    print(f"watchroom: {clean_line(text)}", file=sys.stderr)
