"""`agent list|interrupt|close|send` on engines of other processes: what they change, say and refuse."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from core.channel.client import EngineBusy
from core.domain.status import Status
from tests.tui.engine_process import STILL, engine_with_swarm
from tests.tui.shell import Shell
from tui import exits, verbs
from tui.farewell import short_id

KEYS = (
    *("thread", "parent", "path", "nickname", "role", "status", "status_message", "waiting"),
    *("waits_for", "depth", "model", "tokens", "cost", "cost_partial", "started_at", "last_at", "file"),
    *("place_in_line", "swarm", "asks", "calls", "failed_calls", "engine"),
)


BELOW = {path: status for path, status in STILL.items() if path != "/root"}


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", capfd, monkeypatch)


@pytest.fixture
def running(shell: Shell) -> Iterator[dict[str, Any]]:
    with engine_with_swarm(shell.home) as found:
        yield found


def agents(shell: Shell, *words: str) -> dict[str, Any]:
    """The listed agents by path."""
    return {agent["path"]: agent for agent in shell.json("agent", "list", *words)["agents"]}


def statuses(shell: Shell, *words: str) -> dict[str, str]:
    return {path: agent["status"] for path, agent in agents(shell, *words).items()}


# --- list ------------------------------------------------------------------------------------------------


def test_the_list_has_its_keys_and_names_the_engine(shell: Shell, running: dict[str, Any]) -> None:
    listed = shell.json("agent", "list")
    assert list(listed) == ["agents"]
    found = {agent["path"]: agent for agent in listed["agents"]}
    assert [agent["path"] for agent in listed["agents"]] == [
        *("/root", "/root/audit", "/root/audit/deep", "/root/quick")
    ]
    for agent in listed["agents"]:
        assert tuple(agent) == KEYS
        assert agent["swarm"] == running["swarm"]
        assert agent["engine"] == {"pid": running["pid"], "kind": "exec"}
    assert {path: agent["status"] for path, agent in found.items()} == STILL
    assert (found["/root"]["waiting"], found["/root/audit/deep"]["waiting"]) == ("agents", None)
    assert (found["/root"]["calls"], found["/root"]["failed_calls"], found["/root"]["asks"]) == (3, 0, 0)
    assert list(statuses(shell, "--status", "completed")) == ["/root/quick"]
    assert agents(shell, running["swarm"]) == found
    session = shell.json("session", "list")["sessions"][0]
    assert session["engine"] == {"pid": running["pid"], "kind": "exec"}

    text = shell("agent", "list").lines
    assert text[0].split()[:3] == ["agent", "status", "waiting"]
    assert [line.split()[-1] for line in text[1:]] == list(found)
    assert f"exec {running['pid']}" in text[1]
    assert "swarm" not in text[0]
    assert running["thread"] not in "".join(text)  # the whole ids are for --json


def test_closed_agents_are_counted_and_listed_when_asked_for(shell: Shell, running: dict[str, Any]) -> None:
    assert shell("agent", "close", "/root/audit").code == exits.OK
    ran = shell("agent", "list")
    assert [line.split()[-1] for line in ran.lines[1:]] == ["/root", "/root/quick"]
    assert ran.err == "not listed: 2 closed (--status shutdown)\n"
    ran = shell("agent", "list", "--status", "shutdown")
    assert [line.split()[-1] for line in ran.lines[1:]] == ["/root/audit", "/root/audit/deep"]
    assert ran.err == ""
    assert len(agents(shell)) == 4


def test_nothing_runs_and_a_swarm_that_runs_no_more(shell: Shell) -> None:
    assert shell.json("agent", "list") == {"agents": []}
    ran = shell("agent", "list")
    assert (ran.code, ran.out, ran.err) == (exits.OK, "", "no agents of a swarm that runs\n")
    with engine_with_swarm(shell.home) as running:
        pass
    assert shell.json("agent", "list") == {"agents": []}
    found = agents(shell, running["swarm"])
    assert {agent["status"] for agent in found.values()} == {"interrupted", "completed"}
    assert {agent["engine"] for agent in found.values()} == {None}
    said = shell.refused(exits.ERROR, "agent", "interrupt", running["thread"])
    assert f"watchroom resume {running['swarm']}" in said
    said = shell.refused(exits.ERROR, "agent", "interrupt", "/root/audit")
    assert "no agent '/root/audit' in a swarm that runs" in said


def test_the_list_never_asks_the_engine(shell: Shell, running: dict[str, Any]) -> None:
    os.kill(running["pid"], signal.SIGSTOP)  # nothing answers any more; the store and the locks still do
    try:
        assert statuses(shell) == STILL
    finally:
        os.kill(running["pid"], signal.SIGCONT)


def test_the_statuses_that_can_be_asked_for_are_those_that_agents_have() -> None:
    assert {*verbs.STATUSES, "not_found"} == set(get_args(Status))


# --- interrupt -------------------------------------------------------------------------------------------


def test_an_interrupt_stops_one_turn_and_doing_it_again_changes_nothing(
    shell: Shell, running: dict[str, Any]
) -> None:
    found = agents(shell)
    name = found["/root/audit"]["nickname"]

    dry = shell.json("agent", "interrupt", "/root/audit", "--dry-run")
    assert (dry["changed"], dry["dry_run"], [one["path"] for one in dry["stopped"]]) == (
        *(False, True),
        ["/root/audit"],
    )
    assert statuses(shell) == STILL

    ran = shell("agent", "interrupt", name, "--as", "nightly")
    assert (ran.code, ran.err) == (exits.OK, "")
    assert ran.lines == [
        f"interrupted: {name} (/root/audit)",
        "1 agent below it goes on; --cascade stops them too",
    ]
    after = agents(shell)
    found_now = {path: agent["status"] for path, agent in after.items() if path != "/root"}  # it was waiting
    assert found_now == {**BELOW, "/root/audit": "interrupted"}
    assert "nightly" in after["/root/audit"]["status_message"]

    again = shell.json("agent", "interrupt", found["/root/audit"]["thread"])
    assert again == {
        "swarm": running["swarm"],
        "thread": found["/root/audit"]["thread"],
        "nickname": name,
        "path": "/root/audit",
        "changed": False,
        "dry_run": False,
        "stopped": [],
        "running_below": 1,
    }
    assert shell("agent", "interrupt", name).lines[0] == (
        f"nothing to do for {name} (/root/audit): it runs no turn"
    )
    assert agents(shell)["/root/audit"]["last_at"] == after["/root/audit"]["last_at"]


def test_a_cascade_stops_everything_below_and_nothing_beside(shell: Shell, running: dict[str, Any]) -> None:
    done = shell.json("agent", "interrupt", "/root/audit", "--cascade")
    assert (done["changed"], done["running_below"]) == (True, 0)
    assert {one["path"] for one in done["stopped"]} == {"/root/audit", "/root/audit/deep"}
    found = statuses(shell)
    del found["/root"]
    assert found == {**BELOW, "/root/audit": "interrupted", "/root/audit/deep": "interrupted"}


# --- close and send --------------------------------------------------------------------------------------


def test_close_ends_an_agent_and_all_below_it_once(shell: Shell, running: dict[str, Any]) -> None:
    dry = shell.json("agent", "close", "/root/audit", "--dry-run")
    assert ({one["path"] for one in dry["closed"]}, dry["changed"]) == (
        *({"/root/audit", "/root/audit/deep"},),
        False,
    )
    assert statuses(shell) == STILL
    done = shell.json("agent", "close", "/root/audit")
    assert ({one["path"] for one in done["closed"]}, done["changed"]) == (
        *({"/root/audit", "/root/audit/deep"},),
        True,
    )
    found = statuses(shell)
    assert (found["/root/audit"], found["/root/audit/deep"]) == ("shutdown", "shutdown")
    again = shell("agent", "close", "/root/audit")
    assert (again.code, again.err) == (exits.OK, "")
    assert again.lines[0].startswith("nothing to do for ")
    assert "closed already" in again.lines[0]


def test_send_reaches_one_agent_with_the_name_of_who_sent_it(shell: Shell, running: dict[str, Any]) -> None:
    thread = agents(shell)["/root/quick"]["thread"]
    dry = shell.json("agent", "send", "/root/quick", "hello", "--dry-run")
    assert (dry["changed"], dry["dry_run"]) == (False, True)
    ran = shell("agent", "send", "/root/quick", "-", "--as", "nightly", stdin="zwei\nZeilen")
    assert (ran.code, ran.err) == (exits.OK, "")
    assert ran.out.endswith("(/root/quick) got the text\n")
    sent: list[tuple[str, str]] = []
    for _ in range(100):  # it is accepted at once, and joins the history when the turn begins
        rows = shell.json("session", "show", thread)["rows"]
        if sent := [(row["author"], row["text"]) for row in rows if row["role"] == "user"]:
            break
    assert sent == [("nightly", "zwei\nZeilen")]
    assert "the text is empty" in shell.refused(exits.USAGE, "agent", "send", "/root/quick", "  ")
    assert "--as" in shell.refused(exits.USAGE, "agent", "send", "/root/quick", "x", "--as", "\x1b[31m")


def test_compact_is_asked_for_once_and_shows_in_the_transcript(shell: Shell, running: dict[str, Any]) -> None:
    found = agents(shell)["/root/quick"]
    dry = shell.json("agent", "compact", "/root/quick", "--dry-run")
    assert (dry["changed"], dry["dry_run"], dry["thread"]) == (False, True, found["thread"])
    name, when = f"{found['nickname']} (/root/quick)", "its history is compacted before its next request"
    would = shell("agent", "compact", "/root/quick", "--dry-run").lines
    assert would == [f"{name}: {when.replace(' is ', ' would be ')}"]
    assert shell("agent", "compact", found["nickname"], "--as", "nightly").lines == [f"{name}: {when}"]
    again = shell("agent", "compact", "/root/quick")
    assert (again.code, again.lines) == (exits.OK, [f"nothing to do for {name}: {when} already"])
    assert shell.json("agent", "compact", "/root/quick")["changed"] is False
    rows = shell.json("session", "show", found["thread"])["rows"]
    said = [row["text"] for row in rows if "compacted" in row["text"]]
    assert said == ["nightly asked for this history to be compacted before the next request"]
    shell("agent", "close", "/root/quick")
    assert "is closed" in shell.refused(exits.ERROR, "agent", "compact", "/root/quick")


# --- whom ------------------------------------------------------------------------------------------------


def test_one_word_that_means_several_agents_lists_them(shell: Shell, running: dict[str, Any]) -> None:
    thread = agents(shell)["/root/audit"]["thread"]
    said = shell.refused(exits.USAGE, "agent", "interrupt", thread[:4])
    assert "means 4 agents" in said
    assert all(path in said for path in STILL)
    ran = shell("agent", "interrupt", thread[:4], "--json")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (exits.USAGE, "ambiguous")
    with engine_with_swarm(shell.home, "job") as other:
        assert len(shell.json("agent", "list")["agents"]) == 8
        assert shell("agent", "list").lines[0].split()[-2:] == ["swarm", "path"]
        said = shell.refused(exits.USAGE, "agent", "interrupt", "/root/audit")
        for swarm in (running["swarm"], other["swarm"]):
            assert f"(swarm {short_id(swarm)})" in said
        assert "--swarm ID narrows" in said
        done = shell.json("agent", "interrupt", "/root/audit", "--swarm", other["swarm"])
        assert (done["swarm"], done["changed"]) == (other["swarm"], True)
    assert statuses(shell) == STILL  # the first swarm was not touched


@pytest.mark.parametrize("ref", ["nobody", "/root/none", "\x1b]0;x\x07", "019zz", ""])
def test_nobody_of_that_name(shell: Shell, running: dict[str, Any], ref: str) -> None:
    said = shell.refused(exits.ERROR, "agent", "interrupt", ref)
    assert "there is no agent" in said or "give the id" in said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("the engine did not answer", "busy: the engine did not answer"),
        ("the engine is busy: it says nothing", "the engine is busy: it says nothing"),
    ],
)
def test_an_engine_that_does_not_answer_is_busy_not_absent(
    shell: Shell, running: dict[str, Any], monkeypatch: pytest.MonkeyPatch, told: str, said: str
) -> None:
    class Busy:
        async def __aenter__(self) -> Busy:
            return self

        async def __aexit__(self, *exc: object) -> None:
            return None

        async def send(self, command: object) -> None:
            raise EngineBusy(told)

    monkeypatch.setattr("core.channel.launch.engine_of", lambda *args, **kwargs: Busy())
    ran = shell("agent", "close", "/root/audit", "--json")
    assert ran.code == exits.ERROR
    error = json.loads(ran.out)["error"]
    assert (error["code"], error["message"]) == ("busy", said)
    assert ran.err == f"watchroom: {said}\n"
