"""`session list|show|tree`: the shapes that scripts depend on, the text that people read, stores that are
not as they should be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from core.safety.text import is_clean
from tests.tui import payloads
from tests.tui.shell import Shell
from tests.tui.test_cli import ROOT, watchroom
from tui import exits
from tui.table import moment, show, table

TOML_HOSTILE = json.dumps(payloads.ALL)
SCENARIO = f"""
title = "family"
[[agents]]
path = "/root"
[[agents.steps]]
reasoning = "Two of them will do."
text = {TOML_HOSTILE}
calls = [
  {{ name = "spawn_agent", arguments = {{ task_name = "look", message = "Look.", model = "模型漢字" }} }},
  {{ name = "spawn_agent", arguments = {{ task_name = "fail", message = {TOML_HOSTILE} }} }},
  {{ name = "exec_command", arguments = {{ cmd = "printf 'a\\\\033[31337mb\\\\n'; seq 30" }} }},
  {{ name = "exec_command", arguments = {{ cmd = "cat nothere" }} }},
]
[[agents.steps]]
calls = [{{ name = "wait_agent", arguments = {{ targets = ["look", "fail"], mode = "all" }} }}]
[[agents.steps]]
text = "All is well."
[[agents]]
path = "/root/look"
[[agents.steps]]
calls = [{{ name = "spawn_agent", arguments = {{ task_name = "deep", message = "Dig." }} }}]
[[agents.steps]]
calls = [{{ name = "wait_agent", arguments = {{ targets = ["deep"] }} }}]
[[agents.steps]]
text = "Looked."
[[agents]]
path = "/root/fail"
[[agents.steps]]
text = "never said"
fault = {{ kind = "failed", times = 0, code = "context_length_exceeded", message = {TOML_HOSTILE} }}
[[agents]]
path = "*"
[[agents.steps]]
text = "深く掘った。"
"""
CONTROLS = [bad for bad in payloads.FORBIDDEN if not bad.isalnum() and not bad.decode().isprintable()]
"""In the JSON of a call's arguments the harmless half of a sequence may stand, spelled out."""
WAITING = """
[[agents]]
path = "*"
[[agents.steps]]
text = "never said"
fault = { kind = "hang", times = 0 }
"""
SESSION = (
    "thread",
    "title",
    "started_at",
    "last_at",
    "status",
    "agents",
    "jobs",
    "tokens",
    "cost",
    "cost_partial",
    "model",
    "cwd",
    "engine",
)
AGENT = (
    "thread",
    "parent",
    "path",
    "nickname",
    "role",
    "status",
    "status_message",
    "waiting",
    "waits_for",
    "depth",
    "model",
    "tokens",
    "cost",
    "cost_partial",
    "started_at",
    "last_at",
    "file",
)
SHOWN = (
    *("thread", "root", "parent", "path", "nickname", "role", "status", "status_message", "model", "tokens"),
    *("cost", "cost_partial", "rows", "calls", "damage"),
)
TEXT_ROW, CALL_ROW = ("role", "text", "author", "at", "undone"), ("role", "call", "at", "undone")
CALL = ("id", "name", "arguments", "row", "child", "status", "events", "summary")
EVENT = ("index", "source", "status", "text", "agent", "child", "at")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two swarms: an older short one, then the family, in a folder of its own."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "family.toml").write_text(SCENARIO)
    env = {"WATCHROOM_HOME": str(folder / "home"), "OPENAI_BASE_URL": ""}
    for base_url, task in (("hello", "早上好"), (str(folder / "family.toml"), f"go {payloads.ALL}")):
        words = ("exec", "-", "--base-url", f"scripted:{base_url}", "--approval-policy", "never")
        ran = watchroom(*words, env=env, cwd=folder, stdin=task)
        assert ran.returncode == exits.OK, ran.stderr
    return folder / "home"


@pytest.fixture
def shell(
    kept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """On a copy of the kept home, which a test may spoil."""
    return Shell(Path(shutil.copytree(kept, tmp_path / "home")), capfd, monkeypatch)


@pytest.fixture
def root(shell: Shell) -> str:
    thread: str = shell.json("session", "list")["sessions"][0]["thread"]
    return thread


def agents(shell: Shell, root: str) -> dict[str, Any]:
    """The agents of the family by path."""
    return {agent["path"]: agent for agent in shell.json("session", "tree", root)["agents"]}


def spoil(shell: Shell, *statements: str) -> None:
    db = sqlite3.connect(shell.home / "watchroom.db", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def is_time(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).utcoffset() == timedelta(0)


# --- JSON ------------------------------------------------------------------------------------------------


def test_the_list_has_its_keys_and_the_newest_comes_first(shell: Shell, kept: Path) -> None:
    found = shell.json("session", "list")
    assert list(found) == ["sessions"]
    family, short = found["sessions"]
    assert tuple(family) == tuple(short) == SESSION
    assert short["title"] == "早上好"
    assert (short["agents"], short["jobs"], short["status"]) == (1, 0, "completed")
    assert (family["agents"], family["jobs"], family["status"]) == (4, 0, "completed")
    assert family["started_at"] > short["last_at"] >= short["started_at"]
    assert all(is_time(session[key]) for session in (family, short) for key in ("started_at", "last_at"))
    assert family["cost"] is None
    assert family["engine"] is None  # whoever ran it has ended
    assert family["tokens"] > short["tokens"] > 0
    assert family["cwd"] == str(kept.parent)


def test_the_tree_has_parents_before_children_and_unknown_is_null(shell: Shell, root: str) -> None:
    tree = shell.json("session", "tree", root)
    assert list(tree) == ["root", "agents", "servers"]
    assert tree["root"] == root
    assert all(tuple(agent) == AGENT for agent in tree["agents"])
    assert [agent["path"] for agent in tree["agents"]] == [
        "/root",
        "/root/look",
        "/root/look/deep",
        "/root/fail",
    ]
    seen: set[str] = set()
    for agent in tree["agents"]:
        assert agent["parent"] is None if agent["path"] == "/root" else agent["parent"] in seen
        assert agent["depth"] == agent["path"].count("/") - 1
        assert is_time(agent["started_at"])
        assert (agent["waiting"], agent["file"]) == (None, None)
        seen.add(agent["thread"])
    by_path = {agent["path"]: agent for agent in tree["agents"]}
    assert (by_path["/root/fail"]["status"], by_path["/root/fail"]["tokens"]) == ("errored", None)
    assert "31337" not in by_path["/root/fail"]["status_message"]
    assert by_path["/root/look"]["model"] == "模型漢字"
    assert by_path["/root/look/deep"]["status_message"] == "深く掘った。"
    total = sum(agent["tokens"] or 0 for agent in tree["agents"])
    assert total == shell.json("session", "list")["sessions"][0]["tokens"]


def test_the_transcript_has_its_keys_and_calls_stand_at_their_rows(shell: Shell, root: str) -> None:
    shown = shell.json("session", "show", root)
    assert tuple(shown) == SHOWN
    assert (shown["thread"], shown["root"], shown["parent"]) == (root, root, None)
    assert (shown["path"], shown["status"], shown["status_message"]) == ("/root", "completed", "All is well.")
    tokens = shown["tokens"]
    assert list(tokens) == ["input", "cached", "output", "reasoning", "total"]
    assert tokens["total"] == tokens["input"] + tokens["output"]
    assert shown["damage"] == {"unreadable_events": 0, "results_without_call": 0}
    for row in shown["rows"]:
        assert tuple(row) == (CALL_ROW if "call" in row else TEXT_ROW)
        assert row["role"] in ("user", "assistant", "agent", "notice")
        assert (row["undone"], is_time(row["at"])) == (False, True)
    for call in shown["calls"]:
        assert tuple(call) == CALL
        assert shown["rows"][call["row"]]["call"] == call["id"]
        assert all(tuple(event) == EVENT for event in call["events"])
        assert [event["index"] for event in call["events"]] == list(range(len(call["events"])))
    assert json.loads(shown["calls"][0]["arguments"])["task_name"] == "look"
    assert sum("call" in row for row in shown["rows"]) == len(shown["calls"]) == 5
    authors = [row["author"] for row in shown["rows"] if row["role"] in ("user", "agent")]
    assert (authors[0], set(authors[1:])) == ("operator", {"/root/fail", "/root/look"})


def test_calls_name_their_children_their_outcome_and_a_summary(shell: Shell, root: str) -> None:
    threads = {path: agent["thread"] for path, agent in agents(shell, root).items()}
    look, fail, prints, broken, waits = shell.json("session", "show", root)["calls"]
    assert (look["child"], fail["child"]) == (threads["/root/look"], threads["/root/fail"])
    assert [(event["status"], event["agent"]) for event in look["events"]] == [
        ("spawned", threads["/root/look"])
    ]
    assert (prints["child"], prints["status"], broken["status"]) == (None, "ok", "error")
    (output,) = prints["events"]
    assert (output["status"], output["agent"], output["child"]) == ("", None, None)
    assert output["text"].splitlines()[-1] == "30"
    assert "\nab\n" in output["text"]
    assert prints["summary"] == output["text"]
    assert "cat: nothere" in broken["summary"]
    assert {event["child"]: event["status"] for event in waits["events"]} == {
        threads["/root/look"]: "completed",
        threads["/root/fail"]: "errored",
    }
    assert "Looked." in waits["summary"].splitlines()


def test_a_child_is_shown_like_a_root(shell: Shell, root: str) -> None:
    found = agents(shell, root)
    child = shell.json("session", "show", found["/root/look/deep"]["thread"])
    assert (child["root"], child["parent"]) == (root, found["/root/look"]["thread"])
    task, answer = child["rows"]
    assert (task["role"], task["author"], task["text"]) == ("agent", "/root/look", "Dig.")
    assert (answer["role"], answer["author"], answer["text"]) == ("assistant", None, "深く掘った。")
    failed = shell.json("session", "show", found["/root/fail"]["thread"])
    assert (failed["status"], failed["tokens"], failed["calls"]) == ("errored", None, [])
    assert failed["rows"][-1]["role"] == "notice"


# --- text ------------------------------------------------------------------------------------------------


def test_no_text_for_people_holds_what_a_terminal_would_obey(shell: Shell, root: str) -> None:
    threads = [agent["thread"] for agent in agents(shell, root).values()]
    verbs = [("list",), ("tree", root), *(("show", thread) for thread in threads)]
    for verb in verbs:
        ran = shell("session", *verb)
        assert (ran.code, ran.err) == (exits.OK, "")
        assert is_clean(ran.out)
        assert not [bad for bad in CONTROLS if bad in ran.out.encode()]
    shown = shell("session", "show", root).out
    assert payloads.MARKUP in shown  # markup is text: neither parsed nor lost


def test_a_transcript_reads_well(shell: Shell, root: str) -> None:
    lines = shell("session", "show", root).lines
    assert lines[0].split() == [
        "root",
        "/root",
        "completed",
        "scripted",
        *lines[0].split()[4:6],
        "cost",
        "n/a",
    ]
    assert lines[0].endswith(" tokens  cost n/a")
    heads = [line.split("  ")[1] for line in lines[1:] if line[2:3] == ":"]
    found = {path: agent["nickname"] for path, agent in agents(shell, root).items()}
    mail = [found["/root/fail"], found["/root/look"]]  # comes when it comes
    assert sorted(head for head in heads if head in mail) == sorted(mail)
    assert [head for head in heads if head not in mail] == [
        *("operator", "reasoning", "root", "spawn_agent", "spawn_agent", "exec_command", "exec_command"),
        *("wait_agent", "root"),
    ]
    assert "          ┆ 22 more lines (--json shows all)" in lines
    assert f"          ┆ completed {found['/root/look']} Looked." in lines
    assert lines[-1] == "          All is well."


def test_unknown_tokens_are_not_shown_as_none_used(shell: Shell, root: str) -> None:
    head = shell("session", "show", agents(shell, root)["/root/fail"]["thread"]).lines[0]
    assert head.split()[1:3] == ["/root/fail", "errored"]
    assert "tokens" not in head


def test_wide_letters_do_not_shift_the_columns(shell: Shell, root: str) -> None:
    tree = shell("session", "tree", root).lines
    at = cell_len(tree[0][: tree[0].index("thread")])
    found = agents(shell, root)
    for line, agent in zip(tree[1:], found.values(), strict=True):
        assert cell_len(line[: line.index(agent["thread"][:18])]) == at
    assert "模型漢字" in tree[2]
    assert [line.split("  ")[0] for line in tree[1:]] == [
        "root",
        f"┆ {found['/root/look']['nickname']}",
        f"┆ ┆ {found['/root/look/deep']['nickname']}",
        f"┆ {found['/root/fail']['nickname']}",
    ]
    assert tree[4].split()[3] == "–"


def test_the_list_for_people(shell: Shell, root: str) -> None:
    head, family, short = shell("session", "list").lines
    assert head.split() == [
        "swarm",
        "started",
        "status",
        "agents",
        "jobs",
        "tokens",
        "cost",
        "model",
        "engine",
        "title",
    ]
    assert shell.json("session", "tree", family.split()[0])["root"] == root
    assert short.endswith("  早上好")
    for line in (family, short):
        assert cell_len(line[: line.index("completed")]) == head.index("status")


def test_on_a_terminal_columns_give_way_and_no_line_wraps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = (("id", "id"), ("model", "model"), ("tokens", "tokens"), ("title", "title"))
    rows = [
        {"id": "0190", "model": "m" * 10, "tokens": 1, "title": "漢字" * 20},
        {"id": "0191", "model": "m", "tokens": 22, "title": "short"},
    ]

    def lines(width: int | None) -> list[str]:
        monkeypatch.setattr("tui.table._terminal_width", lambda: width)
        show(columns, rows, gives_way=("model", "tokens"))
        return capsys.readouterr().out.splitlines()

    assert lines(None) == lines(200) == table(columns, rows)
    for width in range(26, 120):
        assert max(cell_len(line) for line in lines(width)) <= width
    assert lines(40)[0].split() == ["id", "model", "tokens", "title"]  # 14 cells are left for the title
    assert lines(39)[0].split() == ["id", "tokens", "title"]
    assert lines(27)[0].split() == ["id", "title"]
    assert lines(27)[1:] == ["0190  " + "漢字" * 5 + "…", "0191  short"]


def test_a_table_fits_its_cells() -> None:
    rows = [
        {"name": "漢字", "n": 1234567, "rate": 2.5, "last": "x" * 100},
        {"name": "a\x1b[31m\nb", "n": None, "rate": None, "last": ""},
        {"name": "字" * 40, "n": 0, "rate": 0.0, "last": None},
    ]
    lines = table((("name", "name"), ("n", "count"), ("rate", "rate"), ("last", "last")), rows)
    assert {cell_len(line[: line.rindex("  ")]) for line in lines} == {60 + 2 + 9 + 2 + 4}
    assert lines[1].split() == ["漢字", "1,234,567", "2.50", "x" * 100]
    assert lines[2].split() == ["a", "b", "–", "–", "–"]
    assert lines[3].split() == ["字" * 29 + "…", "0", "0.00", "–"]
    assert table((("a", "a"), ("b", "bb")), []) == ["a  bb"]
    assert moment(None) is None


# --- which one -------------------------------------------------------------------------------------------


def test_an_agent_is_found_by_the_beginning_of_its_id(shell: Shell, root: str) -> None:
    threads = [agent["thread"] for agent in agents(shell, root).values()]
    for thread in threads:
        beginnings = (thread[:n] for n in range(1, 37))
        short = next(text for text in beginnings if sum(other.startswith(text) for other in threads) == 1)
        for ref in (short, short.upper(), f" {thread} "):
            assert shell.json("session", "show", ref)["thread"] == thread
        assert shell.json("session", "tree", short)["root"] == root


@pytest.mark.parametrize("verb", ["show", "tree"])
def test_what_is_no_one_agent_is_one_sentence(shell: Shell, root: str, verb: str) -> None:
    said = shell.refused(exits.ERROR, "session", verb, root[:2])
    assert f"'{root[:2]}' means more than one session or agent" in said
    assert root[:8] in said
    assert "'nobody'" in shell.refused(exits.ERROR, "session", verb, "nobody")
    assert "give the id" in shell.refused(exits.ERROR, "session", verb, "")
    assert "'100%_'" in shell.refused(exits.ERROR, "session", verb, "100%_", "--json")
    assert shell.refused(exits.ERROR, "session", verb, "\x1b]0;evil\x07x")


# --- stores that are not as they should be ----------------------------------------------------------------


def test_an_empty_home_reads_as_empty_and_stays_so(shell: Shell, tmp_path: Path) -> None:
    for home in (tmp_path / "none", tmp_path / "empty"):
        there = ("--home", home)
        assert shell.json("session", "list", *there) == {"sessions": []}
        ran = shell("session", "list", *there)
        assert (ran.code, ran.out, ran.err) == (
            exits.OK,
            "",
            "no swarms yet: start one with watchroom demo\n",
        )
        assert "in the store" in shell.refused(exits.ERROR, "session", "show", "x", *there)
        assert not home.exists()
    (tmp_path / "file").write_text("x")
    assert "is a file" in shell.refused(exits.USAGE, "session", "list", "--home", tmp_path / "file")


def test_a_store_in_a_folder_that_cannot_be_written_is_read(kept: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(kept, tmp_path / "home"))
    box: list[str] = []
    if os.geteuid() == 0:  # permissions do not bind root: a read-only mount does
        if (bwrap := shutil.which("bwrap")) is None:
            pytest.skip("needs another user than root, or bubblewrap")
        box = [bwrap, "--bind", "/", "/", "--dev", "/dev", "--ro-bind", str(home), str(home)]
        if subprocess.run([*box, "true"], check=False, capture_output=True).returncode:
            pytest.skip("bubblewrap does not work here")
    home.chmod(0o500)
    try:
        before = sorted(path.name for path in home.iterdir())
        entry = [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())"]
        ran = subprocess.run(
            [*box, *entry, "session", "list", "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "WATCHROOM_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (ran.returncode, ran.stderr) == (exits.OK, "")
        assert len(json.loads(ran.stdout)["sessions"]) == 2
        assert sorted(path.name for path in home.iterdir()) == before
    finally:
        home.chmod(0o700)


def test_reading_changes_nothing(shell: Shell, root: str) -> None:
    before = (shell.home / "watchroom.db").read_bytes()
    for words in (("list",), ("tree", root), ("show", root)):
        assert shell("session", *words).code == exits.OK
    assert (shell.home / "watchroom.db").read_bytes() == before


def test_a_store_of_a_newer_watchroom_is_left_alone(shell: Shell, root: str) -> None:
    spoil(shell, "PRAGMA user_version = 99")
    before = (shell.home / "watchroom.db").read_bytes()
    for words in (("session", "list"), ("session", "show", root, "--json"), ("job", "list", "--json")):
        assert "has schema 99" in shell.refused(exits.ERROR, *words)
    assert "has schema 99" in shell.refused(exits.ERROR, "exec", "hi", "--base-url", "scripted:hello")
    assert (shell.home / "watchroom.db").read_bytes() == before


@pytest.mark.parametrize("keep", [0, 8192])
def test_a_damaged_store_is_one_sentence(shell: Shell, keep: int) -> None:
    path = shell.home / "watchroom.db"
    data = path.read_bytes()
    path.write_bytes(data[:keep] + b"\x55" * (len(data) - keep))
    for words in (
        ("session", "list"),
        ("job", "list", "--json"),
        ("exec", "hi", "--base-url", "scripted:hello"),
    ):
        said = shell.refused(exits.ERROR, *words)
        assert str(shell.home) in said
        assert "damaged or not an SQLite database" in said


def test_another_programs_database_is_not_touched(shell: Shell) -> None:
    spoil(shell, "PRAGMA application_id = 7")
    assert "of another program" in shell.refused(exits.ERROR, "session", "list")


def test_an_event_that_cannot_be_read_leaves_a_mark_and_the_rest(shell: Shell, root: str) -> None:
    first = "SELECT min(seq) FROM events WHERE type = 'assistant_message'"
    kind = "\x1b]0;evil-title\x07kind"
    spoil(shell, f"UPDATE events SET body = '{{', type = '{kind}' WHERE agent = '{root}' AND seq = ({first})")
    data = json.loads(shell("session", "show", root, "--json").out)
    assert data["damage"] == {"unreadable_events": 1, "results_without_call": 0}
    assert [row["text"] for row in data["rows"] if row["role"] == "notice"][-1].startswith("an event of type")
    assert len(data["calls"]) == 5
    env = {"WATCHROOM_HOME": str(shell.home)}
    ran = watchroom("session", "show", root, env=env)
    assert ran.returncode == exits.OK
    assert ran.stdout.endswith("All is well.\ndamage  unreadable_events 1\n")
    assert is_clean(ran.stdout)
    assert is_clean(ran.stderr)
    (warning,) = ran.stderr.splitlines()
    assert warning.startswith("watchroom: note: ")
    assert "cannot be read" in warning


# --- owners ----------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(shell: Shell, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose root waits for its model for ever, in the shell's home."""
    (tmp_path / "waiting.toml").write_text(WAITING)
    words = ("exec", "--json", "wait", "--base-url", f"scripted:{tmp_path}/waiting.toml")
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from tui.cli import main; sys.exit(main())", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "turn_started" not in (line := process.stdout.readline()):
            assert line, "it ended"
        yield process
        process.kill()


def test_a_swarm_whose_owner_died_is_shown_as_interrupted(
    shell: Shell, waiting: subprocess.Popen[str]
) -> None:
    def status() -> list[str]:
        newest = shell.json("session", "list")["sessions"][0]
        return [
            newest["status"],
            shell.json("session", "show", newest["thread"])["status"],
            *(agent["status"] for agent in shell.json("session", "tree", newest["thread"])["agents"]),
        ]

    assert status() == ["running"] * 3
    waiting.send_signal(signal.SIGKILL)
    waiting.wait(timeout=10)
    assert status() == ["interrupted"] * 3
    newest = shell.json("session", "list")["sessions"][0]
    assert (newest["title"], newest["tokens"]) == ("wait", None)
    (agent,) = shell.json("session", "tree", newest["thread"])["agents"]
    assert (agent["status_message"], agent["waiting"]) == ("its engine ended", None)
    line = shell("session", "list").lines[1]
    assert shell.json("session", "tree", line.split()[0])["root"] == newest["thread"]
    assert "interrupted" in line


def test_the_tree_says_why_an_mcp_server_does_not_serve(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console says it once; later this is where to look."""
    shell = Shell(tmp_path / "home", capfd, monkeypatch)
    ran = shell("exec", "hi", "--base-url", "scripted:hello", "-c", "mcp.shop.command=/nowhere/shop-mcp")
    assert ran.code == exits.OK, ran.err
    [session] = shell.json("session", "list")["sessions"]
    [server] = shell.json("session", "tree", session["thread"])["servers"]
    assert (server["server"], server["agent"], server["status"]) == ("shop", None, "failed")
    assert "/nowhere/shop-mcp" in server["detail"]
    lines = shell("session", "tree", session["thread"]).lines
    assert lines[-1].startswith("mcp shop failed")
    assert lines[-1].endswith(server["detail"])
