from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from core.agents.history import History, text_of, user_item
from core.agents.reload import read_history
from core.domain import events as e
from core.store.store import Store
from tests.clock import FakeClock
from tests.core.domain.strategies import event_of


def test_the_fold_pairs_calls_with_outputs_and_echoes_reasoning() -> None:
    history = History("/root/a")
    item = {"type": "reasoning", "id": "r1", "summary": [], "encrypted_content": "xyz"}
    for event in (
        e.AgentMessage(kind="NEW_TASK", author="/root", text="count"),
        e.Reasoning(summary="hm", item=item),
        e.ToolCalled(call="c1", name="exec_command", arguments='{"cmd": "ls"}'),
        e.ToolResult(call="c1", index=0, source="function_call_output", text="first"),
        e.ToolResult(call="c1", index=1, source="function_call_output", text="last"),
        e.ToolEnded(call="c1"),
        e.ToolCalled(call="c2", name="spawn_agent", arguments="{}"),
        e.ToolResult(call="c2", index=0, source="spawn", text="/root/a/b"),
        e.ToolEnded(call="c2", output='{"task_name": "/root/a/b"}'),
        e.AssistantMessage(text="done"),
        e.Notice(text="hidden from the model"),
        e.AgentWaits(wait=None),
    ):
        history.add(event)
    task = "Message Type: NEW_TASK\nTask name: /root/a\nSender: /root\nPayload:\ncount"
    assert history.items == [
        user_item(task),
        item,
        {"type": "function_call", "call_id": "c1", "name": "exec_command", "arguments": '{"cmd": "ls"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "last"},
        {"type": "function_call", "call_id": "c2", "name": "spawn_agent", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": '{"task_name": "/root/a/b"}'},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "done", "annotations": []}],
        },
    ]


def test_what_the_operator_queued_goes_out_as_one_message() -> None:
    history = History("/root")
    history.add(e.UserMessage(text="first"))
    history.add(e.UserMessage(text="second"))
    assert history.items == [user_item("first\n\nsecond")]
    history.add(e.AssistantMessage(text="ok"))
    history.add(e.UserMessage(text="third"))
    assert history.items[-1] == user_item("third")


def test_a_fork_takes_messages_and_final_answers_only() -> None:
    history = History("/root")
    for event in (
        e.UserMessage(text="one"),
        e.AssistantMessage(text="let me look"),
        e.ToolCalled(call="c", name="x", arguments="{}"),
        e.ToolEnded(call="c", output="out"),
        e.AssistantMessage(text="answer one"),
        e.UserMessage(text="two"),
        e.AssistantMessage(text="answer two"),
    ):
        history.add(event)

    def texts(turns: int | None) -> list[str]:
        return [item["content"][0]["text"] for item in history.fork(turns)]

    assert texts(None) == ["one", "answer one", "two", "answer two"]
    assert texts(1) == ["two", "answer two"]
    assert texts(9) == ["one", "answer one", "two", "answer two"]


def test_reasoning_that_led_to_nothing_is_not_sent_again() -> None:
    """A response that was cut after its reasoning: servers refuse reasoning without the item it led to."""
    history = History("/root")
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    history.add(e.UserMessage(text="one"))
    history.add(e.Reasoning(item=thought))
    history.add(e.AssistantMessage(text="answer"))
    history.add(e.Reasoning(item={**thought, "id": "rs_2"}))
    history.add(e.UserMessage(text="two"))
    assert [item.get("id", item["type"]) for item in history.items] == [
        "message",
        "rs_1",
        "message",
        "message",
    ]


def test_a_tool_that_the_model_made_up_does_not_spoil_the_history() -> None:
    history = History("/root")
    for number, name in enumerate(["functions.exec command", "", "x" * 80, "exec_command"]):
        history.add(e.ToolCalled(call=f"c{number}", name=name, arguments=""))
        history.add(e.ToolEnded(call=f"c{number}", status="error", output="there is no such tool"))
    calls = [item for item in history.items if item["type"] == "function_call"]
    assert [item["name"] for item in calls] == ["functions_exec_command", "_", "x" * 64, "exec_command"]
    assert {item["arguments"] for item in calls} == {"{}"}


# --- compaction ------------------------------------------------------------------------------------------


def told(history: History) -> list[str]:
    return [text_of(item) for item in history.items if item["type"] == "message"]


def fold(*events: e.Event) -> History:
    history = History("/root")
    for event in events:
        history.add(event)
    return history


def test_a_summary_takes_the_place_of_all_but_messages_and_what_is_not_answered() -> None:
    history = fold(
        e.UserMessage(text="task"),
        e.AssistantMessage(text="looking"),
        e.ToolCalled(call="c", name="x", arguments="{}"),
        e.ToolEnded(call="c", output="out"),
        e.Notice(text="marker", hidden=False),
        e.AgentMessage(kind="MESSAGE", author="/root/a", text="hello"),
        e.CompactionAsked(by="operator"),
    )
    assert history.asked
    history.add(e.HistoryCompacted(summary="I looked.", team="- /root/a"))
    assert not history.asked
    assert history.fresh
    assert [text.split("\n")[0] for text in told(history)] == [
        "task",
        "<compacted_history>",
        "marker",
        "Message Type: MESSAGE",
    ]
    assert "I looked." in told(history)[1]
    assert "- /root/a" in told(history)[1]
    assert history.call_ids == {"c"}, "an id is never given twice"
    history.add(e.AssistantMessage(text="on"))
    history.add(e.HistoryCompacted(summary="Again."))
    # Markers are no messages, and there is one summary, the last.
    assert [text.split("\n")[0] for text in told(history)] == [
        "task",
        "Message Type: MESSAGE",
        "<compacted_history>",
    ]
    assert "I looked." not in str(history.items)


def test_the_newest_messages_stay_up_to_a_number_of_bytes() -> None:
    heard = [e.UserMessage(text=f"{n}" * 300) for n in range(5)]
    events = [one for said in heard for one in (said, e.AssistantMessage(text="ok"))]
    history = fold(*events, e.HistoryCompacted(summary="s", keep=900))
    assert [text[0] for text in told(history)] == ["2", "3", "4", "<"]
    cut = fold(*events, e.HistoryCompacted(summary="s", keep=1100))
    assert [text[0] for text in told(cut)] == ["1", "2", "3", "4", "<"]
    assert "characters left out" in told(cut)[0]
    none = fold(*events, e.HistoryCompacted(summary="s", keep=100))
    assert len(told(none)) == 1
    wide = fold(
        e.UserMessage(text="ä" * 300),
        e.AssistantMessage(text="ok"),
        e.HistoryCompacted(summary="s", keep=500),
    )
    assert len(told(wide)[0].encode()) < 600


def test_messages_without_an_answer_are_cut_only_where_a_server_said_no() -> None:
    events = [
        e.UserMessage(text="task"),
        e.AssistantMessage(text="ok"),
        e.AgentMessage(kind="MESSAGE", author="/root/a", text="a" * 9_000),
        e.UserMessage(text="b" * 100),
    ]
    for reason in ("window", "operator"):
        history = fold(*events, e.HistoryCompacted(summary="s", reason=reason, keep=1000))
        assert [len(text) > 9_000 for text in told(history)] == [False, True, False]
        assert told(history)[-1] == "b" * 100
    history = fold(*events, e.HistoryCompacted(summary="s", reason="error", keep=1000))
    # Each has its share: none is lost because another one is long.
    assert [text.split("\n")[0][:12] for text in told(history)] == ["<compacted_h", "Message Type", "b" * 12]
    assert len(told(history)[1]) < 2_200
    assert told(history)[2] == "b" * 100


def test_what_the_operator_adds_after_a_compaction_is_a_message_of_its_own() -> None:
    history = fold(e.UserMessage(text="one"), e.HistoryCompacted(summary=""), e.UserMessage(text="two"))
    assert told(history) == ["one", "two"]


def test_reasoning_in_front_of_a_message_goes_also_after_a_compaction() -> None:
    thought = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}
    history = fold(
        e.UserMessage(text="one"),
        e.AssistantMessage(text="ok"),
        e.Reasoning(item=thought),
        e.UserMessage(text="two"),
        e.HistoryCompacted(summary="s"),
    )
    assert [text.split("\n")[0] for text in told(history)] == ["one", "<compacted_history>", "two"]


KINDS = (
    *(e.UserMessage, e.AgentMessage, e.AssistantMessage, e.Reasoning, e.Notice, e.ToolCalled),
    *(e.ToolResult, e.ToolEnded, e.HistoryCompacted, e.CompactionAsked, e.ToolCalled, e.ToolEnded),
)
MINE = st.lists(st.one_of([event_of(kind) for kind in KINDS]), max_size=40)


@hypothesis_settings(max_examples=200, deadline=None)
@given(MINE)
def test_no_story_makes_a_history_that_servers_refuse(events: list[e.Event]) -> None:
    history = History("/root")
    for event in events:
        before = [id(item) for item in history.items[len(history.answered) :]]
        history.add(event)
        assert 0 <= len(history.answered) <= len(history.items)
        assert all(item.get("role") == "user" for item in history.items[len(history.answered) :])
        if isinstance(event, e.HistoryCompacted):
            assert history.fresh
            assert not history.asked
            assert all(item["type"] == "message" for item in history.items)
            if event.reason != "error":
                unread = history.items[len(history.answered) :]
                assert [id(item) for item in unread] == before, "not answered, and lost"
        called = [item["call_id"] for item in history.items if item.get("type") == "function_call"]
        ended = [item["call_id"] for item in history.items if item.get("type") == "function_call_output"]
        assert set(ended) <= set(called)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.one_of([event_of(kind) for kind in KINDS])), max_size=30
    )
)
def test_a_reloaded_history_is_the_one_that_was_in_memory(story: list[tuple[str, e.Event]]) -> None:
    """Parent and child, the child a fork from the middle of the story; through the store and back."""

    async def through(folder: Path) -> None:
        store = await Store.open(folder, clock=FakeClock(), redact=lambda text: text)
        try:
            await store.create("s")
            live = {"a": History("/root"), "b": History("/root/b")}
            born = [
                e.SwarmStarted(title="t", cwd="/", model="m", source="exec"),
                e.AgentSpawned(agent="a", path="/root", nickname="root"),
            ]
            await store.append("s", born)
            half = len(story) // 2

            async def tell(part: list[tuple[str, e.Event]], known: tuple[str, ...]) -> None:
                mine = [replace(event, agent=who) for who, event in part if who in known]
                if mine:
                    for event in await store.append("s", mine):
                        live[event.agent or ""].add(event)

            await tell(story[:half], ("a",))
            seq = store.state("s").seq
            fork = e.AgentSpawned(
                agent="b",
                path="/root/b",
                nickname="b",
                parent="a",
                fork="all" if half % 2 else "2",
                fork_seq=seq,
            )
            live["b"].inherit(live["a"], fork.fork)
            await store.append("s", [fork])
            await tell(story[half:], ("a", "b"))
            for thread, history in live.items():
                again, _ = await read_history(store, "s", thread, store.state("s").seq)
                assert again.items == history.items
                assert again.call_ids == history.call_ids
                assert (again.asked, again.fresh, again.summary) == (
                    history.asked,
                    history.fresh,
                    history.summary,
                )
                assert again.answered == history.answered
                again.add(e.HistoryCompacted(summary="next"))
                history.add(e.HistoryCompacted(summary="next"))
                assert again.items == history.items
        finally:
            await store.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(through(Path(folder)))
