"""What every client of an engine does alike, in its process and behind a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from core.channel.client import Client, ClientError
from core.channel.local import LocalClient, open_engine
from core.channel.remote import connect
from core.channel.setup import setup_of
from core.config import Settings
from core.domain import commands as c
from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import SwarmState
from core.view.swarm import SwarmView
from tests.core.agents.scenarios import call, scenario, step
from tests.core.channel.wire import SWARM, Stage, remote_engine, staged, until, wired
from tests.core.harness import settings_for, swarm

HELLO = scenario({"/root": [step(text="hello"), step(text="hello again")]})
HANG = scenario({"/root": [step(text="never", fault={"kind": "hang", "after_events": 0, "times": 0})]})
Opens = Callable[[Settings], AbstractAsyncContextManager[Client]]
KINDS = ["in process", "behind a socket"]


@pytest.fixture(params=KINDS)
def opens(request: pytest.FixtureRequest) -> Opens:
    return open_engine if request.param == "in process" else remote_engine


Scene = tuple[Stage, Client]


@asynccontextmanager
async def scene(kind: str, backlog: int = 20_000) -> AsyncIterator[Scene]:
    """A client of a stage, whose journal the test writes."""
    async with staged(backlog=backlog) as place:
        if kind == "in process":
            yield place.stage, LocalClient(place.hub)
        else:
            async with connect(place.socket, backlog=backlog) as client:
                yield place.stage, client


# --- commands ----------------------------------------------------------------------------------------------


async def test_every_command_has_exactly_one_reply_also_when_it_fails(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client:
        for command, code in (
            (c.SendInput(swarm="nope", thread="x", text="hi"), "not_found"),
            (c.StartSwarm(task="x", cwd="/no/such/folder"), "usage"),
            (c.RunJob(input_path="missing.csv", instruction="x"), "usage"),
            (c.ListSwarms(author="/root"), "usage"),
            (c.Decide(swarm="nope", approval="a", approve=True), "not_found"),
        ):
            reply = await client.send(command)
            assert (reply.ok, reply.code) == (False, code)
            assert reply.error
            assert "\n" not in reply.error
        assert (await client.send(c.ListSwarms())).value == {"swarms": []}


async def test_a_swarm_is_started_told_interrupted_and_closed(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client, swarm(client) as watched:
        await watched.quiet()
        here = {"swarm": watched.swarm, "thread": watched.root}
        assert (await client.send(c.SendInput(**here, text="more", author="ann"))).value == {"changed": True}
        await watched.until(lambda state: state.agents[watched.root].turns == 2 and state.quiet())
        assert [m.author for m in watched.of(e.UserMessage)][-1] == "ann", "who asked is recorded"
        assert (await client.send(c.Interrupt(**here))).value == {"stopped": [], "changed": False}
        dry = await client.send(c.Close(**here, dry_run=True))
        assert dry.value == {"closed": [watched.root], "changed": False}
        assert (await client.send(c.Close(**here))).value == {"closed": [watched.root], "changed": True}
        assert (await client.send(c.Close(**here))).value == {"closed": [], "changed": False}


async def test_bytes_that_are_no_text_do_not_stop_a_command(opens: Opens, tmp_path: Path) -> None:
    """A command line, a path or a variable in another encoding reaches Python as lone surrogates."""
    setup = setup_of(settings := settings_for(tmp_path, HELLO), {"LC_ALL": "\udcff", "PATH": "/bin:/\udce9"})
    async with opens(settings) as client, swarm(client, "caf\udce9", setup=setup) as watched:
        await watched.quiet()
        page = await client.page(c.GetEvents(swarm=watched.swarm))
        assert isinstance(page, c.EventsPage)
        assert [m.text for m in page.events if isinstance(m, e.UserMessage)] == ["caf\ufffd"]


async def test_many_commands_at_once_get_their_own_replies() -> None:
    for kind in KINDS:
        async with scene(kind) as (stage, client):
            stage.gate.clear()
            sends = [
                asyncio.create_task(client.send(c.SendInput(swarm=SWARM, thread="t", text=f"no. {n}")))
                for n in range(50)
            ]
            await until(lambda: len(stage.begun) == 50)
            stage.gate.set()
            assert [r.value["text"] for r in await asyncio.gather(*sends)] == [f"no. {n}" for n in range(50)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_whose_sender_left_is_carried_out(kind: str) -> None:
    async with scene(kind) as (stage, client):
        stage.gate.clear()
        sending = asyncio.create_task(client.send(c.SendInput(swarm=SWARM, thread="t", text="do it")))
        await until(lambda: stage.begun == ["do it"])
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        stage.gate.set()
        await until(lambda: stage.done == ["do it"])
        assert (await client.send(c.ListSwarms())).ok, "and the client goes on"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_behind_a_command_or_a_page_is_one_sentence(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(kind) as (_, client):
        reply = await client.send(c.SendInput(swarm=SWARM, thread="t", text="break"))
        assert (reply.ok, reply.code) == (False, "error")
        assert reply.error == "the engine failed on this command; its log says how"
        with pytest.raises(ClientError, match="the engine failed on this page; its log says how"):
            await client.page(c.GetAgents(swarm=SWARM))
        assert (await client.send(c.ListSwarms())).ok
    assert caplog.messages == ["a command failed: SendInput", "a page failed: GetAgents"]


# --- the feed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_snapshot_comes_first_and_then_every_event_once(kind: str) -> None:
    async with scene(kind) as (stage, client):
        stage.spawn(3)
        async with client.subscribe(SWARM) as feed:
            first = await anext(feed)
            assert isinstance(first, c.Snapshot)
            assert first.state == stage.now
            stage.spawn(2)
            stage.spawn(2500)
            seen = []
            while len(seen) < 2502:
                item = await anext(feed)
                assert isinstance(item, c.Batch)
                seen += item.events
            assert tuple(seen) == tuple(stage.journal[3:])


@pytest.mark.parametrize("kind", KINDS)
async def test_events_arrive_as_they_are_stored_whatever_is_in_them(kind: str) -> None:
    hostile = 'quote " backslash \\ newline \n nul \x00 escape \x1b[2J astral 🜁 separator \u2028 ]}}'
    async with scene(kind) as (stage, client), client.subscribe(SWARM) as feed:
        await anext(feed)
        stage.happen(e.AssistantMessage(agent="t", text=hostile), e.Notice(agent=None, text="x" * 2_000_000))
        stage.happen(e.ToolCalled(agent="t", call="c", name="n", arguments=hostile, brief=hostile))
        seen = []
        while len(seen) < 3:
            seen += (await anext(feed)).events  # type: ignore[union-attr]
        assert tuple(seen) == tuple(stage.journal)


@pytest.mark.parametrize("kind", KINDS)
async def test_text_being_written_is_in_the_snapshot_and_grows(kind: str) -> None:
    async with scene(kind) as (stage, client):
        stage.spawn(1)
        for offset, text in ((0, "Hel"), (3, "lo")):
            stage.on_delta(SWARM, c.Delta(thread="t1", response="r", offset=offset, text=text))
        view = SwarmView()
        async with client.subscribe(SWARM) as feed:
            view.feed(await anext(feed))
            assert view.streaming == {"t1": "Hello"}
            stage.on_delta(SWARM, c.Delta(thread="t1", response="r", offset=5, text=" you"))
            view.feed(await anext(feed))
            assert view.streaming == {"t1": "Hello you"}
            stage.happen(e.AssistantMessage(agent="t1", text="Hello you"))
            view.feed(await anext(feed))
            assert view.streaming == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_that_lagged_is_told_and_starts_again(kind: str) -> None:
    async with scene(kind, backlog=10) as (stage, client), client.subscribe(SWARM) as feed:
        assert isinstance(await anext(feed), c.Snapshot)
        view = SwarmView()
        for _ in range(3):
            stage.spawn(8)
            stage.spawn(8)
            item = await anext(feed)
            while not isinstance(item, c.Lagged):
                item = await anext(feed)
            view.feed(item)
            fresh = await anext(feed)
            assert isinstance(fresh, c.Snapshot)
            view.feed(fresh)
        assert view.lagged == 3
        stage.spawn(1)
        while view.state.seq < stage.now.seq:
            view.feed(await anext(feed))
        assert view.state == stage.now


@pytest.mark.parametrize("kind", KINDS)
async def test_several_readers_of_one_client_do_not_touch_each_other(kind: str) -> None:
    async with scene(kind, backlog=10) as (stage, client), client.subscribe(SWARM) as slow:
        await anext(slow)
        async with client.subscribe(SWARM) as quick:
            await anext(quick)
            for _ in range(5):
                stage.spawn(4)
                item = await anext(quick)
                assert isinstance(item, c.Batch)
                assert len(item.events) == 4
        while not isinstance(item := await anext(slow), c.Lagged):
            assert isinstance(item, c.Batch)
        assert isinstance(await anext(slow), c.Snapshot)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_swarm_has_no_feed(kind: str) -> None:
    async with scene(kind) as (stage, client):
        with pytest.raises(ClientError, match="runs no swarm nope"):
            async with client.subscribe("nope"):
                pass
        async with client.subscribe(SWARM) as feed:
            assert isinstance(await anext(feed), c.Snapshot)
        assert stage.begun == []


async def test_the_feed_ends_with_the_engine_and_a_late_command_is_refused(
    opens: Opens, tmp_path: Path
) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client:
        reply = await client.send(c.StartSwarm(task=None))
        subscription = client.subscribe(reply.value["swarm"])
        feed = await subscription.__aenter__()
        assert isinstance(await anext(feed), c.Snapshot)
    left = [item async for item in feed]
    await subscription.__aexit__(None, None, None)
    assert all(isinstance(item, c.Batch) for item in left)
    with pytest.raises(ClientError):
        await client.send(c.ListSwarms())


# --- pages -------------------------------------------------------------------------------------------------


async def test_pages_and_feed_tell_the_same(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client, swarm(client) as watched:
        await watched.quiet()
        here = {"swarm": watched.swarm, "thread": watched.root}
        events = await client.page(c.GetEvents(swarm=watched.swarm))
        assert isinstance(events, c.EventsPage)
        folded = SwarmState(swarm=watched.swarm)
        for event in events.events:
            apply(folded, event)
        assert folded == watched.state
        last = await client.page(c.GetEvents(swarm=watched.swarm, before=events.seq + 1, limit=2))
        assert isinstance(last, c.EventsPage)
        assert last.events == events.events[-2:]
        page = await client.page(c.GetTranscript(**here, limit=1))
        assert isinstance(page, c.TranscriptPage)
        assert page.more
        older = await client.page(c.GetTranscript(**here, before=page.events[0].seq))
        assert isinstance(older, c.TranscriptPage)
        assert not older.more
        rows = watched.view.load_transcript(watched.root, page)
        watched.view.load_transcript(watched.root, older)
        assert [(row.role, row.text) for row in rows.rows] == [("user", "go"), ("assistant", "hello")]
        agents = await client.page(c.GetAgents(swarm=watched.swarm))
        assert isinstance(agents, c.AgentsPage)
        assert (agents.agents, agents.counts) == (tuple(watched.state.agents.values()), {"completed": 1})


async def test_a_page_of_what_is_not_there_is_one_sentence(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client, swarm(client) as watched:
        for request in (
            c.GetTranscript(swarm="nope", thread="x"),
            c.GetTranscript(swarm=watched.swarm, thread="nobody"),
            c.GetEvents(swarm="nope"),
            c.GetAgents(swarm="\x1b[2Jnope"),
            c.GetJobRows(swarm="nope", job="j"),
            c.GetJobRows(swarm=watched.swarm, job="j"),
        ):
            with pytest.raises(ClientError) as caught:
                await client.page(request)
            assert str(caught.value).isprintable()


PAIR = scenario(
    {
        "/root": [
            step(
                call("spawn_agent", task_name="a", message="x"),
                call("spawn_agent", task_name="b", message="y"),
            ),
            step(call("wait_agent", targets=["a", "b"], mode="all", timeout_ms=600_000)),
            step(text="both"),
        ],
        "/root/a": [step(text="a is done")],
        "/root/b": [
            step(call("update_plan", plan=[{"step": "s", "status": "completed"}])),
            step(text="b is done"),
        ],
    }
)


async def test_events_come_in_pages_by_seq_and_by_agent(opens: Opens, tmp_path: Path) -> None:
    """Each page against a slice of the journal."""
    async with opens(settings_for(tmp_path, PAIR)) as client, swarm(client) as watched:
        await watched.quiet()
        whole = await client.page(c.GetEvents(swarm=watched.swarm))
        assert isinstance(whole, c.EventsPage)
        journal, last = whole.events, whole.seq
        assert [event.seq for event in journal] == list(range(1, last + 1))
        threads = [agent.thread for agent in watched.state.agents.values()]
        for agent, limit, edge in product((None, *threads), (1, 7, 1000), (0, 1, last // 2, last, last + 9)):
            mine = [event for event in journal if agent in (None, event.agent)]
            newer = [event for event in mine if event.seq > edge]
            older = [event for event in mine if event.seq < edge]
            asked = {"swarm": watched.swarm, "agent": agent, "limit": limit}
            page = await client.page(c.GetEvents(**asked, after=edge))
            assert page == c.EventsPage(events=tuple(newer[:limit]), seq=last, more=len(newer) > limit)
            page = await client.page(c.GetEvents(**asked, before=edge))
            assert page == c.EventsPage(events=tuple(older[-limit:]), seq=last, more=len(older) > limit)


async def test_a_transcript_is_the_same_in_pages_from_either_end(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, PAIR)) as client, swarm(client) as watched:
        await watched.quiet()
        for thread in watched.state.agents:
            whole = await client.page(c.GetTranscript(swarm=watched.swarm, thread=thread))
            assert isinstance(whole, c.TranscriptPage)
            assert {event.agent for event in whole.events} == {thread}
            assert len(whole.events) > 1
            forth: list[e.AnyEvent] = []
            back: list[e.AnyEvent] = []
            for found, more in ((forth, True), (back, True)):
                while more:
                    edge = {"after": found[-1].seq if found else 0}
                    if found is back:
                        edge = {"before": back[0].seq if back else whole.seq + 1}
                    page = await client.page(
                        c.GetTranscript(swarm=watched.swarm, thread=thread, limit=2, **edge)
                    )
                    assert isinstance(page, c.TranscriptPage)
                    assert 0 < len(page.events) <= 2
                    found[:] = [*found, *page.events] if found is forth else [*page.events, *found]
                    more = page.more
            assert tuple(forth) == tuple(back) == whole.events


async def test_agents_come_in_pages_by_order_and_by_status(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, PAIR)) as client, swarm(client) as watched:
        await watched.quiet()
        closed = await client.send(c.Close(swarm=watched.swarm, thread=watched.at("/root/a").thread))
        assert closed.ok
        agents = sorted(watched.state.agents.values(), key=lambda agent: agent.order)
        statuses = {"completed": 2, "shutdown": 1}
        await watched.until(lambda state: watched.at("/root/a").status == "shutdown")
        for status, start, limit in product(
            ((), ("completed",), ("shutdown", "errored")), range(4), (1, 2, 9)
        ):
            fitting = [
                agent for agent in agents if agent.order >= start and (not status or agent.status in status)
            ]
            page = await client.page(
                c.GetAgents(swarm=watched.swarm, status=status, start=start, limit=limit)
            )
            assert isinstance(page, c.AgentsPage)
            assert (page.agents, page.counts) == (tuple(fitting[:limit]), statuses)
            assert page.truncated is (len(fitting) > limit)


async def test_job_rows_come_in_pages(opens: Opens, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, scenario({"/root": [step(text="x")]}))
    (settings.cwd / "rows.csv").write_text("name\n" + "".join(f"{n}\n" for n in range(7)))
    async with opens(settings) as client:
        reply = await client.send(c.RunJob(input_path="rows.csv", instruction="look at {name}"))
        assert reply.ok, reply.error
        for start, limit in product((0, 1, 6, 7, 99), (1, 3, 9)):
            page = await client.page(
                c.GetJobRows(swarm=reply.value["swarm"], job=reply.value["job"], start=start, limit=limit)
            )
            assert isinstance(page, c.JobRowsPage)
            assert [row.row_index for row in page.rows] == list(range(7))[start : start + limit]
            assert (page.total, page.more) == (7, start + limit < 7)


async def test_a_page_of_rows_is_not_newer_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed while the rows are read comes by the feed; a later seq would have it ignored."""
    (settings := settings_for(tmp_path, HANG)).cwd.joinpath("rows.csv").write_text("name\na\n")
    async with wired(settings) as wire:
        reply = await wire.local.send(c.RunJob(input_path="rows.csv", instruction="{name}"))
        swarm, store = reply.value["swarm"], wire.engine.store
        read, seqs = store.jobs.page, []

        async def slow(*asked: Any) -> Any:
            found = await read(*asked)
            seqs.append(store.state(swarm).seq)
            await store.append(swarm, [e.Notice(text="meanwhile")])
            return found

        monkeypatch.setattr(store.jobs, "page", slow)
        page = await wire.local.page(c.GetJobRows(swarm=swarm, job=reply.value["job"]))
        assert isinstance(page, c.JobRowsPage)
        assert page.seq <= seqs[0]


# --- who it is ---------------------------------------------------------------------------------------------


async def test_a_client_says_who_answers(opens: Opens, tmp_path: Path) -> None:
    async with opens(settings_for(tmp_path, HELLO)) as client:
        assert client.engine.version
        assert client.engine.pid > 0
        assert client.outlives is (opens is remote_engine)
