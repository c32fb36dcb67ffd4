from __future__ import annotations

from core.agents.history import History, user_item
from core.domain import events as e


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
