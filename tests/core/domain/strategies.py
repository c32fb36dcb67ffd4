"""Events for properties: `random_events` are anything that decodes, `plausible` is what an engine could write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import SwarmState
from core.domain.status import Usage, Wait

START = datetime(2026, 1, 1, tzinfo=UTC)
EVENT_TYPES: tuple[type[e.Event], ...] = e.AnyEvent.__args__  # type: ignore[attr-defined]

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[31mred\x1b[0m\x9b2J\u202egnp\x00\u2066\x85\U000e0041"
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "ok", "two\nlines", HOSTILE, "null", "[bold]x[/bold]"]),
)
_times = st.integers(0, 10_000).map(lambda seconds: START + timedelta(seconds=seconds))
_usage = st.builds(
    Usage,
    input=st.integers(0, 1000),
    cached=st.integers(0, 1000),
    output=st.integers(0, 1000),
    reasoning=st.integers(0, 1000),
    total=st.integers(0, 2000),
)
_waits = st.builds(
    Wait,
    reason=st.sampled_from(["slot", "rate_limit", "approval", "agents", "job", "mail", "retry"]),
    detail=texts,
    until=st.none() | _times,
)
# Small pools, so that random events meet each other.
_POOLS = {
    "agent": st.sampled_from(["t0", "t1", "t2", None]),
    "parent": st.sampled_from(["t0", "t1", None]),
    "call": st.sampled_from(["c0", "c1"]),
    "mail": st.sampled_from(["m0", "m1"]),
    "approval": st.sampled_from(["p0", "p1"]),
    "job": st.sampled_from(["j0", "j1"]),
    "item": st.sampled_from(["i0", "i1"]),
    "worker": st.sampled_from(["t1", "t2"]),
    "v": st.just(1),
    "seq": st.just(0),
    "swarm": st.just(""),
    "at": _times,
    "usage": st.none() | _usage,
    "wait": st.none() | _waits,
}


def _field(kind: type[e.Event], field: msgspec.structs.FieldInfo) -> st.SearchStrategy[Any]:
    if kind is e.Reasoning and field.name == "item":
        return st.none() | st.dictionaries(texts, texts, max_size=2)
    if field.name in _POOLS:
        return _POOLS[field.name]
    if field.type is str:
        return texts
    if field.type is float:
        return st.floats(0, 1e6)
    if field.type is int:
        return st.integers(0, 20)
    return st.from_type(field.type)


def event_of(kind: type[e.Event]) -> st.SearchStrategy[e.Event]:
    fields = {field.name: _field(kind, field) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


random_events = st.lists(st.one_of([event_of(kind) for kind in EVENT_TYPES]), max_size=40)

Choice = tuple[int, int, str]
choices = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 1000), texts), min_size=1, max_size=60)


class Plot:
    """Turns arbitrary choices into a history that an engine could have written."""

    def __init__(self) -> None:
        self.state = SwarmState(swarm="s")
        self.events: list[e.Event] = []
        self._count = 0
        self._tell(e.SwarmStarted(title="title", cwd="/work", model="m", source="exec"))
        self._tell(e.AgentSpawned(agent="t0", path="/root", nickname="Iris"))
        self._rows: dict[str, list[tuple[str, int, str]]] = {}

    def _tell(self, event: e.Event) -> None:
        at = START + timedelta(seconds=len(self.events))
        stamped = msgspec.structs.replace(event, seq=self.state.seq + 1, at=at, swarm="s")
        apply(self.state, stamped)
        self.events.append(event)

    def _new(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"

    def take(self, choice: Choice) -> None:
        action, pick, text = choice
        open_agents = [a for a in self.state.agents.values() if a.status != "shutdown"]
        agent = open_agents[pick % len(open_agents)] if open_agents else None
        if agent is None:
            return
        thread = agent.thread
        match action:
            case 0:
                name = self._new("a")
                self._tell(
                    e.AgentSpawned(
                        agent=self._new("t"),
                        path=f"{agent.path}/{name}",
                        nickname=name,
                        parent=thread,
                        depth=agent.depth + 1,
                        task=text,
                        call="c1" if pick % 2 else None,
                    )
                )
            case 1 if agent.status == "pending_init":
                failed = pick % 5 == 0
                event = e.AgentFailed(agent=thread, error=text) if failed else e.AgentReady(agent=thread)
                self._tell(event)
            case 2 if agent.status not in ("pending_init", "running"):
                self._tell(e.TurnStarted(agent=thread, turn=self._new("u")))
            case 3 if agent.turn is not None:
                self._end_turn(thread, agent.turn, pick, text)
            case 4:
                mail, kind = self._new("m"), ("INPUT", "NEW_TASK", "MESSAGE")[pick % 3]
                self._tell(
                    e.MailQueued(agent=thread, mail=mail, author="/root", kind=kind, text=text, trigger=pick % 2 == 0)
                )
            case 5 if self.state.mail:
                self._deliver(pick, text)
            case 6 if agent.turn is not None:
                self._tell(
                    e.ToolCalled(
                        agent=thread, call=self._new("c"), name="exec_command", arguments='{"cmd": "ls"}', brief=text
                    )
                )
            case 7 | 8 if self.state.calls:
                call = list(self.state.calls.values())[pick % len(self.state.calls)]
                about = [None, "t0", text or "x"][pick % 3]
                self._tell(
                    e.ToolResult(
                        agent=call.thread, call=call.call, index=call.events, source="shell", text=text, about=about
                    )
                )
            case 9 if self.state.calls:
                call = list(self.state.calls.values())[pick % len(self.state.calls)]
                status = ("ok", "error", "refused", "aborted")[pick % 4]
                self._tell(e.ToolEnded(agent=call.thread, call=call.call, status=status, output=text, seconds=0.5))
            case 10 if agent.turn is not None:
                usage = None if pick % 3 == 0 else Usage(input=pick, output=1, total=pick + 1)
                self._tell(e.AssistantMessage(agent=thread, text=text))
                self._tell(e.ResponseCompleted(agent=thread, response=self._new("r"), usage=usage))
            case 11:
                if self.state.approvals and pick % 2:
                    approval = next(iter(self.state.approvals.values()))
                    self._tell(
                        e.ApprovalDecided(
                            agent=approval.thread, approval=approval.approval, decision="denied", by="operator"
                        )
                    )
                else:
                    self._tell(
                        e.ApprovalRequested(
                            agent=thread, approval=self._new("p"), call="c", command=text, argv=("rm", text), cwd="/"
                        )
                    )
            case 12 if pick % 4 == 0 and agent.parent is not None:
                self._tell(e.AgentClosed(agent=thread, by="operator"))
            case 13:
                wait = None if pick % 2 else Wait(reason="slot", detail=text, until=START)
                self._tell(e.AgentWaits(agent=thread, wait=wait))
            case 14:
                self._job(thread, pick, text)
            case 15:
                self._tell(e.Notice(agent=thread, text=text, level="warning"))
                self._tell(e.ModelRetry(agent=thread, attempt=1, delay=0.5, reason=text))
                self._tell(e.Reasoning(agent=thread, summary=text, item={"encrypted_content": "x"}))
            case _:
                return

    def _end_turn(self, thread: str, turn: str, pick: int, text: str) -> None:
        endings: list[e.Event] = [
            e.TurnCompleted(agent=thread, turn=turn, message=text or None),
            e.TurnFailed(agent=thread, turn=turn, error=text),
            e.TurnInterrupted(agent=thread, turn=turn, by="operator", reason=text),
        ]
        self._tell(endings[pick % 3])

    def _deliver(self, pick: int, text: str) -> None:
        mail, queued = list(self.state.mail.items())[pick % len(self.state.mail)]
        if queued.kind == "INPUT":
            self._tell(e.UserMessage(agent=queued.thread, text=text, mail=mail))
        else:
            self._tell(e.AgentMessage(agent=queued.thread, kind="MESSAGE", author="/root", text=text, mail=mail))

    def _job(self, thread: str, pick: int, text: str) -> None:
        jobs = [job for job in self.state.jobs.values() if not job.ended]
        if not jobs or pick % 7 == 0:
            self._tell(
                e.JobCreated(
                    agent=thread,
                    job=self._new("j"),
                    name=text,
                    instruction=text,
                    input_path="in.csv",
                    output_path=None,
                    total=3,
                    concurrency=2,
                )
            )
            return
        job = jobs[pick % len(jobs)]
        running = self._rows.setdefault(job.job, [])
        if job.status == "pending":
            self._tell(e.JobStarted(agent=job.owner, job=job.job, concurrency=2))
        elif running and pick % 2:
            item, row, worker = running.pop()
            status = ("completed", "failed", "pending")[pick % 3]
            self._tell(
                e.JobRowEnded(
                    agent=job.owner,
                    job=job.job,
                    item=item,
                    row_index=row,
                    attempt=1,
                    status=status,
                    worker=worker,
                    error=text if status != "completed" else None,
                    result="{}" if status == "completed" else None,
                )
            )
        elif job.pending:
            row = (item := self._new("i"), pick % 3, self._new("w"))
            running.append(row)
            self._tell(
                e.JobRowClaimed(
                    agent=job.owner, job=job.job, item=item, row_index=row[1], attempt=1, worker=row[2]
                )
            )
        else:
            self._tell(e.JobEnded(agent=job.owner, job=job.job, status="completed", error=text or None))


def _plot(steps: list[Choice]) -> list[e.Event]:
    plot = Plot()
    for step in steps:
        plot.take(step)
    return plot.events


plausible = choices.map(_plot)


def stamp(events: list[e.Event], swarm: str = "s") -> list[e.AnyEvent]:
    """As the store's writer would hand them out."""
    return [
        msgspec.structs.replace(event, seq=seq, at=START + timedelta(seconds=seq), swarm=swarm)
        for seq, event in enumerate(events, 1)
    ]


def fold(events: list[e.AnyEvent], state: SwarmState | None = None) -> SwarmState:
    state = state or SwarmState(swarm="s")
    for event in events:
        apply(state, event)
    return state
