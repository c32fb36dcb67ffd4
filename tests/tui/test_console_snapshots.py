"""Pictures of the console: each layout, dark, light, without colour, in ASCII. Clock and story are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.fake_client import FakeClient
from tests.tui.stage import ready, stage
from tests.tui.story import SWARM, Story
from tui.themes import LIGHT

SIZES = {"wide": (160, 45), "medium": (120, 35), "narrow": (80, 24)}
Compare = Callable[..., bool]


def after(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def run(pilot: Pilot[Any]) -> None:
        await ready(pilot)
        for key in keys:
            await pilot.press(key)
            await ready(pilot)

    return run


@pytest.mark.parametrize("size", SIZES)
def test_dark(snap_compare: Compare, size: str) -> None:
    assert snap_compare(stage(), terminal_size=SIZES[size], run_before=after())


@pytest.mark.parametrize("size", SIZES)
def test_light(snap_compare: Compare, size: str) -> None:
    assert snap_compare(stage(theme=LIGHT), terminal_size=SIZES[size], run_before=after())


@pytest.mark.parametrize("size", SIZES)
def test_without_colour(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(stage(), terminal_size=SIZES[size], run_before=after())


@pytest.mark.parametrize("size", SIZES)
def test_ascii(snap_compare: Compare, size: str) -> None:
    assert snap_compare(stage(ascii_glyphs=True), terminal_size=SIZES[size], run_before=after())


def test_narrow_thread(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=SIZES["narrow"], run_before=after("2"))


def test_narrow_jobs(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=SIZES["narrow"], run_before=after("3"))


def test_medium_with_the_job_open(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=SIZES["medium"], run_before=after("J"))


def test_a_call_unfolded_while_paused(snap_compare: Compare) -> None:
    keys = ("enter", "k", "k", "k", "l")
    assert snap_compare(stage(), terminal_size=SIZES["wide"], run_before=after(*keys))


def test_help(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=SIZES["medium"], run_before=after("question_mark"))


def test_scope_question(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=SIZES["medium"], run_before=after("i"))


def test_composing_to_a_child(snap_compare: Compare) -> None:
    keys = ("j", "m", *"two lines", "ctrl+j", *"of text")
    assert snap_compare(stage(), terminal_size=SIZES["medium"], run_before=after(*keys))


def test_too_small(snap_compare: Compare) -> None:
    assert snap_compare(stage(), terminal_size=(59, 14), run_before=after())


def test_a_swarm_that_waits_for_its_first_words(snap_compare: Compare) -> None:
    story = Story()
    story.start("watchroom", sandboxed=False)
    story.spawn("root", None, "", 0)
    app = stage(FakeClient(story.events), start=SWARM)
    assert snap_compare(app, terminal_size=SIZES["narrow"], run_before=after())
