"""LineView by itself: follow mode, anchoring, tall rows, and that only visible rows are ever rendered."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import pytest
from textual.app import App, ComposeResult

from tui.paint import Line
from tui.themes import themes
from tui.widgets.line_view import LineView, jump


class Numbers(LineView):
    """Rows are numbers; a row is as many lines high as `heights` says."""

    follows: ClassVar[bool] = True
    uniform: ClassVar[bool] = False

    def __init__(self, numbers: range, tall: dict[int, int] | None = None) -> None:
        super().__init__()
        self.numbers = list(numbers)
        self.tall = tall or {}

    def row_count(self) -> int:
        return len(self.numbers)

    def row_key(self, index: int) -> Hashable:
        return self.numbers[index]

    def index_of(self, key: Hashable) -> int | None:
        return self.numbers.index(key) if key in self.numbers else None  # type: ignore[arg-type]

    def row_height(self, index: int, width: int) -> int:
        return self.tall.get(self.numbers[index], 1)

    def row_lines(self, index: int, width: int) -> list[Line]:
        number = self.numbers[index]
        return [[(f" {number}.{line}", "fg")] for line in range(self.row_height(index, width))]

    def shown(self) -> list[str]:
        return [self.render_line(y).text.strip("> ") for y in range(self.size.height)]


class Stage(App[None]):
    def __init__(self, view: LineView) -> None:
        super().__init__()
        self.line_view = view
        for theme in themes():
            self.register_theme(theme)
        self.theme = "watchroom"

    def compose(self) -> ComposeResult:
        yield self.line_view

    def on_mount(self) -> None:
        self.line_view.sync()


async def test_it_follows_the_end_as_rows_come() -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.pause()
        assert view.shown()[-1] == "99.0"
        view.numbers.append(100)
        view.sync(100)
        await pilot.pause()
        assert view.shown()[-1] == "100.0"
        assert view.following


@pytest.mark.parametrize("key", ["k", "up", "pageup", "ctrl+u", "g"])
async def test_only_a_move_up_pauses_and_what_comes_is_counted(key: str) -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("j", "down")
        assert view.following
        await pilot.press(key)
        assert not view.following
        before = view.shown()
        view.numbers.extend(range(100, 138))
        view.sync(100)
        await pilot.pause()
        assert view.below == 38
        assert view.shown() == before


async def test_reaching_the_end_by_hand_does_not_resume_but_G_does() -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("k", "j", "j")
        assert not view.following
        await pilot.press("G")
        assert view.following
        assert view.below == 0


async def test_older_rows_in_front_leave_the_view_where_it_was() -> None:
    view = Numbers(range(500, 600))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("g", "ctrl+d")
        before, cursor = view.shown(), view.cursor_key
        place = view._place()
        view.numbers[:0] = range(400, 500)
        view._sync(0, place)
        await pilot.pause()
        assert view.shown() == before
        assert view.cursor_key == cursor


async def test_a_row_taller_than_the_view_is_read_line_by_line() -> None:
    view = Numbers(range(3), {1: 25})
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("g", "j")
        seen = set(view.shown())
        for _ in range(40):
            await pilot.press("j")
            seen |= set(view.shown())
        assert {f"1.{line}" for line in range(25)} <= seen
        assert view.cursor == 2
        await pilot.press("k")
        assert view.cursor == 1


async def test_a_resize_measures_again_and_keeps_following() -> None:
    view = Numbers(range(100), {99: 3})
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.resize_terminal(30, 6)
        await pilot.pause()
        assert view.shown() == ["96.0", "97.0", "98.0", "99.0", "99.1", "99.2"]


async def test_a_hundred_thousand_rows_render_only_what_is_visible() -> None:
    view = Numbers(range(100_000))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.pause()
        for key in ("g", "G", "pageup", "k"):
            before = view.rows_rendered
            await pilot.press(key)
            assert view.rows_rendered - before <= 50, key
        before = view.rows_rendered
        view.repaint()
        assert view.rows_rendered - before == 10


async def test_a_repaint_refreshes_only_lines_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.pause()
        regions: list[object] = []
        monkeypatch.setattr(view, "refresh", lambda *region, **_: regions.extend(region))
        view.repaint()
        assert regions == []
        view.numbers[95] = 1095
        view.repaint()
        assert len(regions) == 1


async def test_it_stands_empty() -> None:
    view = Numbers(range(0))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("j", "k", "g", "G", "ctrl+d", "pageup", "enter", "h", "l")
        assert view.cursor == 0
        assert view.cursor_key is None
        assert not jump(view, lambda index: True, 1)


async def test_rows_that_go_away_take_the_cursor_to_one_that_is_there() -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.press("k")
        del view.numbers[5:]
        view.sync()
        await pilot.pause()
        assert view.cursor == 4
        assert view.shown()[:6] == ["0.0", "1.0", "2.0", "3.0", "4.0", ""]


async def test_wheel_up_pauses_and_a_click_selects() -> None:
    view = Numbers(range(100))
    async with Stage(view).run_test(size=(20, 10)) as pilot:
        await pilot.pause()
        view._wheel(-3)
        assert not view.following
        assert view.shown()[0] == "87.0"
        await pilot.click(view, offset=(2, 4))
        assert view.cursor_key == 91
