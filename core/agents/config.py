"""What one swarm runs with: plain values, decided before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from core.domain.limits import Limits
from core.domain.status import Budget
from core.models.prices import OTHERS, ModelEntry, entry_of


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of instructions and limits. None means: as the parent has it."""

    description: str = ""
    instructions: str = ""
    model: str | None = None
    reasoning_effort: str | None = None
    max_tokens: int | None = None
    tools: tuple[str, ...] | None = None
    """Names of the tools it may use, or patterns like `docs__*`; None: all."""
    mcp_servers: tuple[str, ...] | None = None
    """The MCP servers whose tools it gets; None: all."""
    mcp: Literal["shared", "own"] = "shared"
    """own: each agent of the role has server processes of its own."""


class SwarmConfig(msgspec.Struct, frozen=True, kw_only=True):
    cwd: Path
    model: str
    limits: Limits = Limits()
    unattended: Literal["wait", "refuse"] = "wait"
    approval_policy: str = "untrusted"
    sandbox: str = "workspace-write"
    sandboxed: bool = False
    subagents: bool = True
    """Whether agents may spawn."""
    subagent_model: str | None = None
    subagent_effort: str | None = None
    roles: Mapping[str, Role] = {}
    async_startup: bool = True
    """Whether a sub-agent is registered before its start-up; else spawn waits for that."""
    usage_hint: bool = True
    """Whether the root is told when to give work to others."""
    guide: str = ""
    """What the workspace's AGENTS.md files say, for every agent."""
    guide_problems: tuple[str, ...] = ()
    """What the operator is told of those that could not be used."""
    interrupt_message: bool = True
    """Whether the model is told that its turn was interrupted."""
    catalog: Mapping[str, ModelEntry] = {}
    """Prices and windows by model; `"*"`: of the others."""
    budget: Budget = Budget()
    """What its starter lets it spend."""

    def models(self) -> set[str]:
        """All that its settings name."""
        named = [self.model, self.subagent_model, *(role.model for role in self.roles.values())]
        return {model for model in named if model is not None}

    def known_models(self) -> list[str] | None:
        """The models that an agent may ask for, sorted. None: the settings do not list what there is, the
        server decides."""
        if not self.catalog or OTHERS in self.catalog:
            return None
        return sorted({*self.catalog, *self.models()})

    def entry_of(self, model: str) -> ModelEntry:
        """What is known of `model`; nothing, if the settings do not have it."""
        return entry_of(self.catalog, model)
