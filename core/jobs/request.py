"""What somebody asks of a job, read and checked before anything is stored."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.config import JobsSettings
from core.domain.commands import RunJob
from core.domain.ids import job_uuid
from core.jobs.errors import ExportError, JobInputError
from core.jobs.export import check_output
from core.jobs.globs import MAGIC, read_glob
from core.jobs.schema import check_schema
from core.jobs.table import Table, read_table
from core.jobs.template import Template
from core.safety.text import clean_line, shorten

MAX_NAME_CHARS = 100
MAX_ATTEMPTS = 100
MAX_CONCURRENCY = 10_000
MAX_RUNTIME_SECONDS = 30 * 24 * 3600
MAX_INSTRUCTION_BYTES = 1024 * 1024


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for; None means the setting's default. Paths count from `cwd`. The rows are those of
    the file `input_path`, or the files that the pattern `glob` names."""

    input_path: str = ""
    glob: str | None = None
    instruction: str
    cwd: Path
    output_path: str | None = None
    id_column: str | None = None
    name: str | None = None
    max_concurrency: int | None = None
    max_runtime_seconds: float | None = None
    max_attempts: int | None = None
    output_schema: dict[str, Any] | None = None
    auto_export: bool = True
    raw: bool = False
    model: str | None = None
    role: str | None = None
    call: str | None = None
    """The tool call that asks."""
    inside: bool = False
    """Whether all paths must stay below `cwd`: always for agents."""

    @classmethod
    def of(cls, command: RunJob) -> JobRequest:
        return cls(
            input_path=command.input_path,
            glob=command.glob,
            instruction=command.instruction,
            cwd=Path(command.cwd),
            output_path=command.output_path,
            id_column=command.id_column,
            name=command.name,
            max_concurrency=command.max_concurrency,
            max_runtime_seconds=command.max_runtime_seconds,
            max_attempts=command.max_attempts,
            output_schema=command.output_schema,
            auto_export=command.auto_export,
            raw=command.raw,
        )


class CheckedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be run: everything is read and checked, nothing is stored."""

    request: JobRequest
    job: str
    name: str
    input_path: Path
    output_path: Path | None
    table: Table
    template: Template
    concurrency: int
    max_runtime_seconds: float
    max_attempts: int
    notes: tuple[str, ...] = ()
    """What the asker should know: skipped rows, a concurrency that was capped."""


async def check_request(request: JobRequest, settings: JobsSettings, slots: int) -> CheckedJob:
    """Read and check everything about a job. Raises JobInputError. `slots`: workers that may run at once."""
    if not settings.enabled:
        raise JobInputError("agent jobs are turned off (jobs.enabled = false)")
    return await asyncio.to_thread(_check, request, settings, slots)


def _check(request: JobRequest, settings: JobsSettings, slots: int) -> CheckedJob:
    asked = _number("max_concurrency", request.max_concurrency, settings.max_concurrency, 1, MAX_CONCURRENCY)
    runtime = _number(
        "max_runtime_seconds",
        request.max_runtime_seconds,
        settings.max_runtime_seconds,
        1,
        MAX_RUNTIME_SECONDS,
    )
    attempts = _number("max_attempts", request.max_attempts, settings.max_attempts, 1, MAX_ATTEMPTS)
    if slots < 1:
        raise JobInputError("a job needs at least one slot for a worker; raise agents.max_threads above 1")
    if request.output_schema is not None:
        check_schema(request.output_schema)
    source, table = _input(request)
    template = Template.parse(request.instruction, table.headers)
    job = job_uuid()
    output = None
    if request.output_path is not None:
        output = resolve(request.output_path, request.cwd, inside=request.inside)
    elif request.auto_export:
        output = default_output(source, job)
    if output is not None:
        try:
            check_output(output, source)
        except ExportError as error:
            raise JobInputError(str(error)) from None
        if table.rows.is_input(output):
            raise JobInputError(f"the output {output} is one of the input's files; give another name")
    notes = []
    if table.blank:
        notes.append(f"{table.blank} blank row{'s' if table.blank > 1 else ''} of {source.name} left out")
    if asked > slots:
        notes.append(f"max_concurrency {asked} is capped to {slots} by agents.max_threads = {slots + 1}")
    return CheckedJob(
        request=request,
        job=job,
        name=shorten(clean_line(request.name or ""), MAX_NAME_CHARS) or f"agent-job-{job[:8]}",
        input_path=source,
        output_path=output,
        table=table,
        template=template,
        concurrency=min(asked, slots),
        max_runtime_seconds=runtime,
        max_attempts=attempts,
        notes=tuple(notes),
    )


def _input(request: JobRequest) -> tuple[Path, Table]:
    """Where the rows come from, which is no file for a pattern of files; and the rows."""
    if request.glob is None:
        source = resolve(request.input_path, request.cwd, inside=request.inside)
        return source, read_table(source, id_column=request.id_column)
    if request.input_path:
        raise JobInputError("give an input file or a pattern of files, not both")
    cwd = request.cwd.absolute()
    table = read_glob(request.glob, cwd, inside=request.inside, id_column=request.id_column)
    return cwd / request.glob, table


def default_output(source: Path, job: str) -> Path:
    """Where a job's CSV goes that was told no place: beside its input; for a pattern of files into the folder
    in which it searches."""
    wild = next((at for at, part in enumerate(source.parts) if MAGIC & set(part)), None)
    if wild is not None and not source.exists():
        return Path(*source.parts[:wild]) / f"files.agent-job-{job[:8]}.csv"
    return source.with_name(f"{source.stem}.agent-job-{job[:8]}.csv")


def resolve(path: str, cwd: Path, *, inside: bool) -> Path:
    """`path` as an absolute one. With `inside` links are followed and the result must lie below `cwd`."""
    shown = shorten(clean_line(path), 200)
    if not path.strip() or "\0" in path:
        raise JobInputError(f"{shown!r} is not a path")
    base = cwd.absolute()
    if not inside:
        return base / path
    try:
        base = base.resolve(strict=True)
        found = (base / path).resolve()
    except (OSError, RuntimeError) as error:
        raise JobInputError(f"the path {shown} cannot be followed: {error}") from None
    # From Python 3.13 on a circle of links is no error of resolve(): it just stays a link.
    if any(part.is_symlink() for part in (found, *found.parents)):
        raise JobInputError(f"the path {shown} cannot be followed: its links go in a circle")
    if not found.is_relative_to(base):
        raise JobInputError(f"the path {shown} leads out of the workspace {base}")
    return found


def read_instruction(path: Path) -> str:
    """The text of an instruction file. Raises JobInputError. Blocks."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise JobInputError(f"the instruction {path} is not a regular file")
        if info.st_size > MAX_INSTRUCTION_BYTES:
            raise JobInputError(f"the instruction {path} is larger than {MAX_INSTRUCTION_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise JobInputError(f"the instruction {path} is not UTF-8 text") from None
    except OSError as error:
        raise JobInputError(f"the instruction {path} cannot be read: {error.strerror}") from None


Amount = int | float


def _number(
    name: Literal["max_concurrency", "max_runtime_seconds", "max_attempts"],
    asked: Any,
    default: Any,
    least: Amount,
    most: Amount,
) -> Any:
    value = default if asked is None else asked
    if not least <= value <= most:
        raise JobInputError(f"{name} is {value}; it must be from {least} to {most}")
    return value
