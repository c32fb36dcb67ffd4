"""What a swarm runs with: from a starter's settings to plain data, and back to settings in the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from pydantic import SecretStr, ValidationError

from core.agents.budget import unpriced_sentence
from core.agents.config import Role, SwarmConfig
from core.config import FileSettings, Settings
from core.domain.commands import Setup
from core.domain.status import Budget
from core.models.prices import ModelEntry
from core.safety.text import clean_line, shorten


class SetupError(Exception):
    """Settings that came with a command and cannot be used; one sentence."""


def settings_of(setup: Setup | None, own: Settings) -> Settings:
    """The settings of one swarm: what its starter sent, in the engine's own home. Raises SetupError."""
    if setup is None:
        return own
    try:
        # Their types were checked where they were read; JSON has no tuples, so not strictly again.
        sent = FileSettings.model_validate(setup.settings, strict=False)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise SetupError(f"the settings that came with the command: {where}: {problem['msg']}") from None
    values = {name: getattr(sent, name) for name in FileSettings.model_fields}
    values |= {"store": own.store, "engine": own.engine}
    key = SecretStr(setup.api_key) if setup.api_key is not None else None
    return own.model_copy(update={**values, "api_key": key})


def environment_of(setup: Setup | None) -> Mapping[str, str]:
    """The environment that commands of a swarm are run from (they get a part of it)."""
    return os.environ if setup is None else setup.environment


def swarm_config(
    settings: Settings, cwd: str, unattended: Literal["wait", "refuse"], *, threads: int | None = None
) -> SwarmConfig:
    """What a swarm in the folder `cwd` runs with; `threads`: slots for a job. Raises SetupError."""
    folder = _folder(settings.cwd, cwd)
    agents = settings.agents
    limits = agents.limits()
    if threads is not None:
        # A worker is still open for a moment after its row has ended and the next one has started.
        most = max(limits.max_agents, 2 * threads)
        limits = msgspec.structs.replace(limits, max_threads=threads, max_agents=most)
    roles = {
        name: Role(
            description=role.description,
            instructions=role.instructions,
            model=role.model,
            reasoning_effort=role.reasoning_effort,
            max_tokens=role.max_tokens,
            tools=tuple(role.tools) if role.tools is not None else None,
            mcp_servers=tuple(role.mcp_servers) if role.mcp_servers is not None else None,
            mcp=role.mcp,
        )
        for name, role in agents.roles.items()
    }
    config = SwarmConfig(
        cwd=folder,
        model=settings.model or "scripted",
        limits=limits,
        unattended=settings.unattended or unattended,
        approval_policy=settings.approval_policy,
        sandbox=settings.sandbox,
        subagents=agents.enabled,
        subagent_model=agents.default_subagent_model,
        subagent_effort=agents.default_subagent_reasoning_effort,
        roles=roles,
        async_startup=agents.async_subagent_startup,
        interrupt_message=agents.interrupt_message,
        usage_hint=agents.usage_hint,
        catalog={name: ModelEntry(**entry.model_dump()) for name, entry in settings.catalog.items()},
        budget=Budget(**settings.budget.model_dump()),
    )
    check_prices(config)
    return config


def check_prices(config: SwarmConfig, models: Iterable[str] = ()) -> None:
    """Raises SetupError for a budget in money with a model, of the settings or of `models`, that has no
    price."""
    if (why := unpriced_sentence(config.budget, config.catalog, [*config.models(), *models])) is not None:
        raise SetupError(why)


def _folder(base: Path, cwd: str) -> Path:
    try:
        folder = (base / Path(cwd).expanduser()).resolve()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, ~ of nobody
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        shown = shorten(clean_line(cwd), 200)
        raise SetupError(f"the folder {shown} cannot be used: {clean_line(reason)}") from None
    raise SetupError(f"the folder {clean_line(str(folder))} does not exist")
