"""Events for properties: `random_events` is anything that decodes, `plausible` what an engine could write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import AgentState, SwarmState
from core.domain.status import Budget, Usage, Wait

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
_amounts = st.none() | st.integers(1, 1000)
_money = st.none() | st.floats(0, 1e6)
_images = st.builds(e.Image, blob=texts, media_type=texts, size=st.integers(0, 1000))
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
    "cost": _money,
    "images": st.lists(_images, max_size=2).map(tuple),
    "server": st.sampled_from(["docs", "shop"]),
    "budget": st.builds(
        Budget, tokens=_amounts, cost=_money, per_agent_tokens=_amounts, per_agent_cost=_money
    ),
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
    if field.type == float | None:
        return _money
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
        if open_agents:
            steps = (self._life, self._talk, self._call, self._ask, self._job, self._note)
            steps[action % len(steps)](open_agents[pick % len(open_agents)], pick, text)

    def _life(self, agent: AgentState, pick: int, text: str) -> None:
        thread = agent.thread
        if pick % 7 == 0:
            name = self._new("a")
            path, call = f"{agent.path}/{name}", "c1" if pick % 2 else None
            spawned = e.AgentSpawned(
                agent=self._new("t"), path=path, nickname=name, parent=thread, depth=1, task=text, call=call
            )
            self._tell(spawned)
        elif pick % 11 == 0 and agent.parent is not None:
            self._tell(e.AgentClosed(agent=thread, by="operator", top=agent.parent if pick % 2 else None))
        elif pick % 13 == 0 and (closed := [a for a in self.state.agents.values() if a.status == "shutdown"]):
            self._tell(e.AgentResumed(agent=closed[pick % len(closed)].thread, by="operator"))
        elif agent.status == "pending_init":
            failed = pick % 5 == 0
            self._tell(e.AgentFailed(agent=thread, error=text) if failed else e.AgentReady(agent=thread))
        elif agent.turn is None:
            self._tell(e.TurnStarted(agent=thread, turn=self._new("u")))
        else:
            self._end_turn(thread, agent.turn, pick, text)

    def _talk(self, agent: AgentState, pick: int, text: str) -> None:
        if self.state.mail and pick % 2:
            mail, queued = list(self.state.mail.items())[pick % len(self.state.mail)]
            to = queued.thread
            if queued.kind == "INPUT":
                self._tell(e.UserMessage(agent=to, text=text, mail=mail))
            else:
                self._tell(e.AgentMessage(agent=to, kind="MESSAGE", author="/root", text=text, mail=mail))
            return
        kind = ("INPUT", "NEW_TASK", "MESSAGE")[pick % 3]
        self._tell(
            e.MailQueued(
                agent=agent.thread,
                mail=self._new("m"),
                author="/root",
                kind=kind,
                text=text,
                trigger=pick % 2 == 0,
            )
        )

    def _call(self, agent: AgentState, pick: int, text: str) -> None:
        if not self.state.calls or pick % 3 == 0:
            call = self._new("c")
            self._tell(e.ToolCalled(agent=agent.thread, call=call, name="exec", arguments="{}", brief=text))
            return
        running = list(self.state.calls.values())[pick % len(self.state.calls)]
        if pick % 3 == 1:
            about = [None, "t0", text or "x"][pick % 9 // 3]
            self._tell(
                e.ToolResult(
                    agent=running.thread,
                    call=running.call,
                    index=running.events,
                    source="shell",
                    text=text,
                    about=about,
                )
            )
        else:
            status = ("ok", "error", "refused", "aborted")[pick % 4]
            self._tell(e.ToolEnded(agent=running.thread, call=running.call, status=status, output=text))

    def _ask(self, agent: AgentState, pick: int, text: str) -> None:
        if self.state.approvals and pick % 2:
            asked = next(iter(self.state.approvals.values()))
            self._tell(
                e.ApprovalDecided(
                    agent=asked.thread, approval=asked.approval, decision="denied", by="operator"
                )
            )
            return
        self._tell(
            e.ApprovalRequested(
                agent=agent.thread,
                approval=self._new("p"),
                call="c",
                command=text,
                argv=("rm", text),
                cwd="/",
            )
        )

    def _note(self, agent: AgentState, pick: int, text: str) -> None:
        thread = agent.thread
        wait = None if pick % 2 else Wait(reason="slot", detail=text, until=START)
        usage = None if pick % 3 == 0 else Usage(input=pick, output=1, total=pick + 1)
        notes: list[list[e.Event]] = [
            [e.AgentWaits(agent=thread, wait=wait)],
            [e.Notice(agent=thread, text=text, level="warning")],
            [e.ModelRetry(agent=thread, attempt=1, delay=0.5, reason=text)],
            [e.Reasoning(agent=thread, summary=text, item={"encrypted_content": "x"})],
            [
                e.AssistantMessage(agent=thread, text=text),
                e.ResponseCompleted(agent=thread, response="r", usage=usage),
            ],
        ]
        for event in notes[pick % len(notes)]:
            self._tell(event)

    def _end_turn(self, thread: str, turn: str, pick: int, text: str) -> None:
        endings: list[e.Event] = [
            e.TurnCompleted(agent=thread, turn=turn, message=text or None),
            e.TurnFailed(agent=thread, turn=turn, error=text),
            e.TurnInterrupted(agent=thread, turn=turn, by="operator", reason=text),
        ]
        self._tell(endings[pick % 3])

    def _job(self, agent: AgentState, pick: int, text: str) -> None:
        jobs = [job for job in self.state.jobs.values() if not job.ended]
        if not jobs or pick % 7 == 0:
            self._tell(
                e.JobCreated(
                    agent=agent.thread,
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
        elif pick % 3 == 0 and job.status == "running":
            self._tell(e.JobPaused(agent=job.owner, job=job.job, reason=text))
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
