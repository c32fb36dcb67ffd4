"""The job table's keys: what they send, what they ask before it, what they say of it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from textual.pilot import Pilot

from core.domain import events as e
from core.domain.commands import (
    CancelJob,
    ContinueJob,
    GetJobOrder,
    PauseJob,
    Reply,
    RetryRows,
    SetJob,
    SkipRows,
)
from tests.tui.fake_client import FakeClient
from tests.tui.stage import audit_client, ready, screen_text, stage
from tests.tui.story import JOB, SWARM, Story, audit
from tui.app import WatchroomApp
from tui.screens.confirm import ConfirmScope
from tui.widgets.job_table import columns

WIDE, MEDIUM, NARROW = (160, 45), (120, 35), (80, 24)
SIZES = [WIDE, MEDIUM, NARROW]


async def press(pilot: Pilot[Any], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
    await ready(pilot)


def told(*events: e.Event) -> tuple[Story, FakeClient, WatchroomApp]:
    """The audit, and what happened to its job since: 41 rows over, three of them failed, two at work."""
    story = audit()
    for event in events:
        story.add(event)
    client = audit_client(story)
    return story, client, stage(client)


@pytest.mark.parametrize("size", SIZES)
async def test_space_pauses_the_job_and_lets_it_go_on(size: tuple[int, int]) -> None:
    story, client, app = told()
    client.replies[PauseJob] = Reply(value={"changed": True, "running": 2})
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await press(pilot, "J", "space")
        assert client.sent[-1] == PauseJob(swarm=SWARM, job=JOB)
        assert "job score-csv is paused; 2 rows at work go on to the end" in screen_text(app)
        client.push(story.add(e.JobPaused(job=JOB, by="operator")))
        await ready(pilot)
        assert "paused by operator" in screen_text(app)
        await press(pilot, "space")
        assert client.sent[-1] == ContinueJob(swarm=SWARM, job=JOB)
        assert "job score-csv goes on" in screen_text(app)


@pytest.mark.parametrize("size", SIZES)
async def test_a_paused_job_has_no_end_in_sight(size: tuple[int, int]) -> None:
    story, client, app = told()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await press(pilot, "J")
        assert "eta " in screen_text(app)
        client.push(story.add(e.JobPaused(job=JOB, by="operator")))
        await ready(pilot)
        assert "eta " not in screen_text(app)
        assert "/min" not in screen_text(app)
        client.push(story.add(e.JobStarted(job=JOB, concurrency=2), 90_000))
        await ready(pilot)
        assert "eta " not in screen_text(app)  # nothing is known of its pace since it goes on


async def test_the_time_left_of_a_long_job_has_its_minutes() -> None:
    _, _, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        job = app.swarm_screen.view.state.jobs[JOB]
        assert job.pace_from is not None
        longer = replace(job, pace_from=job.pace_from - timedelta(hours=1))
        app.swarm_screen.view.state.jobs[JOB] = longer
        app.swarm_screen.tick()
        app.swarm_screen.tick_lists()
        await ready(pilot)
        assert len(re.findall(r"eta \d+h\d\dm", screen_text(app))) == 2  # the head, and the job's own


def test_names_that_come_round_again_are_told_apart() -> None:
    assert columns(160).agent > len("starling the 22nd")
    assert columns(110).agent > len("starling the 22nd")
    for width in range(40, 200):
        item, name, result = columns(width)
        assert min(item, name, result) >= 0


async def test_a_pause_says_who_and_why() -> None:
    _, _, app = told(e.JobPaused(job=JOB, by="quota", reason="no credit left"))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "paused by quota: no credit left" in screen_text(app)


async def test_a_cancel_is_asked_first_and_shown_until_it_has_happened() -> None:
    story, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "x")
        assert isinstance(app.screen, ConfirmScope)
        shown = screen_text(app)
        assert "Cancel job score-csv?" in shown
        assert "2 rows at work stop and fail, 76 rows stay undone." in shown
        await press(pilot, "escape")
        assert client.sent == []
        await press(pilot, "x", "x")
        assert client.sent == [CancelJob(swarm=SWARM, job=JOB)]
        client.push(story.add(e.JobCancelling(job=JOB, by="operator")))
        await ready(pilot)
        assert "cancelling, by operator" in screen_text(app)
        client.push(story.add(e.JobEnded(job=JOB, status="cancelled", by="operator")))
        await ready(pilot)
        assert "cancelling" not in screen_text(app).replace("is being cancelled", "")


async def test_retry_asks_how_far_and_never_takes_the_wider_one_by_itself() -> None:
    _, client, app = told()
    client.replies[RetryRows] = Reply(value={"changed": True, "rows": 3})
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "g", "n", "r")
        shown = screen_text(app)
        assert "row 4 alone" in shown
        assert "all 3 rows that failed" in shown
        await press(pilot, "enter")
        assert client.sent == []
        await press(pilot, "r")
        assert client.sent == [RetryRows(swarm=SWARM, job=JOB, items=("item-3",))]
        await press(pilot, "g", "r")
        assert "alone" not in screen_text(app)  # the first row is done
        await press(pilot, "R")
        assert client.sent[-1] == RetryRows(swarm=SWARM, job=JOB)
        assert "3 rows to be tried again" in screen_text(app)


async def test_a_row_that_moves_is_seen_at_once_and_so_are_the_counts() -> None:
    story, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "g")
        moved = e.JobRowMoved(
            job=JOB, item="item-3", row_index=3, source="failed", status="pending", by="operator"
        )
        client.push(story.add(moved))
        await ready(pilot)
        line = next(line for line in screen_text(app).splitlines() if "acme-003.json" in line)
        assert "queued" in line
        assert "✗2" in screen_text(app)


async def test_one_failed_row_under_the_cursor_needs_no_question() -> None:
    gone = [
        e.JobRowMoved(job=JOB, item=f"item-{n}", row_index=n, source="failed", status="skipped", by="x")
        for n in (17, 41)
    ]
    _, client, app = told(*gone)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "g", "n", "r")
        assert client.sent == [RetryRows(swarm=SWARM, job=JOB, items=("item-3",))]


async def test_only_rows_that_nobody_works_on_are_skipped() -> None:
    _, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "g", "s")
        assert client.sent == []
        assert "select a row that waits or has failed" in screen_text(app)
        await press(pilot, "G", "s")
        assert client.sent == [SkipRows(swarm=SWARM, job=JOB, items=("item-119",))]
        assert "row 120 is skipped" in screen_text(app)


async def test_more_and_fewer_rows_at_a_time() -> None:
    story, client, app = told()
    client.replies[SetJob] = Reply(value={"changed": True, "concurrency": 17})
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert "2 of 16 at work" in screen_text(app)
        await press(pilot, "J", "plus")
        assert client.sent[-1] == SetJob(swarm=SWARM, job=JOB, max_concurrency=20)
        assert "17 rows at a time; the swarm has no more slots" in screen_text(app)
        await press(pilot, "minus")
        assert client.sent[-1] == SetJob(swarm=SWARM, job=JOB, max_concurrency=12)
        client.push(story.add(e.JobChanged(job=JOB, concurrency=1, by="operator")))
        await ready(pilot)
        count = len(client.sent)
        await press(pilot, "minus")
        assert len(client.sent) == count
        assert "one row at a time is the least" in screen_text(app)


async def test_a_job_that_has_ended_takes_a_retry_and_nothing_else() -> None:
    _, client, app = told(e.JobEnded(job=JOB, status="completed"))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "space", "x", "s", "plus")
        assert client.sent == []
        assert "job score-csv has ended as completed" in screen_text(app)
        await press(pilot, "g", "r")
        assert "runs again" in screen_text(app)
        await press(pilot, "R")
        assert client.sent == [RetryRows(swarm=SWARM, job=JOB)]


async def test_a_refusal_is_said_as_it_came() -> None:
    _, client, app = told()
    client.replies[SkipRows] = Reply(ok=False, error="row item-119 is running", code="refused")
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "G", "s")
        assert "row item-119 is running" in screen_text(app)
        assert "is skipped" not in screen_text(app)


async def test_the_keys_stand_in_the_help_and_in_the_key_line() -> None:
    _, _, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J")
        assert "retry" in screen_text(app).splitlines()[-1]
        await press(pilot, "question_mark")
        assert "Pause the job, or go on" in screen_text(app)


# --- filter and order ------------------------------------------------------------------------------------


def items(app: WatchroomApp) -> list[str]:
    return [
        word for line in screen_text(app).splitlines() for word in line.split() if word.startswith("acme-")
    ]


async def test_a_filter_leaves_the_rows_that_failed_and_says_so() -> None:
    _, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "v")
        assert items(app) == ["acme-003.json", "acme-017.json", "acme-041.json"]
        assert "only failed" in screen_text(app)
        assert "no row of this job" not in screen_text(app)
        await press(pilot, "g", "j", "r", "r")
        assert client.sent == [RetryRows(swarm=SWARM, job=JOB, items=("item-17",))]
        await press(pilot, "v")
        assert items(app) == ["acme-042.json", "acme-043.json"]
        await press(pilot, "v", "v", "v", "v")
        assert "only" not in screen_text(app)
        assert app.swarm_screen.table.row_count() == 120


@pytest.mark.parametrize("size", SIZES)
async def test_filter_and_order_are_never_cut(size: tuple[int, int]) -> None:
    _, _, app = told()
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await press(pilot, "J", "v", "v", "o", "o", "O")
        assert "only running, by tries reversed" in screen_text(app)


async def test_orders_and_their_reverse() -> None:
    _, _, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "O", "g")
        assert items(app)[:2] == ["acme-119.json", "acme-118.json"]
        assert "by row reversed" in screen_text(app)
        await press(pilot, "o", "o", "g")
        assert "by tries reversed" in screen_text(app)
        assert "acme-119.json" not in items(app)


async def test_an_order_follows_the_job_at_most_once_a_second() -> None:
    story, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "v")
        asked = sum(isinstance(page, GetJobOrder) for page in client.pages)
        client.rows[42] = replace(client.rows[42], status="failed", error="late")
        end = e.JobRowEnded(
            job=JOB, item="item-42", row_index=42, attempt=1, worker="w", status="failed", error="late"
        )
        client.push(story.add(end))
        await ready(pilot)
        assert sum(isinstance(page, GetJobOrder) for page in client.pages) == asked
        await app.clock.advance(1.5)
        app.swarm_screen.tick_lists()
        await ready(pilot)
        assert sum(isinstance(page, GetJobOrder) for page in client.pages) == asked + 1
        assert items(app) == ["acme-003.json", "acme-017.json", "acme-041.json", "acme-042.json"]


async def test_a_filter_that_leaves_nothing_shows_an_empty_table() -> None:
    _, client, app = told()
    client.rows[:] = [replace(row, status="completed") for row in client.rows]
    async with app.run_test(size=MEDIUM) as pilot:
        await ready(pilot)
        await press(pilot, "J", "v", "j", "k", "G", "enter", "s")
        assert items(app) == []
        assert "no row of this job is failed; v shows others" in screen_text(app)
        assert client.sent == []


async def test_an_order_that_cannot_be_had_is_said_and_asked_again_later() -> None:
    _, client, app = told()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J")
        client.page_error = "busy: ask again"
        await press(pilot, "v")
        assert "busy: ask again" in screen_text(app)
        client.page_error = None
        await app.clock.advance(1.5)
        app.swarm_screen.tick_lists()
        await ready(pilot)
        assert items(app) == ["acme-003.json", "acme-017.json", "acme-041.json"]
