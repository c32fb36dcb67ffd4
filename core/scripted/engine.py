"""The scripted model itself: a request's bytes in, a plan of timed chunks out. The in-process transport and
the loopback server both play such plans.

What is answered follows from the request alone; the only memory is how often a fault has been played.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from core.clock import Clock
from core.scripted import check, faults
from core.scripted.answer import Answer, error_answer
from core.scripted.exchange import Exchange, View, images_in, place_mark
from core.scripted.scenario import END, Agent, Capture, Fault, Scenario, Step
from core.scripted.stream import base_response, stream, whole
from core.scripted.template import Missing, fill, template

_REMEMBERED = 100_000
IMAGE_TOKENS = 1_000
_REASONING_INCLUDE = "reasoning.encrypted_content"


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """One answered request. `response` counts the agent's earlier responses; `body` is the request, decoded
    (None when it was refused before that)."""

    number: int
    agent: str
    response: int
    status: int
    fault: str
    body: dict[str, Any] | None


class Counters:
    """Requests: in flight now, at most, and in all; and the last ones in full, as many as `keep` says."""

    def __init__(self, keep: int) -> None:
        self.in_flight = 0
        self.max_in_flight = 0
        self.total = 0
        self.log: deque[Logged] = deque(maxlen=keep)

    def begin(self) -> None:
        self.total += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self) -> None:
        self.in_flight -= 1


class _Chosen(msgspec.Struct, frozen=True):
    """What the model says: output parts, before they are items. `step` None: not a step of the scenario."""

    step: Step | None
    text: str | None
    reasoning: str | None = None
    calls: list[tuple[str, str]] = []


class Player:
    """Plays one scenario to any number of agents and swarms at once."""

    def __init__(self, scenario: Scenario, clock: Clock, *, keep: int = 0) -> None:
        self.scenario = scenario
        self.clock = clock
        self.requests = Counters(keep)
        self._played: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def answer(self, raw: bytes) -> Answer:
        """The plan for one request. Call it after `requests.begin()`."""
        number = self.requests.total
        try:
            body = check.read_request(raw)
            exchange = Exchange(body)
            agent = self._agent(exchange)
            self._check_echoes(exchange, agent, body)
            self._check_window(exchange, len(raw))
        except check.Refused as refused:
            self._log(number, "", 0, 400, "", None)
            return error_answer(400, str(refused), param=refused.param, code=refused.code)
        chosen = self._choose(exchange, agent)
        count = exchange.past + len(exchange.runs)
        key = str(body.get("prompt_cache_key") or "") or f"{exchange.path}\0{exchange.before(0).first}"
        fault = self._fault(exchange.path, key, count, number, chosen.step)
        answer = self._plan(body, exchange, key, chosen, fault, len(raw))
        self._log(number, exchange.path, count, answer.status, fault.kind if fault else "", body)
        return answer

    def _log(self, number: int, agent: str, count: int, status: int, fault: str, body: Any) -> None:
        if self.requests.log.maxlen:
            entry = Logged(number=number, agent=agent, response=count, status=status, fault=fault, body=body)
            self.requests.log.append(entry)

    # -- who is asking, and where in its steps is it

    def _agent(self, exchange: Exchange) -> Agent | None:
        first = exchange.before(0).first
        for agent in self.scenario.agents:
            if agent.first is not None and not agent.first.search(first):
                continue
            if any(fnmatchcase(exchange.path, pattern) for pattern in agent.paths):
                return agent
        return None

    def _choose(self, exchange: Exchange, agent: Agent | None) -> _Chosen:
        view = exchange.before(len(exchange.runs))
        if agent is None:
            who = f"the agent {exchange.path}" if exchange.path else "an agent without a path"
            return _Chosen(None, f"The scenario {self.scenario.name} has no part for {who}.")
        position = exchange.stood
        for _, _, after in self._replay(exchange, agent):
            position = after
        index = _select(agent, position, view)
        value = _values(agent, view)
        try:
            if exchange.asks_summary:
                mark = place_mark(exchange.past + len(exchange.runs), position)
                return _Chosen(None, f"{template(agent.summary).text(value)}\n{mark}".strip())
            if index is None:
                return _Chosen(None, template(agent.closing).text(value))
            step = agent.steps[index]
            return _Chosen(
                step,
                None if step.text is None else template(step.text).text(value),
                None if step.reasoning is None else template(step.reasoning).text(value),
                [
                    (call.name, msgspec.json.encode(fill(call.arguments, value)).decode())
                    for call in step.calls
                ],
            )
        except Missing as missing:
            who = exchange.path or "this agent"
            return _Chosen(None, f"The scenario {self.scenario.name} cannot go on for {who}: {missing}.")

    def _replay(self, exchange: Exchange, agent: Agent) -> Iterator[tuple[int, Step | None, int]]:
        """For each response so far: its number, its step (None: the closing text), where the next begins."""
        position = exchange.stood
        for run in range(len(exchange.runs)):
            index = _select(agent, position, exchange.before(run))
            step = None
            if index is not None:
                step = agent.steps[index]
                position = _following(agent, index)
            yield run, step, position

    def _check_echoes(self, exchange: Exchange, agent: Agent | None, body: dict[str, Any]) -> None:
        """A response that had reasoning must come back with it, if the client asked for its content."""
        if agent is None or _REASONING_INCLUDE not in (body.get("include") or []):
            return
        if exchange.asks_summary:
            return  # what is summarised may be cut
        if not any(step.reasoning for step in agent.steps):
            return
        for run, step, _ in self._replay(exchange, agent):
            start, end = exchange.runs[run]
            kinds = {item["type"] for item in exchange.items[start:end]}
            if step is not None and step.reasoning and "reasoning" not in kinds:
                what = (
                    f"Response {run} of this conversation was sent with a reasoning item, which is missing."
                )
                raise check.Refused(what, "input")

    def _check_window(self, exchange: Exchange, size: int) -> None:
        window, tokens = self.scenario.window, _of_items(exchange.everything, size)
        if window is not None and tokens > window:
            what = f"Your input of {tokens} tokens exceeds the context window of {window} tokens."
            raise check.Refused(what, "input", "context_length_exceeded")

    # -- what goes wrong

    def _fault(self, path: str, key: str, count: int, number: int, step: Step | None) -> Fault | None:
        candidates: list[tuple[int, Fault]] = []
        if step is not None and step.fault is not None:
            candidates.append((-1, step.fault))
        for index, fault in enumerate(self.scenario.faults):
            if fault.aims_at(number, path):
                candidates.append((index, fault))
        for index, chosen in candidates:
            memory = (key, count, index)
            played = self._played.get(memory, 0)
            if chosen.times == 0 or played < chosen.times:
                self._played[memory] = played + 1
                if len(self._played) > _REMEMBERED:
                    self._played.popitem(last=False)
                return chosen
        return None

    # -- the answer

    def _plan(
        self,
        body: dict[str, Any],
        exchange: Exchange,
        key: str,
        chosen: _Chosen,
        fault: Fault | None,
        size: int,
    ) -> Answer:
        latency = self.scenario.latency_ms
        if chosen.step is not None and chosen.step.latency_ms is not None:
            latency = chosen.step.latency_ms
        if fault is not None:
            refusal = faults.refusal(fault, latency / 1000)
            if refusal is not None:
                return refusal
        count = exchange.past + len(exchange.runs)
        what = "summary" if exchange.asks_summary else ""
        origin = f"{key}\0{exchange.path}\0{count}{what}".encode("utf-8", "replace")
        ident = hashlib.blake2b(origin, digest_size=12).hexdigest()
        sealed = _REASONING_INCLUDE in (body.get("include") or [])
        whole_answer, chosen = chosen, _within(chosen, body.get("max_output_tokens"))
        output = _items(chosen, ident, sealed)
        ending: Literal["completed", "incomplete", "failed"] = "completed"
        if chosen is not whole_answer:
            ending = "incomplete"
        if fault is not None:
            ending = faults.ending(fault) if chosen is whole_answer else ending
            output = faults.spoil_items(fault, output)
        base = base_response(body, f"resp_{ident}", str(body["model"]), int(self.clock.now().timestamp()))
        usage = _usage(chosen, exchange, size)
        if not body.get("stream"):
            content = whole(base, output, usage)
            return Answer(200, "application/json", latency / 1000, [(0.0, content)])
        chars = 1 if fault is not None and fault.kind == "drip" else self.scenario.chunk_chars
        error = faults.failure(fault) if fault is not None else None
        events = stream(base, output, usage, chars, ending, error)
        if fault is not None:
            return faults.spoil_stream(fault, events, latency / 1000)
        pause = self.scenario.chunk_ms / 1000
        chunks = [(pause, event) for event in events] if pause else [(0.0, b"".join(events))]
        return Answer(200, "text/event-stream", latency / 1000, chunks)


def _select(agent: Agent, position: int, view: View) -> int | None:
    """The step that is played next: the first from `position` on whose conditions hold."""
    for index in range(position, len(agent.steps)):
        step = agent.steps[index]
        wanted = step.when is None or all(p.search(view.source(s)) for s, p in step.when.pairs())
        if wanted and not (step.unless and any(p.search(view.source(s)) for s, p in step.unless.pairs())):
            return index
    return None


def _following(agent: Agent, index: int) -> int:
    target = agent.steps[index].next
    if target is None:
        return index + 1
    if target == END:
        return len(agent.steps)
    return next(i for i, step in enumerate(agent.steps) if step.name == target)


def _values(agent: Agent, view: View) -> Callable[[str], Any]:
    """Looks a placeholder's value up; raises Missing."""

    def value(name: str) -> Any:
        if name == "agent_path":
            return view.path
        capture = agent.captures.get(name)
        return view.source(name) if capture is None else _captured(name, capture, view)

    return value


def _captured(name: str, capture: Capture, view: View) -> Any:
    found = capture.match.search(view.source(capture.source))
    if found is None:
        if capture.default is None:
            raise Missing(f"no {name} in its {capture.source.replace('_', ' ')}")
        return capture.default
    text = found[1] if capture.match.groups else found[0]
    if not capture.is_json:
        return text or ""
    try:
        return msgspec.json.decode(text or "")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Missing(f"{name} is not JSON") from None


def _items(chosen: _Chosen, ident: str, sealed: bool) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if chosen.reasoning is not None:
        item_id = f"rs_{ident}"
        items.append(
            {
                "id": item_id,
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": chosen.reasoning}],
                "encrypted_content": check.seal(item_id, chosen.reasoning) if sealed else None,
            }
        )
    if chosen.text is not None:
        content = [{"type": "output_text", "text": chosen.text, "annotations": [], "logprobs": []}]
        message = {"id": f"msg_{ident}", "type": "message", "role": "assistant", "status": "completed"}
        items.append({**message, "content": content})
    for index, (name, arguments) in enumerate(chosen.calls):
        call = {"id": f"fc_{ident}_{index}", "type": "function_call", "status": "completed"}
        items.append({**call, "call_id": f"call_{ident}_{index}", "name": name, "arguments": arguments})
    return items


def _tokens(count: int) -> int:
    return math.ceil(count / 4)


def _of_items(items: list[dict[str, Any]], size: int) -> int:
    """Tokens of a request of `size` bytes: four bytes are one, an image is IMAGE_TOKENS whatever its size."""
    images = images_in(items)
    return _tokens(size - sum(len(str(i.get("image_url"))) for i in images)) + IMAGE_TOKENS * len(images)


def _within(chosen: _Chosen, most: int | None) -> _Chosen:
    """What fits into so many tokens, as servers cut it: the thoughts, then the text, then the calls that are
    whole. The same object if all of it does."""
    if most is None:
        return chosen
    left = most * 4 - 3  # thoughts and words are rounded up each
    kept: list[str | None] = []
    for part in (chosen.reasoning, chosen.text):
        cut = part.encode()[:left].decode("utf-8", "ignore") if part is not None else None
        left -= len((cut or "").encode())
        kept.append(cut)
    calls = []
    for name, arguments in chosen.calls:
        left -= len(name) + len(arguments.encode())
        if left < 0:
            break
        calls.append((name, arguments))
    if kept == [chosen.reasoning, chosen.text] and len(calls) == len(chosen.calls):
        return chosen
    return _Chosen(chosen.step, kept[1], kept[0], calls)


def _usage(chosen: _Chosen, exchange: Exchange, size: int) -> dict[str, Any]:
    """What the last request held already counts as cached."""
    thought = _tokens(len((chosen.reasoning or "").encode()))
    said = len((chosen.text or "").encode()) + sum(len(n) + len(a.encode()) for n, a in chosen.calls)
    total_input = _of_items(exchange.everything, size)
    new = exchange.items[exchange.runs[-1][0] :] if exchange.runs else None
    fresh = _of_items(new, len(msgspec.json.encode(new))) if new is not None else total_input
    cached = max(total_input - fresh, 0)
    output = thought + _tokens(said)
    return {
        "input_tokens": total_input,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": total_input + output,
    }
