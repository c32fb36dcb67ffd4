"""What a face sends along when it starts or resumes a swarm."""

from __future__ import annotations

import os
from collections.abc import Mapping

from core.config import SCRIPTED, FileSettings, Settings
from core.domain.commands import Setup
from core.safety.redact import secret_values
from core.tools.environment import listed

NOT_SENT = {"store", "engine", "view", "profile"}
"""They are the engine's own, or the console's."""


def setup_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Setup:
    """The setup of whoever runs with these settings in this environment."""
    environ = os.environ if environ is None else environ
    dumped = settings.model_dump(mode="json", include=set(FileSettings.model_fields) - NOT_SENT)
    dumped["base_url"] = _from_anywhere(settings.base_url)
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    secrets = secret_values(environ, [settings.api_key_env]) | ({key} if key is not None else set())
    passed = {name for server in settings.mcp.values() if server.enabled for name in server.env_vars}
    # No command gets the ones that are passed to servers: those are given what is listed, and nothing else.
    environment = listed(environ) | {name: environ[name] for name in passed if name in environ}
    return Setup(settings=dumped, api_key=key, environment=environment, secrets=tuple(sorted(secrets)))


def _from_anywhere(base_url: str) -> str:
    """The file of a scripted model by a path that does not depend on the folder or the home of who reads it:
    an engine works in another one."""
    name = base_url.removeprefix(SCRIPTED)
    if name == base_url or not ("/" in name or name.endswith(".toml")):
        return base_url
    return SCRIPTED + os.path.abspath(os.path.expanduser(name))
