"""Ctrl-C at any moment: a face that is cancelled after n steps of the loop ends as cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from core.channel.local import open_engine
from core.channel.remote import connect
from core.config import Settings
from core.domain.commands import GetEvents, SendInput, StartSwarm
from core.store.readers import Reader
from core.view.swarm import SwarmView
from tests.core.agents.scenarios import call, scenario, step
from tests.core.channel.wire import SWARM, Staged, staged, until
from tests.core.harness import settings_for

TWO = scenario(
    {
        "/root": [
            step(call("spawn_agent", task_name="a", message="x"), call("exec_command", cmd="echo hi")),
            step(call("wait_agent", targets=["a"], timeout_ms=60_000)),
            step(text="done"),
        ],
        "/root/a": [step(call("exec_command", cmd="echo ho")), step(text="ok")],
    }
)


async def face(settings: Settings) -> None:
    async with open_engine(settings) as client:
        reply = await client.send(StartSwarm(task="go", unattended="refuse"))
        view = SwarmView()
        async with client.subscribe(reply.value["swarm"]) as feed:
            async for item in feed:
                view.feed(item)
                if view.state.quiet():
                    return


async def cancelled_after(steps: int, settings: Settings) -> bool:
    """Run the face and cancel it after so many rounds of the loop; whether it was still running then."""
    task = asyncio.create_task(face(settings))
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    stopped = task.cancel()
    try:
        async with asyncio.timeout(20):
            await task
    except asyncio.CancelledError:
        return stopped
    return False


@pytest.mark.parametrize("part", range(4))
async def test_a_face_cancelled_at_any_step_ends_as_cancelled(tmp_path: Path, part: int) -> None:
    settings = settings_for(tmp_path, TWO, sandbox="off")
    for round_ in range(18):
        await cancelled_after(part + round_ * (4 + 3 * round_), settings)
    async with Reader.open(settings.home) as reader:
        for session in (await reader.sessions())["sessions"]:
            tree = await reader.tree(session["thread"])
            statuses = {agent["status"] for agent in tree["agents"]}
            assert statuses <= {"interrupted", "completed", "idle", "pending_init"}
            shown = [await reader.show(agent["thread"]) for agent in tree["agents"]]
            assert all(row["status"] != "open" for one in shown for row in one["calls"])
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert others == []


async def visit(place: Staged) -> None:
    """Every kind of thing that a client waits for."""
    async with connect(place.socket) as client:
        await client.send(SendInput(swarm=SWARM, thread="t", text="do it"))
        async with client.subscribe(SWARM) as feed:
            await anext(feed)
            place.stage.spawn(1)
            await anext(feed)
            await client.page(GetEvents(swarm=SWARM))


async def test_a_client_of_a_socket_cancelled_at_any_step_leaves_nothing_behind() -> None:
    async with staged() as place:
        place.stage.spawn(1)
        finished = steps = 0
        while finished < 3:
            visiting = asyncio.create_task(visit(place))
            for _ in range(steps):
                await asyncio.sleep(0)
            steps += 1
            if not visiting.cancel():
                finished += 1
            await asyncio.wait({visiting})
            assert visiting.cancelled() or visiting.exception() is None
            await until(lambda: not place.server.clients and len(asyncio.all_tasks()) == 1)
            assert not any(feed._readers for feed in place.hub._feeds.values())
        # A command may have arrived, also from somebody who left at once: then it was carried out.
        assert steps > 10
        assert set(place.stage.begun) == {"do it", "page"}
        assert place.stage.done.count("do it") == place.stage.begun.count("do it")
