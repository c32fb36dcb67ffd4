"""Who is answered what, and that the answer follows from the request alone."""

from __future__ import annotations

import json

import pytest

from core.models.types import Completed, ModelError
from tests.core.scripted.talk import Talk, calls_of, output, text_of, user

LINEAR = """
[[agents]]
path = "/root"
closing = "nothing more from {agent_path}"
[[agents.steps]]
reasoning = "first look"
text = "looking"
calls = [
  { name = "exec_command", arguments = { cmd = "ls" } },
  { name = "exec_command", arguments = { cmd = "pwd" } },
]
[[agents.steps]]
text = "saw {last_output}"
"""


async def test_steps_in_order_then_the_closing_text() -> None:
    talk = Talk(LINEAR)
    first = await talk.ask("go")
    assert [item["type"] for item in first] == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(call["arguments"]) for call in calls_of(first)] == [{"cmd": "ls"}, {"cmd": "pwd"}]
    one, two = calls_of(first)
    assert text_of(await talk.ask(output(one, "a"), output(two, "b"))) == "saw a\nb"
    assert text_of(await talk.ask("more?")) == "nothing more from /root"
    assert text_of(await talk.ask("more?")) == "nothing more from /root"


async def test_a_restarted_server_gives_the_same_answers() -> None:
    steady, restarted = Talk(LINEAR), Talk(LINEAR)
    for talk in (steady, restarted):
        items = await talk.ask("go")
        if talk is restarted:
            talk.restart()
        await talk.ask(*[output(call, "x") for call in calls_of(items)])
        if talk is restarted:
            talk.restart()
        await talk.ask("and?")
    assert steady.history == restarted.history


async def test_the_same_request_has_the_same_ids_and_others_have_others() -> None:
    talk, other = Talk(LINEAR), Talk(LINEAR, path="/root")
    talk.history = other.history = [user("go")]
    first, again = (await talk.events())[-1], (await talk.events())[-1]
    assert first == again
    ids = {item["call_id"] for item in calls_of(await talk.ask())}
    sibling = Talk(LINEAR.replace('"/root"', '"*"'), path="/root/b")
    assert ids.isdisjoint(item["call_id"] for item in calls_of(await sibling.ask("go")))


RULES = """
[[agents]]
path = ["/root/a", "/root/b"]
closing = "by name"
[[agents]]
path = "*/job_*"
closing = "a worker"
[[agents]]
path = "/root*"
first = "(?i)^URGENT"
closing = "by its task"
[[agents]]
path = "/root"
closing = "the root"
"""


@pytest.mark.parametrize(
    ("path", "task", "expected"),
    [
        ("/root/a", "x", "by name"),
        ("/root/b", "urgent", "by name"),
        ("/root/job_0123abcd_7", "x", "a worker"),
        ("/root/c", "urgent: y", "by its task"),
        ("/root", "urgent", "by its task"),
        ("/root", "calm", "the root"),
        ("/root/c", "calm", "The scenario scenario has no part for the agent /root/c."),
    ],
)
async def test_the_first_rule_that_fits(path: str, task: str, expected: str) -> None:
    assert text_of(await Talk(RULES, path=path).ask(task)) == expected


async def test_what_a_fork_took_over_counts_for_nothing() -> None:
    talk = Talk(LINEAR.replace('"/root"', '"/root/kid"').replace("last_output", "task"), path="/root/kid")
    inherited = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "the parent's answer", "annotations": []}],
    }
    talk.history = [user("the parent's task"), inherited, user("more"), inherited]
    mail = "Message Type: NEW_TASK\nTask name: /root/kid\nSender: /root\nPayload:\ncount\nthe files"
    first = await talk.ask(mail)
    assert calls_of(first)
    done = await talk.ask(*[output(call, "x") for call in calls_of(first)])
    assert text_of(done) == "saw count\nthe files"


BRANCHES = """
[[agents]]
[[agents.steps]]
calls = [{ name = "exec_command", arguments = { cmd = "make" } }]
[[agents.steps]]
when = { last_output = "denied" }
text = "I was not allowed to."
next = "end"
[[agents.steps]]
text = "It built."
"""


@pytest.mark.parametrize(
    ("told", "answer"), [("denied by the operator", "I was not allowed to."), ("ok", "It built.")]
)
async def test_branches(told: str, answer: str) -> None:
    talk = Talk(BRANCHES)
    assert await talk.run("go", lambda _: told) == answer
    assert text_of(await talk.ask("and now?")) == "That was all of my part."


LOOP = """
[[agents]]
[[agents.steps]]
name = "wait"
unless = { outputs = "all done" }
calls = [{ name = "wait_agent", arguments = { timeout_ms = 10000 } }]
next = "wait"
[[agents.steps]]
text = "everybody is done"
"""


@pytest.mark.parametrize("rounds", [1, 2, 7])
async def test_a_step_repeats_until_its_condition_holds(rounds: int) -> None:
    talk, told = Talk(LOOP), iter(["not yet"] * (rounds - 1) + ["all done"])
    assert await talk.run("go", lambda _: next(told)) == "everybody is done"
    assert talk.transport.requests.total == rounds + 1


async def test_a_step_that_waits_for_a_message_comes_after_the_closing_text() -> None:
    talk = Talk(
        """
[[agents]]
closing = "waiting"
[[agents.steps]]
when = { last_message = "from the child: (.*)" }
text = "the child said {said}"
[agents.captures]
said = { in = "last_message", match = "from the child: (.*)" }
"""
    )
    assert text_of(await talk.ask("go")) == "waiting"
    assert text_of(await talk.ask("from the child: 42")) == "the child said 42"
    assert text_of(await talk.ask("from the child: 43")) == "waiting"


CAPTURES = """
[[agents]]
[agents.captures]
file = { in = "task", match = '"file": ("(?:[^"\\\\]|\\\\.)*")', json = true }
count = { in = "outputs", match = '^(\\d+)', default = "none" }
row = { in = "first", match = '^\\{.*\\}$' }
[[agents.steps]]
[[agents.steps.calls]]
name = "t"
arguments = { cmd = "wc {file:sh}", row = "{row:json}", nested = [{ n = "{count}" }] }
[[agents.steps]]
text = "{count:int} lines in {file}"
"""


async def test_captures_are_typed_and_quoted() -> None:
    talk = Talk(CAPTURES)
    row = {"file": 'odd "name"; rm.txt', "n": 1}
    items = await talk.ask("Do this.\n" + json.dumps(row))
    assert json.loads(calls_of(items)[0]["arguments"]) == {
        "cmd": "wc 'odd \"name\"; rm.txt'",
        "row": row,
        "nested": [{"n": "none"}],
    }
    items = await talk.ask(output(calls_of(items)[0], "12 lines"))
    assert text_of(items) == 'odd "name"; rm.txt'.join(["12 lines in ", ""])


async def test_a_value_that_is_not_there_is_said_and_nothing_is_called() -> None:
    items = await Talk(CAPTURES).ask("no row here")
    assert text_of(items) == "The scenario scenario cannot go on for /root: no file in its task."
    assert not calls_of(items)


async def test_usage_is_computed_and_the_earlier_request_is_cached() -> None:
    talk = Talk(LINEAR)
    talk.history = [user("go " + "x" * 4000)]
    first = (await talk.events())[-1]
    assert isinstance(first, Completed)
    assert first.usage is not None
    assert 1000 < first.usage.input < 1200
    assert first.usage.cached == 0
    assert first.usage.reasoning == len("first look") // 4 + 1
    assert first.usage.total == first.usage.input + first.usage.output
    talk.history += [*first.items, *[output(call, "y") for call in calls_of(first.items)]]
    second = (await talk.events())[-1]
    assert isinstance(second, Completed)
    assert second.usage is not None
    assert 1000 < second.usage.cached < second.usage.input


# -- a strict server


async def refused(talk: Talk) -> str:
    with pytest.raises(ModelError) as caught:
        await talk.ask()
    assert caught.value.status == 400
    return str(caught.value)


async def test_calls_and_outputs_must_match() -> None:
    talk = Talk(LINEAR)
    one, two = calls_of(await talk.ask("go"))
    whole = list(talk.history)
    for added, words in [
        ([output(one, "a")], f"No tool output found for function call {two['call_id']}"),
        ([output(one, "a"), output(two, "b"), output(two, "c")], "has two outputs"),
        ([output(one, "a"), output(two, "b"), output({"call_id": "call_x"}, "c")], "call_id call_x"),
        ([one, output(one, "a"), output(two, "b")], "used by two function calls"),
    ]:
        talk.history = [*whole, *added]
        assert words in await refused(talk)


async def test_reasoning_must_come_back_as_it_was_sent() -> None:
    talk = Talk(LINEAR)
    items = await talk.ask("go")
    outputs = [output(call, "x") for call in calls_of(items)]
    thought = items[0]
    for instead, words in [
        ([], "is missing"),
        ([{**thought, "encrypted_content": "scripted.00"}], "could not be verified"),
        ([{**thought, "summary": [{"type": "summary_text", "text": "other"}]}], "could not be verified"),
        ([{**thought, "summary": None}], "as it was sent"),
    ]:
        talk.history = [user("go"), *instead, *items[1:], *outputs]
        assert words in await refused(talk)
    talk.history = [user("go"), *items, *outputs]
    assert text_of(await talk.ask()) == "saw x\nx"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "compaction"}, "no item type"),
        ({"type": "message", "role": "tool", "content": "x"}, "no role"),
        (
            {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "takes input_",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "x"}]},
            "takes output_",
        ),
        ({"type": "message", "role": "user", "content": 7}, "a string or a list"),
        ({"type": "function_call", "call_id": "c", "name": "x", "arguments": {}}, "as strings"),
        ({"type": "function_call_output", "output": "x"}, "call_id"),
    ],
)
async def test_items_that_are_none(item: dict[str, object], words: str) -> None:
    talk = Talk(LINEAR)
    talk.history = [user("go"), item]
    assert words in await refused(talk)


async def test_no_input() -> None:
    assert "at least one item" in await refused(Talk(LINEAR))


# --- compaction --------------------------------------------------------------------------------------------

LONG = """
window = 400
[[agents]]
path = "*"
summary = "{agent_path} goes on after {task}"
[[agents.steps]]
text = "one"
[[agents.steps]]
calls = [{ name = "x" }]
[[agents.steps]]
text = "three"
"""
ASKS = "<compaction_request>\nSum up.\n</compaction_request>"


async def test_a_summary_says_where_the_steps_stood_and_they_go_on_from_there() -> None:
    talk = Talk(LONG)
    assert text_of(await talk.ask("the task")) == "one"
    first = await talk.ask("next")
    talk.history.append(output(calls_of(first)[0], "out"))
    before = list(talk.history)
    summary = text_of(await talk.ask(ASKS))
    assert summary == "/root goes on after the task\nscripted: 2 responses, step 2"
    talk.history = [user("the task"), user(f"<compacted_history>\n{summary}\n</compacted_history>")]
    talk.restart()
    third = await talk.ask("go on")
    assert text_of(third) == "three"
    # No id is given a second time.
    ids = [item["id"] for item in [*before, *third] if "id" in item]
    assert len(set(ids)) == len(ids) == 3


async def test_a_second_summary_counts_on_from_the_first() -> None:
    talk = Talk(LONG)
    talk.history = [user("<compacted_history>\nscripted: 7 responses, step 2\n</compacted_history>")]
    assert text_of(await talk.ask("go on")) == "three"
    assert text_of(await talk.ask(ASKS)).endswith("\nscripted: 8 responses, step 3")


async def test_a_request_longer_than_the_window_is_refused_as_real_servers_do() -> None:
    talk = Talk(LONG)
    with pytest.raises(ModelError, match="exceeds the context window of 400 tokens") as raised:
        await talk.ask("x" * 1600)
    assert raised.value.kind == "context"
    assert raised.value.status == 400
