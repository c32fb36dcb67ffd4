"""One response of the model, whole: the request, the waits and retries on the way, its text as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from core.agents.images import has_marks
from core.domain import events as e
from core.domain.commands import Delta
from core.domain.status import Wait
from core.models.types import Completed, ModelError, ModelRequest, Queued, Retrying, TextDelta
from core.safety.text import ordinal

if TYPE_CHECKING:
    from core.agents.agent import Agent

LONGEST_KEY = 4096
_IN_KEYS = "".join(chr(code) for code in range(0x21, 0x7F))


class Sampler:
    """Asks the model for one turn of an agent, response by response."""

    def __init__(self, agent: Agent, turn: str) -> None:
        self._agent = agent
        self._swarm = agent.swarm
        self._turn = turn
        self._requests = 0
        self._waiting = False

    async def ask(
        self, items: Sequence[dict[str, Any]], tools: list[dict[str, Any]], *, shown: bool = True
    ) -> tuple[Completed, float]:
        """The response to `items` and how many seconds it took. Its text streams to the overlay if `shown`;
        retries and waits are recorded as they happen. Raises ModelError."""
        images, model = self._swarm.images, self._agent.model
        try:
            return await self._once(items, tools, shown)
        except ModelError as error:
            if not (images.suspects(error) and has_marks(items) and images.withhold(model)):
                raise
            refusal = error
        try:
            found = await self._once(items, tools, shown)
        except BaseException:
            images.give(model)
            raise
        note = f"{refusal}\nWithout its images the request went through: {model} is sent none from now on."
        await self._swarm.append([e.Notice(agent=self._agent.thread, text=note, level="warning")])
        return found

    async def _once(
        self, items: Sequence[dict[str, Any]], tools: list[dict[str, Any]], shown: bool
    ) -> tuple[Completed, float]:
        agent, swarm = self._agent, self._swarm
        self._requests += 1
        request = ModelRequest(
            model=agent.model,
            instructions=agent.instructions,
            input=await swarm.images.sendable(items, agent.model),
            tools=tools,
            cache_key=agent.thread,
            reasoning_effort=agent.effort,
            max_output_tokens=agent.max_tokens,
        )
        overlay = Overlay(agent, f"{self._turn}:{self._requests}")
        started = swarm.clock.monotonic()
        try:
            async with aclosing(swarm.model.stream(request)) as stream:
                async for event in stream:
                    if isinstance(event, Retrying):
                        await self._retrying(event)
                        continue
                    if isinstance(event, Queued):
                        await self._queued(event)
                        continue
                    await self._goes_on()
                    if isinstance(event, TextDelta) and shown:
                        overlay.add(event)
                    elif isinstance(event, Completed):
                        return event, swarm.clock.monotonic() - started
        except BaseException:
            overlay.end()
            raise
        raise RuntimeError("a model stream ended without Completed and without ModelError")

    async def _retrying(self, event: Retrying) -> None:
        thread = self._agent.thread
        wait = Wait(
            reason="rate_limit" if event.rate_limited else "retry",
            detail=event.reason,
            until=self._swarm.clock.now() + timedelta(seconds=event.delay),
        )
        self._waiting = True
        await self._swarm.append(
            [
                e.ModelRetry(agent=thread, attempt=event.attempt, delay=event.delay, reason=event.reason),
                e.AgentWaits(agent=thread, wait=wait),
            ]
        )

    async def _queued(self, event: Queued) -> None:
        self._waiting = True
        if event.until is not None:
            wait = Wait(reason="rate_limit", until=event.until)
        else:
            wait = Wait(reason="model", detail=f"{ordinal(event.place)} in line")
        await self._swarm.append([e.AgentWaits(agent=self._agent.thread, wait=wait)])

    async def _goes_on(self) -> None:
        if self._waiting:
            self._waiting = False
            await self._swarm.append([e.AgentWaits(agent=self._agent.thread, wait=None)])


class Overlay:
    """The text of an answer while it is being written. Shown, never stored (decision 9).

    The recorded AssistantMessage takes its place; `end` is for an answer that never became whole. Secrets are
    taken out here too: this text reaches the screen without passing the journal's door (decision 12).
    """

    def __init__(self, agent: Agent, response: str) -> None:
        self._agent = agent
        self._response = response
        self._offset = 0
        self._held = ""
        self._shown = False

    def add(self, delta: TextDelta) -> None:
        if delta.reset:
            self._send(0, "")
            self._offset = 0
            self._held = ""
        self._held += delta.text
        # A key that comes in pieces must be whole to be found: the last word waits for its end.
        whole = self._held.rstrip(_IN_KEYS)
        if len(self._held) - len(whole) > LONGEST_KEY:
            whole = self._held
        if whole:
            self._held = self._held[len(whole) :]
            text = self._agent.swarm.store.redact(whole)
            self._send(self._offset, text)
            self._offset += len(text)
            self._shown = True

    def end(self) -> None:
        if self._shown:
            self._send(0, "")

    def _send(self, offset: int, text: str) -> None:
        self._agent.swarm.publish(
            Delta(thread=self._agent.thread, response=self._response, offset=offset, text=text)
        )
