"""One turn: requests with the whole history until an answer comes without tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from core.agents.calls import CallRunner, brief_of
from core.agents.compaction import Compaction
from core.agents.sampling import Sampler, message_text
from core.domain import events as e
from core.models.types import Completed, ModelError
from core.safety.nesting import depth_of
from core.safety.text import clean_line

if TYPE_CHECKING:
    from core.agents.agent import Agent

MAX_ITEM_DEPTH = 100


class TurnEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn ended by itself: its answer, and events that belong into the transaction that ends it."""

    message: str | None
    events: list[e.Event]


class Turn:
    def __init__(self, agent: Agent, turn: str) -> None:
        self._agent = agent
        self._swarm = agent.swarm
        self.id = turn
        self._sampler = Sampler(agent, turn)
        self._compaction = Compaction(agent, self._sampler)

    async def run(self, cause: str | None) -> TurnEnd:
        """`cause` None: its begin is recorded already. Raises ModelError when the model cannot answer, and
        LimitError when mail has begun too many. Cancelling stops everything it has started."""
        start: list[e.Event] = []
        if cause is not None:
            start.append(e.TurnStarted(agent=self._agent.thread, turn=self.id, cause=_cause(cause)))
        message: str | None = None
        while True:
            start += self._agent.take_mail()
            if start:
                await self._swarm.append(start)
            start = []
            if cause is not None:
                self._agent.turn_bound.begin(cause)
                cause = None
            await self._agent.load()
            await self._agent.startup.prepare()
            await self._agent.ensure_slot()
            if await self._compaction.when_due():
                continue  # what came meanwhile goes with the next request
            agent = self._agent
            try:
                response, seconds = await self._sampler.ask(agent.history.items, agent.definitions)
            except ModelError as error:
                if not await self._compaction.rescue(error):
                    raise
                continue
            self._compaction.answered(response)
            events, calls, text = self._record(response, seconds)
            message = text if text is not None else message
            if not calls:
                if self._agent.has_input():
                    # What the operator typed meanwhile joins this turn instead of waiting for the next.
                    await self._swarm.append(events)
                    continue
                return TurnEnd(message=message, events=events)
            await self._swarm.append(events)
            if await CallRunner(self._agent).run(calls):
                return TurnEnd(message=message, events=[])

    def _record(
        self, response: Completed, seconds: float
    ) -> tuple[list[e.Event], list[e.ToolCalled], str | None]:
        """The events of a whole response, its calls, and the text of its last message."""
        thread = self._agent.thread
        events: list[e.Event] = []
        calls: list[e.ToolCalled] = []
        text: str | None = None
        for item in response.items:
            kind = item.get("type")
            if kind == "message":
                if said := message_text(item):
                    text = said
                    events.append(e.AssistantMessage(agent=thread, text=said, response=response.response))
            elif kind == "reasoning":
                events.append(_reasoning(thread, item))
            elif kind == "function_call":
                call = self._call(item, {c.call for c in calls})
                calls.append(call)
                events.append(call)
            else:
                note = f"the model sent an item of type {kind!r}, which is not supported and was left out"
                events.append(e.Notice(agent=thread, text=note, level="warning"))
        if response.incomplete:
            note = f"the server ended the answer early: {response.incomplete}"
            events.append(e.Notice(agent=thread, text=note, level="warning"))
        events += self._sampler.told(response, seconds)
        return events, calls, text

    def _call(self, item: dict[str, Any], beside: set[str]) -> e.ToolCalled:
        name, arguments = str(item.get("name", "")), str(item.get("arguments", ""))
        # Clean from the start: readers that clean what they show must find a call again by its id.
        base = call = clean_line(str(item.get("call_id") or item.get("id") or "")) or "call"
        number = 1
        while call in self._agent.history.call_ids or call in beside:
            number += 1
            call = f"{base}-{number}"
        tool = self._agent.tools.get(name)
        return e.ToolCalled(
            agent=self._agent.thread,
            call=call,
            name=name,
            arguments=arguments,
            brief=brief_of(self._agent.tools, name, arguments),
            category=tool.category if tool is not None else "other",
        )


def _reasoning(thread: str, item: dict[str, Any]) -> e.Reasoning:
    parts = item.get("summary") or []
    summary = "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    # Without its content the server could not use it, and would look for an id that it never stored.
    echo = bool(item.get("encrypted_content") or item.get("content"))
    if echo and depth_of(item, MAX_ITEM_DEPTH) > MAX_ITEM_DEPTH:
        echo = False  # no store could keep it
    return e.Reasoning(agent=thread, summary=summary, item=item if echo else None)


def _cause(word: str) -> Any:
    return word if word in ("input", "mail", "resume") else "input"
