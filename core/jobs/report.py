"""`report_agent_job_result`: the one way in which a worker hands in its row."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from pydantic import Field

from core.jobs.schema import SchemaChecker, Violation, embedded
from core.safety.nesting import depth_of
from core.safety.text import clean_line, shorten
from core.store.jobs import JobStore
from core.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolOutput

MAX_RESULT_BYTES = 256 * 1024
MAX_RESULT_DEPTH = 64
MAX_ROUNDS = 5
"""Reports of one worker that may break the schema before its row fails."""


class ReportArgs(ToolArgs):
    job_id: str = Field(description="The Job ID of your task.")
    item_id: str = Field(description="The Item ID of your task.")
    result: dict[str, Any] = Field(description="What you found, as a JSON object.")
    stop: bool = Field(default=False, description="True ends the whole job: rows not started stay undone.")


class ReportTool(Tool):
    """Bound to one attempt at one row. `accepted` is done when the store has taken the row's result."""

    name = "report_agent_job_result"
    description = (
        "Hand in the result of your row: once, with the ids of your task. An accepted report ends your turn. "
        "A refused one says what to change. With stop: true no further row of the job is started."
    )
    Args = ReportArgs
    category = "job"
    parallel = False
    timeout: float | None = 60.0

    def __init__(
        self,
        *,
        jobs: JobStore,
        swarm: str,
        job: str,
        item: str,
        worker: str,
        schema: Mapping[str, Any] | None,
        checker: SchemaChecker | None,
        on_stop: Callable[[str], object],
    ) -> None:
        self._jobs = jobs
        self._swarm = swarm
        self._job = job
        self._item = item
        self._worker = worker
        self._schema = schema
        self._checker = checker
        self._on_stop = on_stop
        self._rounds = 0
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.problem = ""
        """Why the last report was refused."""

    def schema(self) -> dict[str, Any]:
        schema = super().schema()
        if self._schema is not None:
            schema = copy.deepcopy(schema)
            schema["properties"]["result"] = embedded(self._schema, "#/properties/result")
        return schema

    def brief(self, args: Mapping[str, Any]) -> str:
        result = json.dumps(args.get("result"), ensure_ascii=False)
        return shorten(clean_line(f"{args.get('item_id', '')} {result}"), 120)

    async def run(self, args: ReportArgs, ctx: ToolContext) -> ToolOutput:
        if args.job_id != self._job or args.item_id != self._item:
            return self._refused(f"your task is job {self._job}, item {self._item}; report that one")
        text = _encode(args.result)
        if self._checker is not None and (violations := await self._checker.check(text)):
            return self._violated(violations)
        accepted, reason = await self._jobs.report(
            self._swarm,
            self._job,
            self._item,
            self._worker,
            text,
            stopped_by=ctx.path if args.stop else None,
        )
        if not accepted:
            # The row is no longer this worker's: whatever it does now cannot count.
            return self._refused(reason, end_turn=True)
        if args.stop:
            self._on_stop(ctx.path)
        if not self.accepted.done():
            self.accepted.set_result(None)
        return ToolOutput(text='{"accepted": true}', end_turn=True)

    def _refused(self, reason: str, end_turn: bool = False) -> ToolOutput:
        self.problem = reason
        answer = msgspec.json.encode({"accepted": False, "reason": reason}).decode()
        return ToolOutput(text=answer, status="error", end_turn=end_turn)

    def _violated(self, violations: list[Violation]) -> ToolOutput:
        self._rounds += 1
        last = self._rounds >= MAX_ROUNDS
        listed = "; ".join(f"{path}: {clean_line(problem)}" for path, problem in violations)
        self.problem = shorten(f"the result does not match output_schema: {listed}", 1000)
        then = f", {MAX_ROUNDS} times now: this attempt is over" if last else "; correct it and report again"
        answer = {
            "accepted": False,
            "reason": "the result does not match output_schema" + then,
            "violations": [{"path": path, "problem": problem} for path, problem in violations],
        }
        return ToolOutput(text=msgspec.json.encode(answer).decode(), status="error", end_turn=last)


def _encode(result: dict[str, Any]) -> str:
    """The result as JSON text. Raises ToolError for what JSON, or the store, cannot hold."""
    if depth_of(result, MAX_RESULT_DEPTH) > MAX_RESULT_DEPTH:
        raise ToolError(f"result is nested deeper than {MAX_RESULT_DEPTH} levels")
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except ValueError as error:
        raise ToolError(f"result is not plain JSON: {error}") from None
    if size > MAX_RESULT_BYTES:
        raise ToolError(
            f"result has {size:,} bytes, at most {MAX_RESULT_BYTES:,} are taken; "
            "write long text to a file and report its path"
        )
    return text
