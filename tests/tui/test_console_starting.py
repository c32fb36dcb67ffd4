"""Agents that start up or could not, and questions that are about no command, on the screen."""

from __future__ import annotations

import pytest

from core.domain import events as e
from core.domain.status import Budget, Usage, Wait
from core.view.swarm import SwarmView
from tests.tui.fake_client import FakeClient
from tests.tui.spending import stopped
from tests.tui.stage import audit_client, ready, screen_text, stage
from tests.tui.story import Story, thread
from tests.tui.test_console_spending import MEDIUM, NARROW, SIZES, WIDE, head, press, row, small
from tui.plain import PlainLines

ROOT = thread(1)
WHY = (
    'docs: it ended with exit code 1 ("the folder of the documents is not mounted"); shop: it did not start'
    " within 10 s (startup_timeout_sec sets how long it may take)"
)


def starting() -> Story:
    s = Story()
    s.start()
    s.names[ROOT] = "/root"
    s.add(e.AgentSpawned(agent=ROOT, path="/root", nickname="root", depth=0, task="look after the shop"), 0)
    s.add(e.AgentWaits(agent=ROOT, wait=Wait(reason="startup", detail="MCP servers docs, shop")), 1)
    return s


def thread_text(text: str) -> str:
    """What the pane beside the tree shows, its lines joined."""
    lines = [line.partition("│")[2] or line for line in text.splitlines()[3:]]
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("size", SIZES)
async def test_an_agent_that_starts_shows_its_task_and_what_it_waits_for(size: str) -> None:
    app = stage(FakeClient(starting().events))
    async with app.run_test(size=SIZES[size]) as pilot:
        await ready(pilot)
        await press(pilot, "escape", "2")
        shown = screen_text(app)
        assert "task" in shown
        assert "look after the shop" in thread_text(shown)
        assert "◌ starts start-up: MCP servers docs, shop" in thread_text(shown)


async def test_why_a_start_failed_is_shown_to_its_end_until_the_agent_begins() -> None:
    story = starting()
    story.add(e.AgentFailed(agent=ROOT, error=WHY), 3)
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=MEDIUM) as pilot:
        await ready(pilot)
        assert f"✗ failed u tries again; start-up: {WHY}" in thread_text(screen_text(app))
        client.push(story.add(e.AgentResumed(agent=ROOT, by="operator"), 4))
        story.turn(ROOT)
        client.push(story.add(e.UserMessage(agent=ROOT, text="go on then"), 5))
        await ready(pilot)
        assert "go on then" in screen_text(app)
        assert "not mounted" not in screen_text(app)


async def test_the_words_of_a_tree_row_tell_a_start_from_a_line() -> None:
    app = stage(FakeClient(starting().events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "◌ root             starts  start-up" in row(app, "root")


async def test_servers_that_are_down_are_named_while_that_is_short() -> None:
    story = stopped()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "✗ mcp shop failed" in head(app)
        client.push(story.add(e.McpServerChanged(server="docs", status="ended", detail="exit code 9")))
        await ready(pilot)
        assert "✗ mcp docs, shop down" in head(app)
        client.push(story.add(e.McpServerChanged(server="the-third-of-them", status="failed")))
        await ready(pilot)
        assert "✗ mcp 3 servers down" in head(app)


REASON = "a tool of the MCP server docs, outside the sandbox; every call asks"


def asking(name: str) -> Story:
    called = e.ToolCalled(agent=ROOT, call="w1", name=name, arguments="{}")
    asked = e.ApprovalRequested(
        agent=ROOT, approval="ap", call="w1", command="do it", cwd="/work/demo", reason=REASON
    )
    return small(called, asked, e.AgentWaits(agent=ROOT, wait=Wait(reason="approval", detail="do it")))


async def test_a_question_about_no_command_says_what_it_is_about() -> None:
    app = stage(FakeClient(asking("docs__write").events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert f"do it   {REASON}" in screen_text(app)
        assert "in /work/demo" not in screen_text(app)


async def test_what_it_is_about_is_cut_before_the_keys_are() -> None:
    app = stage(FakeClient(asking("docs__write").events))
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        line = next(line for line in screen_text(app).splitlines() if "a tool of the MCP" in line)
        assert line.rstrip().endswith("a approve   d deny")


async def test_a_command_says_where_it_runs() -> None:
    app = stage(FakeClient(asking("exec_command").events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "do it   in /work/demo" in screen_text(app)


async def test_a_call_that_waits_for_an_answer_does_not_say_that_it_runs() -> None:
    story = asking("docs__write")
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "⚑ asks" in thread_text(screen_text(app))
        assert "◍ runs" not in thread_text(screen_text(app)).partition("needs you")[0]
        decided = e.ApprovalDecided(agent=ROOT, approval="ap", decision="approved", by="operator")
        client.push(story.add(decided, 6))
        await ready(pilot)
        assert "◍ runs" in thread_text(screen_text(app))


def test_in_lines_an_interrupt_is_told_once() -> None:
    marker = "<turn_aborted>\nThis turn was interrupted by budget.\n</turn_aborted>"
    story = small(
        e.Notice(agent=ROOT, text=marker, level="warning"),
        e.TurnInterrupted(agent=ROOT, turn="t1", by="budget", reason="limit reached"),
    )
    view = SwarmView()
    teller = PlainLines(view, "all")
    told = []
    for event in story.events:
        view.apply(event)
        told += teller.lines(event)
    assert "turn_aborted" not in "\n".join(told)
    assert told[-1].endswith("root interrupted by budget: limit reached")


async def test_the_budget_bar_says_what_the_stopped_agent_used_and_needs() -> None:
    """Not what another agent used, which has used more."""
    detail = (
        "limit reached: budget.per_agent_tokens = 14,250; /root has spent 3,617, and its next request needs"
        " at least 11,000"
    )
    story = small(
        e.BudgetSet(budget=Budget(per_agent_tokens=14_250), by="operator"),
        e.ResponseCompleted(agent=ROOT, response="r", usage=Usage(input=3617, total=3617)),
        e.ResponseCompleted(agent=thread(2), response="r", usage=Usage(input=9659, total=9659)),
        e.AgentWaits(agent=ROOT, wait=Wait(reason="budget", detail=detail)),
    )
    app = stage(FakeClient(story.events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        said = "3,617 of 14,250 tokens used by one agent; root waits for 11,000 more"
        assert said in screen_text(app)
        assert "b raise" in screen_text(app)
        await press(pilot, "b")
        assert said in screen_text(app)
        assert "b raise" not in screen_text(app)
        await press(pilot, "escape")
        assert "b raise" in screen_text(app)


async def test_small_sums_of_money_are_not_rounded_away() -> None:
    detail = (
        "limit reached: budget.cost = $0.0200; $0.0174 is spent, and its next request needs at least $0.0049"
    )
    story = small(
        e.BudgetSet(budget=Budget(cost=0.02), by="operator"),
        e.ResponseCompleted(agent=ROOT, response="r", usage=Usage(input=9, total=9), cost=0.0174),
        e.AgentWaits(agent=ROOT, wait=Wait(reason="budget", detail=detail)),
    )
    app = stage(FakeClient(story.events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "$0.0174 of $0.0200 used; root waits for $0.0049 more" in screen_text(app)
