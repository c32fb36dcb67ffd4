"""`watchroom resume` without a screen: which swarm it takes, what it tells, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.domain import events as e
from core.domain.commands import ResumeSwarm, StartSwarm
from tests.tui import cli_story as story
from tests.tui.cli_client import ROOT, SWARM, FakeEngine
from tests.tui.shell import Shell
from tui import cli, exits, headless, setup

SCENARIO = """
title = "two"
[[agents]]
path = "*"
[[agents.steps]]
text = "first answer"
fault = { kind = "unauthorized" }
"""


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", capfd, monkeypatch)


def resume(engine: FakeEngine, mode: headless.Mode, after: int) -> int:
    args = cli.parser_of("exec").parse_args(["x", "--base-url", "scripted:x"])
    settings = setup.headless(setup.settings_of(args))
    try:
        return headless.run(settings, ResumeSwarm(swarm=SWARM), mode, engine=engine.connect, after=after)
    except exits.Quit as error:
        return cli._fail(str(error), error.code)


@pytest.mark.parametrize("happened", [0, 1, 4])
def test_only_what_comes_after_the_resume_is_told_and_each_event_once(
    shell: Shell, capfd: pytest.CaptureFixture[str], happened: int
) -> None:
    """`happened`: how much of the rest was over before the feed began."""
    before, rest = story.opening(), [*story.iris_at_work(), *story.answered()]
    rest = [event for event in rest if not isinstance(event, e.ApprovalDecided)]
    engine = FakeEngine([*before, *rest[:happened]], rest[happened:])
    assert resume(engine, "json", len(before)) == exits.OK
    seqs = [json.loads(line)["seq"] for line in capfd.readouterr().out.splitlines()]
    assert seqs == list(range(len(before) + 1, len(engine.events) + 1))


def test_lines_know_the_names_of_agents_from_before(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    work = [event for event in story.iris_at_work() if not isinstance(event, e.ApprovalDecided)]
    engine = FakeEngine([*story.opening(), *work[:1]], [*work[1:], *story.answered()])
    assert resume(engine, "plain", len(story.opening()) + 1) == exits.OK
    out = capfd.readouterr().out
    assert "swarm started" not in out
    assert "iris calls exec_command" in out


def test_a_swarm_with_nothing_left_to_do_ends_at_once(
    shell: Shell, capfd: pytest.CaptureFixture[str]
) -> None:
    events = [*story.opening(), *story.answered()]
    engine = FakeEngine(events, hang=True)
    assert resume(engine, "headless", len(events)) == exits.OK
    assert capfd.readouterr().out == "42 lines.\nThat is all.\n"


@pytest.mark.parametrize(("failed", "code"), [(0, exits.OK), (2, exits.FAILED_ROWS)])
def test_a_job_that_is_resumed_has_the_exit_code_of_job_run(
    shell: Shell, capfd: pytest.CaptureFixture[str], failed: int, code: int
) -> None:
    events = story.job(4, failed)
    events.insert(2, e.AgentReady(agent=ROOT))
    engine = FakeEngine(events[:4], events[4:])
    assert resume(engine, "headless", 4) == code
    err = capfd.readouterr().err
    assert f"{4 - failed} of 4 rows done, {failed} failed" in err
    assert "watchroom job show" in err


def test_a_root_that_was_never_asked_anything_is_said(
    shell: Shell, capfd: pytest.CaptureFixture[str]
) -> None:
    events = [
        e.SwarmStarted(title="t", cwd="/w", model="m", source="console", server="scripted:x"),
        e.AgentSpawned(agent=ROOT, path="/root", nickname="root"),
        e.AgentReady(agent=ROOT),
    ]
    assert resume(FakeEngine(events, hang=True), "plain", len(events)) == exits.ERROR
    assert "the root waits for its first input: watchroom resume swarm-1" in capfd.readouterr().err


def test_a_run_that_is_cut_says_how_to_go_on(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    cut = [e.TurnInterrupted(agent=ROOT, turn="t1", by="operator")]
    assert resume(FakeEngine(story.opening(), cut), "headless", len(story.opening())) == exits.ERROR
    assert capfd.readouterr().err.splitlines()[-1] == "watchroom: go on with: watchroom resume swarm-1"


def test_the_newest_swarm_that_did_not_end_by_itself_is_taken(shell: Shell, tmp_path: Path) -> None:
    """The real engine: a finished swarm, a failed one, and one that never ended, in an order of their own."""
    from core.store.readers import Reader
    from tui.run_resume import _choose

    refused = tmp_path / "refused.toml"
    refused.write_text(SCENARIO)

    async def newest(ref: str | None = None) -> dict[str, object]:
        async with Reader.open(shell.home) as reader:
            return await _choose(reader, ref)

    import asyncio

    assert shell("exec", "one", "--base-url", "scripted:hello").code == exits.OK
    only = asyncio.run(newest())
    assert (only["owned"], only["server"]) == (False, "scripted:hello")
    asyncio.run(_cut(shell.home))
    cut = asyncio.run(newest())
    assert cut["swarm"] != only["swarm"]
    assert shell("exec", "two", "--base-url", f"scripted:{refused}").code == exits.ERROR
    assert asyncio.run(newest()) == cut
    assert asyncio.run(newest(str(only["swarm"])[:18])) == only
    assert "nope" in shell.refused(exits.ERROR, "resume", "nope", "--plain")


async def _cut(home: Path) -> None:
    """A swarm whose engine was stopped while its root still waits for input."""
    from core.channel.local import open_engine
    from core.config import load_settings

    async with open_engine(load_settings(home=home, options={"base_url": "scripted:hello"})) as client:
        assert (await client.send(StartSwarm(source="console"))).ok


def test_settings_of_whoever_resumes_but_a_scripted_swarm_stays_scripted(shell: Shell) -> None:
    args = cli.parser_of("resume").parse_args(["--model", "m", "--base-url", "http://127.0.0.1:9/v1"])
    settings = setup.settings_of(args)
    assert setup.going_on(settings, "https://api.example.org") is settings
    assert setup.going_on(settings, "scripted:demo").scripted == "demo"


def test_without_any_swarm_it_says_how_to_start_one(shell: Shell) -> None:
    assert "start one with watchroom TASK" in shell.refused(exits.ERROR, "resume", "--plain")
    assert shell.refused(exits.ERROR, "resume", "--json")


def test_a_missing_model_is_refused_in_one_sentence(shell: Shell) -> None:
    assert shell("exec", "one", "--base-url", "scripted:hello").code == exits.OK
    words = shell.refused(exits.USAGE, "resume", "--plain", "--base-url", "http://127.0.0.1:9/v1")
    assert "no model is set" in words


def test_a_root_that_could_not_start_is_tried_again(shell: Shell) -> None:
    server = ("-c", "mcp.shop.command=/nowhere/shop-mcp")
    ran = shell("exec", "hi", "--base-url", "scripted:hello", *server, "-c", "mcp.shop.required=true")
    assert ran.code == exits.ERROR
    assert "shop: " in ran.err
    said, _, swarm = ran.err.rpartition("watchroom resume ")
    assert said.endswith("once that is mended, go on with: ")
    again = shell("resume", swarm.strip())
    assert again.code == exits.OK, again.err
    assert "Hello from the scripted model" in again.out
