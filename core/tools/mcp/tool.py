"""A server's tool as an agent's tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict

from core.safety.text import clean_line, reveal, shorten
from core.tools.approval import Policy
from core.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolOutput
from core.tools.mcp.errors import McpError
from core.tools.mcp.offers import Offer, show
from core.tools.mcp.results import answer_of
from core.tools.mcp.server import McpServer

MAX_ARGUMENT_BYTES = 1024 * 1024
MAX_ASKED_BYTES = 100_000
"""What an operator is asked to allow is shown whole, so it must be of a size that can be."""
PROGRESS_SECONDS = 1.0
"""Between two reports of one call that become result events."""
MAX_PROGRESS = 50

NEVER = (
    "refused: policy never asks nobody, and this tool would need it; the operator can set"
    ' default_tools_approval_mode = "approve" for the MCP server {server}'
)


class AnyArgs(ToolArgs):
    """A JSON object. What may be in it, its server knows: it is told by the schema and answers for itself."""

    model_config = ConfigDict(extra="allow")


class McpTool(Tool):
    """Made by `tool_of`, a class for each tool: names and descriptions belong to the class."""

    Args: ClassVar[type[ToolArgs]] = AnyArgs
    category: ClassVar[str] = "mcp"
    timeout: float | None = None
    """Bounds itself: a call by tool_timeout_sec, a question by its operator."""

    def __init__(self, server: McpServer, offer: Offer, policy: Policy) -> None:
        self._server = server
        self._offer = offer
        self._policy = policy
        self._definition: dict[str, Any] | None = None

    @property
    def server(self) -> str:
        """The name of its server."""
        return self._server.name

    def schema(self) -> dict[str, Any]:
        return self._offer.schema

    def definition(self) -> dict[str, Any]:
        """The same object for all agents that share the tool: a thousand of them with a hundred tools each
        must not hold a hundred thousand."""
        if self._definition is None:
            self._definition = super().definition()
        return self._definition

    def brief(self, args: Mapping[str, Any]) -> str:
        values = (value if isinstance(value, str) else json.dumps(value) for value in args.values())
        return shorten(clean_line(reveal(" ".join(values))), 120)

    async def run(self, args: AnyArgs, ctx: ToolContext) -> ToolOutput:
        """Status error if the server says that it failed, refused when policy or operator say no."""
        arguments = dict(args.model_extra or {})
        size = len(json.dumps(arguments).encode())
        if size > MAX_ARGUMENT_BYTES:
            raise ToolError(f"the arguments have {size:,} bytes, more than {MAX_ARGUMENT_BYTES:,}")
        if (reason := self._asks()) is not None:
            if self._policy == "never":
                return ToolOutput(text=NEVER.format(server=self._server.name), status="refused")
            refusal = await self._ask(arguments, reason, ctx)
            if refusal is not None:
                return refusal
        reports = _Reports(ctx)
        try:
            result, notes = await self._server.call(
                self._offer, arguments, reports, lambda question: ctx.blocked("approval", question)
            )
        except McpError as error:
            raise ToolError(str(error)) from None
        finally:
            reports.close()
        answer = answer_of(result)
        text = "\n".join([answer.text, *notes] if answer.text else notes) or "(no output)"
        return ToolOutput(text=text, status="error" if answer.failed else "ok", images=answer.images)

    def _asks(self) -> str | None:
        """Why an operator is asked before a call; None if nobody is."""
        mode = self._server.settings.default_tools_approval_mode
        if mode == "approve" or (mode == "auto" and self._offer.read_only):
            return None
        said = "every call asks" if mode == "prompt" else "the tool does not say that it only reads"
        return f"a tool of the MCP server {self._server.name}, outside the sandbox; {said}"

    async def _ask(self, arguments: dict[str, Any], reason: str, ctx: ToolContext) -> ToolOutput | None:
        """The refusal, or None if it was approved."""
        # As it will be sent, with every character that would not show spelled out.
        shown = reveal(json.dumps(arguments, ensure_ascii=False))
        if len(shown) > MAX_ASKED_BYTES:
            raise ToolError(f"the arguments are too long to ask an operator about: {len(shown):,} characters")
        verdict = await ctx.approve(
            command=f"{self.name} {shown}",
            argv=[clean_line(self._server.name), show(reveal(self._offer.tool)), shown],
            cwd=ctx.cwd,
            reason=shorten(reason, 600),
        )
        if verdict.approved:
            return None
        return ToolOutput(text=f"not called: {verdict.reason or 'denied'}", status="refused")


def tool_of(server: McpServer, offer: Offer, name: str, policy: Policy) -> McpTool:
    """The tool for `offer`, called `name` on the wire."""
    kind = type(
        "McpTool",
        (McpTool,),
        {
            "name": name,
            "description": offer.description
            or f"{show(offer.tool)}, a tool of the MCP server {server.name}.",
            "parallel": server.settings.supports_parallel_tool_calls,
        },
    )
    made: McpTool = kind(server, offer, policy)
    return made


class _Reports:
    """What a server says about how far a call is, as result events: not more than a person would read."""

    def __init__(self, ctx: ToolContext) -> None:
        self._ctx = ctx
        self._next = 0.0
        self._left = MAX_PROGRESS

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        now = self._ctx.clock.monotonic()
        if not self._left or now < self._next:
            return
        self._left -= 1
        self._next = now + PROGRESS_SECONDS
        said = shorten(clean_line(message or ""), 300)
        share = f"{progress:g} of {total:g}" if total else f"{progress:g}"
        await self._ctx.emit(source="mcp_progress", text=f"{share}: {said}" if said else share)

    def close(self) -> None:
        """Nothing is added to a call that is over."""
        self._left = 0
