"""Calls of a good server and of servers that misbehave in one: always an answer or one clear error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from core.tools.base import Verdict
from core.tools.mcp.server import Question, Reply
from tests.clock import FakeClock, settle
from tests.core.tools.mcp.fakes import Fixture, fake


async def sleepers(clock: FakeClock, count: int) -> None:
    """Let others run until so many of them wait for the clock."""
    for _ in range(1_000_000):
        if clock.sleeping >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError("nobody waits for the clock")


async def test_arguments_go_as_they_are_and_text_comes_back(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        # Names that a model class has itself are arguments like others.
        given = {"text": "ü\x00", "model_dump": 1, "self": None, "list": [1, {"a": True}]}
        output = await mcp.call("s__echo", **{k: v for k, v in given.items() if k != "self"})
        assert json.loads(output.text) == {k: v for k, v in given.items() if k != "self"}
        assert output.status == "ok"
        assert output.images == ()


async def test_a_tool_that_says_it_failed_is_an_error_with_clean_text(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__fail")
        assert (output.status, output.text) == ("error", "could not")


async def test_an_error_answer_is_one_sentence_with_the_servers_name(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        assert await mcp.failure("s__error") == "the MCP server s: it says: bad arguments here"


async def test_an_image_goes_on_as_an_image_and_shows_as_a_line(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__image")
        assert output.text == "[image png 40 kB]"
        (image,) = output.images
        assert image.media_type == "image/png"
        assert image.data.startswith("iVBORw0KGgo")


async def test_blocks_of_every_kind(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__blocks")
        assert output.text.splitlines() == [
            "one",
            "[audio wav 3 B: not passed on]",
            "[resource link file:///a: about]",
            "[resource file:///b]",
            "inside",
            "[resource file:///c]",
            "[pdf 3 B: not passed on]",
            "[image png: not base64, left out]",
            "[image png 3 B: no png, jpeg, gif or webp, left out]",
        ]
        assert output.images == ()


async def test_structured_content_comes_back_and_no_schema_of_the_server_is_run(mcp: Fixture) -> None:
    """Its pattern needs 2^40 steps for this answer."""
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__structured")
        assert json.loads(output.text) == {"out": "a" * 40 + "!"}


async def test_progress_becomes_result_events(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        assert (await mcp.call("s__progress")).text == "done"
    # Five within a second are one.
    assert mcp.context.emitted == [
        {"source": "mcp_progress", "text": "0 of 5: step 0", "status": "", "about": None}
    ]


async def test_a_result_of_50_mb_is_an_error_and_the_server_goes_on(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        for tool in ("s__huge", "s__huge_id_last"):
            said = await mcp.failure(tool, size=50_000_000)
            assert said == (
                "the MCP server s: it sent a message of 50.0 MB, more than 8 MB, which was dropped"
            )
        assert (await mcp.call("s__echo")).text == "{}"


async def test_a_long_result_keeps_its_head_and_tail(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__huge", size=7_000_000)
        assert len(output.text) < 33_000
        assert "characters left out" in output.text


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("die", 'it ended with exit code 3 ("last words")'),
        ("flood", "it flooded us with more than 2,000 messages in 10 s"),
        ("endless", "it sent more than 134 MB without the end of a message"),
        ("mutter", "it flooded us with more than 33 MB of error output a second"),
    ],
)
async def test_a_server_that_is_lost_in_a_call_is_an_error_and_a_status(
    mcp: Fixture, tool: str, said: str
) -> None:
    # Time stands still, so that a flood is one however slow the machine is.
    async with mcp.running({"s": fake()}, clock=FakeClock()):
        error = await mcp.failure(f"s__{tool}")
        assert error.startswith(f"the MCP server s is gone: {said}")
        assert error.endswith("; it is not restarted while the swarm runs")
        status = await mcp.until("ended")
        assert status.detail.startswith(said)
        assert await mcp.failure("s__echo") == error


async def test_others_have_their_turn_while_a_server_floods(mcp: Fixture) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with mcp.running({"s": fake()}, clock=FakeClock()):
        working = asyncio.create_task(work())
        await mcp.failure("s__endless")
        working.cancel()
    assert turns > 1_000  # of the 2,000 times that something was read


async def test_a_slow_call_ends_and_the_server_is_told(mcp: Fixture) -> None:
    clock = FakeClock()
    async with mcp.running({"s": fake(tool_timeout_sec=30)}, clock=clock):
        slow = asyncio.create_task(mcp.failure("s__hang"))
        await sleepers(clock, 1)
        await clock.advance(29)
        assert not slow.done()
        await clock.advance(1)
        assert await slow == (
            "the MCP server s did not answer within 30 s (tool_timeout_sec sets how long a call may take)"
        )
        told = json.loads((await mcp.call("s__cancelled")).text)
        assert len(told) == 1


async def test_cancelling_a_call_tells_the_server(mcp: Fixture) -> None:
    async with mcp.running({"s": fake(supports_parallel_tool_calls=True)}):
        call = asyncio.create_task(mcp.call("s__hang"))
        await mcp.call("s__echo")
        await mcp.call("s__echo")  # its request goes out after the first one's
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(json.loads((await mcp.call("s__cancelled")).text)) == 1


async def test_a_wrong_answer_is_an_error(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        assert await mcp.failure("s__garbage") == (
            "the MCP server s: its answer does not follow the protocol"
        )
        assert (await mcp.call("s__echo")).text == "{}"


@pytest.mark.parametrize("parallel", [False, True])
async def test_calls_are_exclusive_unless_the_server_can_do_more(mcp: Fixture, parallel: bool) -> None:
    clock = FakeClock()
    settings = fake(supports_parallel_tool_calls=parallel)
    async with mcp.running({"s": settings}, clock=clock) as servers:
        assert servers.tools["s__echo"].parallel is parallel
        slow = asyncio.create_task(mcp.failure("s__hang"))
        await sleepers(clock, 1)
        # Another agent's call: a response's own calls are kept apart by the agent.
        other = asyncio.create_task(mcp.call("s__echo"))
        if parallel:
            assert (await other).text == "{}"
            assert not slow.done()
        await clock.advance(60)
        assert "did not answer within 60 s" in await slow
        assert (await other).text == "{}"


async def test_arguments_that_are_too_many_are_refused_here(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        assert "more than 1,048,576" in await mcp.failure("s__echo", text="x" * 1_100_000)
        assert "too long to ask" in await mcp.failure("s__write", text="x" * 200_000)


# --- tools that change -----------------------------------------------------------------------------------


async def test_a_renamed_tool_is_an_error_and_a_status(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        await mcp.call("s__rename")
        assert await mcp.failure("s__echo") == (
            "the MCP server s: it no longer offers echo, which was removed or renamed since the swarm started"
        )
        assert mcp.statuses[-1].state == "ready"
        assert mcp.statuses[-1].detail == "it changed or removed echo since its start"
        assert (await mcp.call("s__image")).images


async def test_a_changed_tool_is_not_called(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        before = mcp.servers.tools["s__echo"].definition()
        await mcp.call("s__change")
        assert await mcp.failure("s__echo") == (
            "the MCP server s: it changed what echo is since the swarm started, so that is no longer called"
        )
        assert mcp.servers.tools["s__echo"].definition() == before


# --- approvals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "asked"), [("auto", ["s__write"]), ("prompt", ["s__echo", "s__write"]), ("approve", [])]
)
async def test_who_is_asked_before_a_call(mcp: Fixture, mode: str, asked: list[str]) -> None:
    async with mcp.running({"s": fake(default_tools_approval_mode=mode)}):
        await mcp.call("s__echo", text="a\u202eb")
        await mcp.call("s__write", text="a\u202eb")
    assert [a["command"].split()[0] for a in mcp.context.asked] == asked
    for question in mcp.context.asked:
        # What would not show is spelled out.
        assert question["command"].endswith('{"text": "a\\u{202e}b"}')
        assert question["argv"][0] == "s"
        assert "MCP server s" in question["reason"]


async def test_a_denied_call_does_not_happen(mcp: Fixture) -> None:
    mcp.context.verdict = Verdict(approved=False, by="operator", reason="denied by the operator")
    async with mcp.running({"s": fake()}):
        output = await mcp.call("s__write")
        assert (output.status, output.text) == ("refused", "not called: denied by the operator")


async def test_policy_never_asks_nobody(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}, policy="never"):
        output = await mcp.call("s__write")
        assert output.status == "refused"
        assert "policy never asks nobody" in output.text
        assert (await mcp.call("s__echo")).status == "ok"
    assert mcp.context.asked == []


# --- questions of the server -----------------------------------------------------------------------------


async def test_a_question_is_declined_with_the_reason_where_nobody_can_be_asked(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        first, note = (await mcp.call("s__ask")).text.splitlines()
        assert json.loads(first) == {"action": "decline"}
        assert note == "[the server asked: which one?; declined: nobody can be asked in this run]"


async def test_a_question_is_asked_and_the_time_for_it_does_not_count(mcp: Fixture) -> None:
    asked: list[Question] = []
    clock = FakeClock()

    async def elicit(question: Question) -> Reply:
        asked.append(question)
        await clock.advance(3_600)
        return Reply(action="accept", content={"name": "x"})

    async with mcp.running({"s": fake()}, elicit=elicit, clock=clock):
        output = await mcp.call("s__ask")
        assert json.loads(output.text) == {"action": "accept", "content": {"name": "x"}}
        # And the next call has its limit again.
        slow = asyncio.create_task(mcp.failure("s__hang"))
        await sleepers(clock, 1)
        await clock.advance(60)
        assert "did not answer" in await slow
    (question,) = asked
    assert (question.server, question.message) == ("s", "which one?")
    assert question.schema["properties"] == {"name": {"type": "string", "description": "its name"}}


async def test_only_the_time_for_a_question_does_not_count(mcp: Fixture) -> None:
    """50 s of thinking leave the whole limit for the server, and not a second more."""
    clock = FakeClock()
    wanted, told = asyncio.Event(), asyncio.Event()

    async def elicit(question: Question) -> Reply:
        wanted.set()
        await told.wait()
        return Reply(action="accept")

    async with mcp.running({"s": fake()}, elicit=elicit, clock=clock):
        task = asyncio.create_task(mcp.failure("s__ask_and_hang"))
        await wanted.wait()
        await settle()
        await clock.advance(50)
        told.set()
        await settle()
        await clock.advance(59)
        await settle()
        assert not task.done()
        await clock.advance(2)
        assert "did not answer within 60 s" in await task


async def test_a_server_gets_no_more_time_by_asking_what_nobody_is_asked(mcp: Fixture) -> None:
    async def elicit(question: Question) -> Reply:
        return Reply(action="decline", reason="nobody is there")

    async with mcp.running({"s": fake(tool_timeout_sec=0.5)}, elicit=elicit):
        async with asyncio.timeout(10):
            error = await mcp.failure("s__ask_without_end")
    assert "did not answer within 0.5 s" in error or "flooded" in error


async def test_a_question_that_belongs_to_no_call_is_never_asked(mcp: Fixture) -> None:
    asked: list[Question] = []

    async def elicit(question: Question) -> Reply:
        asked.append(question)
        return Reply(action="accept")

    async with mcp.running({"s": fake("curious")}, elicit=elicit):
        answers: list[Any] = []
        while len(answers) < 10:
            answers = json.loads((await mcp.call("s__answered")).text)
    assert asked == []
    assert answers == [{"action": "decline"}] * 10


async def test_an_operator_may_decline_and_a_page_is_never_opened(mcp: Fixture) -> None:
    async def elicit(question: Question) -> Reply:
        return Reply(action="cancel")

    async with mcp.running({"s": fake()}, elicit=elicit):
        assert "declined: the operator chose cancel" in (await mcp.call("s__ask")).text
        assert "opening a page for a server is not supported" in (await mcp.call("s__ask_page")).text


async def test_a_request_to_sample_is_refused(mcp: Fixture) -> None:
    async with mcp.running({"s": fake()}):
        assert "not supported" in (await mcp.call("s__sample")).text
