"""What agents wait for and what they cost on the screen; raising the budget, resuming an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from core.channel.client import EngineGone
from core.domain import events as e
from core.domain.commands import Reply, ResumeAgent, SetBudget
from core.domain.status import Budget, Usage, Wait
from tests.tui.fake_client import FakeClient
from tests.tui.spending import ATLAS, EMBER, KITE, MANGO, ROOT, SPENT, stopped
from tests.tui.stage import audit_client, ready, screen_text, stage
from tests.tui.story import Story, audit, thread
from tui.app import WatchroomApp
from tui.screens.confirm import ConfirmScope

SIZES = {"wide": (160, 45), "medium": (120, 35), "narrow": (80, 24)}
WIDE, MEDIUM, NARROW = SIZES.values()
Compare = Callable[..., bool]


async def press(pilot: Pilot[str], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
    await ready(pilot)


def row(app: WatchroomApp, name: str) -> str:
    """The line of the tree that shows an agent."""
    width = app.swarm_screen.agents.size.width
    lines = (line[:width] for line in screen_text(app).splitlines()[3:])
    return next(line for line in lines if f" {name} " in line)


def head(app: WatchroomApp) -> str:
    return screen_text(app).splitlines()[0]


def small(*events: e.Event) -> Story:
    """A root that runs, one child, and what else happened."""
    s = Story()
    s.start()
    root = s.spawn("root", None, "work", 0)
    s.turn(root)
    child = s.spawn("ash", root, "help", 1)
    s.turn(child)
    for event in events:
        s.add(event, 2)
    return s


def used(agent: str, total: int, cost: float | None = None) -> e.Event:
    usage = Usage(input=total, total=total)
    return e.ResponseCompleted(agent=agent, response="r", usage=usage, cost=cost)


# --- why, and how much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_who_waits_says_for_what_in_every_layout(size: str) -> None:
    app = stage(audit_client(stopped()))
    async with app.run_test(size=SIZES[size]) as pilot:
        await ready(pilot)
        assert "budget: tokens" in row(app, "atlas")
        assert "model: 12th in" in row(app, "grove")
        assert "2 of 3 agents" in row(app, "ember")


async def test_the_head_of_the_transcript_says_it_whole() -> None:
    app = stage(audit_client(stopped()))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j")
        assert "⧗ budget: tokens = 400,000; 318,300 are spent" in screen_text(app)


async def test_an_agent_whose_start_up_failed_says_why_and_what_helps() -> None:
    app = stage(audit_client(stopped()))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "G")
        assert "✗ mango" in row(app, "mango")
        assert "failed  start-up: shop" in row(app, "mango")
        assert "✗ u tries again; start-up: shop: no such command: sho" in screen_text(app)


async def test_nothing_used_costs_nothing_and_no_price_is_not_nothing() -> None:
    client = FakeClient(small().events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "tok" not in head(app)
        assert "n/a" not in head(app)
        story = Story()
        story.events = client.events
        client.push(story.add(used(ROOT, 1200), 3))
        await ready(pilot)
        assert "1.2k tok  n/a" in head(app)
        assert "$" not in screen_text(app)
        client.push(story.add(used(thread(2), 2000, 0.5), 4))
        await ready(pilot)
        assert "3.2k tok  $0.50+" in head(app)
        assert row(app, "root").rstrip().endswith("1.2k     n/a")
        assert row(app, "ash").rstrip().endswith("2.0k   $0.50")


async def test_a_folded_row_shows_all_below_it() -> None:
    app = stage(FakeClient(small(used(ROOT, 1200, 1.0), used(thread(2), 2000, 0.5)).events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert row(app, "root").rstrip().endswith("1.2k   $1.00")
        await press(pilot, "h")
        assert row(app, "root").rstrip().endswith("3.2k   $1.50")


@pytest.mark.parametrize(
    ("spent", "shown", "style"),
    [(700, "700/1.0k tok", "fg"), (850, "850/1.0k tok 85%", "amber"), (1000, "1.0k/1.0k tok 100%", "red+b")],
)
async def test_the_head_shows_what_is_used_of_the_budget(spent: int, shown: str, style: str) -> None:
    story = small(e.BudgetSet(budget=Budget(tokens=1000), by="operator"), used(ROOT, spent))
    app = stage(FakeClient(story.events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert (shown, style) in app.swarm_screen.head.lines(160)[0]


async def test_a_server_that_fails_is_said_once_with_its_reason_and_stays_in_the_head() -> None:
    client = FakeClient(small(e.McpServerChanged(server="docs", status="ready", tools=3)).events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "mcp" not in head(app)
        story = Story()
        story.events = client.events
        client.push(story.add(e.McpServerChanged(server="docs", status="ended", detail="exit 1\x1b[2J"), 3))
        await ready(pilot)
        assert "✗ mcp docs ended" in head(app)
        assert "mcp docs ended: exit 1" in screen_text(app).splitlines()[-1]
        app.swarm_screen.keys.hush()
        client.push(story.add(used(ROOT, 10), 4))
        await ready(pilot)
        assert "mcp docs ended: exit 1" not in screen_text(app).splitlines()[-1]
        client.push(story.add(e.McpServerChanged(server="docs", status="ready", tools=3), 5))
        await ready(pilot)
        assert "mcp" not in head(app)


# --- the budget --------------------------------------------------------------------------------------------


async def test_b_proposes_half_as_much_again_and_enter_sets_it() -> None:
    client = audit_client(stopped())
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "⚑ budget   318,300 of 400,000 tokens used; atlas waits" in screen_text(app)
        assert "b raise" in screen_text(app)
        await press(pilot, "b")
        assert "budget 318,300 of 400,000 tokens used; new limit › 600k" in screen_text(app)
        assert app.focused is app.swarm_screen.question.field
        await press(pilot, "enter")
        assert client.sent == [SetBudget(swarm=app.view.state.swarm, tokens=600_000)]
        assert "the limit is 600,000 tokens now" in screen_text(app).splitlines()[-1]
        assert app.focused is app.swarm_screen.agents
        assert "› to root" in screen_text(app)


async def test_what_is_typed_replaces_the_proposal_and_keys_are_text_at_once() -> None:
    client = audit_client(stopped())
    app = stage(client)
    async with app.run_test(size=MEDIUM) as pilot:
        await ready(pilot)
        await press(pilot, *"bagent", "space", "$", "4", ".", "5", "enter")
        assert client.sent == [SetBudget(swarm=app.view.state.swarm, per_agent_cost=4.5)]


async def test_a_wrong_amount_is_explained_and_esc_changes_nothing() -> None:
    client = audit_client(stopped())
    app = stage(client)
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        await press(pilot, "b", *"lots", "enter")
        assert "type 1.5M, 200k" in screen_text(app).splitlines()[-1]
        assert app.swarm_screen.question.field.value == "lots"
        await press(pilot, "escape")
        assert client.sent == []
        assert app.focused is app.swarm_screen.agents
        assert "› to root" in screen_text(app)


async def test_a_refused_budget_says_the_engine_s_sentence() -> None:
    client = audit_client(stopped())
    client.replies[SetBudget] = Reply(ok=False, code="refused", error="model demo has no price")
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "b", "$", "5", "enter")
        assert "model demo has no price" in screen_text(app).splitlines()[-1]


async def test_b_works_without_a_budget_and_an_empty_answer_sets_none() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "b")
        assert "no budget is set; limit of tokens or $ ›" in screen_text(app)
        await press(pilot, "enter")
        assert client.sent == []
        await press(pilot, *"b2M", "enter")
        assert client.sent == [SetBudget(swarm=app.view.state.swarm, tokens=2_000_000)]


async def test_who_stands_in_line_for_budget_needs_nobody() -> None:
    wait = Wait(reason="budget", detail="in line: other requests hold what is left of it")
    story = small(e.BudgetSet(budget=Budget(tokens=9), by="x"), e.AgentWaits(agent=thread(2), wait=wait))
    app = stage(FakeClient(story.events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "budget: in line" in row(app, "ash")
        assert not app.swarm_screen.needs.display


async def test_without_an_engine_no_key_is_offered() -> None:
    client = audit_client(stopped())
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "a approve   d deny" in screen_text(app)
        client.fail(EngineGone("killed"))
        await ready(pilot)
        text = screen_text(app)
        assert "rm -r build/" in text
        assert "approve" not in text
        assert "b raise" not in text
        await press(pilot, "b")
        assert "R" in screen_text(app).splitlines()[-1]
        assert not app.swarm_screen.question.display
        assert client.sent == []


# --- resuming one agent ------------------------------------------------------------------------------------


async def test_u_resumes_a_closed_agent_and_says_who_came_back() -> None:
    client = audit_client()
    client.replies[ResumeAgent] = Reply(value={"resumed": [KITE], "changed": True})
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        app.swarm_screen.select(KITE)
        await press(pilot, "u")
        assert client.sent == [ResumeAgent(swarm=app.view.state.swarm, thread=KITE)]
        assert "resumed kite" in screen_text(app).splitlines()[-1]


async def test_u_asks_first_when_others_come_back_too() -> None:
    story = audit()
    story.add(e.AgentClosed(agent=EMBER, by="operator"), 722)
    for number in (7, 8):
        story.add(e.AgentClosed(agent=thread(number), by="operator", top=EMBER), 722)
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        app.swarm_screen.select(EMBER)
        await press(pilot, "u")
        assert isinstance(app.screen, ConfirmScope)
        assert "Resume ember? 2 closed with it come back too:" in screen_text(app)
        assert "fjord grove" in screen_text(app)
        assert client.sent == []
        await press(pilot, "escape")
        assert client.sent == []
        await press(pilot, "u", "u")
        assert client.sent == [ResumeAgent(swarm=app.view.state.swarm, thread=EMBER)]


async def test_u_starts_an_agent_again_and_leaves_an_open_one_alone() -> None:
    client = audit_client(stopped())
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "u")
        assert "select a closed agent" in screen_text(app).splitlines()[-1]
        assert client.sent == []
        app.swarm_screen.select(MANGO)
        await press(pilot, "u")
        assert client.sent == [ResumeAgent(swarm=app.view.state.swarm, thread=MANGO)]


# --- rows of the transcript --------------------------------------------------------------------------------


async def test_a_summary_is_folded_until_it_is_asked_for() -> None:
    app = stage(audit_client(stopped()))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "the history of 181,000 tokens was compacted" in screen_text(app)
        assert "atlas maps the repo." not in screen_text(app)
        assert "4 lines: l shows them" in screen_text(app)
        await press(pilot, "2")
        await press(pilot, "G", "k", "l")
        assert "atlas maps the repo." in screen_text(app)
        await press(pilot, "l", "h")
        assert "atlas maps the repo." not in screen_text(app)
        await press(pilot, "enter")
        assert "atlas maps the repo." in screen_text(app)


async def test_an_image_shows_as_a_line() -> None:
    image = e.Image(blob="b", media_type="image/png", size=40_000)
    story = small(
        e.ToolCalled(agent=ROOT, call="c", name="docs__shot", arguments="{}"),
        e.ToolResult(agent=ROOT, call="c", index=0, source="docs", text="[image png 40 kB]"),
        e.ToolEnded(agent=ROOT, call="c", images=(image,)),
    )
    app = stage(FakeClient(story.events))
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        await press(pilot, "2")
        assert "[image png 40 kB]" in screen_text(app)


# --- pictures ----------------------------------------------------------------------------------------------


def after(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def run(pilot: Pilot[Any]) -> None:
        await ready(pilot)
        await press(pilot, *keys)

    return run


@pytest.mark.parametrize("size", SIZES)
def test_a_stopped_swarm(snap_compare: Compare, size: str) -> None:
    app = stage(audit_client(stopped()))
    assert snap_compare(app, terminal_size=SIZES[size], run_before=after())


@pytest.mark.parametrize("size", SIZES)
def test_the_question_in_ascii(snap_compare: Compare, size: str) -> None:
    app = stage(audit_client(stopped()), ascii_glyphs=True)
    assert snap_compare(app, terminal_size=SIZES[size], run_before=after("b"))


def test_a_stopped_swarm_without_colour(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = stage(audit_client(stopped()))
    assert snap_compare(app, terminal_size=NARROW, run_before=after())


def test_the_story_says_what_an_engine_says() -> None:
    assert "budget.tokens" in SPENT
    assert any(event.agent == ATLAS and isinstance(event, e.AgentWaits) for event in stopped().events)
