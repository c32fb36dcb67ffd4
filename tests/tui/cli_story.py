"""Events of small swarms, as an engine would record them."""

from __future__ import annotations

from core.domain import events as e
from tests.tui.cli_client import JOB, ROOT

IRIS, WORKER = "thread-iris", "thread-worker"


def opening(task: str = "Count the lines.") -> list[e.AnyEvent]:
    return [
        e.SwarmStarted(title=task, cwd="/w", model="m", source="exec", server="scripted:x", sandboxed=True),
        e.AgentSpawned(agent=ROOT, path="/root", nickname="root"),
        e.AgentReady(agent=ROOT),
        e.TurnStarted(agent=ROOT, turn="t1"),
        e.UserMessage(agent=ROOT, text=task),
    ]


def answered(text: str = "42 lines.\nThat is all.") -> list[e.AnyEvent]:
    return [e.AssistantMessage(agent=ROOT, text=text), e.TurnCompleted(agent=ROOT, turn="t1", message=text)]


def failed(error: str) -> list[e.AnyEvent]:
    return [e.TurnFailed(agent=ROOT, turn="t1", error=error)]


def iris_at_work() -> list[e.AnyEvent]:
    """A sub-agent that runs a command, asks for another, and ends."""
    return [
        e.ToolCalled(agent=ROOT, call="c1", name="spawn_agent", arguments="{}", brief="audit"),
        e.AgentSpawned(
            agent=IRIS, path="/root/audit", nickname="iris", parent=ROOT, depth=1, task="Audit the build."
        ),
        e.ToolEnded(agent=ROOT, call="c1", status="ok", seconds=0.8),
        e.AgentReady(agent=IRIS),
        e.TurnStarted(agent=IRIS, turn="t2"),
        e.ToolCalled(agent=IRIS, call="c1", name="exec_command", arguments="{}", brief="wc -l a.py"),
        e.ToolResult(agent=IRIS, call="c1", index=0, source="exec_command", text="12 a.py\n"),
        e.ToolEnded(agent=IRIS, call="c1", status="ok", seconds=0.1),
        e.ModelRetry(agent=IRIS, attempt=2, delay=1.5, reason="example.org: 500: try later"),
        e.ToolCalled(agent=IRIS, call="c2", name="exec_command", arguments="{}", brief="rm -r build/"),
        e.ApprovalRequested(
            agent=IRIS,
            approval="a1",
            call="c2",
            command="exec_command rm -r build/",
            cwd="/w",
            reason="not on the list",
        ),
        e.ApprovalDecided(approval="a1", agent=IRIS, decision="approved", by="operator"),
        e.ToolEnded(agent=IRIS, call="c2", status="error", seconds=2.0),
        e.TurnCompleted(agent=IRIS, turn="t2", message="Two files,\none stale."),
    ]


def job(total: int = 3, failures: int = 1, *, output: str | None = "/w/out.csv") -> list[e.AnyEvent]:
    """A job of its own root: `failures` rows fail, the others complete."""
    events: list[e.AnyEvent] = [
        e.SwarmStarted(title="job", cwd="/w", model="m", source="job", server="scripted:x"),
        e.AgentSpawned(agent=ROOT, path="/root", nickname="root"),
        e.JobCreated(
            agent=ROOT,
            job=JOB,
            name="count",
            instruction="Count {path}",
            input_path="/w/in.csv",
            output_path=output,
            total=total,
            concurrency=2,
        ),
        e.JobStarted(job=JOB, concurrency=2),
    ]
    for index in range(total):
        worker, item = f"{WORKER}-{index}", f"row-{index + 1}"
        bad = index < failures
        events += [
            e.JobRowClaimed(job=JOB, item=item, row_index=index, attempt=1, worker=worker),
            e.AgentSpawned(
                agent=worker, path=f"/root/job_{index}", nickname=f"w{index}", parent=ROOT, job=JOB, item=item
            ),
            e.TurnStarted(agent=worker, turn=f"t{index}"),
            e.ToolCalled(agent=worker, call="c1", name="exec_command", arguments="{}", brief="wc -l x"),
            e.ToolEnded(agent=worker, call="c1"),
        ]
        if bad:
            events.append(e.TurnFailed(agent=worker, turn=f"t{index}", error="the model said no"))
        else:
            events.append(e.TurnCompleted(agent=worker, turn=f"t{index}", message="done"))
        events += [
            e.JobRowEnded(
                job=JOB,
                item=item,
                row_index=index,
                attempt=1,
                worker=worker,
                status="failed" if bad else "completed",
                error="the model said no" if bad else None,
            ),
            e.AgentClosed(agent=worker, by="engine"),
        ]
    if output is not None:
        events.append(e.JobExported(job=JOB, path=output, rows=total))
    events.append(e.JobEnded(job=JOB, status="completed"))
    return events
