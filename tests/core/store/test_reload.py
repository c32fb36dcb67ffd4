"""What a new owner reads of a swarm: by index, in chunks, and through what is damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from core.domain import events as e
from core.store import jobs, reload
from core.store.connection import FILE_NAME
from core.store.errors import NotFound
from core.store.store import Store
from tests.core.store.tools import new_swarm, opened, query


def plan(home: Path, sql: str, values: int) -> str:
    return " ".join(str(row[3]) for row in query(home, f"EXPLAIN QUERY PLAN {sql}", *["x"] * values))


async def test_every_read_goes_by_an_index(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await new_swarm(store)
    assert "USING INDEX events_spawned" in plan(tmp_path, reload._BIRTH, 2)
    assert "USING INDEX events_transcript" in plan(tmp_path, reload._HISTORY, 5)
    assert "USING INDEX mail_queued" in plan(tmp_path, reload._MAIL, 1)
    assert "agent_job_items_queue" in plan(tmp_path, jobs._AT_WORK, 1)
    for sql, values in ((reload._BIRTH, 2), (reload._HISTORY, 5), (reload._MAIL, 1), (jobs._AT_WORK, 1)):
        assert "SCAN" not in plan(tmp_path, sql, values)


async def texts(store: Store, swarm: str, thread: str, upto: int) -> list[str]:
    found = [event async for event in reload.history(store.reader, swarm, thread, upto)]
    return [event.text for event in found if isinstance(event, e.Notice)]


async def test_a_history_is_one_agents_own_in_order_up_to_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "CHUNK", 3)
    async with opened(tmp_path) as store:
        swarm, (root, child) = await new_swarm(store, agents=2)
        for n in range(10):
            await store.append(
                swarm,
                [
                    e.Notice(agent=root, text=f"r{n}"),
                    e.AgentWaits(agent=root),
                    e.Notice(agent=child, text=f"c{n}"),
                ],
            )
        end = store.state(swarm).seq
        assert await texts(store, swarm, root, end) == [f"r{n}" for n in range(10)]
        assert await texts(store, swarm, child, end - 3) == [f"c{n}" for n in range(9)]
        assert await texts(store, swarm, child, 0) == []
        assert await texts(store, "other", root, end) == []


async def test_what_is_damaged_is_left_out_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        for n in range(3):
            await store.append(swarm, [e.Notice(agent=root, text=f"n{n}")])
        with sqlite3.connect(tmp_path / FILE_NAME) as db:
            db.execute("UPDATE events SET body = '{' WHERE body LIKE '%\"n1\"%'")
        db.close()
        assert await texts(store, swarm, root, store.state(swarm).seq) == ["n0", "n2"]
        assert "cannot be read" in caplog.text
        with sqlite3.connect(tmp_path / FILE_NAME) as db:
            db.execute("UPDATE events SET body = '{}' WHERE type = 'agent_spawned'")
        db.close()
        with pytest.raises(NotFound, match="cannot be read"):
            await reload.birth(store.reader, swarm, root)


async def test_a_birth_is_found_by_its_agent(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, (_, child) = await new_swarm(store, agents=2)
        assert (await reload.birth(store.reader, swarm, child)).path == "/root/a1"
        with pytest.raises(NotFound, match="there is no agent"):
            await reload.birth(store.reader, swarm, "nobody")
        with pytest.raises(NotFound):
            await reload.birth(store.reader, "other", child)


async def test_mail_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        swarm, (root, child) = await new_swarm(store, agents=2)
        queued = [
            e.MailQueued(agent=root, mail="1", author="operator", kind="INPUT", text="one", trigger=True),
            e.MailQueued(agent=child, mail="2", author="/root", kind="NEW_TASK", text="two", trigger=True),
            e.MailQueued(agent=root, mail="3", author="/root/a1", kind="MESSAGE", text="three"),
            e.MailQueued(agent=child, mail="4", author="/root", kind="MESSAGE", text="four"),
        ]
        stamped = await store.append(swarm, queued)
        await store.append(swarm, [e.UserMessage(agent=root, text="one", mail="1")])
        found = await reload.queued_mail(store.reader, swarm)
        expected = [event for event in stamped if isinstance(event, e.MailQueued) and event.mail != "1"]
        assert [(m.seq, m.agent, m.mail, m.author, m.kind, m.text, m.trigger) for m in found] == [
            (m.seq, m.agent, m.mail, m.author, m.kind, m.text, m.trigger) for m in expected
        ]
        await store.append(swarm, [e.AgentClosed(agent=child)])
        assert [mail.mail for mail in await reload.queued_mail(store.reader, swarm)] == ["3"]


async def test_mail_for_an_agent_that_is_closed_and_resumed_in_the_same_batch(tmp_path: Path) -> None:
    """What came before is dropped, what comes after is kept, in one write as in several."""

    def mail(number: int) -> e.MailQueued:
        return e.MailQueued(agent=child, mail=f"{number}", author="/root", kind="MESSAGE", text="x")

    async with opened(tmp_path) as store:
        swarm, (_root, child) = await new_swarm(store, agents=2)
        closed, resumed = e.AgentClosed(agent=child), e.AgentResumed(agent=child)
        await store.append(swarm, [mail(1), closed, mail(2), resumed, mail(3)])
        assert [found.mail for found in await reload.queued_mail(store.reader, swarm)] == ["3"]
        assert (await store.reader.load_state(swarm)).agents == store.state(swarm).agents
        assert list(store.state(swarm).mail) == ["3"]
        await store.append(swarm, [closed])
        await store.append(swarm, [resumed])
        await store.append(swarm, [mail(4)])
        assert [found.mail for found in await reload.queued_mail(store.reader, swarm)] == ["4"]
        assert await store.reader.load_state(swarm) == store.state(swarm)
