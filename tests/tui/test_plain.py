from __future__ import annotations

import re
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.state import JobState
from core.domain.status import Budget, Wait
from core.safety.text import is_clean
from core.view.swarm import SwarmView
from tests.tui import cli_story as story
from tests.tui.cli_client import JOB, ROOT, START, stamp
from tui.plain import PlainLines, Scope
from tui.progress import ProgressLine, Rate, duration, line


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def told(events: list[e.AnyEvent], scope: Scope = "all") -> list[str]:
    view = SwarmView()
    plain = PlainLines(view, scope)
    lines: list[str] = []
    for event in stamp(events):
        view.apply(event)
        lines += plain.lines(event)
    return lines


def test_who_waits_for_a_slot_says_its_place_and_who_comes_back_says_by_whom() -> None:
    wait = [e.AgentWaits(agent=agent, wait=Wait(reason="slot", line=n)) for n, agent in ((7, "b"), (9, "c"))]
    born = [
        e.AgentSpawned(agent=agent, path=f"/root/{agent}", nickname=name, parent=ROOT, depth=1)
        for agent, name in (("b", "birch"), ("c", "cedar"))
    ]
    over = [e.AgentClosed(agent="c", by="/root"), e.AgentResumed(agent="c", by="operator")]
    lines = told([*story.opening(), *born, *wait, e.AgentWaits(agent="b"), wait[1], *over])
    assert [line[9:] for line in lines[-6:]] == [
        "cedar spawned by root (/root/c)",
        "birch waits slot: 1st in line",
        "cedar waits slot: 2nd in line",
        "cedar waits slot: 1st in line",
        "cedar closed by /root",
        "cedar resumed by operator",
    ]


def test_a_swarm_in_lines() -> None:
    assert told([*story.opening(), *story.iris_at_work(), *story.answered()]) == [
        "10:03:12 swarm started swarm-1 m on scripted:x (sandboxed)",
        "10:03:16 operator to root: Count the lines.",
        "10:03:17 root calls spawn_agent audit",
        "10:03:18 iris spawned by root (/root/audit) Audit the build.",
        "10:03:19 root ok spawn_agent 0.8s",
        "10:03:22 iris calls exec_command wc -l a.py",
        "10:03:24 iris ok exec_command 0.1s · 12 a.py",
        "10:03:25 iris retry 2 in 1.5 s: example.org: 500: try later",
        "10:03:26 iris calls exec_command rm -r build/",
        "10:03:27 iris needs-you exec_command rm -r build/ (in /w) not on the list",
        "10:03:28 iris approved by operator: exec_command rm -r build/",
        "10:03:29 iris error exec_command 2.0s",
        "10:03:30 iris completed Two files, one stale.",
        "10:03:31 root says 42 lines.\n         That is all.",
        "10:03:32 root completed",
    ]


def test_headless_tells_of_sub_agents_only_what_matters() -> None:
    assert told([*story.opening(), *story.iris_at_work(), *story.answered()], "headless") == [
        "10:03:12 swarm started swarm-1 m on scripted:x (sandboxed)",
        "10:03:17 root calls spawn_agent audit",
        "10:03:25 iris retry 2 in 1.5 s: example.org: 500: try later",
        "10:03:27 iris needs-you exec_command rm -r build/ (in /w) not on the list",
        "10:03:28 iris approved by operator: exec_command rm -r build/",
        "10:03:32 root completed",
    ]


def test_failures_and_interrupts_are_told_in_both_scopes() -> None:
    events = [
        *story.opening(),
        *story.iris_at_work()[:5],
        e.TurnFailed(agent=story.IRIS, turn="t2", error="server said 401"),
        e.AgentSpawned(agent="thread-x", path="/root/x", nickname="juno", parent=ROOT),
        e.AgentFailed(agent="thread-x", error="no such role"),
        e.Notice(agent="thread-x", text="cut short", level="warning"),
        e.Notice(agent="thread-x", text="by the way", level="info"),
        e.TurnInterrupted(agent=ROOT, turn="t1", by="operator", reason="too slow"),
    ]
    for scope in ("all", "headless"):
        text = "\n".join(told(events, scope))  # type: ignore[arg-type]
        assert "iris errored server said 401" in text
        assert "juno failed no such role" in text
        assert "juno warning cut short" in text
        assert "root interrupted by operator: too slow" in text
        assert ("by the way" in text) == (scope == "all")


def test_a_job_is_progress_and_failed_rows_and_no_workers() -> None:
    lines = told(story.job())
    assert not any("w0" in text or "exec_command" in text for text in lines)
    assert [text[9:] for text in lines[1:]] == [
        "job 8184e894 created count 3 rows of /w/in.csv",
        "job 8184e894 row row-1 failed: the model said no",
        "job 8184e894 [######--------------] 1/3 33% ✗1 ◍0 ◌2",
        "job 8184e894 [#############-------] 2/3 66% ✗1 ◍0 ◌1",
        "job 8184e894 [####################] 3/3 100% ✗1 ◍0 ◌0",
        "job 8184e894 wrote 3 rows to /w/out.csv",
        "job 8184e894 completed 2 done, 1 failed of 3",
    ]


def test_progress_of_a_fast_job_is_its_first_and_last_line() -> None:
    view = SwarmView()
    plain = PlainLines(view)
    lines = []
    for seq, event in enumerate(stamp(story.job(50, 0)), 1):
        import msgspec

        event = msgspec.structs.replace(event, at=START + timedelta(milliseconds=seq))
        view.apply(event)
        lines += [text for text in plain.lines(event) if "[" in text]
    assert len(lines) == 2
    assert "1/50" in lines[0]
    assert "50/50" in lines[1]


def test_what_may_be_approved_is_never_shortened() -> None:
    command = "rm " + " ".join(f"file-{n}" for n in range(200))
    events = [
        *story.opening(),
        e.ApprovalRequested(agent=ROOT, approval="a", call="c", command=command, cwd="/w"),
    ]
    assert command in told(events)[-1]


def test_a_call_that_was_cut_off_is_told_without_a_length() -> None:
    called = e.ToolCalled(agent=ROOT, call="c", name="wait_agent", arguments="{}")
    ended = e.ToolEnded(agent=ROOT, call="c", status="aborted")
    assert told([*story.opening(), called, ended])[-1].endswith(" aborted wait_agent")


HOSTILE = st.text(
    alphabet=st.sampled_from(list("ab \n\t[/]\x1b\x9b\x9d\x07\x08\r\u202e\u2066\ufeff\U000e0041m;52c1")),
    max_size=30,
)


@settings(deadline=None)
@given(HOSTILE, st.sampled_from(["all", "headless"]))
def test_no_text_of_an_event_can_drive_a_terminal_or_fake_a_line(text: str, scope: Scope) -> None:
    events: list[e.AnyEvent] = [
        e.SwarmStarted(title=text, cwd=text, model=text, source="exec", server=text),
        e.SwarmResumed(by=text, server=text),
        e.AgentSpawned(agent=ROOT, path="/root", nickname=text),
        e.AgentSpawned(agent="x", path="/root/x", nickname=text, parent=ROOT, task=text),
        e.UserMessage(agent=ROOT, text=text, author=text),
        e.AgentMessage(agent="x", kind="MESSAGE", author=text, text=text),
        e.AssistantMessage(agent=ROOT, text=text),
        e.Notice(agent="x", text=text, level="error"),
        e.ToolCalled(agent=ROOT, call="c", name=text, arguments=text, brief=text),
        e.ToolResult(agent=ROOT, call="c", index=0, source=text, text=text),
        e.ToolEnded(agent=ROOT, call="c", status="error"),
        e.ApprovalRequested(agent="x", approval="a", call="c", command=text, cwd=text, reason=text),
        e.ModelRetry(agent="x", attempt=1, delay=1, reason=text),
        e.TurnFailed(agent="x", turn="t", error=text),
        e.JobCreated(
            agent=ROOT,
            job=JOB,
            name=text,
            instruction="",
            input_path=text,
            output_path=None,
            total=1,
            concurrency=1,
        ),
        e.JobRowEnded(job=JOB, item=text, row_index=0, attempt=1, status="failed", error=text),
        e.JobExported(job=JOB, path=text, rows=1),
    ]
    for said in told(events, scope):
        assert is_clean(said)
        first, *rest = said.split("\n")
        assert re.match(r"\d\d:\d\d:\d\d \S", first)
        assert all(not more.strip() or more.startswith(" " * 9) for more in rest)


# --- progress --------------------------------------------------------------------------------------------


def job_state(done: int = 6, failed: int = 0, running: int = 5, total: int = 30) -> JobState:
    pending = total - done - running
    return JobState(
        job=JOB,
        name="n",
        total=total,
        completed=done - failed,
        failed=failed,
        running=running,
        pending=pending,
    )


def test_the_line_of_the_manual() -> None:
    assert line(job_state(), rate=12.4) == (
        "job 8184e894 [####----------------] 6/30 20% ✗0 ◍5 ◌19 12.4/min eta 2m"
    )
    assert line(job_state(), glyphs=False).endswith("6/30 20% f0 r5 p19")
    assert "eta" not in line(job_state(30, running=0), rate=12.4)
    assert "100%" in line(JobState(job=JOB, name="n"))


def test_a_job_that_was_cut_short_says_so_and_has_no_end_in_sight() -> None:
    cut = msgspec.structs.replace(job_state(running=0), status="cancelled", cancelling="operator")
    assert line(cut, rate=12.4) == "job 8184e894 [####----------------] 6/30 20% ✗0 ◍0 ◌24 cancelled"
    whole = msgspec.structs.replace(job_state(30, running=0), status="completed")
    assert line(whole, rate=12.4).endswith("30/30 100% ✗0 ◍0 ◌0 12.4/min")


@given(st.integers(1, 120), st.integers(0, 10**6), st.floats(0.01, 1e6))
def test_the_line_fits_the_terminal(width: int, total: int, rate: float) -> None:
    assert len(line(job_state(0, running=0, total=total), rate=rate, width=width)) <= width


def test_the_rate_is_unknown_then_moves() -> None:
    rate = Rate()
    assert rate.per_minute(START) is None
    rate.begin(START)
    assert rate.per_minute(START + timedelta(seconds=5)) is None
    for second in range(10, 31, 10):
        rate.add(START + timedelta(seconds=second))
    assert rate.per_minute(START + timedelta(seconds=30)) == pytest.approx(6)
    assert rate.per_minute(START + timedelta(seconds=85)) == pytest.approx(1)
    assert rate.per_minute(START + timedelta(seconds=500)) is None


def test_the_rate_of_a_very_fast_job_is_not_capped_by_what_it_remembers() -> None:
    rate = Rate()
    rate.begin(START)
    for index in range(6000):
        rate.add(START + timedelta(milliseconds=index + 1))
    assert rate.per_minute(START + timedelta(seconds=6)) == pytest.approx(60_000, rel=0.01)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59, "59s"), (119, "2m"), (3900, "1h05m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Screen:
    def __init__(self) -> None:
        self.text = ""

    async def write(self, text: str) -> None:
        self.text += text

    async def line(self, text: str) -> None:
        self.text += text + "\n"


async def test_in_place_the_line_is_redrawn_and_notes_stay_above_it() -> None:
    screen = Screen()
    progress = ProgressLine(screen, "line")
    await progress.show("one", 0.0)
    await progress.show("two", 0.05)
    await progress.note("said")
    await progress.show("three", 0.06, last=True)
    await progress.end()
    await progress.end()
    assert screen.text == "\rone\x1b[K\r\x1b[Ksaid\none\rthree\x1b[K\n"


async def test_in_a_pipe_lines_are_sparse_and_hold_no_control_bytes() -> None:
    screen = Screen()
    progress = ProgressLine(screen, "lines")
    for tenth in range(25):
        await progress.show(f"at {tenth}", tenth / 10)
    await progress.note("said")
    await progress.show("last", 2.45, last=True)
    await progress.end()
    assert screen.text == "at 0\nat 10\nat 20\nsaid\nlast\n"


async def test_off_means_notes_only() -> None:
    screen = Screen()
    progress = ProgressLine(screen, "off")
    await progress.show("one", 0.0, last=True)
    await progress.note("said")
    await progress.end()
    assert screen.text == "said\n"


def test_servers_budgets_and_compaction_in_lines() -> None:
    events = [
        *story.opening(),
        e.McpServerChanged(server="docs", status="starting"),
        e.McpServerChanged(server="docs", status="ready", tools=12, seconds=0.82),
        e.McpServerChanged(server="shop\x1b[2J", status="failed", detail="no such\ncommand", required=True),
        e.BudgetSet(budget=Budget(tokens=1000, per_agent_cost=2.5), by="operator"),
        e.UsageUnknown(agent=ROOT, tokens=1200, reason="the answer was cut"),
        e.AgentWaits(agent=ROOT, wait=Wait(reason="startup", detail="MCP server docs")),
        e.AgentWaits(
            agent=ROOT, wait=Wait(reason="budget", detail="limit reached: budget.tokens = 1,000; spent")
        ),
        e.HistoryCompacted(agent=ROOT, summary="long", tokens=181_000),
        e.BudgetSet(budget=Budget(), by="operator"),
        e.UsageUnknown(agent=ROOT, tokens=1200),
    ]
    expected = [
        "mcp docs ready 12 tools 0.8s",
        "mcp shop failed: no such command",
        "swarm budget 0 of 1,000 tokens used; $0.00 of $2.50 used by one agent (by operator)",
        "root usage unknown 1,200 tokens count as used: the answer was cut",
        "root waits start-up: MCP server docs",
        "root waits budget: tokens = 1,000; spent",
        "root compacted 181,000 tokens",
        "swarm budget no limit (by operator)",
    ]
    assert [line[9:] for line in told(events)[-8:]] == expected
    assert [line[9:] for line in told(events, "headless")[-8:]] == expected
