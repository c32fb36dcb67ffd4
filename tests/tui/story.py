"""A swarm as events: an audit with grandchildren, a failure, an approval, a job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from core.domain import events as e
from core.domain.commands import JobRow
from core.domain.status import Usage, Wait

SWARM = "01990000-0000-7000-8000-000000000000"
START = datetime(2026, 11, 20, 9, 41, 2, tzinfo=UTC)
NOW = START + timedelta(minutes=12, seconds=4)
JOB = "0b0e4d1e-0000-4000-8000-000000000001"


def thread(number: int) -> str:
    return f"01990000-0000-7000-8000-{number:012x}"


class Story:
    """Builds a journal: stamps seq, swarm and time. `at` of an event is seconds after START."""

    def __init__(self, swarm: str = SWARM) -> None:
        self.swarm = swarm
        self.events: list[e.AnyEvent] = []
        self.names: dict[str, str] = {}
        self.at = 0.0

    def add(self, event: Any, at: float | None = None) -> Any:
        self.at = self.at if at is None else at
        stamped = replace(
            event, seq=len(self.events) + 1, swarm=self.swarm, at=START + timedelta(seconds=self.at)
        )
        self.events.append(stamped)
        return stamped

    def start(self, title: str = "audit-2026-11-20", *, sandboxed: bool = True) -> None:
        self.add(
            e.SwarmStarted(
                title=title, cwd="/work/demo", model="demo", source="console", sandboxed=sandboxed
            ),
            0.0,
        )

    def spawn(self, name: str, parent: str | None, task: str, at: float, **fields: Any) -> str:
        """Register an agent and start its first turn. Returns its thread id."""
        number = len(self.names) + 1
        up = self.path(parent) if parent is not None else ""
        self.names[thread(number)] = path = f"{up}/{name}" if up else "/root"
        self.add(
            e.AgentSpawned(
                agent=thread(number),
                path=path,
                nickname=name,
                parent=parent,
                depth=path.count("/") - 1,
                task=task,
                **fields,
            ),
            at,
        )
        self.add(e.AgentReady(agent=thread(number)))
        return thread(number)

    def path(self, agent: str) -> str:
        return self.names[agent]

    def turn(self, agent: str, at: float | None = None) -> None:
        self.add(e.TurnStarted(agent=agent, turn=f"t-{agent[-4:]}"), at)

    def done(self, agent: str, message: str, at: float) -> None:
        self.add(e.TurnCompleted(agent=agent, turn=f"t-{agent[-4:]}", message=message), at)

    def fails(self, agent: str, error: str, at: float) -> None:
        self.add(e.TurnFailed(agent=agent, turn=f"t-{agent[-4:]}", error=error), at)

    def tokens(self, agent: str, total: int) -> None:
        usage = Usage(input=total - 100, output=100, total=total)
        self.add(e.ResponseCompleted(agent=agent, response="r", usage=usage))

    def call(self, agent: str, call: str, name: str, brief: str, at: float) -> None:
        self.add(e.ToolCalled(agent=agent, call=call, name=name, arguments="{}", brief=brief), at)

    def result(
        self,
        agent: str,
        call: str,
        index: int,
        text: str,
        at: float,
        status: str = "",
        about: str | None = None,
        source: str = "function_call_output",
    ) -> None:
        event = e.ToolResult(
            agent=agent, call=call, index=index, source=source, text=text, status=status, about=about
        )
        self.add(event, at)

    def ended(
        self, agent: str, call: str, seconds: float, status: Any = "ok", at: float | None = None
    ) -> None:
        self.add(e.ToolEnded(agent=agent, call=call, seconds=seconds, status=status), at)


def audit() -> Story:
    """The whole swarm, as it stands at NOW."""
    s = Story()
    s.start()
    root = s.spawn("root", None, "Audit every module and write the report.", 0)
    s.add(e.UserMessage(agent=root, text="Audit every module and write the report."), 0)
    s.turn(root)
    s.add(e.AssistantMessage(agent=root, text="I'll split this by module and start three agents."), 3)
    s.call(root, "c1", "spawn_agent", "atlas  “map the repo…”", 4)
    atlas = s.spawn("atlas", root, "map the repo", 4.2, call="c1")
    s.result(root, "c1", 0, "/root/atlas", 4.4, "spawned", atlas, "spawn")
    s.ended(root, "c1", 0.8, at=4.8)
    s.turn(atlas)
    s.call(root, "c2", "spawn_agent", "ember  “score the CSV…”", 5)
    ember = s.spawn("ember", root, "score the CSV", 5.2, call="c2")
    s.result(root, "c2", 0, "/root/ember", 5.4, "spawned", ember, "spawn")
    s.ended(root, "c2", 0.7, at=5.7)
    s.turn(ember)
    iris = s.spawn("iris", root, "clean the build folder", 6.5, call="c3")
    s.turn(iris)
    birch = s.spawn("birch", atlas, "read core", 20)
    s.turn(birch)
    cedar = s.spawn("cedar", atlas, "read tui", 21)
    s.turn(cedar)
    s.call(root, "c4", "wait_agent", "atlas, ember, iris", 25)
    s.add(e.AgentWaits(agent=root, wait=Wait(reason="agents", detail="3 agents")), 25)
    _work(s)
    _job(s, ember, [thread(7), thread(8), thread(9)])
    _now(s)
    return s


def _work(s: Story) -> None:
    root, atlas, ember, iris, birch, cedar = (thread(number) for number in range(1, 7))
    del atlas, iris
    s.call(birch, "b1", "exec_command", "wc -l core/*.py", 60)
    s.result(birch, "b1", 0, "".join(f"{40 + 7 * i:6d} core/module_{i:02}.py\n" for i in range(30)), 61)
    s.ended(birch, "b1", 1.2, at=61.2)
    s.tokens(birch, 12_000)
    s.done(birch, "core has 14 modules", 98)
    s.result(root, "c4", 0, "core has 14 modules", 98, "completed", birch, "wait_output")
    s.tokens(cedar, 11_200)
    s.done(cedar, "tui has 9 widgets", 200)
    fjord = s.spawn("fjord", ember, "csv rows 1-40", 120)
    s.turn(fjord)
    grove = s.spawn("grove", ember, "csv rows 41-80", 121)
    s.turn(grove)
    heron = s.spawn("heron", ember, "csv rows 81-120", 122)
    s.turn(heron)
    s.add(e.AgentWaits(agent=ember, wait=Wait(reason="agents", detail="2 of 3 agents")), 125)
    s.tokens(fjord, 18_000)
    s.done(fjord, "40 rows scored", 290)
    s.tokens(heron, 4_100)
    s.fails(heron, "tool timeout after 120 s: the scorer does not answer", 300)
    s.result(root, "c4", 1, "tool timeout after 120 s", 300, "errored", heron, "wait_output")
    juno = s.spawn("juno", root, "draft the summary", 310)
    s.turn(juno)
    s.add(e.TurnInterrupted(agent=juno, turn="t", by="operator"), 420)
    kite = s.spawn("kite", root, "count licences", 320)
    s.turn(kite)
    s.done(kite, "all MIT", 400)
    s.add(e.AgentClosed(agent=kite, by="/root"), 410)


def _now(s: Story) -> None:
    root, atlas, iris, grove = thread(1), thread(2), thread(4), thread(8)
    s.call(iris, "i1", "exec_command", "rm -r build/", 600)
    s.add(
        e.ApprovalRequested(
            agent=iris, approval="ap-1", call="i1", command="rm -r build/", cwd="/work/demo", reason="deletes"
        ),
        601,
    )
    s.add(e.AgentWaits(agent=iris, wait=Wait(reason="approval", detail="rm -r build/")), 601)
    s.tokens(atlas, 44_000)
    s.tokens(grove, 17_000)
    s.tokens(root, 75_000)
    s.call(atlas, "a1", "exec_command", "grep -rn TODO core tui", 690)
    s.call(grove, "g1", "exec_command", "python score.py --rows 41-80", 700)
    s.ended(root, "c4", 478.0, at=710)
    s.add(e.AgentWaits(agent=root, wait=None))
    s.add(e.AssistantMessage(agent=root, text="heron failed; its rows go to grove again."), 711)
    s.call(root, "c5", "exec_command", "pytest -q tests/core", 712)
    s.result(root, "c5", 0, "\n".join(f"tests/core/test_{i}.py ....... [{i}%]" for i in range(1, 61)), 720)
    s.ended(root, "c5", 8.2, at=720.2)
    s.call(root, "c6", "exec_command", "cat report.md", 721)
    s.result(root, "c6", 0, "cat: report.md: No such file or directory", 721.4, "exit 1")
    s.ended(root, "c6", 0.4, "error", at=721.4)


def _job(s: Story, owner: str, workers: list[str]) -> None:
    s.add(
        e.JobCreated(
            agent=owner,
            job=JOB,
            name="score-csv",
            instruction="Score {file}.",
            input_path="rows.csv",
            output_path="scores.csv",
            total=120,
            concurrency=16,
        ),
        430,
    )
    s.add(e.JobStarted(job=JOB, concurrency=16))
    for index in range(44):
        worker = workers[index % 3]
        claim = e.JobRowClaimed(job=JOB, item=f"item-{index}", row_index=index, attempt=1, worker=worker)
        s.add(claim, 431 + index * 6)
        if index in (3, 17, 41):
            end = {"status": "failed", "error": "tool timeout"}
        elif index < 41:
            end = {"status": "completed", "result": f'{{"score": 0.{index + 10}}}'}
        else:
            continue
        s.add(
            e.JobRowEnded(job=JOB, item=f"item-{index}", row_index=index, attempt=1, worker=worker, **end),
            435 + index * 6,
        )


def job_rows(s: Story, total: int = 120) -> list[JobRow]:
    """The rows of the story's job as a store would have them now."""
    rows = [
        JobRow(item=f"item-{i}", row_index=i, status="pending", label=f"acme-{i:03}.json")
        for i in range(total)
    ]
    for event in s.events:
        at = event.at.isoformat()
        if isinstance(event, e.JobRowClaimed):
            row = rows[event.row_index]
            rows[event.row_index] = replace(
                row, status="running", attempt=event.attempt, worker=event.worker, started_at=at
            )
        elif isinstance(event, e.JobRowEnded):
            row = rows[event.row_index]
            rows[event.row_index] = replace(
                row, status=event.status, result=event.result, error=event.error, ended_at=at
            )
    return rows


def hostile(payload: str) -> Story:
    """A swarm in which every text that comes from outside holds `payload`."""
    s = Story()
    s.start(f"title {payload}", sandboxed=False)
    root = s.spawn("root", None, f"task {payload}", 0)
    s.add(e.UserMessage(agent=root, text=f"input {payload} end\nsecond {payload} line"), 1)
    s.turn(root)
    s.add(e.AssistantMessage(agent=root, text=f"answer {payload} end"), 2)
    s.add(e.Reasoning(agent=root, summary=f"thought {payload} end"), 3)
    s.add(e.Notice(agent=root, text=f"notice {payload} end", level="warning"), 3)
    s.add(e.ModelRetry(agent=root, attempt=1, delay=1, reason=f"server {payload} says"), 3)
    s.call(root, "c1", f"tool{payload}", f"brief {payload} end", 4)
    child = s.spawn(f"nick{payload}", root, f"task {payload}", 5, call="c1")
    s.turn(child)
    s.result(root, "c1", 0, f"result {payload} end", 6, f"status{payload}", child, f"source{payload}")
    s.result(root, "c1", 1, f"one {payload}\ntwo {payload}\n", 6, "", f"about{payload}", f"source{payload}")
    s.ended(root, "c1", 1.0, "error", at=7)
    s.add(e.AgentMessage(agent=root, kind="MESSAGE", author=f"/root/x{payload}", text=f"mail {payload}"), 8)
    failed = s.spawn("heron", root, "fails", 9)
    s.turn(failed)
    s.fails(failed, f"error {payload} end", 10)
    s.call(child, "k1", "exec_command", f"command {payload}", 11)
    s.add(
        e.ApprovalRequested(
            agent=child,
            approval="ap",
            call="k1",
            command=f"rm {payload} end",
            cwd=f"/work/{payload}",
            reason=f"why {payload}",
        ),
        12,
    )
    s.add(e.AgentWaits(agent=child, wait=Wait(reason="approval", detail=f"detail {payload}")), 12)
    s.add(
        e.JobCreated(
            agent=root,
            job=JOB,
            name=f"job {payload}",
            instruction="x",
            input_path="x",
            output_path=None,
            total=3,
            concurrency=1,
        ),
        13,
    )
    s.add(e.JobStarted(job=JOB, concurrency=1), 13)
    return s


def hostile_rows(payload: str) -> list[JobRow]:
    return [
        JobRow(
            item=f"item{payload}",
            row_index=index,
            status=("completed", "failed", "pending")[index],
            attempt=1,
            worker=f"worker{payload}",
            label=f"label {payload} end",
            result=f'{{"x": "{payload}"}}' if index == 0 else None,
            error=f"error {payload}" if index == 1 else None,
        )
        for index in range(3)
    ]
