"""The turn loop on servers that fail and tools that misbehave: nothing is done twice, nothing is lost, and
what is sent is what a strict server takes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import core.agents.turn
import core.engine.models
from core.domain import events as e
from core.domain.commands import Interrupt, SendInput
from core.domain.status import Usage
from core.tools.base import MAX_OUTPUT_CHARS, Tool, ToolContext, ToolOutput
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import WAIT, Number, Stage, Tick, outputs, passes
from tests.core.agents.test_races import world
from tests.core.harness import Watched, engine, settings_for, swarm
from tests.core.models.fake import Server, done, final, message, sse, stream

RETRYING = ("rate_limit", "retry")


def waits_for(watched: Watched, *reasons: str) -> bool:
    wait = watched.at("/root").wait
    return wait is not None and wait.reason in reasons


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content}


def pair(call_id: str, name: str, arguments: str, output: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments},
        {"type": "function_call_output", "call_id": call_id, "output": output},
    ]


# --- requests that are repeated --------------------------------------------------------------------------


async def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tick = FakeClock(), Tick()
    stage = Stage(tmp_path, monkeypatch, [tick])
    fault = {"kind": "rate_limit", "retry_after": 7}
    steps = [step(call("tick", n=1)), step(call("tick", n=2), fault=fault), step(text="over")]
    async with stage.play({"/root": steps}, clock=clock) as watched:
        await watched.until(lambda s: waits_for(watched, *RETRYING))
        wait = watched.at("/root").wait
        assert wait is not None
        assert (wait.reason, wait.until) == ("rate_limit", clock.now() + timedelta(seconds=7))
        assert watched.at("/root").status == "running"
        await passes(clock, 6.9)
        assert len(stage.log) == 2
        await clock.advance(0.1)
        await watched.quiet()
    assert watched.at("/root").status_message == "over"
    assert tick.ran == [1, 2]
    [retry] = watched.of(e.ModelRetry)
    assert (retry.attempt, retry.delay) == (2, 7)
    assert "HTTP 429: Rate limit reached for requests." in retry.reason
    assert [r.attempts for r in watched.of(e.ResponseCompleted)] == [1, 2, 1]
    assert [w.wait is None for w in watched.of(e.AgentWaits)] == [False, True]
    assert watched.at("/root").retries == 1
    bodies = stage.bodies()
    assert bodies[1] == bodies[2]  # repeated whole and unchanged


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut", "after_events": 6},
        {"kind": "cut", "after_bytes": 100_000},
        {"kind": "eof", "after_events": 6},
        {"kind": "eof", "after_events": 99},
        {"kind": "malformed_event", "after_events": 6},
        {"kind": "failed", "message": "Overloaded."},
        {"kind": "server_error"},
        {"kind": "reset"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
async def test_an_answer_that_breaks_off_is_repeated_and_its_calls_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    clock, tick = FakeClock(), Tick()
    stage = Stage(tmp_path, monkeypatch, [tick])
    steps = [
        step(call("tick", n=1), call("tick", n=2), text="let me see", fault=fault),
        step(text="over"),
    ]
    async with stage.play({"/root": steps}, clock=clock) as watched:
        await watched.until(lambda s: waits_for(watched, *RETRYING))
        assert tick.ran == []
        assert watched.of(e.ToolCalled) == watched.of(e.AssistantMessage) == []
        assert not watched.view.streaming
        await passes(clock, 1)
        await watched.quiet()
    assert sorted(tick.ran) == [1, 2]
    assert [m.text for m in watched.of(e.AssistantMessage)] == ["let me see", "over"]
    assert [r.attempts for r in watched.of(e.ResponseCompleted)] == [2, 1]
    [retry] = watched.of(e.ModelRetry)
    assert retry.delay <= 0.5
    assert retry.reason.startswith("scripted:")
    assert [entry.status for entry in stage.log][-2:] == [200, 200]


async def test_a_server_that_falls_silent_is_given_up_after_the_idle_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tick = FakeClock(), Tick()
    stage = Stage(tmp_path, monkeypatch, [tick])
    fault = {"kind": "hang", "after_events": 6}
    steps = [step(call("tick", n=1), text="let me see", fault=fault), step(text="over")]
    async with stage.play({"/root": steps}, clock=clock) as watched:
        await watched.until(lambda s: bool(watched.view.streaming))
        await passes(clock, 299)
        assert watched.of(e.ModelRetry) == []
        await clock.advance(1)
        await watched.until(lambda s: waits_for(watched, "retry"))
        await passes(clock, 1)
        await watched.quiet()
    assert "sent nothing for too long" in watched.of(e.ModelRetry)[0].reason
    assert tick.ran == [1]


async def test_a_server_that_never_recovers_ends_the_turn_after_five_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    stage = Stage(tmp_path, monkeypatch)
    broken = step(text="never", fault={"kind": "server_error", "times": 0, "message": "Out of order."})
    async with stage.play({"/root": [broken]}, clock=clock) as watched:
        for number in range(1, 5):
            await watched.until(lambda s, number=number: s.agents[watched.root].retries >= number)
            await passes(clock, 8)
        await watched.quiet()
    assert len(stage.log) == 5
    [failed] = watched.of(e.TurnFailed)
    assert "HTTP 500: Out of order. (after 5 attempts)" in failed.error
    assert watched.at("/root").wait is None


async def test_an_interrupt_ends_the_wait_for_a_rate_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    stage = Stage(tmp_path, monkeypatch)
    limited = step(text="late", fault={"kind": "rate_limit", "retry_after": 100})
    async with stage.play({"/root": [limited]}, clock=clock) as watched:
        await watched.until(lambda s: waits_for(watched, "rate_limit"))
        reply = await watched.client.send(Interrupt(swarm=watched.swarm, thread=watched.root))
        assert reply.value == {"stopped": [watched.root], "changed": True}
        await watched.quiet()
        assert (watched.at("/root").status, watched.at("/root").wait) == ("interrupted", None)
        await passes(clock, 200)
        assert len(stage.log) == 1


# --- answers that are not what they should be ------------------------------------------------------------


async def test_arguments_that_are_not_json_go_back_to_the_model_and_are_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = Tick()
    stage = Stage(tmp_path, monkeypatch, [tick])
    steps = [
        step(call("tick", n=12345678), fault={"kind": "malformed_arguments"}),
        step(call("tick", n="many")),
        step(call("tick", n=1, m=2)),
        step(call("tick", n=3)),
        step(text="over"),
    ]
    async with stage.play({"/root": steps}) as watched:
        await watched.quiet()
    assert tick.ran == [3]
    cut, wrong, unknown, right = outputs(watched, "/root", "tick")
    assert cut.startswith("tick was called with wrong arguments: arguments: Invalid JSON")
    assert wrong.startswith("tick was called with wrong arguments: n: ")
    assert unknown == "tick was called with wrong arguments: m: Extra inputs are not permitted"
    assert right == "tick 3"
    assert [c.status for c in watched.of(e.ToolEnded)] == ["error", "error", "error", "ok"]
    # It goes back as it came: a repaired call would make the model believe that it had said something else.
    sent = [i for i in stage.bodies()[1]["input"] if i["type"] == "function_call"]
    assert [i["arguments"] for i in sent] == ['{"n":12']
    assert watched.at("/root").status_message == "over"


async def test_an_answer_that_the_server_ended_early_is_an_answer_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    async with stage.play({"/root": [step(text="0123456789", fault={"kind": "incomplete"})]}) as watched:
        await watched.quiet()
    assert watched.at("/root").status_message == "01234"
    assert [n.text for n in watched.of(e.Notice)] == ["the server ended the answer early: max_output_tokens"]


async def test_a_call_in_an_answer_that_the_server_ended_early_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = Tick()
    stage = Stage(tmp_path, monkeypatch, [tick])
    steps = [
        step(call("tick", n=1), call("tick", n=22222222), fault={"kind": "incomplete"}),
        step(text="over"),
    ]
    async with stage.play({"/root": steps}) as watched:
        await watched.quiet()
    assert tick.ran == [1]
    assert sum("wrong arguments" in text for text in outputs(watched, "/root", "tick")) == 1
    assert watched.at("/root").status == "completed"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "unauthorized"}, "HTTP 401: Incorrect API key provided. (no API key was sent)"),
        ({"kind": "quota"}, "HTTP 429: You exceeded your current quota"),
        ({"kind": "html"}, "text/html instead of an event stream; check --base-url"),
        (
            {"kind": "failed", "code": "invalid_prompt", "message": "Not this."},
            "reported a failure while answering: Not this.",
        ),
        ({"kind": "rate_limit", "retry_after": 3600}, "asks to wait until 2026-01-01 01:00:00 UTC"),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
async def test_a_failure_that_repeating_cannot_mend_ends_the_turn_in_the_servers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], words: str
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    steps = [step(text="I am back", fault=fault)]
    async with stage.play({"/root": steps}, clock=FakeClock()) as watched:
        await watched.quiet()
        [failed] = watched.of(e.TurnFailed)
        assert failed.error.startswith("scripted:")
        assert words in failed.error
        assert "\n" not in failed.error
        assert (watched.at("/root").status, watched.at("/root").status_message) == ("errored", failed.error)
        assert watched.of(e.ModelRetry) == []
        # The agent is not lost: the operator's next words are answered, and the failed turn left no trace
        # that a strict server would refuse.
        await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="again"))
        await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 2)
    assert watched.at("/root").status_message == "I am back"
    assert stage.bodies()[-1]["input"] == [user("go\n\nagain")]


async def test_an_answer_without_a_word_is_an_empty_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="x")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            step(text="over"),
        ],
        "/root/a": [step(text="")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    assert (watched.at("/root/a").status, watched.at("/root/a").status_message) == ("completed", "")
    assert watched.of(e.AssistantMessage, "/root/a") == []
    assert '"a":{"completed":""}' in outputs(watched, "/root", "wait_agent")[0]
    assert watched.at("/root").status_message == "over"


# --- tools -----------------------------------------------------------------------------------------------


class Together(Tool):
    """Ends only when two calls of it run at the same time."""

    name = "together"
    description = "meets"
    Args = Number

    def __init__(self, running: list[str], log: list[list[str]]) -> None:
        self._running, self._log = running, log
        self._there = 0
        self._both = asyncio.Event()

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self._running.append(self.name)
        self._there += 1
        if self._there == 2:
            self._both.set()
        await self._both.wait()
        self._log.append(sorted(self._running))
        self._running.remove(self.name)
        return ToolOutput(text="met")


class Alone(Tool):
    """Must have the agent to itself."""

    name = "alone"
    description = "works alone"
    Args = Number
    parallel = False

    def __init__(self, running: list[str], log: list[list[str]]) -> None:
        self._running, self._log = running, log

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        self._running.append(self.name)
        await settle()
        self._log.append(sorted(self._running))
        self._running.remove(self.name)
        return ToolOutput(text="did")


async def test_calls_run_beside_each_other_and_exclusive_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[str] = []
    log: list[list[str]] = []
    stage = Stage(tmp_path, monkeypatch, [Together(running, log), Alone(running, log)])
    calls = [call(name) for name in ("together", "together", "alone", "alone")]
    async with stage.play({"/root": [step(*calls), step(text="over")]}) as watched:
        await watched.quiet()
    assert log == [["together", "together"], ["together"], ["alone"], ["alone"]]
    assert [c.status for c in watched.of(e.ToolEnded)] == ["ok"] * 4


class Misbehaving(Tool):
    """Does what its argument says: each is something a tool must not do."""

    name = "misbehave"
    description = "misbehaves"
    Args = Number
    timeout = 30.0

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        if args.n == 0:
            raise RuntimeError("a bug")
        if args.n == 1:
            raise TimeoutError("the disk did not answer")
        if args.n == 4:
            raise asyncio.CancelledError("somebody else's task")
        if args.n == 2:
            return ToolOutput(text="H" * 50_000 + "T" * 50_000)
        await ctx.emit(source="progress", text="half way")
        return await asyncio.Event().wait()  # type: ignore[return-value]


class Unbounded(Misbehaving):
    name = "unbounded"
    timeout = None


async def test_a_tool_that_breaks_is_an_error_for_the_model_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = Tick()
    stage = Stage(tmp_path, monkeypatch, [Misbehaving(), Unbounded(), tick])
    bad = [call("misbehave", n=n) for n in (0, 1, 4)]
    calls = [*bad, call("tick"), call("unbounded", n=1), call("no.such")]
    async with stage.play({"/root": [step(*calls), step(text="over")]}) as watched:
        await watched.quiet()
    assert tick.ran == [0]
    assert outputs(watched, "/root", "misbehave") == [
        "misbehave failed inside: RuntimeError('a bug')",
        "misbehave failed inside: TimeoutError('the disk did not answer')",
        'misbehave failed inside: CancelledError("somebody else\'s task")',
    ]
    assert outputs(watched, "/root", "unbounded") == [
        "unbounded failed inside: TimeoutError('the disk did not answer')"
    ]
    assert "the tools are: " in outputs(watched, "/root", "no.such")[0]
    assert watched.at("/root").status_message == "over"
    assert watched.at("/root").failed_calls == 5
    # A name that no server takes back is sent as one that it takes.
    names = [i["name"] for i in stage.bodies()[-1]["input"] if i["type"] == "function_call"]
    assert names[-1] == "no_such"


async def test_a_tool_past_its_time_is_ended_and_keeps_what_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    stage = Stage(tmp_path, monkeypatch, [Misbehaving()])
    async with stage.play(
        {"/root": [step(call("misbehave", n=3)), step(text="over")]}, clock=clock
    ) as watched:
        await watched.until(lambda s: any(c.events for c in s.calls.values()))
        await passes(clock, 29)
        assert watched.of(e.ToolEnded) == []
        await clock.advance(1)
        await watched.quiet()
    told = [(r.index, r.source, r.status, r.text) for r in watched.of(e.ToolResult)]
    assert told == [
        (0, "progress", "", "half way"),
        (1, "function_call_output", "error", "misbehave timed out after 30 s"),
    ]
    [ended] = watched.of(e.ToolEnded)
    assert (ended.status, ended.seconds) == ("error", 30)
    assert watched.at("/root").status_message == "over"


async def test_an_output_that_is_too_long_keeps_its_head_and_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, [Misbehaving()])
    async with stage.play({"/root": [step(call("misbehave", n=2)), step(text="over")]}) as watched:
        await watched.quiet()
    [sent] = [i["output"] for i in stage.bodies()[-1]["input"] if i["type"] == "function_call_output"]
    half = MAX_OUTPUT_CHARS // 2
    assert sent == "H" * half + "\n… 68000 characters left out …\n" + "T" * half
    assert [r.text for r in watched.of(e.ToolResult)] == [sent]


async def test_call_ids_that_the_server_uses_again_are_made_unique(tmp_path: Path) -> None:
    again = {**call("list_agents"), "id": "c"}
    nameless = {**call("list_agents"), "id": ""}
    async with world(tmp_path, {"/root": [[again], [again, nameless], [again], "over"]}) as w:
        await w.swarm.births.start_root("go")
        await w.until(lambda: w.is_("/root", "completed"))
        assert [ev.call for ev in w.events if isinstance(ev, e.ToolCalled)] == ["c", "c-2", "call", "c-3"]
        sent = w.model.requests[-1][1]
    called = [i["call_id"] for i in sent if i["type"] == "function_call"]
    answered = [i["call_id"] for i in sent if i["type"] == "function_call_output"]
    assert called == ["c", "c-2", "call", "c-3"]
    assert sorted(answered) == sorted(called)


# --- what is sent ----------------------------------------------------------------------------------------


async def test_each_request_holds_the_whole_history_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch, [Tick()])
    agents = {
        "/root": [
            step(call("tick", n=1), text="first"),
            step(call("tick", n=2), reasoning="hm"),
            step(text="over"),
            step(text="again over"),
        ]
    }
    async with stage.play(agents, task="count") as watched:
        await watched.quiet()
        await watched.client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="and now?"))
        await watched.until(lambda s: s.quiet() and s.agents[watched.root].turns == 2)
    [one, two] = [c.call for c in watched.of(e.ToolCalled)]
    [thought] = watched.of(e.Reasoning)
    assert thought.summary == "hm"
    assert thought.item is not None
    assert thought.item["encrypted_content"]
    history = [
        user("count"),
        said("first"),
        *pair(one, "tick", '{"n":1}', "tick 1"),
        thought.item,
        *pair(two, "tick", '{"n":2}', "tick 2"),
        said("over"),
        user("and now?"),
    ]
    assert [body["input"] for body in stage.bodies()] == [history[:n] for n in (1, 4, 7, 9)]
    assert {entry.status for entry in stage.log} == {200}
    assert [m.text for m in watched.of(e.AssistantMessage)] == ["first", "over", "again over"]


async def test_requests_say_who_asks_and_store_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="look")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
        ],
        "/root/a": [step(text="seen")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
    for path in ("/root", "/root/a"):
        for body in stage.bodies(path):
            assert body["prompt_cache_key"] == watched.at(path).thread
            assert body["store"] is False
            assert body["instructions"].startswith(f"Agent path: {path}\n")
            assert body["include"] == ["reasoning.encrypted_content"]
            names = [tool["name"] for tool in body["tools"]]
            assert {"spawn_agent", "wait_agent", "exec_command", "spawn_agents_on_csv"} <= set(names)
    [first] = stage.bodies("/root/a")
    mail = "Message Type: NEW_TASK\nTask name: /root/a\nSender: /root\nPayload:\nlook"
    assert first["input"] == [user(mail)]
    answer = "Message Type: FINAL_ANSWER\nTask name: /root\nSender: /root/a\nPayload:\nseen"
    assert stage.bodies("/root")[-1]["input"][-1] == user(answer)


async def test_tokens_add_up_per_agent_and_for_the_swarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    stage = Stage(tmp_path, monkeypatch)
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="look")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT), fault={"kind": "cut"}),
        ],
        "/root/a": [step(text="seen", reasoning="think hard")],
    }
    async with stage.play(agents, clock=clock) as watched:
        await watched.until(lambda s: waits_for(watched, "retry"))
        await passes(clock, 1)
        await watched.quiet()
    by_agent: dict[str | None, Usage] = {}
    for response in watched.of(e.ResponseCompleted):
        assert response.usage is not None
        assert response.usage.input > 0 < response.usage.output
        by_agent[response.agent] = by_agent.get(response.agent, Usage()) + response.usage
    assert {thread: agent.tokens for thread, agent in watched.state.agents.items()} == by_agent
    assert watched.state.tokens == sum(by_agent.values(), Usage())
    child = watched.at("/root/a").tokens
    assert child is not None
    assert child.reasoning > 0


# --- what cannot be kept ---------------------------------------------------------------------------------


@pytest.fixture
def deep_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose first answer nests deeper than a fold gets through."""
    deep: dict[str, Any] = {}
    for _ in range(600):
        deep = {"a": deep}
    thought = {"type": "reasoning", "summary": [{"text": "hm"}], "encrypted_content": "x", "more": deep}
    answers = sse(done(thought), done(message("fine"), 1), final()), sse(done(message("again")), final())
    server = Server(*(stream(answer) for answer in answers))
    monkeypatch.setattr(core.engine.models, "ScriptedTransport", lambda *_: server)


async def test_a_reasoning_item_that_nests_too_deep_is_not_sent_back(
    tmp_path: Path, deep_thought: None
) -> None:
    settings = settings_for(tmp_path, scenario({"/root": []}), sandbox="off")
    async with engine(settings) as client, swarm(client, "go") as watched:
        await watched.quiet()
    assert watched.at("/root").status == "completed"
    [kept] = watched.of(e.Reasoning)
    assert (kept.summary, kept.item) == ("hm", None)


async def test_an_event_that_cannot_be_written_fails_its_turn_alone(
    tmp_path: Path, deep_thought: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.agents.turn, "depth_of", lambda *_: 0)
    settings = settings_for(tmp_path, scenario({"/root": []}), sandbox="off")
    async with engine(settings) as client, swarm(client, "go") as watched:
        await watched.until(lambda s: watched.at("/root").status == "errored")
        assert "type reasoning cannot be written" in watched.at("/root").status_message
        reply = await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="go on"))
        assert reply.ok
        await watched.until(lambda s: watched.at("/root").status == "completed")
