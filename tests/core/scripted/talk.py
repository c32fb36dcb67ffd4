"""A conversation with the scripted model through the real client, as an engine would hold it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.clock import Clock, SystemClock
from core.models.http import make_http
from core.models.responses import ResponsesClient
from core.models.types import Completed, ModelEvent, ModelRequest
from core.scripted.scenario import Scenario, parse_scenario
from core.scripted.transport import BASE_URL, ScriptedTransport

Item = dict[str, Any]


def user(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def output(call: Item, text: str) -> Item:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


def calls_of(items: list[Item]) -> list[Item]:
    return [item for item in items if item["type"] == "function_call"]


def text_of(items: list[Item]) -> str:
    return "".join(
        i["content"][0]["text"] for i in items if i["type"] == "message" and i["role"] == "assistant"
    )


class Talk:
    """One agent's history, and requests with all of it. `restart` makes a new server that knows nothing."""

    def __init__(
        self, scenario: Scenario | str, *, path: str = "/root", clock: Clock | None = None, retries: int = 4
    ) -> None:
        self.scenario = parse_scenario(scenario) if isinstance(scenario, str) else scenario
        self.path = path
        self.clock = clock or SystemClock()
        self.retries = retries
        self.history: list[Item] = []
        self.restart()

    def restart(self) -> None:
        self.transport = ScriptedTransport(self.scenario, self.clock, keep=100)
        self.client = ResponsesClient(
            BASE_URL,
            None,
            make_http(self.transport),
            clock=self.clock,
            label="scripted:test",
            retries=self.retries,
            spread=lambda: 0.0,
        )

    def request(self) -> ModelRequest:
        return ModelRequest(
            model="m",
            instructions=f"You are an agent.\nAgent path: {self.path}\nBe brief.",
            input=list(self.history),
            cache_key=f"thread {self.path}",
        )

    async def events(self) -> list[ModelEvent]:
        return [event async for event in self.client.stream(self.request())]

    async def ask(self, *items: Item | str) -> list[Item]:
        """Add to the history, send it, add what comes back; returns the new items."""
        self.history += [user(item) if isinstance(item, str) else item for item in items]
        completed = (await self.events())[-1]
        assert isinstance(completed, Completed)
        self.history += completed.items
        return completed.items

    async def run(self, task: str, tool: Callable[[Item], str]) -> str:
        """Until a response has no calls; returns its text."""
        items = await self.ask(task)
        for _ in range(50):
            calls = calls_of(items)
            if not calls:
                return text_of(items)
            items = await self.ask(*[output(call, tool(call)) for call in calls])
        raise AssertionError("the conversation does not end")
