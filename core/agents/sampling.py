"""One response of the model, whole: the request, the waits and retries on the way, its text as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from core.agents.budget import HELD, LEAST_OUTPUT, MOST_OUTPUT, BudgetSpent, Hold, Need
from core.agents.images import has_marks
from core.domain import events as e
from core.domain.commands import Delta
from core.domain.status import Usage, Wait
from core.models.types import (
    Completed,
    ModelError,
    ModelEvent,
    ModelRequest,
    Queued,
    Retrying,
    TextDelta,
)
from core.safety.text import clean_line, ordinal, shorten

if TYPE_CHECKING:
    from core.agents.agent import Agent

DETAIL_CHARS = 300
LONGEST_KEY = 4096
_IN_KEYS = "".join(chr(code) for code in range(0x21, 0x7F))


class Sampler:
    """Asks the model for one turn of an agent, response by response, each within the budget."""

    def __init__(self, agent: Agent, turn: str) -> None:
        self._agent = agent
        self._swarm = agent.swarm
        self._turn = turn
        self._requests = 0
        self._wait: Wait | None = None
        """What was recorded last of what the agent waits for."""

    async def ask(
        self, items: Sequence[dict[str, Any]], tools: list[dict[str, Any]], *, shown: bool = True
    ) -> tuple[Completed, float]:
        """The response to `items` and how many seconds it took. Its text streams to the overlay if `shown`;
        retries and waits are recorded as they happen. What `told` makes of it must be recorded: until then
        the budget takes its bound as spent. Raises ModelError, or BudgetSpent if nobody attends."""
        images, model = self._swarm.images, self._agent.model
        blind = images.withheld(model)
        try:
            return await self._once(items, tools, shown)
        except ModelError as error:
            if blind or not images.suspects(error) or not has_marks(items):
                raise
            refusal = error
        images.withhold(model)
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
        instructions = agent.instructions
        entry = swarm.config.entry_of(agent.model)
        most = min(agent.max_tokens or MOST_OUTPUT, entry.max_output or MOST_OUTPUT, MOST_OUTPUT)
        need = Need(
            thread=agent.thread,
            given=agent.meter.bound(instructions, tools, items),
            answer=most,
            least=min(most, LEAST_OUTPUT),
            model=agent.model,
            entry=entry,
        )
        hold = await self._reserve(need)
        await self._goes_on()  # what a request before this one waited for is over, too
        request = ModelRequest(
            model=agent.model,
            instructions=instructions,
            input=await swarm.images.sendable(items, agent.model),
            tools=tools,
            cache_key=agent.thread,
            reasoning_effort=agent.effort,
            max_output_tokens=hold.answer if swarm.budgets.budget else agent.max_tokens,
        )
        # A request that is sent again may have as much as the first time, and no less.
        again = msgspec.structs.replace(need, answer=hold.answer, least=hold.answer)
        overlay = Overlay(agent, f"{self._turn}:{self._requests}")
        started = swarm.clock.monotonic()
        try:
            hold.sent = True
            async with aclosing(swarm.model.stream(request)) as stream:
                async for event in stream:
                    hold = await self._on_event(event, hold, again)
                    if isinstance(event, TextDelta) and shown:
                        overlay.add(event)
                    elif isinstance(event, Completed):
                        agent.meter.counted(instructions, tools, items, _counted(event.usage))
                        return event, swarm.clock.monotonic() - started
        except BaseException as error:
            overlay.end()
            if isinstance(error, ModelError) and not error.metered:
                swarm.budgets.drop(agent.thread)
            raise
        raise RuntimeError("a model stream ended without Completed and without ModelError")

    def told(self, response: Completed, seconds: float) -> list[e.Event]:
        """The events of a response that `ask` gave: that it is whole, what it cost, and, where the server did
        not say what it used, the most that it can have been."""
        thread = self._agent.thread
        usage = _counted(response.usage)
        cost = self._swarm.config.entry_of(self._agent.model).cost(usage) if usage is not None else None
        done = e.ResponseCompleted(
            agent=thread,
            response=response.response,
            model=response.model,
            usage=usage,
            cost=cost,
            seconds=round(seconds, 3),
            attempts=response.attempts,
        )
        if usage is not None:
            return [done]
        return [done, *self._swarm.budgets.unsettled(thread, "the server did not say what it used")]

    # --- the budget --------------------------------------------------------------------------------------

    async def _reserve(self, need: Need) -> Hold:
        """Room in the budget; waits for it where an operator attends, and leaves it to the caller to say that
        this is over. Raises BudgetSpent."""
        budgets, thread = self._swarm.budgets, need.thread
        await self._swarm.append(budgets.unsettled(thread, "the answer was cut"))

        async def wait(detail: str) -> None:
            await self._waits(Wait(reason="budget", detail=shorten(clean_line(detail), DETAIL_CHARS)))

        while True:
            try:
                return await budgets.reserve(need, lambda: wait(HELD))
            except BudgetSpent as spent:
                if self._swarm.config.unattended == "refuse":
                    raise
                # Until the operator has changed the budget others may run.
                self._agent.slot.lend()
                await wait(str(spent))
                await spent.change.wait()
                await self._agent.ensure_slot()

    # --- on the way --------------------------------------------------------------------------------------

    async def _on_event(self, event: ModelEvent, hold: Hold, again: Need) -> Hold:
        """What one event means for waits and for the hold; the hold from here on."""
        if isinstance(event, Retrying):
            await self._retrying(event)
            if event.metered:
                hold = await self._reserve(again)
                if self._wait is not None and self._wait.reason == "budget":
                    await self._waits(self._retry(event))  # its delay only begins
            hold.sent = False
            return hold
        hold.sent = not isinstance(event, Queued)
        if isinstance(event, Queued):
            await self._queued(event)
        else:
            await self._goes_on()
        return hold

    async def _retrying(self, event: Retrying) -> None:
        thread = self._agent.thread
        wait = self._wait = self._retry(event)
        charged = self._swarm.budgets.unsettled(thread, "the answer was cut") if event.metered else []
        await self._swarm.append(
            [
                e.ModelRetry(agent=thread, attempt=event.attempt, delay=event.delay, reason=event.reason),
                *charged,
                e.AgentWaits(agent=thread, wait=wait),
            ]
        )

    def _retry(self, event: Retrying) -> Wait:
        """The wait that begins now."""
        return Wait(
            reason="rate_limit" if event.rate_limited else "retry",
            detail=event.reason,
            until=self._swarm.clock.now() + timedelta(seconds=event.delay),
        )

    async def _queued(self, event: Queued) -> None:
        if event.until is not None:
            wait = Wait(reason="rate_limit", until=event.until)
        else:
            wait = Wait(reason="model", detail=f"{ordinal(event.place)} in line")
        await self._waits(wait)

    async def _waits(self, wait: Wait) -> None:
        self._wait = wait
        await self._swarm.append([e.AgentWaits(agent=self._agent.thread, wait=wait)])

    async def _goes_on(self) -> None:
        if self._wait is not None:
            self._wait = None
            await self._swarm.append([e.AgentWaits(agent=self._agent.thread, wait=None)])


def _counted(usage: Usage | None) -> Usage | None:
    """No request uses nothing: a server that says so has not counted."""
    return usage if usage is not None and usage.total else None


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


def message_text(item: dict[str, Any]) -> str:
    """The text of an output message; a refusal is text too."""
    parts = item.get("content") or []
    texts = [part.get("text") or part.get("refusal") or "" for part in parts if isinstance(part, dict)]
    return "".join(str(text) for text in texts)
