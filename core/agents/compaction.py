"""Histories that get too long for their model: a summary takes their place (decision 25).

It happens between two requests: when the model's window is nearly full, when an operator wants it, and when a
server refused a request as too long. The summary costs one request, without tools. What becomes of the
history then is for `core.agents.history` to say: it follows from the recorded event alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING, Literal

import msgspec

from core.agents import prompts
from core.agents.errors import Refused
from core.agents.history import MARK, Item, size_of, text_of, user_item
from core.agents.sampling import Sampler, message_text
from core.domain import events as e
from core.domain.state import SwarmState
from core.models.types import Completed, ModelError
from core.safety.text import clean_line, head_and_tail

if TYPE_CHECKING:
    from core.agents.agent import Agent
    from core.agents.swarm import Swarm

FULL = 0.9
"""Of the context window: from there on the history is compacted."""
KEEP = 80_000
"""Bytes of the newest messages that stay."""
RESCUES = 2
"""How often in a row a server may find the history too long; each time less of it stays."""
BYTES_PER_TOKEN = 4
IMAGE_BYTES = 6_000
"""What a picture counts for, whatever its size."""
SHORTER = (1, 2, 8, 32)
"""What a summary is made of where the whole does not fit: that part of it, the newest."""
LONGEST_TEXT, LEAST_TEXT = 4_000, 200
"""Of one output or message, where the whole does not fit."""
LEAST_SUMMARY = 4_000

Reason = Literal["window", "error", "operator"]


class NoSummary(Exception):
    """The model was asked for a summary and gave none."""


class Compaction:
    """Watches over the length of an agent's history during one turn."""

    def __init__(self, agent: Agent, sampler: Sampler) -> None:
        self._agent = agent
        self._sampler = sampler
        self._given_up = False
        """It failed in this turn: not tried again before the next one."""
        self._rescues = 0

    def answered(self, response: Completed) -> None:
        """A request was answered, so it was not too long; what the server counted is remembered."""
        self._rescues = 0
        if response.usage is not None:
            history = self._agent.history
            counted = max(response.usage.total, response.usage.input + response.usage.output)
            history.counted = (counted, len(history.items))

    async def when_due(self) -> bool:
        """Compact the history if it is time to; whether that was done. One that fails is told and leaves the
        history as it is."""
        reason = self._due()
        if reason is None:
            return False
        try:
            await self._compact(reason, self._keep())
        except (ModelError, NoSummary) as error:
            self._given_up = True
            text = f"the history could not be compacted and stays as it is: {error}"
            await self._agent.swarm.append([e.Notice(agent=self._agent.thread, text=text, level="warning")])
            return False
        return True

    async def rescue(self, error: ModelError) -> bool:
        """Compact a history that a server refused as too long; False if `error` is another one, or there is
        nothing left to leave out. Raises ModelError, which says why it could not be done."""
        if error.kind != "context" or self._rescues == RESCUES:
            return False
        keep = self._keep() // 10**self._rescues
        self._rescues += 1
        try:
            await self._compact("error", keep)
        except (ModelError, NoSummary) as failed:
            text = f"{error}; the history could not be compacted: {failed}"
            raise ModelError(text, kind=error.kind, status=error.status) from failed
        return True

    # --- when --------------------------------------------------------------------------------------------

    def _due(self) -> Reason | None:
        history = self._agent.history
        if self._given_up:
            return None
        if history.asked:
            return "operator"
        window = self._window()
        if window is None or self._length() < FULL * window:
            return None
        # Where it is not the history that fills the window, a summary of each step would be no help.
        gain = _size(history.answered[history.base :]) // BYTES_PER_TOKEN
        return "window" if gain >= (1 - FULL) * window else None

    def _keep(self) -> int:
        """A quarter of the window at most."""
        return min(KEEP, self._window() or KEEP)

    def _window(self) -> int | None:
        """In tokens; None: nobody said."""
        return self._agent.swarm.config.entry_of(self._agent.model).context_window

    def _length(self) -> int:
        """How many tokens the next request will have: what the server counted last, and an estimate of what
        came since; of everything, if it never counted."""
        agent = self._agent
        if agent.history.counted is None:
            about = len(agent.instructions) + len(msgspec.json.encode(agent.definitions))
            return (about + _size(agent.history.items)) // BYTES_PER_TOKEN
        counted, upto = agent.history.counted
        since = dropwhile(_in_answer, agent.history.items[upto:])
        return counted + _size(list(since)) // BYTES_PER_TOKEN

    # --- how ---------------------------------------------------------------------------------------------

    async def _compact(self, reason: Reason, keep: int) -> None:
        """Raises ModelError or NoSummary; then the history is as it was."""
        agent = self._agent
        history = agent.history
        tokens = history.counted[0] if history.counted is not None else None
        events: list[e.Event] = []
        summary = history.summary
        if not history.fresh and history.answered:
            response, seconds = await self._ask(reason)
            events += self._sampler.told(response, seconds)
            summary = head_and_tail(said(response), max(keep // 2, LEAST_SUMMARY))
        compacted = e.HistoryCompacted(
            agent=agent.thread,
            summary=summary,
            team=team(agent.swarm.state, agent.thread),
            tokens=tokens,
            reason=reason,
            keep=keep,
        )
        await agent.swarm.append([*events, compacted])
        history.counted = None

    async def _ask(self, reason: Reason) -> tuple[Completed, float]:
        """A summary of what the model has seen; of less and less of it, as long as that is too much."""
        agent, window = self._agent, self._window()
        why = {"window": "its window is nearly full", "error": "it is too long", "operator": "as asked"}
        text = f"compacting the history, {why[reason]}: the model writes a summary"
        await agent.swarm.append([e.Notice(agent=agent.thread, text=text)])
        items = agent.history.answered
        size = _size(items)
        for part in SHORTER:
            if part == 1:
                asked = items
            else:
                most = size // part
                if window is not None:
                    most = min(most, window * BYTES_PER_TOKEN // part)
                asked = shortened(items, most)
                if not asked:
                    raise NoSummary("nothing of it fits into a request")
            try:
                response, seconds = await self._sampler.ask(
                    [*asked, user_item(prompts.COMPACT)], [], shown=False
                )
            except ModelError as error:
                if error.kind != "context" or part == SHORTER[-1]:
                    raise
                continue
            if not said(response).strip():
                await agent.swarm.append(self._sampler.told(response, seconds))
                raise NoSummary("the model answered without a text")
            return response, seconds
        raise AssertionError("the last try returns or raises")


async def ask_for(swarm: Swarm, thread: str, *, by: str, dry_run: bool = False) -> bool:
    """Have an agent's history compacted before its next request; False if somebody asked already. It is
    recorded: an agent that was flushed, or comes back in another engine, still does it. Raises Refused, or
    UnknownAgent for a closed one."""
    swarm.check_input(thread)
    agent = swarm.live(thread)
    if swarm.state.agents[thread].turns == 0:
        raise Refused(f"{agent.path} has had no turn yet: it has no history to compact")
    if agent.history.asked:
        return False
    if not dry_run:
        await swarm.append([e.CompactionAsked(agent=thread, by=by)])
    return not dry_run


def said(response: Completed) -> str:
    texts = [message_text(item) for item in response.items if item.get("type") == "message"]
    return "\n\n".join(text for text in texts if text)


def team(state: SwarmState, thread: str) -> str:
    """The open agents right below one, and its jobs that are not over, as its model is told of them."""
    agents = [
        f"{agent.path} ({agent.nickname}), {agent.status}: {agent.task}"
        for agent in state.children(thread)
        if agent.job is None and agent.status != "shutdown"
    ]
    jobs = [
        f"{clean_line(job.name)} (job {job.job}): {job.done} of {job.total} rows done"
        for job in state.jobs.values()
        if job.owner == thread and not job.ended
    ]
    return prompts.team(agents, jobs)


def shortened(items: Sequence[Item], limit: int) -> list[Item]:
    """The newest of some items, about `limit` bytes in all, long texts cut, no reasoning, no pictures; calls
    and outputs only together."""
    kept: list[Item] = []
    longest = max(min(LONGEST_TEXT, limit // 8), LEAST_TEXT)
    for item in reversed(items):
        if item.get("type") == "reasoning":
            continue
        cut = _cut(item, longest)
        limit -= _size([cut])
        if limit < 0 and kept:
            break
        kept.append(cut)
    calls = {item["call_id"] for item in kept if item["type"] == "function_call"}
    outputs = {item["call_id"] for item in kept if item["type"] == "function_call_output"}
    whole = calls & outputs
    return [item for item in reversed(kept) if "call_id" not in item or item["call_id"] in whole]


def _cut(item: Item, longest: int) -> Item:
    if item["type"] == "function_call":
        arguments = item["arguments"]
        if len(arguments) <= longest:
            return item
        # Some servers want JSON.
        return {**item, "arguments": json.dumps({"cut": head_and_tail(arguments, longest)})}
    if item["type"] == "function_call_output":
        told = item["output"]
        text = told if isinstance(told, str) else text_of({"content": told})
        return {**item, "output": head_and_tail(text, longest)}
    part = item["content"][0]
    return {**item, "content": [{**part, "text": head_and_tail(text_of(item), longest)}]}


def _in_answer(item: Item) -> bool:
    return item.get("type") in ("function_call", "reasoning") or item.get("role") == "assistant"


def _size(items: Sequence[Item]) -> int:
    """About how many bytes items have on the wire."""
    return sum(_item_size(item) for item in items)


def _item_size(item: Item) -> int:
    output = item.get("output")
    images = sum(part["type"] == MARK for part in output) if isinstance(output, list) else 0
    try:
        return len(msgspec.json.encode(item)) + images * IMAGE_BYTES
    except UnicodeEncodeError:  # half a surrogate pair
        return size_of(str(item)) + images * IMAGE_BYTES
