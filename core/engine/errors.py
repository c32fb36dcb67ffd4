"""What can go wrong with an engine and its commands, and the codes of the replies."""

from __future__ import annotations

from core.agents.approvals import AlreadyDecided, UnknownApproval
from core.agents.errors import Refused
from core.agents.registry import UnknownAgent
from core.domain.limits import LimitError
from core.domain.paths import PathError
from core.engine.setup import SetupError
from core.jobs.errors import JobInputError
from core.models.types import ModelError
from core.scripted.scenario import ScenarioError
from core.store.errors import NotFound, Owned, RowsBusy, StoreError


class EngineError(Exception):
    """The engine cannot start, cannot go on, or cannot answer; one sentence."""


class CommandError(Exception):
    """A command that cannot be carried out; becomes the reply's error and code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


CODES: dict[type[Exception], str] = {
    UnknownAgent: "not_found",
    UnknownApproval: "not_found",
    NotFound: "not_found",
    RowsBusy: "refused",
    Owned: "owned",
    AlreadyDecided: "decided",
    PathError: "usage",
    JobInputError: "usage",
    SetupError: "usage",
    ScenarioError: "usage",
    LimitError: "limit",
    Refused: "refused",
    ModelError: "error",
    StoreError: "error",
}
