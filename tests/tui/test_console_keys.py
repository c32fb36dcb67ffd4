"""Every key of the swarm screen, pressed on a finished story: what it shows and what it sends."""

from __future__ import annotations

import pytest
from textual import events
from textual.pilot import Pilot

from core.domain import events as e
from core.domain.commands import Close, Decide, Interrupt, Reply, SendInput, StartSwarm
from core.domain.status import Wait
from tests.tui.fake_client import FakeClient
from tests.tui.stage import StageClock, audit_client, ready, screen_text, stage
from tests.tui.story import SWARM, Story, audit, thread
from tui.app import WatchroomApp
from tui.farewell import short_id
from tui.screens.confirm import ConfirmScope
from tui.screens.help import HelpScreen
from tui.themes import LIGHT

WIDE, MEDIUM, NARROW = (160, 45), (120, 35), (80, 24)
ROOT, ATLAS, EMBER, IRIS, BIRCH = (thread(number) for number in range(1, 6))


async def press(pilot: Pilot[str], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
    await ready(pilot)


def on_screen(app: WatchroomApp) -> str:
    return screen_text(app)


async def test_the_root_is_shown_first_beside_the_tree() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert app.swarm_screen.selected == ROOT
        assert app.focused is app.swarm_screen.agents
        text = on_screen(app)
        assert "Audit every module and write the report." in text
        assert "The audit is nearly done. Two modules" in text
        assert "FOLLOW" in text


async def test_moving_in_the_tree_shows_the_agent_under_the_cursor() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "down")
        assert app.swarm_screen.selected == BIRCH
        assert "atlas ▸ birch ▸ THREAD" in on_screen(app)
        assert "wc -l core/*.py" in on_screen(app)
        await press(pilot, "k", "up")
        assert app.swarm_screen.selected == ROOT


async def test_g_and_G_go_to_the_ends_of_the_tree() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "G")
        assert app.view.name_of(app.swarm_screen.selected) == "kite"
        await press(pilot, "g")
        assert app.swarm_screen.selected == ROOT
        await press(pilot, "ctrl+d")
        assert app.swarm_screen.agents.cursor > 0
        await press(pilot, "ctrl+u")
        assert app.swarm_screen.agents.cursor == 0


async def test_h_folds_and_then_goes_to_the_parent_and_l_unfolds() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        tree = app.swarm_screen.agents
        rows = tree.row_count()
        await press(pilot, "j", "h")
        assert tree.row_count() == rows - 2
        assert "atlas +2" in on_screen(app)
        await press(pilot, "h")
        assert app.swarm_screen.selected == ROOT
        await press(pilot, "j", "l")
        assert tree.row_count() == rows
        await press(pilot, "l")
        assert app.swarm_screen.selected == BIRCH


async def test_p_selects_the_parent() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "j", "p")
        assert app.swarm_screen.selected == ATLAS


async def test_n_finds_the_failed_agent_and_the_failed_call() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "n")
        assert app.view.name_of(app.swarm_screen.selected) == "heron"
        await press(pilot, "g", "enter", "N")
        transcript = app.swarm_screen.transcript
        assert app.focused is transcript
        rows = transcript.rows
        assert rows is not None
        call = rows.rows[transcript.cursor].call
        assert call is not None
        assert call.status == "error"


async def test_n_says_when_there_is_no_error() -> None:
    story = Story()
    story.start()
    story.spawn("root", None, "nothing", 0)
    app = stage(FakeClient(story.events))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "escape", "n")
        assert "no error in this pane" in on_screen(app)


async def test_a_approves_the_question_that_is_painted() -> None:
    client, clock = audit_client(), StageClock()
    app = stage(client, clock=clock)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await clock.advance(1)
        await press(pilot, "a")
        assert client.sent == [Decide(swarm=SWARM, approval="ap-1", approve=True)]
        assert "approved for iris: rm -r build/" in on_screen(app)


async def test_d_denies() -> None:
    client, clock = audit_client(), StageClock()
    app = stage(client, clock=clock)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await clock.advance(1)
        await press(pilot, "d")
        assert client.sent == [Decide(swarm=SWARM, approval="ap-1", approve=False)]


async def test_a_decision_right_after_the_bar_changed_is_not_taken() -> None:
    """The key was meant for the question that stood there before."""
    story = audit()
    client, clock = audit_client(story), StageClock()
    app = stage(client, clock=clock)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await clock.advance(1)
        decided = e.ApprovalDecided(agent=IRIS, approval="ap-1", decision="aborted", by="engine")
        client.push(story.add(decided))
        asked = e.ApprovalRequested(agent=ATLAS, approval="ap-2", call="a1", command="curl evil")
        client.push(story.add(asked))
        await ready(pilot)
        await press(pilot, "a")
        assert client.sent == []
        assert "the question just changed" in on_screen(app)
        await clock.advance(1)
        await press(pilot, "a")
        assert client.sent == [Decide(swarm=SWARM, approval="ap-2", approve=True)]


async def test_a_decision_that_came_too_late_says_who_decided() -> None:
    client, clock = audit_client(), StageClock()
    client.replies[Decide] = Reply(ok=False, code="decided", error="already denied by the other console")
    app = stage(client, clock=clock)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await clock.advance(1)
        await press(pilot, "a")
        assert "already denied by the other console" in on_screen(app)


async def test_without_a_question_a_and_d_do_nothing() -> None:
    story = audit()
    story.add(e.ApprovalDecided(agent=IRIS, approval="ap-1", decision="denied", by="operator"))
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "a", "d", "exclamation_mark")
        assert client.sent == []
        assert "needs you" not in on_screen(app)


async def test_bang_goes_to_who_asks() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "exclamation_mark")
        assert app.swarm_screen.selected == IRIS


async def test_i_interrupts_an_agent_without_children_at_once() -> None:
    client = audit_client()
    client.replies[Interrupt] = Reply(value={"stopped": [IRIS]})
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "exclamation_mark", "i")
        assert client.sent == [Interrupt(swarm=SWARM, thread=IRIS)]
        assert "interrupted iris" in on_screen(app)


@pytest.mark.parametrize(("key", "cascade"), [("i", False), ("I", True)])
async def test_i_asks_for_the_scope_where_agents_run_below(key: str, cascade: bool) -> None:
    client = audit_client()
    client.replies[Interrupt] = Reply(value={"stopped": [EMBER, thread(8)]})
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        app.swarm_screen.select(EMBER)
        await press(pilot, "i")
        assert isinstance(app.screen, ConfirmScope)
        assert "Interrupt ember? 1 running below" in on_screen(app)
        assert "grove" in on_screen(app)
        await press(pilot, "enter")
        assert client.sent == []
        await press(pilot, key)
        assert client.sent == [Interrupt(swarm=SWARM, thread=EMBER, cascade=cascade)]
        assert "interrupted ember, grove" in on_screen(app)


async def test_esc_leaves_the_scope_question_and_never_interrupts() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "i", "escape", "escape", "escape")
        assert app.screen is app.swarm_screen
        assert client.sent == []


async def test_an_agent_that_does_not_run_is_not_interrupted() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "n", "i")
        assert client.sent == []
        assert "heron is not running" in on_screen(app)


async def test_x_closes_after_a_question_that_names_what_is_below() -> None:
    client = audit_client()
    client.replies[Close] = Reply(value={"closed": [ATLAS, BIRCH, thread(6)]})
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "x")
        assert "2 below: birch cedar" in on_screen(app)
        assert client.sent == []
        await press(pilot, "x")
        assert client.sent == [Close(swarm=SWARM, thread=ATLAS)]
        assert "closed atlas, birch, cedar" in on_screen(app)


async def test_m_writes_to_the_selected_agent_and_enter_sends() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "m", *"hurry")
        assert "to atlas" in on_screen(app)
        await press(pilot, "ctrl+j", *"up", "enter")
        assert client.sent == [SendInput(swarm=SWARM, thread=ATLAS, text="hurry\nup")]
        assert app.swarm_screen.composer.text == ""


async def test_single_letters_are_text_in_the_composer_and_esc_leaves_it() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "c", *"axid!?")
        assert app.swarm_screen.composer.text == "axid!?"
        await press(pilot, "escape")
        assert app.focused is app.swarm_screen.agents
        assert app.swarm_screen.composer.text == "axid!?"
        assert client.sent == []


async def test_a_paste_of_several_lines_stays_whole_and_is_cleaned() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "c")
        app.swarm_screen.composer.post_message(events.Paste("one\ntwo\x1b[31m\nthree"))
        await ready(pilot)
        await press(pilot, "enter")
        assert client.sent == [SendInput(swarm=SWARM, thread=ROOT, text="one\ntwo\nthree")]


async def test_an_empty_line_is_not_sent() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "c", "space", "enter")
        assert client.sent == []


async def test_what_was_refused_comes_back_to_the_composer() -> None:
    client = audit_client()
    client.replies[SendInput] = Reply(ok=False, code="closed", error="atlas is closed")
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "m", *"hello", "enter")
        assert "atlas is closed" in on_screen(app)
        assert app.swarm_screen.composer.text == "hello"


async def test_enter_in_the_tree_opens_the_transcript_and_esc_comes_back() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "enter")
        assert app.focused is app.swarm_screen.transcript
        await press(pilot, "escape")
        assert app.focused is app.swarm_screen.agents


async def test_tab_goes_round_the_panes() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        screen = app.swarm_screen
        seen = []
        for _ in range(3):
            await press(pilot, "tab")
            seen.append(app.focused)
        assert seen == [screen.transcript, screen.table, screen.agents]
        await press(pilot, "shift+tab")
        assert app.focused is screen.table


async def test_J_opens_the_job_and_enter_shows_the_worker_of_a_row() -> None:
    app = stage()
    async with app.run_test(size=MEDIUM) as pilot:
        await ready(pilot)
        assert "acme-" not in on_screen(app)
        await press(pilot, "J")
        assert app.focused is app.swarm_screen.table
        assert "acme-042.json" in on_screen(app)
        await press(pilot, "g", "j", "enter")
        assert app.view.name_of(app.swarm_screen.selected) == "grove"
        await press(pilot, "J")
        await press(pilot, "J")
        assert "acme-042.json" not in on_screen(app)


async def test_the_job_stays_where_the_work_is_until_the_operator_moves() -> None:
    story = audit()
    client = audit_client(story)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        table = app.swarm_screen.table
        assert 42 in table.visible_rows()
        await press(pilot, "J", "g")
        client.push(story.add(e.Notice(agent=ROOT, text="tick")))
        await ready(pilot)
        assert 0 in table.visible_rows()
        await press(pilot, "f")
        assert 42 in table.visible_rows()


async def test_n_in_the_job_finds_the_failed_row() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "J", "g", "n")
        assert app.swarm_screen.table.cursor == 3
        await press(pilot, "N", "N")
        assert app.swarm_screen.table.cursor == 17


async def test_narrow_has_one_pane_and_numbers_choose_it() -> None:
    app = stage()
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        assert "[1 agents]" in on_screen(app)
        assert "Audit every module" not in on_screen(app)
        await press(pilot, "2")
        assert "[2 thread]" in on_screen(app)
        assert "Audit every module" in on_screen(app)
        await press(pilot, "3")
        assert "acme-042.json" in on_screen(app)
        await press(pilot, "1")
        assert app.focused is app.swarm_screen.agents
        await press(pilot, "enter")
        assert "[2 thread]" in on_screen(app)


async def test_y_copies_the_thread_id() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "j", "y")
        assert app.clipboard == ATLAS


async def test_t_changes_the_theme() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "t")
        assert app.theme == LIGHT


async def test_help_lists_the_live_keys() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "question_mark")
        assert isinstance(app.screen, HelpScreen)
        text = on_screen(app)
        for words in ("Interrupt the selected agent's turn", "Approve what the bar shows", "Next row"):
            assert words in text
        await press(pilot, "escape")
        assert app.screen is app.swarm_screen


async def test_every_binding_of_the_screen_is_in_the_help() -> None:
    app = stage()
    async with app.run_test(size=(160, 80)) as pilot:
        await ready(pilot)
        await press(pilot, "question_mark")
        text = on_screen(app)
        for binding in app.swarm_screen.BINDINGS:
            shown = binding.id != "engine.again"  # there only while there is no engine
            assert (binding.tooltip in text) == shown, binding.id
            assert binding.id


async def test_a_click_on_the_roll_call_selects() -> None:
    app = stage()
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await pilot.click(app.swarm_screen.roll, offset=(7 + 3, 0))
        await ready(pilot)
        assert app.swarm_screen.selected == IRIS


async def test_a_click_selects_a_row_of_the_tree_and_the_wheel_moves_a_transcript() -> None:
    app = stage()
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        await pilot.click(app.swarm_screen.agents, offset=(10, 2))
        await ready(pilot)
        assert app.swarm_screen.selected == BIRCH


async def test_quit_asks_while_agents_run_and_a_second_one_does_it() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "ctrl+q")
        assert "running will be interrupted" in on_screen(app)
        await press(pilot, "escape")
        assert app.is_running
        await press(pilot, "ctrl+q")
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert client.closed
    assert app.return_value is not None
    assert f"watchroom resume {short_id(SWARM)}" in app.return_value
    assert "running" not in app.return_value  # the engine has interrupted them before it was closed
    assert "interrupted" in app.return_value
    assert app.return_code == 0


async def test_quit_is_immediate_when_nothing_runs() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "done", 0)
    story.turn(root)
    story.done(root, "finished", 3)
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert client.closed
    assert "1 completed" in (app.return_value or "")


async def test_an_idle_root_that_waits_for_input_has_the_composer_focused() -> None:
    story = Story()
    story.start()
    story.spawn("root", None, "", 0)
    client = FakeClient(story.events)
    app = stage(client, start=StartSwarm(task=None))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert app.focused is app.swarm_screen.composer
        await press(pilot, *"go", "enter")
        assert client.sent[1:] == [SendInput(swarm=SWARM, thread=ROOT, text="go")]


async def test_what_is_typed_right_after_m_is_text_however_fast_it_comes() -> None:
    """All keys arrive before the first one is handled: none of them may approve or close anything."""
    client, clock = audit_client(), StageClock()
    app = stage(client, clock=clock)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await clock.advance(1)
        for key in "maxid":
            app.post_message(events.Key(key, key))
        await ready(pilot)
        assert app.swarm_screen.composer.text == "axid"
        assert client.sent == []


async def test_a_long_command_is_shown_whole_before_it_can_be_approved() -> None:
    story = audit()
    story.add(e.ApprovalDecided(agent=IRIS, approval="ap-1", decision="denied", by="operator"))
    words = " ".join(f"--option-{number}=value" for number in range(12))
    asked = e.ApprovalRequested(agent=IRIS, approval="ap-2", call="i1", command=f"run {words} | sh", cwd="/w")
    story.add(asked)
    app = stage(audit_client(story))
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        text = on_screen(app)
        assert all(f"--option-{number}=value" in text for number in range(12))
        assert "| sh" in text
        assert "a approve" in text


async def test_a_command_too_long_for_the_bar_says_how_much_is_missing() -> None:
    story = audit()
    story.add(e.ApprovalDecided(agent=IRIS, approval="ap-1", decision="denied", by="operator"))
    command = "echo " + "x" * 5_000 + "; rm -rf /"
    story.add(e.ApprovalRequested(agent=IRIS, approval="ap-2", call="i1", command=command, cwd="/w"))
    app = stage(audit_client(story))
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        assert "more chars" in on_screen(app)


async def test_what_is_typed_before_a_new_swarm_stands_is_its_first_message() -> None:
    """The root is announced before it is ready; no key typed meanwhile may act on the tree."""
    story = Story()
    story.start()
    story.spawn("root", None, "", 0)
    ready_event = story.events.pop()
    assert isinstance(ready_event, e.AgentReady)
    client = FakeClient(story.events)
    app = stage(client, start=StartSwarm(task=None))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press(*"fix it")
        await ready(pilot)
        client.push(ready_event)
        await press(pilot, "!", "enter")
        assert client.sent[1:] == [SendInput(swarm=SWARM, thread=ROOT, text="fix it!")]


async def test_in_a_narrow_terminal_a_message_brings_the_transcript_that_will_hold_the_answer() -> None:
    app = stage(audit_client())
    async with app.run_test(size=NARROW) as pilot:
        await ready(pilot)
        assert "[1 agents]" in on_screen(app)
        await press(pilot, "c", *"why", "enter")
        assert "[2 thread]" in on_screen(app)
        assert app.focused is app.swarm_screen.composer
        await press(pilot, *"so", "escape")
        assert app.focused is app.swarm_screen.transcript


def type_fast(app: WatchroomApp, keys: str) -> None:
    """All keys arrive before the first one is handled, as when one is held down or the machine is busy."""
    for key in keys:
        app.post_message(events.Key(key, key))


async def test_keys_typed_faster_than_the_tree_tells_act_on_the_agent_under_the_cursor() -> None:
    client = audit_client()
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        under = app.swarm_screen.agents._flat[5].key
        name = app.view.name_of(under)
        type_fast(app, "jjjjjx")
        await ready(pilot)
        assert app.swarm_screen.agents.cursor_key == under
        assert app.swarm_screen.selected == under
        assert f"Close {name}?" in on_screen(app)


async def test_the_line_for_a_slot_is_shown_as_it_is_now() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "work", 0)
    story.turn(root)
    for number, name in enumerate(("ash", "elm"), 2):
        story.spawn(name, root, "later", 1)
        story.add(e.AgentWaits(agent=thread(number), wait=Wait(reason="slot", line=number)))
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        rows = {name: line for name in ("ash", "elm") for line in on_screen(app).splitlines() if name in line}
        assert "queued  slot: 1st in line" in rows["ash"]
        assert "queued  slot: 2nd in line" in rows["elm"]


async def test_quitting_counts_who_waits_for_a_slot_too() -> None:
    story = Story()
    story.start()
    root = story.spawn("root", None, "work", 0)
    story.turn(root)
    story.spawn("ash", root, "later", 1)
    story.add(e.AgentWaits(agent=thread(2), wait=Wait(reason="slot")))
    client = FakeClient(story.events)
    app = stage(client)
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        await press(pilot, "ctrl+q")
        assert "Quit? 1 running and 1 queued will be interrupted:" in on_screen(app)
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert "2 interrupted\n" in (app.return_value or "")


async def test_a_command_stays_whole_when_the_terminal_gets_narrow() -> None:
    """Nothing happens in the swarm meanwhile: the new width alone makes room for it."""
    story = audit()
    command = "python3 -B -m unittest discover -s tests -p test_everything.py"
    story.add(e.ApprovalRequested(agent=ROOT, approval="a9", call="c9", command=command, cwd="/work/demo"))
    app = stage(audit_client(story))
    async with app.run_test(size=WIDE) as pilot:
        await ready(pilot)
        assert command in on_screen(app)
        await pilot.resize_terminal(*NARROW)
        await ready(pilot)
        assert command in on_screen(app)
