"""The tools for jobs that exist already. Whoever may start jobs may ask about every job of its swarm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
from pydantic import Field

from core.domain.limits import Limits
from core.jobs.errors import ExportError, JobInputError
from core.jobs.request import default_output, resolve
from core.jobs.service import OUT_OF_MEANS, JobService
from core.safety.text import clean_line, shorten
from core.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolOutput

Words = Callable[[str], Coroutine[Any, Any, None]]
FOR_EXISTING = "For a job that exists already. "


class JobArgs(ToolArgs):
    job_id: str = Field(
        min_length=1,
        description="Its id, a unique beginning of it, or its name.",
    )


class WaitJobArgs(JobArgs):
    timeout_ms: int | None = Field(default=None, gt=0, description="How long to wait at most.")


class ExportJobArgs(JobArgs):
    output_csv_path: str | None = Field(
        default=None,
        description="Where to write it; default: the job's own place.",
    )


class JobTool(Tool):
    """Bound to the jobs of a swarm; answers with the object of `job show --json`."""

    category = "job"
    Args = JobArgs
    timeout: float | None = 60.0

    def __init__(self, service: JobService) -> None:
        self.service = service

    def brief(self, args: Mapping[str, Any]) -> str:
        return shorten(clean_line(str(args.get("job_id", ""))), 36)

    def find(self, args: JobArgs) -> str:
        try:
            return self.service.find(args.job_id)
        except JobInputError as error:
            raise ToolError(str(error)) from None

    async def answer(self, job: str, **more: Any) -> ToolOutput:
        summary = await self.service.summary(job)
        return ToolOutput(text=msgspec.json.encode(summary | more).decode())


class RunAgentJob(JobTool):
    name = "run_agent_job"
    description = (
        FOR_EXISTING
        + "Lets a job go on that does not run: one that was out of budget or quota. Answers at once; "
        "wait_agent_job waits for its end. A job that an operator has paused stays so."
    )

    async def run(self, args: JobArgs, ctx: ToolContext) -> ToolOutput:
        job = self.find(args)
        state = self.service.state(job)
        if state.ended:
            raise ToolError(f"job {job} has ended: {state.status}; there is nothing left to run")
        if state.status == "paused" and state.paused_by not in OUT_OF_MEANS:
            raise ToolError(f"job {job} was paused by {state.paused_by}; only an operator lets it go on")
        try:
            await self.service.proceed(job, ctx.path)
        except JobInputError as error:
            raise ToolError(str(error)) from None
        return await self.answer(job)


class GetAgentJobStatus(JobTool):
    name = "get_agent_job_status"
    description = FOR_EXISTING + "Its status, its counters and its first errors."

    async def run(self, args: JobArgs, ctx: ToolContext) -> ToolOutput:
        return await self.answer(self.find(args))


class WaitAgentJob(JobTool):
    name = "wait_agent_job"
    description = (
        FOR_EXISTING
        + "Waits until it has ended, until it is out of budget or quota, until the operator writes to you, "
        "or until timeout_ms are over (timed_out is true then); answers with its status and counters."
    )
    Args = WaitJobArgs
    timeout = None

    def __init__(self, service: JobService, limits: Limits, words: Words) -> None:
        super().__init__(service)
        self._limits = limits
        self._words = words

    async def run(self, args: WaitJobArgs, ctx: ToolContext) -> ToolOutput:
        limits = self._limits
        asked = args.timeout_ms if args.timeout_ms is not None else limits.default_wait_ms
        if asked > limits.max_wait_ms:
            raise ToolError(f"timeout_ms may be at most {limits.max_wait_ms}")
        job = self.find(args)
        timed_out = False
        try:
            async with (
                ctx.blocked("job", f"job {job[:8]}"),
                ctx.clock.timeout(max(asked, limits.min_wait_ms) / 1000),
            ):
                await self._first(job, ctx.thread)
        except TimeoutError:
            timed_out = not self.service.state(job).ended
        except JobInputError as error:
            raise ToolError(str(error)) from None
        return await self.answer(job, timed_out=timed_out)

    async def _first(self, job: str, thread: str) -> None:
        """Until the job's end, or the operator's words. Raises JobInputError."""
        ended = asyncio.create_task(self.service.wait(job), name=f"wait for job {job}")
        typed = asyncio.create_task(self._words(thread), name=f"words for {thread}")
        try:
            await asyncio.wait({ended, typed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, typed):
                task.cancel()
            await asyncio.wait({ended, typed})
        if not ended.cancelled():
            ended.result()


class ExportAgentJobCsv(JobTool):
    name = "export_agent_job_csv"
    description = (
        FOR_EXISTING + "Writes its CSV as it stands now, also while it runs: the input's columns, then each "
        "row's status and result. A job writes it by itself when it ends."
    )
    Args = ExportJobArgs
    timeout = None
    """As long as the disk needs."""

    async def run(self, args: ExportJobArgs, ctx: ToolContext) -> ToolOutput:
        job = self.find(args)
        state = self.service.state(job)
        wanted = args.output_csv_path or state.output_path
        if wanted is None:
            wanted = str(default_output(ctx.cwd / state.input_path, job))
        try:
            # Also the job's own place: a job that an operator began may write where agents may not.
            output = resolve(wanted, ctx.cwd, inside=True)
            await self.service.export(job, output)
        except (JobInputError, ExportError) as error:
            raise ToolError(str(error)) from None
        return await self.answer(job)


def asking_tools(service: JobService, limits: Limits, words: Words) -> list[Tool]:
    """`limits`: those of wait_agent hold for wait_agent_job, too. `words` returns when the operator has typed
    something for the agent with that thread id."""
    return [
        RunAgentJob(service),
        GetAgentJobStatus(service),
        WaitAgentJob(service, limits, words),
        ExportAgentJobCsv(service),
    ]
