"""How a run that its budget has stopped is gone on with."""

from __future__ import annotations

import re
from collections.abc import Collection

from core.domain.state import SwarmState
from tui.farewell import short_id

_NUMBER = r"\$?([\d,]+(?:\.\d+)?)"
_LIMIT = re.compile(
    rf"limit reached: (budget\.[a-z_]+) = {_NUMBER}; (?:.*has spent )?{_NUMBER}.* needs at least {_NUMBER}"
)


def stopped(state: SwarmState, lately: Collection[str]) -> str | None:
    """What the budget said when it stopped a swarm: its root, or agents for which nobody else can do anything
    and which are among `lately`. None if it did not."""
    root = state.agents.get(state.root or "")
    if root is not None and root.spent is not None:
        return root.spent
    return next(
        (
            agent.spent
            for agent in state.agents.values()
            if agent.spent_all and agent.job is None and agent.thread in lately
        ),
        None,
    )


def paused(state: SwarmState) -> str:
    """What the budget said when it paused a job."""
    said = [agent.spent for agent in state.agents.values() if agent.spent_all]
    return next((sentence for sentence in reversed(said) if sentence), "its budget is spent")


def way_on(swarm: str, sentence: str) -> str:
    """The command that goes on, with the limit raised that `sentence` names."""
    return f"watchroom resume {short_id(swarm)}{larger(sentence)}"


def larger(sentence: str) -> str:
    """The option, after a blank, that sets twice the limit that `sentence` names, or more if that is not
    enough; nothing if it names none."""
    found = _LIMIT.match(sentence)
    if found is None:
        return ""
    limit, used, needed = (float(number.replace(",", "")) for number in found.groups()[1:])
    enough = 2 * limit
    while enough < used + 2 * needed:
        enough *= 2
    return f" -c {found[1]}={int(enough) if enough.is_integer() else round(enough, 4)}"
