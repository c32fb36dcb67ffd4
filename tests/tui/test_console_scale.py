"""Ten thousand agents, a hundred thousand rows: counted operations, no times."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from core.domain import events as e
from core.domain.commands import GetJobRows, JobRow, Lagged
from tests.tui.fake_client import FakeClient
from tests.tui.stage import ready, screen_text, stage
from tests.tui.story import JOB, Story, thread
from tui.app import PAGE


def crowd(agents: int) -> Story:
    story = Story()
    story.start()
    root = story.spawn("root", None, "all", 0)
    story.turn(root)
    for number in range(agents - 1):
        story.turn(story.spawn(f"a{number}", root, "work", 1))
    return story


async def test_ten_thousand_agents_cost_what_is_visible() -> None:
    story = crowd(10_000)
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        tree = app.swarm_screen.agents
        assert tree.row_count() == 10_000
        assert "AGENTS  10000" in screen_text(app)
        before = tree.rows_rendered
        client.push(story.add(e.TurnCompleted(agent=thread(5), turn="t", message="ok")))
        await ready(pilot)
        assert tree.rows_rendered - before <= 4 * tree.size.height
        before = tree.rows_rendered
        await pilot.press("G")
        await ready(pilot)
        assert app.swarm_screen.selected == thread(10_000)
        assert tree.rows_rendered - before <= 8 * tree.size.height


async def test_a_crowd_is_binned_in_the_roll_call_by_its_worst_state() -> None:
    story = crowd(3_000)
    failing = thread(1_500)
    story.add(e.TurnFailed(agent=failing, turn="t", error="broken"))
    app = stage(FakeClient(story.events))
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        roll = app.swarm_screen.roll
        assert roll.size.height == 5
        bins = roll.bins(160)
        assert len(bins) == 5 * 152
        assert sum(len(members) for members in bins) == 3_000
        cells = "".join(text for line in roll.lines(160) for text, style in line if style.startswith("red"))
        assert cells == "✗"
        at = next(index for index, members in enumerate(bins) if failing in members)
        await pilot.click(roll, offset=(7 + at % 152, at // 152))
        await ready(pilot)
        assert app.swarm_screen.selected == failing


def big_job(total: int, **options: Any) -> FakeClient:
    story = Story()
    story.start()
    root = story.spawn("root", None, "map", 0)
    story.turn(root)
    created = e.JobCreated(
        agent=root,
        job=JOB,
        name="big",
        instruction="x",
        input_path="x",
        output_path=None,
        total=total,
        concurrency=16,
    )
    story.add(created)
    story.add(e.JobStarted(job=JOB, concurrency=16))
    rows = [JobRow(item=str(i), row_index=i, status="pending", label=f"row-{i}") for i in range(total)]
    return FakeClient(story.events, rows=rows, **options)


async def test_a_hundred_thousand_rows_are_asked_for_by_page() -> None:
    total = 100_000
    client = big_job(total)
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        assert "row-0" in screen_text(app)
        await pilot.press("J", "G")
        await ready(pilot)
        assert "row-99999" in screen_text(app)
        asked = [request for request in client.pages if isinstance(request, GetJobRows)]
        assert [request.start for request in asked] == [0, total - PAGE]
        assert app.swarm_screen.table.rows_rendered < 1_000


async def test_a_page_that_is_short_because_its_rows_are_large_is_asked_for_to_its_end() -> None:
    client = big_job(1_000, page_limit=70)
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        assert sorted(app.view.job_rows[JOB].rows) == list(range(PAGE)), "what was looked at, and no more"
        await pilot.press("J", "G")
        await ready(pilot)
        assert "row-999" in screen_text(app)


async def test_rows_that_a_new_snapshot_overtakes_are_asked_for_again() -> None:
    client = big_job(30)
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        for held in (True, False):
            # The second snapshot comes while the rows that the first one made necessary are on their way.
            if held:
                client.gate.clear()
            before, asked = app.view.reset, len(client.pages)
            client.feed(Lagged())
            client.feed(client.snapshot())
            while app.view.reset == before or (held and len(client.pages) < asked + 2):
                await pilot.pause()
        for _ in range(10):
            await pilot.pause()
        client.gate.set()
        await ready(pilot)
        assert "row-0" in screen_text(app)
        assert len(app.view.job_rows[JOB].rows) == 30


async def test_a_megabyte_on_one_line_is_cut_and_the_rest_is_counted() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "big", 0)
    story.turn(root)
    story.call(root, "c", "exec_command", "cat big", 1)
    story.result(root, "c", 0, "x" * 1_000_000, 2)
    story.add(e.AssistantMessage(agent=root, text="y" * 1_000_000), 3)
    app = stage(FakeClient(story.events))
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        assert "… 980,000 more chars" in screen_text(app)
        await pilot.press("enter", "g", "j", "l")
        await ready(pilot)
        assert app.swarm_screen.transcript.total_lines < 1_500


async def test_many_events_are_one_refresh_when_they_come_together() -> None:
    """The feed posts one replaceable message; the screen is brought up once for all that has come."""
    story = crowd(50)
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        app.refresh_seconds = 0.125
        calls = []
        original = app.refresh_now
        app.refresh_now = lambda: (calls.append(1), original())  # type: ignore[method-assign]
        client.push(*(story.add(e.Notice(agent=thread(1), text=f"n{i}")) for i in range(2_000)))
        for _ in range(50):
            app.on_view_changed()
        await pilot.pause()
        assert len(calls) <= 2


async def test_of_a_hundred_thousand_rows_only_those_are_asked_for_that_a_filter_shows() -> None:
    client = big_job(100_000)
    failed = range(50, 100_000, 1_000)
    for index in failed:
        client.rows[index] = replace(client.rows[index], status="failed")
    app = stage(client)
    async with app.run_test(size=(160, 45)) as pilot:
        await ready(pilot)
        await pilot.press("J", "v", "G")
        await ready(pilot)
        assert app.swarm_screen.table.row_count() == len(failed)
        assert client.pages[-1].rows == tuple(failed)
        assert "row-99050" in screen_text(app)
        assert len(app.view.job_rows[JOB].rows) < 1_000
