"""Closed agents that are opened again, each with those below it that the same close ended; and open ones
whose start-up failed, which start up again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.agents.errors import Refused
from core.agents.registry import UnknownAgent
from core.domain import events as e
from core.domain.limits import LimitError
from core.domain.state import AgentState

if TYPE_CHECKING:
    from core.agents.swarm import Swarm


class ComeBack:
    """They come back as they were, and idle: same thread, path, nickname, role, model and history, without
    the mail that their close dropped."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._under_way: dict[str, asyncio.Future[Sequence[e.AnyEvent]]] = {}
        """By thread: ends once the agent is recorded as open, or cannot be."""

    def would_resume(self, thread: str) -> list[AgentState]:
        """Who would come back, parents before children; nobody if the agent is open and did not fail to
        start. Raises Refused."""
        swarm = self._swarm
        if (agent := swarm.agents.get(thread)) is not None:
            if agent.closing:
                raise Refused(f"{agent.path} is still being closed; wait until it is shutdown")
            return [swarm.state.agents[thread]] if agent.deaf else []
        known = swarm.state.agents.get(thread)
        if known is None:
            raise UnknownAgent(f"there is no agent {thread}")
        if known.job is not None:
            raise Refused(f"{known.path} was the worker of a job; its row is over, and it does not come back")
        if known.parent is not None:
            above = swarm.agents.get(known.parent)
            if above is None:
                path = swarm.state.agents[known.parent].path
                raise Refused(f"{path}, for which {known.path} works, is closed; resume that one")
            if above.closing:
                raise Refused(f"{above.path} is being closed; nothing is started below it")
        return swarm.state.closed_together(thread)

    async def resume(self, thread: str, *, by: str) -> list[str]:
        """Open a closed agent again, or start one up again that could not; the threads that came back, none
        if it is open already.

        Raises Refused, PathError or LimitError; then everything is as it was.
        """
        self._swarm.refuse_when_ending()
        if (under_way := self._under_way.get(thread)) is not None:
            await asyncio.shield(under_way)
            return []
        found = self.would_resume(thread)
        if not found:
            return []
        swarm = self._swarm
        if thread in swarm.agents:
            return await self._again(thread, by)
        agents = [swarm.births.stored(known) for known in found]
        paths = [agent.path for agent in agents]
        swarm.registry.reserve_again(paths)
        try:
            swarm.take_slots(agents)
        except LimitError:
            for path in paths:
                swarm.registry.release(path)
            raise
        write = swarm.enter(agents, [e.AgentResumed(agent=agent.thread, by=by) for agent in agents])

        def written(_: object) -> None:
            for agent in agents:
                del self._under_way[agent.thread]

        self._under_way |= dict.fromkeys((agent.thread for agent in agents), write)
        write.add_done_callback(written)
        await swarm.entered(agents, write)
        return [agent.thread for agent in agents]

    async def _again(self, thread: str, by: str) -> list[str]:
        """Its task notices, and starts up."""
        write = asyncio.ensure_future(self._swarm.append([e.AgentResumed(agent=thread, by=by)]))
        self._under_way[thread] = write
        write.add_done_callback(lambda _: self._under_way.pop(thread))
        await asyncio.shield(write)
        return [thread]
