"""The tool interface: typed arguments in, result events and one output out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from core.clock import Clock
from core.safety.text import clean_line, shorten

MAX_OUTPUT_CHARS = 32_000
"""What a call's output may hold before its middle is left out."""


class ToolArgs(BaseModel):
    """Base of every tool's arguments: unknown keys are refused by name."""

    model_config = ConfigDict(extra="forbid")


class ToolImage(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that a call returned. `data` is base64, checked to be an image of `media_type`."""

    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a call ends with. `text` goes to the model and is the last result event unless `recorded`
    (the tool emitted its own events and `text` is only what the model reads)."""

    text: str
    status: Literal["ok", "error", "refused", "aborted"] = "ok"
    recorded: bool = False
    end_turn: bool = False
    """The turn is over after this call; no further request is made (a job worker's accepted report)."""
    images: tuple[ToolImage, ...] = ()
    """Go to the model as image items, after `text`, which has a line like `[image png 40 kB]` for each."""


class ToolError(Exception):
    """A call that failed in a way the model should read. Its text is the call's output."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's answer to an approval. `reason` is told to the model when it was not approved."""

    approved: bool
    by: str = ""
    reason: str = ""


class ToolContext(Protocol):
    """What a running call may use. One per call, made by the agent that calls."""

    thread: str
    path: str
    call: str
    cwd: Path
    clock: Clock

    async def emit(self, *, source: str, text: str = "", status: str = "", about: str | None = None) -> None:
        """Append a result event to this call; returns when it is durable."""
        ...

    def blocked(
        self, reason: Literal["agents", "job", "approval"], detail: str = ""
    ) -> AbstractAsyncContextManager[None]:
        """While inside, the call waits for others: the turn lends its slot, the agent says why."""
        ...

    async def approve(self, *, command: str, argv: list[str], cwd: Path, reason: str) -> Verdict:
        """Ask the operator; waits for the decision (or is refused at once in an unattended swarm)."""
        ...


class Tool:
    """A tool: subclass it, set the class attributes, write `run`."""

    name: ClassVar[str]
    description: ClassVar[str]
    Args: ClassVar[type[ToolArgs]]
    category: ClassVar[str] = "other"
    parallel: ClassVar[bool] = True
    """Whether calls of one response may run beside each other; others run alone."""
    timeout: float | None = 600.0
    """Seconds after which the call is ended with a time-out error; None: the tool bounds itself."""

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return json_schema(self.Args)

    def brief(self, args: Mapping[str, Any]) -> str:
        """One line for people about a call with these (unchecked) arguments."""
        return shorten(clean_line(" ".join(str(v) for v in args.values())), 120)

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        """`args` is an instance of `Args`. Raise ToolError for a failure that the model should read."""
        raise ToolError(f"the tool {self.name} has no implementation")

    def definition(self) -> dict[str, Any]:
        """The tool as a Responses request lists it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.schema(),
            "strict": False,
        }


@cache
def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """pydantic's JSON Schema without the titles it derives from names. Made once per model (it costs
    milliseconds): copy it before changing it."""

    def strip(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: strip(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
        return [strip(v) for v in node] if isinstance(node, list) else node

    schema = strip(model.model_json_schema())
    assert isinstance(schema, dict)
    return schema


def parse_args(tool: Tool, arguments: str) -> ToolArgs:
    """The typed arguments of a call. Raises ToolError with one line per problem, never repairs anything."""
    try:
        return tool.Args.model_validate_json(arguments or "{}")
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise ToolError(f"{tool.name} was called with wrong arguments: " + "; ".join(problems)) from None
