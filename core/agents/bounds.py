"""What keeps agents from going on for ever: how long a message may be, and how often mail alone may start
an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.agents.errors import Refused
from core.domain.limits import LimitError

if TYPE_CHECKING:
    from core.agents.swarm import Swarm

MESSAGE_CHARS = 1_000_000
"""More than any model reads at once."""


def check_message(text: str) -> None:
    """Raises Refused, which says what to do instead, if no agent could read it."""
    if len(text) > MESSAGE_CHARS:
        raise Refused(
            f"the message has {len(text)} characters; at most {MESSAGE_CHARS} are sent: "
            "write it into a file and say where that is"
        )


class TurnBound:
    """Counts the turns of one agent that mail began, since the operator last wrote to anybody in the swarm.
    Agents that wake each other in a circle end here, each with an error that says so."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._count = 0
        self._heard = 0
        """What `swarm.spoken` was when the count began."""

    def begin(self, cause: str) -> None:
        """A turn begins. Raises LimitError for one too many."""
        if self._heard != self._swarm.spoken:
            self._heard = self._swarm.spoken
            self._count = 0
        if cause != "mail":
            return
        self._count += 1
        most = self._swarm.config.limits.max_turns
        if self._count > most:
            why = "mail alone began so many turns of it since the operator last wrote"
            raise LimitError("max_turns", most, f"{why}; it goes on when the operator writes again")
