"""The whole engine behind its client: jobs on real files, settings, swarms and engines at once, a store that
breaks, and secrets."""

from __future__ import annotations

import asyncio
import csv
import json
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import ClientError
from core.channel.local import open_engine
from core.config import Settings
from core.domain import events as e
from core.domain.commands import (
    Close,
    GetEvents,
    GetJobRows,
    Interrupt,
    JobRowsPage,
    ListSwarms,
    RunJob,
    SendInput,
    Setup,
    StartSwarm,
)
from core.domain.state import JobState
from core.scripted.scenario import FOLDER
from core.store.connection import FILE_NAME
from core.store.readers import Reader
from tests.clock import FakeClock
from tests.core.agents.scenarios import call, scenario, step
from tests.core.agents.stage import HANGING, WAIT, outputs, passes
from tests.core.harness import Watched, engine, settings_for, swarm

WORKERS = "[[agents]]" + (FOLDER / "count-lines.toml").read_text().split("[[agents]]")[1]
"""Job workers that count lines with a real command."""
FILES = {"three.txt": 3, "it's; one.txt": 1, "none.txt": 0, "many.txt": 250}
REPORTS = """
[[agents]]
path = "*/job_*"
[agents.captures]
job = { in = "first", match = '^Job ID: (\\S+)' }
item = { in = "first", match = '^Item ID: (.+)$' }
[[agents.steps]]
latency_ms = LATENCY
calls = [{ name = "report_agent_job_result", arguments = ARGUMENTS }]
next = "end"
"""
ARGUMENTS = '{ job_id = "{job}", item_id = "{item}", result = {} }'


def reporting(latency_ms: int = 0) -> str:
    """The part of job workers that report at once, or after a while."""
    return REPORTS.replace("LATENCY", str(latency_ms)).replace("ARGUMENTS", ARGUMENTS)


def line_files(settings: Settings) -> None:
    for name, lines in FILES.items():
        (settings.cwd / name).write_text("a line\n" * lines)
    table(settings, ["path", "note"], [[name, f"note {n}"] for n, name in enumerate([*FILES, "missing"])])


def table(settings: Settings, headers: list[str], rows: list[list[str]]) -> None:
    with (settings.cwd / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([headers, *rows])


def numbers(settings: Settings, count: int) -> None:
    table(settings, ["n"], [[str(n)] for n in range(count)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_line_counts(output: Path) -> None:
    """What was measured is what the files really hold; the file that is not there has failed."""
    rows = read(output)
    assert [row["path"] for row in rows] == [*FILES, "missing"]
    measured = {row["path"]: json.loads(row["result_json"]) for row in rows[:-1]}
    assert measured == {name: {"lines": lines} for name, lines in FILES.items()}
    assert [row["status"] for row in rows] == ["completed"] * len(FILES) + ["failed"]
    assert "without calling report_agent_job_result" in rows[-1]["last_error"]


async def run_job(stack: AsyncExitStack, client: Any, **fields: Any) -> tuple[Watched, str]:
    """Start a job by command and follow its swarm."""
    reply = await client.send(RunJob(input_path="in.csv", instruction="Do {n}.", **fields))
    assert reply.ok, reply.error
    watched = Watched(client, reply.value["swarm"], reply.value["thread"])
    follower = asyncio.create_task(watched.follow())
    stack.callback(follower.cancel)
    return watched, reply.value["job"]


def only_job(watched: Watched) -> JobState:
    [job] = watched.state.jobs.values()
    return job


def most_at_once(watched: Watched) -> int:
    """How many job workers were in a turn at the same time, at most."""
    workers = {a.thread for a in watched.state.agents.values() if a.job}
    running = most = 0
    for event in watched.events:
        if event.agent in workers:
            running += isinstance(event, e.TurnStarted)
            running -= isinstance(event, e.TurnCompleted | e.TurnInterrupted)
            most = max(most, running)
    return most


# --- jobs ------------------------------------------------------------------------------------------------


async def test_a_job_by_command_measures_real_files(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "count-lines", sandbox="off")
    line_files(settings)
    async with engine(settings) as client, AsyncExitStack() as stack:
        reply = await client.send(
            RunJob(input_path="in.csv", instruction="Count the lines of {path}.", output_path="out.csv")
        )
        watched = Watched(client, reply.value["swarm"], reply.value["thread"])
        follower = asyncio.create_task(watched.follow())
        stack.callback(follower.cancel)
        await watched.until(lambda s: bool(s.jobs) and only_job(watched).ended)
        check_line_counts(settings.cwd / "out.csv")
        job = only_job(watched)
        assert (job.status, job.completed, job.failed, job.total) == ("completed", 4, 1, 5)
        page = await client.page(GetJobRows(swarm=watched.swarm, job=job.job))
        assert isinstance(page, JobRowsPage)
        assert [row.status for row in page.rows] == ["completed"] * 4 + ["failed"]
        # A root that has no turns of its own, and nothing left of the workers.
        assert watched.at("/root").turns == 0
        await watched.until(lambda s: all(a.status == "shutdown" for a in s.agents.values() if a.job))


async def test_a_job_by_an_agent_measures_real_files_and_tells_it_the_counts(tmp_path: Path) -> None:
    root = scenario(
        {
            "/root": [
                step(
                    call(
                        "spawn_agents_on_csv",
                        csv_path="in.csv",
                        instruction="Count the lines of {{path}}.",
                        output_csv_path="out.csv",
                    )
                ),
                step(text="all counted"),
            ]
        }
    )
    settings = settings_for(tmp_path, root + WORKERS, sandbox="off")
    line_files(settings)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    check_line_counts(settings.cwd / "out.csv")
    [output] = outputs(watched, "/root", "spawn_agents_on_csv")
    answer = json.loads(output)
    assert (answer["total_items"], answer["completed_items"], answer["failed_items"]) == (5, 4, 1)
    assert answer["output_csv_path"] == str(settings.cwd / "out.csv")
    assert len(answer["failed_item_errors"]) == 1
    assert watched.at("/root").status_message == "all counted"
    # While its job ran the root said what it waited for.
    assert "job" in [w.wait.reason for w in watched.of(e.AgentWaits, "/root") if w.wait is not None]


async def test_a_job_for_a_role_that_is_not_there_is_refused_before_a_row_is_tried(tmp_path: Path) -> None:
    job = call("spawn_agents_on_csv", csv_path="in.csv", instruction="Do it", agent_type="counter")
    root = scenario({"/root": [step(job), step(text="I see")]})
    settings = settings_for(tmp_path, root + WORKERS, sandbox="off")
    line_files(settings)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    [output] = outputs(watched, "/root", "spawn_agents_on_csv")
    assert output == "there is no role 'counter'; the roles are: default"
    assert not watched.state.jobs


async def test_limit_2_and_a_job_below_a_sub_agent(tmp_path: Path) -> None:
    agents = {
        "/root": [
            step(call("spawn_agent", task_name="a", message="x")),
            step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
            step(text="over"),
        ],
        "/root/a": [
            step(
                call(
                    "spawn_agents_on_csv",
                    csv_path="in.csv",
                    instruction="Do {{n}}.",
                    max_concurrency=8,
                )
            ),
            step(text="mapped"),
        ],
    }
    settings = settings_for(tmp_path, scenario(agents) + reporting(), agents={"max_threads": 2})
    numbers(settings, 5)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    job = only_job(watched)
    assert (job.status, job.completed, job.owner) == ("completed", 5, watched.at("/root/a").thread)
    assert watched.at("/root/a").status_message == "mapped"
    assert watched.at("/root").status_message == "over"
    workers = [a for a in watched.state.agents.values() if a.job]
    assert {a.path.rsplit("/", 1)[0] for a in workers} == {"/root/a"}
    # The agent's one slot went to its workers, and they had it one after the other.
    assert most_at_once(watched) == 1
    answer = json.loads(outputs(watched, "/root/a", "spawn_agents_on_csv")[0])
    assert answer["notes"] == ["max_concurrency 8 is capped to 1 by agents.max_threads = 2"]


async def test_a_job_by_command_has_the_places_that_it_asks_for(tmp_path: Path) -> None:
    clock = FakeClock()
    text = scenario({}) + reporting(1000)
    settings = settings_for(tmp_path, text, agents={"max_threads": 3, "max_agents": 4})
    numbers(settings, 50)
    async with engine(settings, clock) as client, AsyncExitStack() as stack:
        watched, _ = await run_job(stack, client, max_concurrency=20, name="wide")
        await watched.until(lambda s: sum(a.status == "running" for a in s.agents.values()) == 20)
        ended = asyncio.create_task(watched.until(lambda s: only_job(watched).ended))
        while not ended.done():
            await passes(clock, 0.02)
        await ended
    assert most_at_once(watched) == 20
    job = only_job(watched)
    assert (job.concurrency, job.completed, job.failed) == (20, 50, 0)
    assert (watched.state.slots, watched.state.title) == (21, "job wide")
    assert not any("capped" in notice.text for notice in watched.of(e.Notice))


async def test_a_job_by_an_agent_is_held_to_the_limits_of_its_swarm_and_says_so(tmp_path: Path) -> None:
    job = call("spawn_agents_on_csv", csv_path="in.csv", instruction="Do {{n}}.", max_concurrency=20)
    text = scenario({"/root": [step(job), step(text="over")]}) + reporting()
    settings = settings_for(tmp_path, text, agents={"max_threads": 3})
    numbers(settings, 6)
    async with engine(settings) as client, swarm(client) as watched:
        await watched.quiet()
    assert (only_job(watched).concurrency, only_job(watched).completed) == (2, 6)
    words = "max_concurrency 20 is capped to 2 by agents.max_threads = 3"
    started = next(r for r in watched.of(e.ToolResult, "/root") if r.status == "started")
    assert started.text.endswith(f"6 rows of in.csv, 2 side by side; {words}")
    assert any(words in notice.text for notice in watched.of(e.Notice, "/root"))


# --- settings --------------------------------------------------------------------------------------------


async def test_settings_reach_the_swarm(tmp_path: Path) -> None:
    steps = [
        step(call("spawn_agent", task_name="a", message="x")),
        step(call("exec_command", cmd="touch made")),
        step(call("wait_agent", timeout_ms=20)),
        step(text="over"),
    ]
    settings = settings_for(
        tmp_path,
        scenario({"/root": steps}),
        model="my-model",
        sandbox="off",
        approval_policy="never",
        unattended="refuse",
        agents={
            "max_threads": 1,
            "min_wait_timeout_ms": 1,
            "max_wait_timeout_ms": 10,
            "default_wait_timeout_ms": 5,
        },
    )
    (settings.cwd / "sub").mkdir()
    async with engine(settings) as client, swarm(client, cwd="sub", unattended="wait") as watched:
        await watched.quiet()
    [started] = watched.of(e.SwarmStarted) or [watched.state]
    for name, value in {
        "model": "my-model",
        "sandbox": "off",
        "sandboxed": False,
        "approval_policy": "never",
        "unattended": "refuse",
        "slots": 1,
        "cwd": str(settings.cwd / "sub"),
    }.items():
        assert getattr(started, name) == value, name
    assert (
        "max_threads = 1; the root itself takes the only slot" in outputs(watched, "/root", "spawn_agent")[0]
    )
    assert outputs(watched, "/root", "wait_agent") == ["timeout_ms may be at most 10"]
    assert (settings.cwd / "sub" / "made").exists()
    assert watched.state.approvals == {}


@pytest.mark.parametrize(
    ("tables", "present", "absent"),
    [
        ({"agents": {"enabled": False}}, "exec_command, export_agent_job_csv", "spawn_agent"),
        ({"jobs": {"enabled": False}}, "exec_command, followup_task", "spawn_agents_on_csv"),
        ({"agents": {"max_depth": 0}}, "exec_command, followup_task", "spawn_agents_on_csv"),
    ],
    ids=["no agents", "no jobs", "no depth"],
)
async def test_what_is_turned_off_is_no_tool(
    tmp_path: Path, tables: dict[str, Any], present: str, absent: str
) -> None:
    text = scenario({"/root": [step(call(absent)), step(text="over")]})
    async with engine(settings_for(tmp_path, text, **tables)) as client, swarm(client) as watched:
        await watched.quiet()
    [told] = outputs(watched, "/root", absent)
    assert f"there is no tool '{absent}'" in told
    assert present in told


# --- several at once -------------------------------------------------------------------------------------

TALK = scenario({"/root": [step(text="hello"), step(text="hello again")]})


async def test_swarms_of_one_engine_are_strangers(tmp_path: Path) -> None:
    text = scenario(
        {
            "/root": [
                step(call("spawn_agent", task_name="a", message="x")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text="over"),
            ],
            "/root/a": [HANGING],
        }
    )
    async with engine(settings_for(tmp_path, text)) as client, AsyncExitStack() as stack:
        three = [await stack.enter_async_context(swarm(client, f"task {n}")) for n in range(3)]
        for one in three:
            await one.until(
                lambda s: any(a.path == "/root/a" and a.status == "running" for a in s.agents.values())
            )
        listed = (await client.send(ListSwarms())).value["swarms"]
        assert [(row["swarm"], row["title"], row["live"]) for row in listed] == [
            (one.swarm, f"task {n}", True) for n, one in reversed(list(enumerate(three)))
        ]
        first, second, third = three
        # A thread of one swarm is nobody in another.
        wrong = await client.send(Interrupt(swarm=first.swarm, thread=second.root))
        assert (wrong.ok, wrong.code) == (False, "not_found")
        await client.send(Interrupt(swarm=first.swarm, thread=first.root, cascade=True))
        await client.send(Close(swarm=second.swarm, thread=second.at("/root/a").thread))
        await first.quiet()
        await second.quiet()
        assert {a.status for a in first.state.agents.values()} == {"interrupted"}
        assert (second.at("/root").status_message, second.at("/root/a").status) == ("over", "shutdown")
        assert {a.status for a in third.state.agents.values()} == {"running"}
        for one in three:
            assert {event.swarm for event in one.events} == {one.swarm}
            start = one.events[0].seq
            assert [event.seq for event in one.events] == list(range(start, one.state.seq + 1))


async def test_a_root_without_a_task_waits_for_its_operator_until_it_is_closed(tmp_path: Path) -> None:
    async with engine(settings_for(tmp_path, TALK)) as client, swarm(client, None, title="t") as watched:
        await watched.until(lambda s: s.agents[watched.root].status == "idle")
        assert watched.state.title == "t"
        send = SendInput(swarm=watched.swarm, thread=watched.root, text="hi", author="script")
        assert (await client.send(send)).ok
        await watched.quiet()
        [said] = watched.of(e.UserMessage)
        assert (said.text, said.author) == ("hi", "script")
        closed = await client.send(Close(swarm=watched.swarm, thread=watched.root))
        assert closed.value == {"closed": [watched.root], "changed": True}
        late = await client.send(send)
        assert (late.ok, late.code, late.error) == (False, "not_found", "root (/root) is closed")


async def test_two_engines_share_a_home_and_each_has_its_own_swarms(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, TALK)
    async with engine(settings) as one, engine(settings) as two, AsyncExitStack() as stack:
        mine = await stack.enter_async_context(swarm(one, "mine"))
        yours = await stack.enter_async_context(swarm(two, "yours"))
        await asyncio.gather(mine.quiet(), yours.quiet())
        for client, own, other in ((one, mine, yours), (two, yours, mine)):
            reply = await client.send(SendInput(swarm=other.swarm, thread=other.root, text="hi"))
            assert (reply.ok, reply.code) == (False, "not_found")
            assert [s["swarm"] for s in (await client.send(ListSwarms())).value["swarms"]] == [own.swarm]
            with pytest.raises(ClientError, match="runs no swarm"):
                async with client.subscribe(other.swarm):
                    pass
        # Both write at the same time, many times.
        sends = [
            client.send(SendInput(swarm=w.swarm, thread=w.root, text=f"{n}"))
            for n in range(20)
            for client, w in ((one, mine), (two, yours))
        ]
        assert all(reply.ok for reply in await asyncio.gather(*sends))
        await asyncio.gather(mine.quiet(), yours.quiet())
    async with Reader.open(settings.home) as reader:
        for watched in (mine, yours):
            assert await reader.load_state(watched.swarm) == watched.state
        titles = [session["title"] for session in (await reader.sessions())["sessions"]]
    assert sorted(titles) == ["mine", "yours"]


# --- a store that breaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [False, True], ids=["agents", "a job"])
async def test_a_store_that_breaks_ends_the_engine_with_one_sentence(tmp_path: Path, job: bool) -> None:
    agents: dict[str, Any] = {
        "/root": [
            step(
                call("spawn_agent", task_name="a", message="x"),
                call("spawn_agent", task_name="b", message="x"),
            ),
            step(call("wait_agent", targets=["a", "b"], timeout_ms=WAIT)),
        ],
        "/root/a": [HANGING],
        "/root/b": [step(call("exec_command", cmd="sleep 600"))],
        "*/job_*": [HANGING],
    }
    settings = settings_for(tmp_path, scenario(agents), sandbox="off", approval_policy="never")
    numbers(settings, 4)
    before = asyncio.all_tasks()

    async def face() -> None:
        async with open_engine(settings) as client, AsyncExitStack() as stack:
            if job:
                watched, _ = await run_job(stack, client)
                await watched.until(lambda s: sum(a.status == "running" for a in s.agents.values()) == 4)
            else:
                watched = await stack.enter_async_context(swarm(client))
                await watched.until(
                    lambda s: sum(a.status == "running" for a in s.agents.values()) == 3 and len(s.calls) == 2
                )
            other = sqlite3.connect(settings.home / FILE_NAME)
            other.execute("ALTER TABLE agents RENAME TO gone")
            other.close()
            reply = await client.send(SendInput(swarm=watched.swarm, thread=watched.root, text="hello"))
            assert (reply.ok, reply.code) == (False, "error")
            assert "cannot be written" in reply.error
            await asyncio.Event().wait()  # the engine's end ends its face

    with pytest.raises(ClientError, match="cannot be written") as caught:
        async with asyncio.timeout(20):
            await face()
    assert "\n" not in str(caught.value)
    assert asyncio.all_tasks() - before == set()


# --- secrets ---------------------------------------------------------------------------------------------

KEY = "correct-horse-battery-staple-4711"


async def test_a_key_is_nowhere_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    half = len(KEY) // 2
    text = scenario(
        {
            "/root": [
                step(
                    call("exec_command", cmd=f"echo {KEY}"),
                    call("exec_command", cmd=f"printf %s%s {KEY[:half]} {KEY[half:]}"),
                    call("exec_command", cmd="env; cat /proc/$PPID/environ | tr '\\0' '\\n'; cat key.txt"),
                ),
                step(call("spawn_agent", task_name="a", message=f"use {KEY}")),
                step(call("wait_agent", targets=["a"], timeout_ms=WAIT)),
                step(text=f"the key is {KEY}, I think"),
            ],
            "/root/a": [step(text="no", fault={"kind": "unauthorized", "message": f"Wrong key {KEY}."})],
        }
    )
    settings = settings_for(tmp_path, text, sandbox="off", approval_policy="never")
    (settings.cwd / "key.txt").write_text(KEY)
    feed: list[Any] = []
    async with engine(settings) as client:
        async with swarm(client, f"log in with {KEY}") as watched:
            plain = watched.view.feed

            def note(item: Any) -> Any:
                feed.append(item)
                return plain(item)

            monkeypatch.setattr(watched.view, "feed", note)
            await watched.quiet()
            page = await client.page(GetEvents(swarm=watched.swarm))
        assert KEY not in repr(page)
        assert KEY not in repr(feed)
        assert KEY not in repr(watched.state)
        printed = outputs(watched, "/root", "exec_command")
        assert len(printed) == 3
        assert all("[redacted]" in one for one in printed)
        assert "[redacted]" in watched.state.title
        stored = [path for path in settings.home.rglob("*") if path.is_file()]
        assert any(path.name == FILE_NAME for path in stored)
        for path in stored:
            assert KEY.encode() not in path.read_bytes(), path.name
    assert watched.at("/root").status_message == "the key is [redacted], I think"
    assert "Wrong key [redacted]." in watched.at("/root/a").status_message
    assert KEY.encode() not in (settings.home / FILE_NAME).read_bytes()


@pytest.mark.parametrize("chunk", [1, 7, 500])
async def test_a_key_in_a_text_that_is_being_written_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Everything comes but the end.
    fault = {"kind": "hang", "after_events": 100_000}
    steps = [step(text=f"答{KEY}, or ({KEY}) they say and so on", fault=fault)]
    settings = settings_for(tmp_path, scenario({"/root": steps}, chunk_chars=chunk), sandbox="off")
    async with engine(settings) as client, swarm(client) as watched:
        await watched.until(lambda s: "and so " in watched.view.streaming.get(watched.root, ""))
        shown = watched.view.streaming[watched.root]
    assert shown == "答[redacted], or ([redacted]) they say and so "


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cwd": "a\0b"}, "the folder ab cannot be used: embedded null byte"),
        ({"cwd": "~no-such-user-here/x"}, "cannot be used: Could not determine home directory."),
        ({"cwd": "x" * 5000}, "cannot be used: File name too long"),
        ({"cwd": "nowhere"}, "nowhere does not exist"),
        ({"setup": Setup(settings={"agents": {"max_threads": 2**63}})}, "agents.max_threads: "),
    ],
)
async def test_a_start_that_cannot_be_carried_out_harms_no_other(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    settings = settings_for(tmp_path, scenario({"/root": [step(text="fine")]}), sandbox="off")
    async with engine(settings) as client:
        reply = await client.send(StartSwarm(task="go", **fields))
        assert (reply.ok, reply.code) == (False, "usage")
        assert sentence in reply.error
        async with swarm(client) as watched:
            await watched.quiet()


@pytest.mark.parametrize("author", ["engine", "engine: it crashed", "/root/a", "", "two\nlines", "x" * 61])
async def test_nobody_passes_for_the_engine_or_an_agent(tmp_path: Path, author: str) -> None:
    """A turn that was cut by the engine goes on when its swarm is resumed; one cut by a person does not."""
    settings = settings_for(tmp_path, scenario({"/root": []}), sandbox="off")
    async with engine(settings) as client:
        reply = await client.send(ListSwarms(author=author))
        assert (reply.ok, reply.code) == (False, "usage")
