"""What goes wrong at the model server and in workers: each row's outcome and its words. A whole engine on the
scripted server, many kinds of workers side by side in one job."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import Client
from core.config import Settings
from core.domain import events as e
from core.domain.commands import ContinueJob, RunJob
from core.domain.state import JobState
from core.models import retry
from tests.clock import FakeClock, settle
from tests.core.agents.scenarios import call, step, toml
from tests.core.agents.stage import HANGING, outputs, passes
from tests.core.harness import Watched, engine, settings_for, swarm
from tests.core.jobs.room import read_output

SCHEMA = {
    "type": "object",
    "required": ["score"],
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 10}},
    "additionalProperties": False,
}
IDS = {"job_id": "{job}", "item_id": "{item}"}


def report(**more: Any) -> dict[str, Any]:
    return call("report_agent_job_result", **{**IDS, "result": {"score": 5}, **more})


def faulty(kind: str, times: int = 1, **fields: Any) -> dict[str, Any]:
    """A step that would report, and what comes in its way."""
    return step(report(), fault={"kind": kind, "times": times, **fields})


BAD = step(report(result={"score": 11}))
WORKERS: dict[str, list[dict[str, Any]]] = {
    "well": [step(report())],
    "limited": [faulty("rate_limit", 3)],
    "limited_with_hint": [faulty("rate_limit", 2, retry_after=0.02)],
    "500": [faulty("server_error", 2)],
    "500_for_good": [faulty("server_error", 0)],
    "refused": [faulty("unauthorized", 0)],
    "cut": [faulty("cut", 2)],
    "cut_for_good": [faulty("cut", 0)],
    "eof": [faulty("eof")],
    "failed": [faulty("failed")],
    "malformed": [faulty("malformed_arguments"), step(report())],
    "html": [faulty("html", 0)],
    "silent": [step(text="I looked at it.")],
    "twice": [step(report(), report(result={"score": 6}))],
    "other_item": [step(report(item_id="row-1")), step(report())],
    "only_other_item": [step(report(item_id="row-1"))],
    "other_job": [step(report(job_id="8184e894-0000-4000-8000-000000000000"))],
    "not_an_object": [step(report(result="5")), step(report())],
    "bad_once": [BAD, step(report())],
    "bad_and_gone": [BAD],
    "bad_for_good": [BAD] * 9,
    "crashing": [step(call("exec_command", cmd="exit 3")), step(call("no_such_tool")), step(report())],
}
NO_REPORT = "the worker ended without calling report_agent_job_result"
REFUSED = "the worker ended without an accepted report; its last one was refused: "
FAILS: dict[str, tuple[str, ...]] = {
    "500_for_good": (
        "HTTP 500",
        "The server had an error while processing the request.",
        "(after 5 attempts)",
    ),
    "refused": ("HTTP 401", "Incorrect API key provided."),
    "cut_for_good": ("(after 5 attempts)",),
    "html": ("text/html",),
    "silent": (NO_REPORT,),
    "only_other_item": (REFUSED + "your task is job ", ", item row-"),
    "other_job": (REFUSED + "your task is job ",),
    "bad_and_gone": (REFUSED, "the result does not match output_schema: $.score: 11 is greater than the max"),
    "bad_for_good": (REFUSED, "the result does not match output_schema: $.score: 11 is greater than the max"),
}
"""What the last error says; every other row has a result."""


def scenario(workers: dict[str, list[dict[str, Any]]], extra: str = "") -> str:
    lines = ["chunk_chars = 200"]
    for how, steps in workers.items():
        lines += [
            "[[agents]]",
            'path = "*/job_*"',
            "first = " + toml(f'"how": "{how}"'),
            'closing = "done"',
            "[agents.captures]",
            r"job = { in = 'first', match = '^Job ID: (\S+)' }",
            "item = { in = 'first', match = '^Item ID: (.+)$' }",
        ]
        for one in steps:
            lines.append("[[agents.steps]]")
            lines += [f"{key} = {toml(value)}" for key, value in one.items()]
    return "\n".join(lines) + "\n" + extra


def rows(settings: Settings, hows: list[str]) -> None:
    with (settings.cwd / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["how"], *([how] for how in hows)])


@asynccontextmanager
async def job(client: Client, **fields: Any) -> AsyncIterator[tuple[Watched, str]]:
    command = RunJob(input_path="in.csv", instruction="Do it: {how}", output_path="out.csv", **fields)
    reply = await client.send(command)
    assert reply.ok, reply.error
    watched = Watched(client, reply.value["swarm"], reply.value["thread"])
    async with AsyncExitStack() as stack:
        stack.callback(asyncio.create_task(watched.follow()).cancel)
        await watched.until(lambda s: reply.value["job"] in s.jobs)
        yield watched, reply.value["job"]


def only(watched: Watched) -> JobState:
    (found,) = watched.state.jobs.values()
    return found


async def test_every_row_says_what_became_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    settings = settings_for(tmp_path, scenario(WORKERS), sandbox="off")
    rows(settings, list(WORKERS))
    async with (
        engine(settings) as client,
        job(client, output_schema=SCHEMA, max_concurrency=8) as (watched, _),
    ):
        await watched.until(lambda s: only(watched).ended, seconds=40)
    state = only(watched)
    assert (state.status, state.failed) == ("completed", len(FAILS))
    assert state.completed == len(WORKERS) - len(FAILS)
    found = {row["how"]: row for row in read_output(settings.cwd / "out.csv")}
    assert list(found) == list(WORKERS)
    for how, row in found.items():
        assert row["attempt_count"] == "1", how
        if how in FAILS:
            assert (row["status"], row["result_json"], row["reported_at"]) == ("failed", "", ""), how
            assert [part for part in FAILS[how] if part not in row["last_error"]] == [], row["last_error"]
        else:
            assert (row["status"], row["last_error"]) == ("completed", ""), how
            assert json.loads(row["result_json"]) == {"score": 5}, how
    # A worker gets so many rounds with the schema and no more.
    bad = next(a for a in watched.state.agents.values() if a.item == item("bad_for_good"))
    assert bad.calls == 5


def item(how: str) -> str:
    return f"row-{list(WORKERS).index(how) + 1}"


async def test_a_storm_of_rate_limits_slows_the_job_and_fails_no_row(tmp_path: Path) -> None:
    """Every third request is refused, and each worker's first ones, too."""
    clock = FakeClock()
    storm = '[[fault]]\nkind = "rate_limit"\nevery = 3\ntimes = 0\n'
    settings = settings_for(tmp_path, scenario({"limited": [faulty("rate_limit", 4)]}, storm), sandbox="off")
    rows(settings, ["limited"] * 40)
    async with engine(settings, clock) as client, job(client, max_concurrency=16) as (watched, _):
        ended = asyncio.create_task(watched.until(lambda s: only(watched).ended, seconds=40))
        while not ended.done():
            await passes(clock, 0.05)
        await ended
    assert (only(watched).status, only(watched).completed, only(watched).failed) == ("completed", 40, 0)
    refused = [event for event in watched.of(e.ModelRetry) if "HTTP 429" in event.reason]
    assert len(refused) >= 160


async def test_a_hanging_server_fails_its_row_at_the_time_limit_and_no_other(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = settings_for(tmp_path, scenario({"hangs": [HANGING], "well": [step(report())]}), sandbox="off")
    rows(settings, ["well", "hangs", "well"])
    async with engine(settings, clock) as client, job(client, max_runtime_seconds=90) as (watched, _):
        await watched.until(lambda s: only(watched).completed == 2 and only(watched).running == 1)
        await passes(clock, 89)
        assert only(watched).running == 1
        await passes(clock, 1.5)
        await watched.until(lambda s: only(watched).ended)
    assert (only(watched).completed, only(watched).failed) == (2, 1)
    row = read_output(settings.cwd / "out.csv")[1]
    assert (row["status"], row["last_error"]) == ("failed", "stopped at the row's time limit of 90 s")
    assert not [a for a in watched.state.agents.values() if a.job and a.status != "shutdown"]


async def test_the_time_limit_ends_what_the_worker_has_started(tmp_path: Path) -> None:
    """Also a process that takes no hint."""
    clock = FakeClock()
    script = "trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done"
    steps = [step(call("exec_command", cmd=script)), step(report())]
    settings = settings_for(tmp_path, scenario({"loops": steps}), sandbox="off", approval_policy="never")
    rows(settings, ["loops"])
    pid = settings.cwd / "pid"
    async with engine(settings, clock) as client, job(client, max_runtime_seconds=90) as (watched, _):
        await watched.until(lambda s: bool(s.calls))
        while not (pid.exists() and pid.read_text().strip()):
            await settle()
        process = Path("/proc") / pid.read_text().strip()
        assert process.exists()
        ended = asyncio.create_task(watched.until(lambda s: only(watched).ended))
        while not ended.done():
            await passes(clock, 1)
        await ended
        assert not process.exists()
    assert read_output(settings.cwd / "out.csv")[0]["last_error"] == "stopped at the row's time limit of 90 s"


async def test_a_report_with_stop_ends_the_job_early_and_writes_the_csv(tmp_path: Path) -> None:
    workers = {"well": [step(report())], "stops": [step(report(stop=True))]}
    settings = settings_for(tmp_path, scenario(workers), sandbox="off")
    rows(settings, ["well", "well", "stops", "well", "well"])
    async with engine(settings) as client, job(client, max_concurrency=1) as (watched, _):
        await watched.until(lambda s: only(watched).ended)
    state = only(watched)
    assert (state.status, state.completed, state.pending, state.failed) == ("cancelled", 3, 2, 0)
    found = [(row["status"], row["attempt_count"]) for row in read_output(settings.cwd / "out.csv")]
    assert found == [("completed", "1")] * 3 + [("pending", "0")] * 2
    (ended,) = watched.of(e.JobEnded)
    assert ended.by.startswith("/root/job_")


@pytest.mark.parametrize("side_by_side", [1, 4])
async def test_a_used_up_quota_pauses_the_job_and_says_so(tmp_path: Path, side_by_side: int) -> None:
    """No row fails for it. Once it is paid, the job goes on with the same rows."""
    empty = '[[fault]]\nkind = "quota"\nrequest = 3\ntimes = 1\n'
    settings = settings_for(tmp_path, scenario({"well": [step(report())]}, empty), sandbox="off")
    rows(settings, ["well"] * 8)
    async with engine(settings) as client, job(client, max_concurrency=side_by_side) as (watched, job_id):
        await watched.until(lambda s: only(watched).status == "paused")
        state = only(watched)
        assert (state.failed, state.running, state.completed + state.pending) == (0, 0, 8)
        assert state.paused_by == "quota"
        assert "You exceeded your current quota" in state.pause_reason
        (failed,) = {event.kind for event in watched.of(e.TurnFailed)}
        assert failed == "quota"
        assert not (settings.cwd / "out.csv").exists()
        reply = await client.send(ContinueJob(swarm=watched.swarm, job=job_id, author="operator"))
        assert reply.value["changed"], reply
        await watched.until(lambda s: only(watched).ended)
    assert (only(watched).completed, only(watched).failed) == (8, 0)
    found = read_output(settings.cwd / "out.csv")
    assert [row["status"] for row in found] == ["completed"] * 8
    assert {row["attempt_count"] for row in found} == {"1"}, "an honest try was counted that was none"


async def test_a_server_that_asks_for_an_hour_of_peace_pauses_the_job(tmp_path: Path) -> None:
    """Longer than any request should wait: each row would fail for it, one after the other."""
    storm = '[[fault]]\nkind = "rate_limit"\nrequest = 3\nretry_after = 3600\n'
    settings = settings_for(tmp_path, scenario({"well": [step(report())]}, storm), sandbox="off")
    rows(settings, ["well"] * 8)
    async with engine(settings) as client, job(client, max_concurrency=1) as (watched, job_id):
        await watched.until(lambda s: only(watched).status == "paused")
        state = only(watched)
        assert (state.completed, state.pending, state.failed, state.paused_by) == (2, 6, 0, "quota")
        assert "HTTP 429: Rate limit reached for requests. (asks to wait until " in state.pause_reason
        assert state.pause_reason.endswith("(at row row-3)")
        await client.send(ContinueJob(swarm=watched.swarm, job=job_id, author="operator"))
        await watched.until(lambda s: only(watched).ended)
    assert (only(watched).completed, only(watched).failed) == (8, 0)


async def test_a_storm_that_does_not_end_pauses_the_job_and_fails_no_row(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = settings_for(tmp_path, scenario({"limited": [faulty("rate_limit", 0)]}), sandbox="off")
    rows(settings, ["limited"] * 6)
    async with engine(settings, clock) as client, job(client, max_concurrency=2) as (watched, _):
        paused = asyncio.create_task(watched.until(lambda s: only(watched).status == "paused", seconds=40))
        while not paused.done():
            await passes(clock, 0.5)
        await paused
    assert (only(watched).pending, only(watched).failed, only(watched).paused_by) == (6, 0, "quota")
    assert "HTTP 429" in only(watched).pause_reason


async def test_an_agent_that_waits_hears_of_the_quota_and_can_run_its_job_again(tmp_path: Path) -> None:
    spawn = call(
        "spawn_agents_on_csv", csv_path="in.csv", instruction="Do {{how}}", output_csv_path="out.csv"
    )
    again = call("run_agent_job", job_id="{job}")
    wait = call("wait_agent_job", job_id="{job}", timeout_ms=600_000)
    root = [step(spawn), step(again), step(wait), step(text="{last_output}")]
    empty = '[[fault]]\nkind = "quota"\npath = "*/job_*"\nrequest = 3\n'
    text = scenario({"well": [step(report())]}, '[[agents]]\npath = "/root"\n')
    text += '[agents.captures]\njob = { in = \'outputs\', match = \'"job_id":"([^"]+)"\' }\n'
    for one in root:
        text += "[[agents.steps]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in one.items())
    settings = settings_for(tmp_path, text + empty, sandbox="off")
    rows(settings, ["well"] * 4)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
        first = json.loads(outputs(watched, "/root", "spawn_agents_on_csv")[0])
        assert (first["status"], first["failed_items"]) == ("paused", 0)
        assert "You exceeded your current quota" in first["job_error"]
        last = json.loads(watched.at("/root").status_message)
        assert (last["status"], last["completed_items"], last["timed_out"]) == ("completed", 4, False)
    assert [row["status"] for row in read_output(settings.cwd / "out.csv")] == ["completed"] * 4
