"""What can go wrong with an engine and its commands, and the codes of the replies."""

from __future__ import annotations

from core.agents.approvals import AlreadyDecided, UnknownApproval
from core.agents.errors import Refused
from core.agents.registry import UnknownAgent
from core.domain.commands import Reply
from core.domain.limits import LimitError
from core.domain.paths import PathError
from core.engine.setup import SetupError
from core.jobs.errors import JobInputError
from core.models.types import ModelError
from core.safety.text import clean_line, shorten
from core.scripted.scenario import ScenarioError
from core.store.errors import NotFound, Owned, RowsBusy, StoreError

AUTHOR_CHARS = 60


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
REFUSALS: tuple[type[Exception], ...] = (CommandError, *CODES)
"""What becomes the reply to a command; everything else is a fault of the engine."""


def refusal(error: Exception) -> Reply:
    """The reply to a command that ended in one of these, or in a CommandError."""
    if isinstance(error, CommandError):
        return Reply(ok=False, error=str(error), code=error.code)
    code = next(code for kind, code in CODES.items() if isinstance(error, kind))
    return Reply(ok=False, error=clean_line(str(error)), code=code)


def check_author(author: str) -> None:
    """Who did it is shown and recorded: it must be readable, and must not pass for an agent or the engine."""
    if not author.strip() or author != clean_line(author) or len(author) > AUTHOR_CHARS:
        raise CommandError("the author of a command must be a short plain name", "usage")
    if author.startswith("/") or author.partition(":")[0].strip() in ("engine", "budget", "quota"):
        raise CommandError(f"a command cannot come from {shorten(author, AUTHOR_CHARS)}", "usage")
