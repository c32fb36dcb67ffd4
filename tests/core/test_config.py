from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import OPENAI_URL, ConfigError, Settings, load_settings
from core.domain.limits import Limits


class Home:
    """A folder with a settings file, and what was said while reading it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "config.toml"
        self.notices: list[str] = []

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def load(self, environ: dict[str, str] | None = None, **kwargs: object) -> Settings:
        kwargs.setdefault("cwd", self.path)
        return load_settings(
            environ={"WATCHROOM_HOME": str(self.path), **(environ or {})},
            notify=self.notices.append,
            **kwargs,  # type: ignore[arg-type]
        )

    def error(self, environ: dict[str, str] | None = None, **kwargs: object) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(environ, **kwargs)
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_defaults_are_those_of_the_manual(home: Home) -> None:
    loaded = home.load()
    assert loaded.base_url == OPENAI_URL
    assert (loaded.model, loaded.api_key, loaded.unattended) == (None, None, None)
    assert (loaded.approval_policy, loaded.sandbox) == ("untrusted", "workspace-write")
    assert loaded.agents.limits() == Limits()
    assert (loaded.agents.max_resident, loaded.agents.slots) == (256, "running")
    assert (loaded.jobs.max_concurrency, loaded.jobs.max_runtime_seconds) == (16, 1800)
    assert (loaded.jobs.max_attempts, loaded.jobs.on_interrupt) == (1, "detach")
    assert loaded.home == home.path
    assert loaded.cwd == home.path.resolve()
    assert home.notices == []


def test_options_beat_assignments_beat_the_environment_beat_the_profile_beat_the_file(home: Home) -> None:
    home.write('model = "file"\n[profiles.fast]\nmodel = "profile"\n')
    levels: list[tuple[str, dict[str, str], dict[str, object]]] = [
        ("file", {}, {}),
        ("profile", {}, {"profile": "fast"}),
        ("env", {"WATCHROOM_MODEL": "env"}, {"profile": "fast"}),
        ("c", {"WATCHROOM_MODEL": "env"}, {"profile": "fast", "values": ["model=c"]}),
        (
            "option",
            {"WATCHROOM_MODEL": "env"},
            {"profile": "fast", "values": ["model=c"], "options": {"model": "option", "base_url": None}},
        ),
    ]
    for expected, environ, kwargs in levels:
        assert home.load(environ, **kwargs).model == expected


def test_a_profile_overrides_key_by_key(home: Home) -> None:
    home.write(
        'profile = "wide"\n[agents]\nmax_threads = 5\nmax_depth = 2\n[agents.roles.reader]\nmodel = "small"\n'
        "[profiles.wide.agents]\nmax_threads = 65\n"
        '[profiles.wide.agents.roles.reader]\ntools = ["exec_command"]\n'
    )
    agents = home.load().agents
    assert (agents.max_threads, agents.max_depth) == (65, 2)
    assert agents.roles["reader"].model == "small"
    assert agents.roles["reader"].tools == ["exec_command"]


def test_an_unknown_profile_lists_those_that_exist(home: Home) -> None:
    home.write("[profiles.fast]\n[profiles.slow]\n")
    message = home.error(profile="fats")
    assert "fats" in message
    assert "fast, slow" in message


def test_the_older_name_of_max_threads_is_the_same_setting(home: Home) -> None:
    home.write("[agents]\nmax_concurrent_threads_per_session = 3\n")
    assert home.load().agents.max_threads == 3
    assert home.load(values=["agents.max_threads=4"]).agents.max_threads == 4
    assert home.load(values=["agents.max_concurrent_threads_per_session=4"]).agents.max_threads == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modell = "x"\n', ["modell", "line 1", "did you mean model?"]),
        (
            "[agents]\nmax_depth = 1\nmax_thread = 3\n",
            ["agents.max_thread", "line 3", "did you mean max_threads?"],
        ),
        ("[agents.roles.a]\ninstruction = 'x'\n", ["agents.roles.a.instruction", "instructions?"]),
        ("[profiles.p.jobs]\nmax_attempt = 1\n", ["profiles.p.jobs.max_attempt", "line 2", "max_attempts?"]),
        ('[agents]\nmax_threads = "3"\n', ["agents.max_threads", "line 2", "integer", "'3'"]),
        ("[agents]\nmax_threads = 0\n", ["agents.max_threads", "line 2", "greater than or equal to 1"]),
        ("[agents]\nenabled = 1\n", ["agents.enabled", "boolean"]),
        ("agents = 3\n", ["agents", "line 1"]),
        ('sandbox = "none"\n', ["sandbox", "'read-only'", "'none'"]),
        ('[profiles.p]\nprofile = "q"\n', ["must not name another profile"]),
        ("profiles = 3\n", ["profiles must be tables"]),
        ("[store\n", ["not valid TOML", "line 1"]),
        ('x = "\n', ["not valid TOML", "line 1"]),
        ("[agents]\nmin_wait_timeout_ms = 40000\n", ["must rise in this order", "40000, 30000"]),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_file_key_and_line(
    home: Home, text: str, said: list[str]
) -> None:
    home.write(text)
    message = home.error()
    for part in said:
        assert part in message
    if "rise" not in message:
        assert str(home.file) in message


def test_a_file_that_is_no_text_or_cannot_be_read_says_so(home: Home) -> None:
    home.file.write_bytes(b"model = '\xff'\n")
    assert "not UTF-8" in home.error()
    home.file.unlink()
    home.file.mkdir()
    assert "cannot be read" in home.error()
    assert "does not exist" in home.error(config_file=home.path / "other.toml")


def test_a_byte_order_mark_is_accepted(home: Home) -> None:
    home.file.write_bytes(b"\xef\xbb\xbfmodel = 'm'\n")
    assert home.load().model == "m"


def test_hostile_bytes_of_a_file_do_not_reach_the_sentence(home: Home) -> None:
    home.write('"\\u001b]52;c;aGk=\\u0007evil" = 1\n')
    message = home.error()
    assert "\x1b" not in message
    assert "evil" in message


def test_the_environment_is_read_key_by_key_and_checked(home: Home) -> None:
    loaded = home.load(
        {
            "OPENAI_BASE_URL": "https://one.example/v1",
            "WATCHROOM_AGENTS_MAX_THREADS": "9",
            "WATCHROOM_AGENTS_DEFAULT_SUBAGENT_MODEL": "123",
            "WATCHROOM_SANDBOX": "off",
            "WATCHROOM_MODEL": "",
        }
    )
    assert loaded.base_url == "https://one.example/v1"
    assert loaded.agents.max_threads == 9
    assert loaded.agents.default_subagent_model == "123"
    assert (loaded.sandbox, loaded.model) == ("off", None)
    assert (
        home.load({"OPENAI_BASE_URL": "http://a/", "WATCHROOM_BASE_URL": "http://b/"}).base_url == "http://b/"
    )
    message = home.error({"WATCHROOM_AGENTS_MAX_THREADS": "many"})
    assert "WATCHROOM_AGENTS_MAX_THREADS" in message
    assert "integer" in message


def test_a_misspelt_variable_is_pointed_out(home: Home) -> None:
    home.load({"WATCHROOM_MODLE": "x"})
    assert home.notices == [
        "the environment variable WATCHROOM_MODLE is not a setting and was ignored"
        " (did you mean WATCHROOM_MODEL?)"
    ]


def test_assignments_take_toml_values_or_plain_text(home: Home) -> None:
    loaded = home.load(
        values=["agents.max_depth=2", "model=gpt-5", "agents.wake_parent=false", 'agents.roles.r.tools=["a"]']
    )
    assert (loaded.agents.max_depth, loaded.model, loaded.agents.wake_parent) == (2, "gpt-5", False)
    assert loaded.agents.roles["r"].tools == ["a"]
    assert home.load(values=["model=a\nsandbox='off'"]).sandbox == "workspace-write"
    for wrong in ("model", "=x", "a b=1", "a..b=1"):
        assert "key=value" in home.error(values=[wrong])
    assert "max_depth?" in home.error(values=["agents.max_dept=1"])


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_assignment_either_loads_or_is_one_clear_sentence(text: str) -> None:
    said = ""
    try:
        load_settings(values=[f"model={text}", text], environ={"WATCHROOM_HOME": "/none"}, cwd="/")
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert "\x1b" not in said


def test_a_name_with_dots_is_quoted_on_the_command_line(home: Home) -> None:
    """Models are called so, and the message about a missing price names `[catalog."*"]`."""
    values = ['catalog."m-1.5".input=1', "catalog.'*'.output=2.5"]
    catalog = home.load(values=values).catalog
    assert (catalog["m-1.5"].input, catalog["*"].output) == (1, 2.5)
    for wrong in ('catalog."m.input=1', "#=1", "[model]=1", 'a."b"c=1', '""=1'):
        assert "-c" in home.error(values=[wrong])


def test_the_key_is_read_by_the_name_that_is_set_and_never_shown(home: Home) -> None:
    environ = {"OPENAI_API_KEY": "sk-openai", "OTHER": " sk-other-1234\n"}
    first, second = home.load(environ), home.load(environ, options={"api_key_env": "OTHER"})
    assert first.api_key is not None
    assert second.api_key is not None
    assert first.api_key.get_secret_value() == "sk-openai"
    assert second.api_key.get_secret_value() == "sk-other-1234"
    assert "sk-" not in repr(first) + str(first) + first.model_dump_json()
    message = home.error({"OPENAI_API_KEY": "two words"})
    assert "OPENAI_API_KEY" in message
    assert "words" not in message


def test_what_a_model_needs_is_said_before_it_is_asked(home: Home) -> None:
    assert "--model" in (home.load().missing() or "")
    assert str(home.file) in (home.load().missing() or "")
    no_key = home.load(options={"model": "m"}).missing()
    assert no_key is not None
    assert "OPENAI_API_KEY" in no_key
    assert home.load({"OPENAI_API_KEY": "k"}, options={"model": "m"}).missing() is None
    assert home.load(options={"model": "m", "base_url": "http://127.0.0.1:9/v1"}).missing() is None
    scripted = home.load(options={"base_url": "scripted:demo"})
    assert (scripted.missing(), scripted.scripted) == (None, "demo")
    assert home.load().scripted is None


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://x/v1", "https://", "http://h:99999/", "scripted:", "http://[x"]
)
def test_a_base_url_that_is_none_is_refused(home: Home, url: str) -> None:
    assert "base URL" in home.error(options={"base_url": url})


def test_credentials_in_a_bad_base_url_are_not_repeated(home: Home) -> None:
    assert "hunter2" not in home.error(options={"base_url": "ftp://me:hunter2@host/"})


def test_values_of_a_servers_environment_are_not_repeated(home: Home) -> None:
    home.write("[mcp.x]\ncommand = 'c'\n[mcp.x.env]\nTOKEN = 424242\n")
    message = home.error()
    assert "mcp.x.env.TOKEN" in message
    assert "424242" not in message


def test_folders(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = tmp_path / "sql"
    assert home.load({"WATCHROOM_SQLITE_HOME": str(sql)}).home == sql
    home.write(f'[store]\ndir = "{tmp_path / "toml"}"\n')
    assert home.load({"WATCHROOM_SQLITE_HOME": str(sql)}).home == tmp_path / "toml"
    home.file.unlink()
    assert home.load(home=tmp_path / "given").home == tmp_path / "given"
    assert home.load(home=tmp_path / "given").config_file == tmp_path / "given" / "config.toml"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "cfg"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    plain = load_settings(environ={}, cwd=tmp_path)
    assert plain.home.is_relative_to(tmp_path)
    assert plain.config_file.name == "config.toml"
    assert plain.config_file.parent != plain.home or plain.home.name == "watchroom"


def test_a_folder_that_is_none_is_refused(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "--cd" in home.error(cwd=tmp_path / "none")
    assert "--cd" in home.error(cwd=file)
    assert "--home" in home.error(home=file)


def test_a_project_file_is_not_trusted(home: Home, tmp_path: Path) -> None:
    project = tmp_path / ".watchroom" / "config.toml"
    project.parent.mkdir()
    project.write_text('base_url = "https://evil.example/v1"\nsandbox = "off"\n')
    loaded = home.load()
    assert loaded.base_url == OPENAI_URL
    assert loaded.sandbox == "workspace-write"
    assert [str(project) in notice for notice in home.notices] == [True]


def test_a_budget_is_kept_and_nothing_is_said_of_it(home: Home) -> None:
    home.write("[budget]\ntokens = 1000\ncost = 2.5\n[mcp.files]\ncommand = 'serve'\n")
    loaded = home.load()
    assert (loaded.budget.tokens, loaded.budget.cost) == (1000, 2.5)
    assert loaded.mcp["files"].command == "serve"
    assert home.notices == []


def test_the_catalog_says_what_models_cost_and_read(home: Home) -> None:
    home.write(
        '[catalog."gpt-5.1"]\ninput = 1.25\ncached_input = 0\noutput = 10\ncontext_window = 400000\n'
        '[catalog."*"]\ninput = 1.0\noutput = 2.0\nmax_output = 8000\n'
    )
    catalog = home.load().catalog
    assert (catalog["gpt-5.1"].input, catalog["gpt-5.1"].cached_input) == (1.25, 0)
    assert catalog["gpt-5.1"].context_window == 400_000
    assert catalog["*"].max_output == 8000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("input = -1", "catalog.m.input"),
        ("output = inf", "catalog.m.output"),
        ("output = nan", "catalog.m.output"),
        ("context_window = 0", "catalog.m.context_window"),
        ('input = "1"', "catalog.m.input"),
        ("inputs = 1", "did you mean input?"),
    ],
)
def test_a_wrong_price_is_one_sentence(home: Home, line: str, said: str) -> None:
    home.write(f"[catalog.m]\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        home.load()
    assert "line 2" in str(caught.value)


def test_a_role_names_servers_that_are_there(home: Home) -> None:
    servers = "[mcp.docs]\ncommand = 'serve'\n[mcp.off]\ncommand = 'serve'\nenabled = false\n"
    role = "[agents.roles.r]\nmcp = 'own'\nmcp_servers = ['docs', '{}']\n"
    home.write(servers + role.format("off"))
    assert home.load().agents.roles["r"].mcp_servers == ["docs", "off"]
    home.write(servers + role.format("dosc"))
    with pytest.raises(
        ConfigError, match=r"the role r names the MCP server dosc, .*servers there: docs, off"
    ):
        home.load()
