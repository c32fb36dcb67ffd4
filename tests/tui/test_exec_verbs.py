"""`exec` against real servers on this machine, settings end to end, `scripted-server`, `demo --plain`."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from core.domain import events as e
from core.safety.text import is_clean
from core.scripted.scenario import parse_scenario
from core.scripted.server import ScriptedServer, serve
from core.tools.process import REAP_SECONDS
from tests.tui import payloads
from tests.tui.shell import Shell
from tests.tui.terminal import Terminal
from tests.tui.test_cli import ROOT
from tui import exits

KEY = "sk-right-0123456789abcdef"
WRONG = "sk-wrong-0123456789abcdef"
ECHO = """
[[agents]]
path = "*"
closing = "Nothing more."
[[agents.steps]]
when = { first = "^work" }
text = "I look."
calls = [{ name = "exec_command", arguments = { cmd = "pwd; cat here.txt" } }]
[[agents.steps]]
text = "You said {task}, I saw {last_output}."
"""
HOSTILE = f"""
[[agents]]
path = "*"
[[agents.steps]]
text = "I try."
calls = [{{ name = "exec_command", arguments = {{ cmd = {json.dumps("rm " + payloads.ALL)} }} }}]
[[agents.steps]]
text = {json.dumps(payloads.ALL)}
"""


class Servers:
    """Servers of a test, in a thread of their own: one that wants a key, one that speaks HTML."""

    def __init__(self) -> None:
        self.keyed: ScriptedServer
        self.html = ""
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Servers:
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(20)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._down = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/responses", self._page)
        pages = web.AppRunner(app, access_log=None)
        await pages.setup()
        site = web.TCPSite(pages, "127.0.0.1", 0)
        await site.start()
        self.html = f"http://127.0.0.1:{pages.addresses[0][1]}/v1"
        async with serve(parse_scenario(ECHO), api_key=KEY, keep=100) as self.keyed:
            self._up.set()
            await self._down.wait()
        await pages.cleanup()

    @staticmethod
    async def _page(request: web.Request) -> web.Response:
        return web.Response(text="<html>\x1b]0;evil-title\x07a page</html>", content_type="text/html")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as running:
        yield running


@pytest.fixture
def shell(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "here.txt").write_text("it lies here\n")
    (work / "echo.toml").write_text(ECHO)
    return Shell(tmp_path / "home", capfd, monkeypatch)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries and between the pieces of an answer take no time."""

    async def sleep(self: object, seconds: float) -> None:
        await asyncio.sleep(seconds if seconds >= REAP_SECONDS else 0)  # a limit stays a limit

    monkeypatch.setattr("core.clock.SystemClock.sleep", sleep)


def config(shell: Shell, text: str, name: str = "config.toml") -> Path:
    shell.home.mkdir(exist_ok=True)
    path = shell.home / name
    path.write_text(text)
    return path


def started(shell: Shell, *words: str | Path) -> e.SwarmStarted:
    """How the swarm of `exec --json` began."""
    ran = shell("exec", "hi", "--json", *words)
    first = e.decode(ran.out.splitlines()[0])
    assert isinstance(first, e.SwarmStarted)
    return first


# --- a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "stdin"), [(("work now",), ""), (("-",), "work now\n")])
def test_the_answer_alone_is_on_stdout(shell: Shell, words: tuple[str, ...], stdin: str) -> None:
    ran = shell("exec", *words, "--base-url", "scripted:echo.toml", stdin=stdin)
    assert ran.code == exits.OK
    assert ran.lines[0].startswith("You said work now")
    assert f"{Path.cwd()}\nit lies here" in ran.out
    told = ran.err.splitlines()
    assert "swarm started" in told[0]
    assert any("root calls exec_command pwd; cat here.txt" in line for line in told)
    assert told[-1].endswith("root completed")
    assert "it lies here" not in ran.err


def test_json_is_the_whole_journal_and_nothing_else(shell: Shell) -> None:
    ran = shell("exec", "work", "--json", "--base-url", "scripted:echo.toml")
    assert (ran.code, ran.err) == (exits.OK, "")
    events = [e.decode(line) for line in ran.lines]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len({event.swarm for event in events}) == 1
    kinds = [type(event) for event in events]
    assert kinds[0] is e.SwarmStarted
    assert kinds.index(e.ToolCalled) < kinds.index(e.ToolResult) < kinds.index(e.ToolEnded)
    assert kinds.count(e.TurnCompleted) == 1


def test_agents_work_in_the_folder_of_cd(shell: Shell, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "here.txt").write_text("elsewhere\n")
    base = f"scripted:{tmp_path}/work/echo.toml"
    for option in (("-C", there), ("--cd", there), (f"--cd={there}",)):
        ran = shell("exec", "work", *option, "--base-url", base)
        assert f"{there}\nelsewhere" in ran.out
    assert shell.json("session", "list")["sessions"][0]["cwd"] == str(there)
    assert "is not a folder" in shell.refused(exits.USAGE, "exec", "x", "-C", "none", "--base-url", base)


def test_what_is_no_text_is_no_task(shell: Shell) -> None:
    words = ("exec", "-", "--base-url", "scripted:hello")
    assert "not UTF-8" in shell.refused(exits.USAGE, *words, stdin=b"\xff\xfe")
    assert "larger than" in shell.refused(exits.USAGE, *words, stdin=b"x" * (4 * 1024 * 1024 + 1))
    assert "the task is empty" in shell.refused(exits.USAGE, *words, stdin=" \n")
    assert shell.stored() == (0, 0)


@pytest.mark.parametrize("how", [(), ("--json",), ("--plain",)])
def test_hostile_words_reach_no_stream(shell: Shell, how: tuple[str, ...]) -> None:
    Path("hostile.toml").write_text(HOSTILE)
    ran = shell("exec", payloads.ALL, *how, "--base-url", "scripted:hostile.toml")
    assert ran.code == exits.OK
    assert is_clean(ran.out)
    assert is_clean(ran.err)
    if "--json" not in how:
        assert payloads.MARKUP in ran.out
        assert "root refused rm " in ran.err  # nobody attends: the ask is refused, and said
    (session,) = shell.json("session", "list")["sessions"]
    assert session["status"] == "completed"


# --- servers ---------------------------------------------------------------------------------------------


def test_a_key_that_the_server_refuses_is_said_with_its_words(
    shell: Shell, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = servers.keyed.base_url
    monkeypatch.setenv("OPENAI_API_KEY", WRONG)
    ran = shell("exec", "hi", "--base-url", base, "--model", "m")
    assert (ran.code, ran.out) == (exits.ERROR, "")
    *_, said, kept = ran.err.splitlines()
    assert said == f"watchroom: {base} answered HTTP 401: Incorrect API key provided."
    (session,) = shell.json("session", "list")["sessions"]
    assert kept == f"watchroom: what happened so far is stored: watchroom session show {session['thread']}"
    assert session["status"] == "errored"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "(no API key was sent)" in shell("exec", "hi", "--base-url", base, "--model", "m").err


@pytest.mark.parametrize(("name", "words"), [("OPENAI_API_KEY", ()), ("MY_KEY", ("--api-key-env", "MY_KEY"))])
def test_the_key_opens_the_door_and_is_shown_nowhere(
    shell: Shell, servers: Servers, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, KEY)
    task = f"repeat {KEY} {WRONG}"
    for how in ((), ("--json",)):
        ran = shell("exec", task, *how, *words, "--base-url", servers.keyed.base_url, "--model", "m")
        assert ran.code == exits.OK
        assert "repeat" in ran.out
        assert KEY not in ran.out + ran.err
    monkeypatch.setenv(name, WRONG)
    ran = shell("exec", "hi", *words, "--base-url", servers.keyed.base_url, "--model", "m")
    assert WRONG not in ran.out + ran.err
    stored = b"".join(path.read_bytes() for path in shell.home.rglob("*") if path.is_file())
    assert KEY.encode() not in stored
    assert b"repeat" in stored


def test_a_key_that_cannot_be_one_is_refused_unseen(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one two")
    said = shell.refused(exits.USAGE, "exec", "hi", "--model", "m")
    assert "OPENAI_API_KEY cannot be an API key" in said
    assert "sk-one" not in said


def test_a_wrong_path_is_a_404_that_says_what_to_check(
    shell: Shell, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ran = shell("exec", "hi", "--base-url", f"{servers.keyed.base_url}/wrong", "--model", "m")
    assert (ran.code, ran.out) == (exits.ERROR, "")
    assert f"{servers.keyed.base_url}/wrong answered HTTP 404" in ran.err
    assert "check --base-url" in ran.err


def test_a_server_of_pages_is_told_from_one_of_models(shell: Shell, servers: Servers) -> None:
    ran = shell("exec", "hi", "--base-url", servers.html, "--model", "m")
    assert (ran.code, ran.out) == (exits.ERROR, "")
    assert f"{servers.html} answered with text/html instead of an event stream; check --base-url" in ran.err
    assert is_clean(ran.err)
    assert "evil-title" not in ran.err


def test_a_port_where_nobody_listens_is_tried_again_and_then_named(shell: Shell, at_once: None) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, never listening: refused, and nobody else takes it
        base = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        ran = shell("exec", "hi", "--base-url", base, "--model", "m")
    assert (ran.code, ran.out) == (exits.ERROR, "")
    tries = re.findall(r"root retry (\d) in ", ran.err)
    assert tries == sorted(tries) != []
    assert f"watchroom: {base} refused the connection" in ran.err
    assert "attempts)" in ran.err


def test_without_a_model_or_a_key_nothing_is_begun(shell: Shell, servers: Servers) -> None:
    assert "no model is set: pass --model NAME" in shell.refused(
        exits.USAGE, "exec", "hi", "--base-url", servers.keyed.base_url
    )
    said = shell.refused(exits.USAGE, "exec", "hi", "--model", "m")
    assert "no API key" in said
    assert "OPENAI_API_KEY" in said
    assert not shell.home.exists()


# --- settings --------------------------------------------------------------------------------------------


def test_options_come_before_environment_before_profile_before_file(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'base_url = "scripted:hello"\nmodel = "of-file"\n[profiles.fast]\nmodel = "of-profile"\n'
    config(shell, text)
    assert (started(shell).model, started(shell).server) == ("of-file", "scripted:hello")
    assert started(shell, "--profile", "fast").model == "of-profile"
    monkeypatch.setenv("WATCHROOM_MODEL", "of-environment")
    assert started(shell, "--profile", "fast").model == "of-environment"
    assert started(shell, "-c", "model=of-c").model == "of-c"
    assert started(shell, "-c", "model=of-c", "--model", "of-option").model == "of-option"
    other = config(
        shell, 'base_url = "scripted:hello"\nprofile = "slow"\n[profiles.slow]\nsandbox = "off"', "o.toml"
    )
    assert started(shell, "--config", other).sandbox == "off"
    assert started(shell, "--config", other, "--sandbox", "read-only").sandbox == "read-only"


def test_the_servers_address_comes_from_the_environment(
    shell: Shell, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(shell, 'model = "m"\nbase_url = "scripted:hello"\n')
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", servers.keyed.base_url)
    assert started(shell).server == servers.keyed.base_url
    assert started(shell, "--base-url", "scripted:hello").server == "scripted:hello"


def test_full_auto_and_the_two_settings_it_stands_for(shell: Shell) -> None:
    base = ("--base-url", "scripted:hello")
    first = started(shell, *base)
    assert (first.approval_policy, first.sandbox, first.unattended) == (
        "untrusted",
        "workspace-write",
        "refuse",
    )
    config(shell, 'approval_policy = "on-request"\nsandbox = "read-only"\nunattended = "wait"\n')
    first = started(shell, *base)
    assert (first.approval_policy, first.sandbox, first.unattended) == ("on-request", "read-only", "refuse")
    first = started(shell, *base, "--full-auto")
    assert (first.approval_policy, first.sandbox) == ("never", "workspace-write")


def test_a_home_of_its_own_holds_everything(shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text('base_url = "scripted:hello"\nmodel = "there"\n')
    assert started(shell, "--home", other).model == "there"
    assert not shell.home.exists()
    assert len(shell.json("session", "list", "--home", other)["sessions"]) == 1
    assert (other / "watchroom.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("", ("--profile", "none"), "there is no profile none"),
        ('[profiles.a]\nprofile = "a"\n', (), "must not name another profile"),
        ("model = \n", (), "is not valid TOML"),
        ('modell = "m"\n', (), "unknown setting modell in HOME/config.toml, line 1; did you mean model?"),
        ("[agents]\nmax_depth = true\n", (), "agents.max_depth in HOME/config.toml, line 2 must be"),
        ("", ("-c", "nonsense"), "-c takes key=value"),
        ("", ("-c", "store.dir=7"), "store.dir"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_its_place(
    shell: Shell, text: str, words: tuple[str, ...], said: str
) -> None:
    config(shell, text)
    sentence = shell.refused(exits.USAGE, "exec", "x", "--base-url", "scripted:hello", *words)
    assert said.replace("HOME", str(shell.home)) in sentence
    assert not (shell.home / "watchroom.db").exists()


# --- the scripted server ---------------------------------------------------------------------------------


def test_a_scenario_that_cannot_be_played_is_one_sentence(shell: Shell) -> None:
    Path("broken.toml").write_text("[[agents]]\nstps = []\n")
    Path("no.toml").write_text("=")
    said = shell.refused(exits.USAGE, "scripted-server", "--scenario", "nope")
    assert "there is no scenario 'nope'; there are: count-lines, demo, hello" in said
    assert "agents.0.stps: unknown key" in shell.refused(
        exits.USAGE, "scripted-server", "--scenario", "broken.toml"
    )
    assert "is not TOML" in shell.refused(exits.USAGE, "scripted-server", "--scenario", "./no.toml")
    assert "broken.toml" in shell.refused(exits.USAGE, "exec", "x", "--base-url", "scripted:broken.toml")
    assert shell.stored() == (0, 0)


def test_a_port_that_is_taken_is_one_sentence(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = shell.refused(exits.ERROR, "scripted-server", "--port", str(port), "--scenario", "hello")
    assert said.startswith(f"watchroom: port {port} of 127.0.0.1 cannot be served: ")
    assert "in use" in said


def test_the_server_says_its_address_and_serves_there_until_a_signal(shell: Shell) -> None:
    entry = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tui.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", entry, "scripted-server", "--scenario", "echo.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        base = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", base)
        ran = shell("exec", "over the wire", "--base-url", base, "--model", "m")
        assert (ran.code, ran.out.startswith("You said over the wire")) == (exits.OK, True)
        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=20) == ("", "")
        assert server.returncode == 130


# --- without a screen ------------------------------------------------------------------------------------


def test_the_demo_in_lines_answers_its_own_ask(shell: Shell, at_once: None, tmp_path: Path) -> None:
    ran = shell("demo", "--plain")
    assert (ran.code, ran.err) == (exits.OK, "")
    assert is_clean(ran.out)
    told = [line.split(" ", 1)[1] for line in ran.lines if re.match(r"\d\d:\d\d:\d\d \S", line)]
    ask = next(index for index, line in enumerate(told) if " needs-you python3 " in line)
    name = told[ask].split()[0]
    answer = next(
        index for index, line in enumerate(told) if line.startswith(f"{name} approved by demo: python3 ")
    )
    assert ask < answer
    assert len({line.split()[0] for line in told if " spawned by " in line}) >= 5
    assert sum(" errored " in line for line in told) == 1
    assert told[-1] == "root completed"
    sessions = shell.json("session", "list")["sessions"]
    assert [(session["title"], session["status"], session["jobs"]) for session in sessions] == [
        ("demo", "completed", 1)
    ]
    assert not Path(sessions[0]["cwd"]).exists()  # the scratch copy is gone
    (job,) = shell.json("job", "list")["jobs"]
    assert (job["status"], job["failed_items"]) == ("completed", 0)


def test_the_demo_as_json_is_the_same_journal(shell: Shell, at_once: None) -> None:
    ran = shell("demo", "--json")
    events = [e.decode(line) for line in ran.lines]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.by for event in events if isinstance(event, e.ApprovalDecided)] == ["demo"]


def test_a_task_with_accessible_or_plain_is_told_in_lines(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--base-url", "scripted:echo.toml")
    plain = shell("work", "--plain", *base)
    monkeypatch.setenv("ACCESSIBLE", "1")
    for ran in (plain, shell("work", *base)):
        assert (ran.code, ran.err) == (exits.OK, "")
        assert ran.lines[0].split()[1:3] == ["swarm", "started"]
        assert any("operator to root: work" in line for line in ran.lines)
        assert any("root calls exec_command" in line for line in ran.lines)
        assert ran.lines[-1].endswith("root completed")
    assert "lines need a task" in shell.refused(exits.USAGE)
    assert len(shell.json("session", "list")["sessions"]) == 2


@pytest.mark.parametrize(
    "env", [{"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}, {"ACCESSIBLE": "1", "TERM": "xterm-256color"}]
)
def test_exec_on_any_terminal_is_text_without_colours_or_moves(shell: Shell, env: dict[str, str]) -> None:
    work = str(Path.cwd())
    entry = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({work!r}); "
    entry += "from tui.cli import main; sys.exit(main())"
    words = ["exec", "work", "--base-url", "scripted:echo.toml"]
    with Terminal(["-c", entry, *words], **{"WATCHROOM_HOME": str(shell.home), **env}) as terminal:
        assert terminal.wait() == exits.OK
    assert b"\x1b" not in terminal.raw
    text = terminal.raw.decode().replace("\r\n", "\n")
    assert is_clean(text)
    assert "it lies here" in text


def test_accessible_on_a_terminal_never_opens_the_full_screen(shell: Shell) -> None:
    entry = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(Path.cwd())!r}); "
    entry += "from tui.cli import main; sys.exit(main())"
    words = ["work", "--base-url", "scripted:echo.toml"]
    with Terminal(["-c", entry, *words], WATCHROOM_HOME=str(shell.home), ACCESSIBLE="1") as terminal:
        assert terminal.wait() == exits.OK
    assert b"\x1b" not in terminal.raw
    assert b"root completed" in terminal.raw
