"""What a face sends along when it starts or resumes a swarm."""

from __future__ import annotations

import os
from collections.abc import Mapping

from core.config import FileSettings, Settings
from core.domain.commands import Setup
from core.safety.redact import secret_values
from core.tools.environment import listed

NOT_SENT = {"store", "engine", "view", "profile"}
"""They are the engine's own, or the console's."""


def setup_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Setup:
    """The setup of whoever runs with these settings in this environment."""
    environ = os.environ if environ is None else environ
    dumped = settings.model_dump(mode="json", include=set(FileSettings.model_fields) - NOT_SENT)
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    secrets = secret_values(environ, [settings.api_key_env]) | ({key} if key is not None else set())
    return Setup(settings=dumped, api_key=key, environment=listed(environ), secrets=tuple(sorted(secrets)))
