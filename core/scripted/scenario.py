"""Scenario files: what the model answers to whom. TOML, validated when loaded; unknown keys are refused.

    title = "…"                       # scenario-wide: model, latency_ms, chunk_chars, chunk_ms, window
    [[agents]]
    path = "/root"                    # a glob, or several; matched against `Agent path:` in the instructions
    first = "regex"                   # and, if given, searched in the agent's first message
    closing = "…"                     # what is said when the steps are used up
    summary = "…"                     # what is said when a summary of the history is asked for
    [agents.captures]
    file = { in = "first", match = '"file": ("[^"]*")', json = true }
    [[agents.steps]]
    when = { last_output = "regex" }  # all must be found, else the step is passed over; `unless`: none may be
    reasoning = "…"
    text = "…"
    calls = [{ name = "exec_command", arguments = { cmd = "wc -l {file:sh}" } }]
    next = "wait"                     # the step to go on with: a `name`, or "end"; else the one that follows

The steps are a small state machine. Where an agent stands in it is found by replaying the responses that its
request already holds, so a restarted server gives the same answers. Regexes are multi-line.
"""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    model_validator,
)

import core
from core.safety.text import clean_line, shorten
from core.scripted.template import names_in

FOLDER = Path(core.__file__).resolve().parent.parent / "assets" / "scenarios"
MAX_FILE_BYTES = 1024 * 1024
END = "end"
BUILT_IN = frozenset({"agent_path", "task", "last_output", "last_message"})
"""Names that every text may use without a capture."""


class ScenarioError(Exception):
    """A scenario that cannot be used; one sentence."""


def _pattern(value: Any) -> re.Pattern[str]:
    if not isinstance(value, str):
        raise ValueError("a regular expression is a string")
    try:
        return re.compile(value, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


Regex = Annotated[re.Pattern[str], BeforeValidator(_pattern)]
Source = Literal["first", "task", "last_message", "last_output", "outputs", "input", "path"]
FaultKind = Literal[
    "rate_limit",
    "quota",
    "unauthorized",
    "server_error",
    "cut",
    "eof",
    "malformed_event",
    "malformed_arguments",
    "failed",
    "context",
    "incomplete",
    "hang",
    "drip",
    "reset",
    "html",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Capture(_Part):
    """A named value: the first group of `match` (or the whole match) in a part of the request."""

    source: Source = Field(alias="in", default="first")
    match: Regex
    is_json: bool = Field(alias="json", default=False)
    """The match is JSON and is decoded, so that `"a\\"b"` gives a"b."""
    default: JsonValue = None


class Conditions(_Part):
    """Regexes by the part of the request in which they are searched."""

    first: Regex | None = None
    last_message: Regex | None = None
    last_output: Regex | None = None
    outputs: Regex | None = None
    input: Regex | None = None

    def pairs(self) -> list[tuple[str, re.Pattern[str]]]:
        names = ("first", "last_message", "last_output", "outputs", "input")
        return [(name, regex) for name in names if (regex := getattr(self, name)) is not None]


class Fault(_Part):
    """What goes wrong instead. `times`: how often for one agent and step (0: always)."""

    kind: FaultKind
    times: int = Field(default=1, ge=0)
    retry_after: float | None = Field(default=None, ge=0)
    """Seconds, for rate_limit and server_error."""
    after_events: int = Field(default=3, ge=0)
    """For cut, eof, hang (0: before the headers), malformed_event: how many events come first."""
    after_bytes: int | None = Field(default=None, ge=0)
    """For cut and eof, instead of after_events."""
    delay_ms: float = Field(default=50, ge=0)
    """For drip: the pause after every byte-sized piece of text."""
    message: str | None = None
    code: str = "server_error"
    """For failed: what the response's error says it is."""


class RequestFault(Fault):
    """A fault by request: its number (from 1), every nth, an agent path; all that are given must hold."""

    request: int | None = Field(default=None, ge=1)
    every: int | None = Field(default=None, ge=1)
    path: str | None = None

    @model_validator(mode="after")
    def _aimed(self) -> Self:
        if self.request is None and self.every is None and self.path is None:
            raise ValueError("say which requests it is for: request, every or path")
        return self

    def aims_at(self, number: int, path: str) -> bool:
        return (
            (self.request is None or self.request == number)
            and (self.every is None or number % self.every == 0)
            and (self.path is None or fnmatchcase(path, self.path))
        )


class Call(_Part):
    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue] = {}


class Step(_Part):
    name: str | None = None
    next: str | None = None
    when: Conditions | None = None
    unless: Conditions | None = None
    reasoning: str | None = None
    text: str | None = None
    calls: list[Call] = []
    latency_ms: float | None = Field(default=None, ge=0)
    fault: Fault | None = None

    @model_validator(mode="after")
    def _answers(self) -> Self:
        if self.text is None and not self.calls:
            raise ValueError("a step needs a text or calls")
        if self.name == END:
            raise ValueError(f"{END!r} is not a name for a step")
        return self


class Agent(_Part):
    path: str | list[str] = "*"
    first: Regex | None = None
    closing: str = "That was all of my part."
    summary: str = "The work goes on as planned."
    """Said when the history is compacted; behind it comes where the steps stand."""
    captures: dict[str, Capture] = {}
    steps: list[Step] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = BUILT_IN | self.captures.keys()
        for name in self.captures:
            if name in BUILT_IN or not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
                raise ValueError(f"captures: {name!r} is taken or not a name")
        labels = [step.name for step in self.steps if step.name is not None]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two steps have the name {label!r}")
        _check_names("closing", names_in(self.closing), known)
        _check_names("summary", names_in(self.summary), known)
        for number, step in enumerate(self.steps):
            used = names_in([step.text or "", step.reasoning or "", [call.arguments for call in step.calls]])
            _check_names(f"step {number}", used, known)
            if step.next is not None and step.next != END and step.next not in labels:
                raise ValueError(f"step {number}: next = {step.next!r} is not the name of a step")
        return self

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class Scenario(_Part):
    title: str = ""
    model: str = "scripted"
    latency_ms: float = Field(default=0, ge=0)
    chunk_chars: int = Field(default=24, ge=1)
    chunk_ms: float = Field(default=0, ge=0)
    window: int | None = Field(default=None, ge=1)
    """Requests with more tokens than this are refused, as real models do."""
    agents: list[Agent] = []
    faults: list[RequestFault] = Field(alias="fault", default=[])
    _name: str = PrivateAttr(default="scenario")

    @property
    def name(self) -> str:
        """From the file's name."""
        return self._name


def _check_names(where: str, used: set[str], known: set[str] | frozenset[str]) -> None:
    for name in sorted(used - known):
        raise ValueError(
            f"{where} uses {{{name}}}, which is no capture (there are: {', '.join(sorted(known))})"
        )


def load_scenario(ref: str | Path) -> Scenario:
    """By name from the assets, or by path (with a slash, or ending in .toml). Raises ScenarioError."""
    text = str(ref)
    by_path = isinstance(ref, Path) or "/" in text or text.endswith(".toml")
    path = Path(ref).expanduser() if by_path else FOLDER / f"{text}.toml"
    if not by_path and not path.is_file():
        raise ScenarioError(
            f"there is no scenario {clean_line(text)!r}; there are: {', '.join(scenario_names()) or 'none'}"
        )
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ScenarioError(
            f"the scenario {clean_line(str(path))} cannot be read: {error.strerror}"
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(f"the scenario {clean_line(str(path))} is larger than {MAX_FILE_BYTES} bytes")
    return parse_scenario(raw, name=path.stem, source=path.name if by_path else text)


def parse_scenario(raw: bytes | str, *, name: str = "scenario", source: str = "") -> Scenario:
    """Raises ScenarioError naming `source`, the place in it and what is wrong."""
    shown = clean_line(source or name)
    try:
        data = tomllib.loads(raw.decode() if isinstance(raw, bytes) else raw)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ScenarioError(f"the scenario {shown} is not TOML: {clean_line(str(error))}") from None
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        message = "unknown key" if unknown else first["msg"].removeprefix("Value error, ")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ScenarioError(
            shorten(clean_line(f"the scenario {shown}: {place}: {message}{more}"), 500)
        ) from None
    scenario._name = name
    return scenario


def scenario_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))
