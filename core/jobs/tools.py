"""`spawn_agents_on_csv`: an agent maps a job over a file and gets the result when it has ended, or its id at
once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import AliasChoices, Field

from core.jobs.errors import JobInputError
from core.jobs.request import JobRequest, check_request, read_instruction, resolve
from core.jobs.service import JobService
from core.safety.text import clean_line, shorten
from core.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolOutput

SOURCE = "job"


class SpawnOnCsvArgs(ToolArgs):
    csv_path: str = Field(description="The CSV file: UTF-8, with a header; relative to the workspace.")
    instruction: str | None = Field(
        default=None,
        description="What each worker is asked to do; {column} is replaced by the row's value, {{ and }} "
        "are braces. Give this or instruction_path.",
    )
    instruction_path: str | None = Field(default=None, description="A file that holds the instruction.")
    id_column: str | None = Field(default=None, description="The column whose values name the items.")
    job_name: str | None = Field(default=None, description="A name for people.")
    output_csv_path: str | None = Field(
        default=None, description="Where the results go; default: beside the input."
    )
    output_schema: dict[str, Any] | None = Field(
        default=None, description="JSON Schema that every reported result must match."
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        validation_alias=AliasChoices("max_concurrency", "max_workers"),
        description="Workers side by side, default 16; the swarm's own limit caps it.",
    )
    max_runtime_seconds: float | None = Field(
        default=None, ge=1, description="Time limit of one row, default 1800."
    )
    max_attempts: int | None = Field(
        default=None, ge=1, description="How often a row is tried before it has failed, default 1."
    )
    auto_export: bool = Field(default=True, description="Write the CSV when the job has ended.")
    model: str | None = Field(default=None, description="Model of the workers.")
    agent_type: str | None = Field(default=None, description="Role of the workers.")
    wait: bool = Field(
        default=True,
        description="false: answer with the job's id at once; a message tells you when the job has ended.",
    )


class SpawnAgentsOnCsv(Tool):
    name = "spawn_agents_on_csv"
    description = (
        "Run one job worker per row of a CSV file with the same instruction. This one call starts the job, "
        "waits until it has ended and writes a CSV: the input's columns, then each row's status and result. "
        "A worker hands in its result as a JSON object; a row without a report is a failure. Returns the "
        "counts, the path of the CSV and the first errors. No other call is needed."
    )
    Args = SpawnOnCsvArgs
    category = "job"
    timeout: float | None = None
    """Each row has its own limit."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def brief(self, args: Mapping[str, Any]) -> str:
        what = args.get("instruction") or args.get("instruction_path") or ""
        return shorten(clean_line(f"{args.get('csv_path', '')} {what}"), 120)

    async def run(self, args: SpawnOnCsvArgs, ctx: ToolContext) -> ToolOutput:
        service = self._service
        try:
            request = await self._request(args, ctx)
            checked = await check_request(request, service.settings, service.slots)
            job = await service.launch(ctx.thread, checked, tell_owner=not args.wait)
        except JobInputError as error:
            raise ToolError(str(error)) from None
        rows = len(checked.table.rows)
        label = f"job {job[:8]}"
        text = f"{label}: {rows} rows of {checked.input_path.name}, {checked.concurrency} side by side"
        await ctx.emit(source=SOURCE, status="started", text="; ".join([text, *checked.notes]))
        if not args.wait:
            return self._output(await service.summary(job), None, checked.notes)
        try:
            async with ctx.blocked("job", f"{label}, {rows} rows"):
                summary = await service.wait(job)
        except JobInputError as error:
            raise ToolError(str(error)) from None
        except asyncio.CancelledError:
            if service.settings.on_interrupt == "cancel":
                await service.cancel(job, by=ctx.path)
            else:
                service.detach(job)
            raise
        output = self._output(summary, service.error(job), service.notes(job))
        await ctx.emit(source=SOURCE, status=summary["status"], text=_said(summary))
        return output

    async def _request(self, args: SpawnOnCsvArgs, ctx: ToolContext) -> JobRequest:
        if (args.instruction is None) == (args.instruction_path is None):
            raise JobInputError("give exactly one of instruction and instruction_path")
        instruction = args.instruction
        if args.instruction_path is not None:
            path = resolve(args.instruction_path, ctx.cwd, inside=True)
            instruction = await asyncio.to_thread(read_instruction, path)
        assert instruction is not None
        return JobRequest(
            input_path=args.csv_path,
            instruction=instruction,
            cwd=ctx.cwd,
            output_path=args.output_csv_path,
            id_column=args.id_column,
            name=args.job_name,
            max_concurrency=args.max_concurrency,
            max_runtime_seconds=args.max_runtime_seconds,
            max_attempts=args.max_attempts,
            output_schema=args.output_schema,
            auto_export=args.auto_export,
            model=args.model,
            role=args.agent_type,
            call=ctx.call,
            inside=True,
        )

    def _output(self, summary: Mapping[str, Any], error: str | None, notes: tuple[str, ...]) -> ToolOutput:
        names = ("job_id", "status", "output_csv_path", "total_items", "completed_items", "failed_items")
        answer: dict[str, Any] = {name: summary[name] for name in names}
        if error is not None:
            answer["job_error"] = error
        if summary["failed_item_errors"]:
            answer["failed_item_errors"] = summary["failed_item_errors"]
        if notes:
            answer["notes"] = notes
        failed = summary["status"] == "failed"
        text = msgspec.json.encode(answer).decode()
        return ToolOutput(text=text, status="error" if failed else "ok", recorded=True)


def _said(summary: Mapping[str, Any]) -> str:
    """How a job ended, for people."""
    failed = f", {summary['failed_items']} failed" if summary["failed_items"] else ""
    where = f", written to {summary['output_csv_path']}" if summary["output_csv_path"] else ""
    return f"{summary['completed_items']} of {summary['total_items']} rows done{failed}{where}"
