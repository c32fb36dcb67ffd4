"""Settings: what an operator may decide, from where, and one clear sentence when it is wrong.

Later sources win, key by key: user file, its profile, environment, command line. A project's own
`.watchroom/config.toml` is not read: nothing marks a folder as trusted yet, and a repository must not choose
servers, keys or policies for whoever opens it.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from core.domain.limits import Limits
from core.safety.text import clean_line, shorten

APP = "watchroom"
OPENAI_URL = "https://api.openai.com/v1"
SCRIPTED = "scripted:"
"""A base URL `scripted:NAME` (or `scripted:/path/to/file.toml`) is the embedded model: no network, no key."""

ApprovalPolicy = Literal["untrusted", "on-request", "never"]
SandboxMode = Literal["read-only", "workspace-write", "off"]
Count = Annotated[int, Field(ge=1, le=2**53)]
"""Up to what the store and every reader of JSON can hold."""
Money = Annotated[float, Field(gt=0, le=1e9)]
Price = Annotated[float, Field(ge=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0)]


class ConfigError(Exception):
    """A setting that cannot be used. The message is one sentence that names where it was set."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class RoleSettings(_Table):
    """A named set of instructions and limits; what is left out is as the parent has it."""

    description: str = ""
    instructions: str = ""
    model: str | None = None
    reasoning_effort: str | None = None
    max_tokens: Count | None = None
    tools: list[str] | None = None
    """Names, or patterns like `docs__*`; None: all."""
    mcp_servers: list[str] | None = None
    """The MCP servers whose tools its agents get; None: all."""
    mcp: Literal["shared", "own"] = "shared"
    """own: each of its agents has server processes of its own."""


class AgentsSettings(_Table):
    enabled: bool = True
    max_threads: Count = Field(
        default=17, validation_alias=AliasChoices("max_threads", "max_concurrent_threads_per_session")
    )
    slots: Literal["running", "spawned"] = "running"
    max_resident: Count = 256
    max_depth: Annotated[int, Field(ge=0)] = 4
    max_agents: Count = 1000
    max_turns: Count = 500
    wake_parent: bool = True
    async_subagent_startup: bool = True
    min_wait_timeout_ms: Count = 10_000
    default_wait_timeout_ms: Count = 30_000
    max_wait_timeout_ms: Count = 3_600_000
    interrupt_message: bool = True
    usage_hint: bool = True
    default_subagent_model: str | None = None
    default_subagent_reasoning_effort: str | None = None
    roles: dict[str, RoleSettings] = {}

    def limits(self) -> Limits:
        return Limits(
            max_threads=self.max_threads,
            max_depth=self.max_depth,
            max_agents=self.max_agents,
            max_turns=self.max_turns,
            max_resident=self.max_resident,
            slots=self.slots,
            min_wait_ms=self.min_wait_timeout_ms,
            default_wait_ms=self.default_wait_timeout_ms,
            max_wait_ms=self.max_wait_timeout_ms,
            wake_parent=self.wake_parent,
        )


class JobsSettings(_Table):
    enabled: bool = True
    max_concurrency: Count = 16
    max_runtime_seconds: Seconds = 1800.0
    """The longest that one row may take. Waits count too: for a slot, an approval, the budget."""
    max_attempts: Count = 1
    on_interrupt: Literal["detach", "cancel"] = "detach"


class ModelsSettings(_Table):
    """How many requests a server gets at once, per key and model, from all swarms of an engine together."""

    concurrency: Count | None = None
    """Always this many. None: as many as the server takes, found out from its answers."""
    max_concurrency: Count = 1000
    """No more than this many are tried."""


class BudgetSettings(_Table):
    tokens: Count | None = None
    cost: Money | None = None
    per_agent_tokens: Count | None = None
    per_agent_cost: Money | None = None


class ModelSettings(_Table):
    """What a model costs, in US dollars per million tokens, and how much it reads at once."""

    input: Price | None = None
    cached_input: Price | None = None
    """None: like the rest of the input."""
    output: Price | None = None
    context_window: Count | None = None
    """In tokens. None: unknown until the server refuses a history for its length."""
    max_output: Count | None = None
    """Tokens of its longest answer. While a budget is kept each request says how long its answer may be, and
    some servers refuse more than the model has."""


class McpSettings(_Table):
    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    env_vars: list[str] = []
    cwd: str | None = None
    url: str | None = None
    enabled: bool = True
    required: bool = False
    startup_timeout_sec: Seconds = 10.0
    tool_timeout_sec: Seconds = 60.0
    enabled_tools: list[str] | None = None
    disabled_tools: list[str] = []
    default_tools_approval_mode: Literal["auto", "prompt", "approve"] = "auto"
    """auto: a tool that says it only reads runs, the rest asks; prompt: every call asks; approve: none."""
    supports_parallel_tool_calls: bool = False


class StoreSettings(_Table):
    dir: str | None = None


class EngineSettings(_Table):
    idle_seconds: Seconds = 900.0
    """The background engine ends by itself after this long without work and without a client; before that
    it gives up a swarm in which nothing happens and that nobody follows for as long."""


class ViewSettings(_Table):
    theme: Literal["dark", "light"] | None = None
    glyphs: Literal["unicode", "ascii"] | None = None
    motion: bool = True
    refresh_hz: Annotated[float, Field(gt=0, le=60)] = 8.0
    bell: bool = True
    blocked_categories: list[str] = []


class FileSettings(_Table):
    """What a settings file may hold, and what `-c key=value` may set."""

    model: str | None = None
    base_url: str = OPENAI_URL
    api_key_env: str = "OPENAI_API_KEY"
    approval_policy: ApprovalPolicy = "untrusted"
    sandbox: SandboxMode = "workspace-write"
    unattended: Literal["wait", "refuse"] | None = None
    """None: as the verb has it (the console waits, headless runs refuse)."""
    profile: str | None = None
    agents: AgentsSettings = AgentsSettings()
    jobs: JobsSettings = JobsSettings()
    models: ModelsSettings = ModelsSettings()
    budget: BudgetSettings = BudgetSettings()
    catalog: dict[str, ModelSettings] = {}
    """By model; `"*"` is for those that have no entry of their own."""
    mcp: dict[str, McpSettings] = {}
    store: StoreSettings = StoreSettings()
    engine: EngineSettings = EngineSettings()
    view: ViewSettings = ViewSettings()


class Settings(FileSettings):
    """The settings of one run. Immutable; `model_copy(update=...)` makes a variant."""

    home: Path
    """The folder of the store. Not made here."""
    config_file: Path
    """The user file, whether or not it exists."""
    cwd: Path
    logs: Path
    """The folder of the background engine's log. Not made here."""
    api_key: SecretStr | None = None

    @property
    def scripted(self) -> str | None:
        """Name or path of the scenario, if the model is the embedded scripted one."""
        return self.base_url.removeprefix(SCRIPTED) if self.base_url.startswith(SCRIPTED) else None

    def missing(self) -> str | None:
        """One sentence on what must be set before a model can be asked, or None."""
        if self.scripted is not None:
            return None
        if self.model is None:
            return (
                f'no model is set: pass --model NAME, or write model = "NAME" into {self.config_file}'
                " (watchroom demo needs none)"
            )
        if self.api_key is None and _host(self.base_url) == _host(OPENAI_URL):
            return (
                f"no API key: {self.base_url} needs one in the environment variable {self.api_key_env}"
                " (export it, or name another with --api-key-env; for another server pass --base-url)"
            )
        return None


class _Source:
    """Where values came from, for the sentence about a wrong one."""

    def __init__(self, values: dict[str, Any], name: str, text: str = "", where: str = "in") -> None:
        self.values = values
        self.name = name
        self.text = text
        self.where = where

    def place(self, loc: list[str]) -> str:
        line = _line_of(self.text, loc) if self.text else None
        return f"{self.where} {self.name}" + (f", line {line}" if line else "")


def load_settings(
    *,
    options: Mapping[str, Any] | None = None,
    values: Iterable[str] = (),
    profile: str | None = None,
    config_file: str | Path | None = None,
    home: str | Path | None = None,
    cwd: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Settings:
    """The settings of this run. `options` are keys set by options of the command line (None: not given),
    `values` the `key=value` texts of `-c`, `home` the folder of `--home`. `notify` gets one sentence per
    thing that was seen and not used. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    notify = notify or (lambda _: None)
    folder = _folder(cwd)
    one_folder = str(home) if home is not None else environ.get("WATCHROOM_HOME")
    path = _config_path(config_file, one_folder)
    file = _read(path, required=config_file is not None)
    profiles = file.values.pop("profiles", {})
    _check(file)
    _check_profiles(profiles, file)
    env = _environment(environ, notify)
    given = _Source(
        {k: v for k, v in (options or {}).items() if v is not None}, "the command line", where="on"
    )
    single = [_assignment(text) for text in values]
    for source in (*env, *single, given):
        _check(source)
    layers = [*env, *single, given]
    chosen = profile or next(
        (s.values["profile"] for s in reversed(layers) if "profile" in s.values), file.values.get("profile")
    )
    merged = dict(file.values)
    if chosen is not None:
        merged = _merge(merged, _profile(profiles, chosen, path))
    for source in layers:
        merged = _merge(merged, source.values)
    merged["profile"] = chosen
    _notices(folder, notify)
    settings = FileSettings.model_validate(merged)
    _check_url(settings.base_url)
    _check_waits(settings.agents)
    _check_servers(settings)
    return Settings(
        **{name: getattr(settings, name) for name in FileSettings.model_fields},
        home=_store_folder(settings, environ, one_folder),
        config_file=path,
        cwd=folder,
        logs=_log_folder(one_folder),
        api_key=_key(environ, settings.api_key_env),
    )


# --- where things are ------------------------------------------------------------------------------------


def _folder(cwd: str | Path | None) -> Path:
    try:
        path = Path(cwd).expanduser() if cwd is not None else Path.cwd()
        path = path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"the working folder cannot be used: {_reason(error)}") from None
    if not os.path.isdir(path):
        raise ConfigError(f"the working folder {_show(path)} is not a folder: give an existing one with --cd")
    return path


def _config_path(config_file: str | Path | None, one_folder: str | None) -> Path:
    if config_file is not None:
        return Path(config_file).expanduser().absolute()
    if one_folder:
        return Path(one_folder).expanduser().absolute() / "config.toml"
    return platformdirs.user_config_path(APP) / "config.toml"


def _store_folder(settings: FileSettings, environ: Mapping[str, str], one_folder: str | None) -> Path:
    """`[store] dir`, else WATCHROOM_SQLITE_HOME, else the one folder, else the platform's data folder."""
    chosen = settings.store.dir or environ.get("WATCHROOM_SQLITE_HOME") or one_folder
    path = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path(APP)
    if os.path.exists(path) and not os.path.isdir(path):
        raise ConfigError(f"the store's folder {_show(path)} is a file: name a folder with --home")
    return path


def _log_folder(one_folder: str | None) -> Path:
    if one_folder:
        return Path(one_folder).expanduser().absolute() / "logs"
    return platformdirs.user_state_path(APP)


# --- reading the sources ---------------------------------------------------------------------------------


def _read(path: Path, *, required: bool) -> _Source:
    name = _show(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise ConfigError(f"the settings file {name} does not exist") from None
        return _Source({}, name)
    except UnicodeDecodeError:
        raise ConfigError(f"the settings file {name} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"the settings file {name} cannot be read: {_reason(error)}") from None
    try:
        return _Source(tomllib.loads(text), name, text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the settings file {name} is not valid TOML: {_reason(error)}") from None


def _environment(environ: Mapping[str, str], notify: Callable[[str], None]) -> list[_Source]:
    """OPENAI_BASE_URL and WATCHROOM_<KEY>, WATCHROOM_<TABLE>_<KEY>; the folders' variables are read
    elsewhere."""
    keys = _environment_keys()
    found = []
    if base := environ.get("OPENAI_BASE_URL"):
        found.append(_Source({"base_url": base}, "the environment variable OPENAI_BASE_URL"))
    for name in sorted(environ):
        if not name.startswith("WATCHROOM_") or name in ("WATCHROOM_HOME", "WATCHROOM_SQLITE_HOME"):
            continue
        value = environ[name]
        if name not in keys:
            near = difflib.get_close_matches(name, keys, 1, 0.8)
            hint = f" (did you mean {near[0]}?)" if near else ""
            notify(f"the environment variable {clean_line(name)} is not a setting and was ignored{hint}")
        elif value:
            path, literal = keys[name]
            found.append(
                _Source(_nest(path, value if literal else _toml(value)), f"the environment variable {name}")
            )
    return found


def _environment_keys() -> dict[str, tuple[list[str], bool]]:
    """Variable name -> key path, and whether its text is taken as it is."""
    keys: dict[str, tuple[list[str], bool]] = {}
    for name, field in FileSettings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for key, entry in inner.model_fields.items():
                text = entry.annotation in (str, str | None)
                keys[f"WATCHROOM_{name}_{key}".upper()] = ([name, key], text)
        elif name not in ("mcp", "catalog"):
            keys[f"WATCHROOM_{name}".upper()] = ([name], True)
    return keys


def _assignment(text: str) -> _Source:
    key, equals, value = text.partition("=")
    path = _path(key)
    if not equals or not path:
        raise ConfigError(f"-c takes key=value with dots between tables, not {_show(text)}")
    return _Source(_nest(path, _toml(value.strip())), _show(f"-c {text}"), where="by")


def _path(key: str) -> list[str]:
    """The parts of a key; one with dots of its own is quoted, as in a file: `catalog."m-1.5".input`. Empty if
    it is none."""
    if "\n" in key:
        return []
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    path: list[str] = []
    while isinstance(table, dict) and table:  # of a comment nothing is left
        part, table = next(iter(table.items()))
        path.append(part)
    return path


def _toml(value: str) -> Any:
    """`value` as TOML, or as the text it is: `gpt-5` needs no quotes."""
    try:
        parsed = tomllib.loads(f"x = {value}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return value
    return parsed["x"] if len(parsed) == 1 else value


def _key(environ: Mapping[str, str], name: str) -> SecretStr | None:
    value = environ.get(name, "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ConfigError(
            f"the value of {clean_line(name)} cannot be an API key: it holds spaces or other characters that"
            " may not be in one"
        )
    return SecretStr(value)


# --- checks ----------------------------------------------------------------------------------------------


def _check(source: _Source) -> None:
    try:
        FileSettings.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, source)) from None


def _check_profiles(profiles: Any, file: _Source) -> None:
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ConfigError(f"profiles must be tables like [profiles.fast] {file.place(['profiles'])}")
    for name, values in profiles.items():
        if "profile" in values or "profiles" in values:
            place = file.place(["profiles", name])
            raise ConfigError(f"the profile {_show(name)} must not name another profile {place}")
        try:
            FileSettings.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_sentence(error, file, ["profiles", name])) from None


def _profile(profiles: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigError(f"there is no profile {_show(name)} in {_show(path)} (profiles there: {known})")
    chosen: dict[str, Any] = profiles[name]
    return chosen


def _sentence(error: ValidationError, source: _Source, prefix: list[str] | None = None) -> str:
    problem = error.errors(include_url=False, include_input=True)[0]
    inner = [str(part) for part in problem["loc"]]
    loc = [*(prefix or []), *inner]
    key = ".".join(loc)
    place = source.place(loc)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(inner[-1], _names(inner[:-1]), 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown setting {_show(key)} {place}{hint}"
    said = problem["msg"]
    said = said.removeprefix("Input should be ").removeprefix("Value error, ")
    value = problem["input"]
    shown = "a table" if isinstance(value, dict) else _show(repr(value))
    instead = "" if "env" in loc else f", not {shown}"  # a server's environment may hold a secret
    return f"the setting {_show(key)} {place} must be {said}{instead}"


def _names(path: list[str]) -> list[str]:
    """The keys that may stand in the table at `path`."""
    model: Any = FileSettings
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(part)
            model = field.annotation if field is not None else None
        else:  # a table of tables: roles, mcp
            model = getattr(model, "__args__", (None, None))[-1]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [*model.model_fields, *(["profiles"] if model is FileSettings else [])]
    return []


def _check_url(url: str) -> None:
    if url.startswith(SCRIPTED):
        if not url.removeprefix(SCRIPTED):
            raise ConfigError("the base URL scripted: needs the name of a scenario, like scripted:demo")
        return
    try:
        parts = urllib.parse.urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_ok = urllib.parse.urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        shown = _show(re.sub(r"//[^/@]*@", "//…@", url))
        raise ConfigError(f"the base URL {shown} must look like https://HOST/v1 or scripted:NAME")


def _check_waits(agents: AgentsSettings) -> None:
    low, usual, high = (
        agents.min_wait_timeout_ms,
        agents.default_wait_timeout_ms,
        agents.max_wait_timeout_ms,
    )
    if not low <= usual <= high:
        raise ConfigError(
            "the settings agents.min_wait_timeout_ms, default_wait_timeout_ms and max_wait_timeout_ms must"
            f" rise in this order, not {low}, {usual}, {high}"
        )


def _notices(folder: Path, notify: Callable[[str], None]) -> None:
    """What is there and not used is said aloud."""
    project = folder / ".watchroom" / "config.toml"
    if os.path.isfile(project):
        notify(f"{_show(project)} was ignored: project settings are not trusted by this version")


def _check_servers(settings: FileSettings) -> None:
    for name, role in settings.agents.roles.items():
        for server in role.mcp_servers or ():
            if server not in settings.mcp:
                known = ", ".join(_show(one) for one in sorted(settings.mcp)) or "none"
                raise ConfigError(
                    f"the role {_show(name)} names the MCP server {_show(server)}, and there is no"
                    f" [mcp.{_show(server)}] (servers there: {known})"
                )


# --- helpers ---------------------------------------------------------------------------------------------


def _merge(low: dict[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, table by table and key by key; an alias replaces the name it stands for."""
    merged = dict(low)
    for key, value in high.items():
        twin = _TWINS.get(key)
        if twin is not None:
            merged.pop(twin, None)
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


_TWINS = {
    "max_threads": "max_concurrent_threads_per_session",
    "max_concurrent_threads_per_session": "max_threads",
}


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _line_of(text: str, loc: list[str]) -> int | None:
    """The line that sets the key at `loc` (its table's header, if the key itself is not found)."""
    table: list[str] = []
    best: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\[\]]+)\]+", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if loc[: len(table)] == table:
                best = number
        elif found := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
            path = [*table, *(part.strip().strip("\"'") for part in found[1].split("."))]
            if loc[: len(path)] == path:
                return number
    return best


def _host(url: str) -> str | None:
    return urllib.parse.urlsplit(url).hostname


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or clean_line(str(error))


def _show(value: object) -> str:
    """Text that an operator or a file gave, fit for one line."""
    return shorten(clean_line(str(value)), 200)
