"""`watchroom job run|list|show`: one worker agent over each row of a CSV file."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain.commands import RunJob
from core.domain.events import AnyEvent, JobEnded, JobExported, JobPaused, JobRowEnded, JobStarted
from core.domain.state import JobState
from core.safety.text import clean, clean_line
from core.view.swarm import SwarmView
from tui import exits, headless, reading, setup, signals, spent
from tui.farewell import short_id
from tui.output import Out
from tui.plain import PlainLines
from tui.progress import ProgressLine, Rate, line
from tui.setup import Connect, own_engine
from tui.table import cost_cell, moment, show

MAX_FILE_BYTES = 1024 * 1024
SHOWN_FAILURES = 5


@dataclass
class Run:
    """What is known of a job's run, also when it was cut short."""

    swarm: str = ""
    job: str = ""
    state: JobState | None = None
    output: str | None = None
    error: str | None = None
    """Why the job failed, or why its CSV could not be written."""
    failures: int = field(default=0)
    spent: str | None = None
    """What the budget said, if it paused the job."""


def run(args: Namespace, engine: Connect | None = None) -> int:
    command = command_of(args)
    if args.dry_run:
        return dry_run(args, command)
    settings = setup.headless(setup.settings_of(args))
    command = _in_folder(command, settings)
    so_far = Run()
    code: int | None = None
    try:
        code = signals.run(
            lambda: _run(settings, command, args.progress, engine or own_engine("job"), so_far)
        )
    finally:
        _close(so_far, code)
    if args.json and so_far.job:
        _print_json(reading.read(settings, lambda reader: reader.job(so_far.job)))
    elif so_far.output is not None:
        print(clean(so_far.output))
    return code


def command_of(args: Namespace) -> RunJob:
    """The command that the options ask for. Raises Quit when a file that they name cannot be used."""
    schema = None
    if args.schema is not None:
        try:
            schema = json.loads(_read(args.schema, "schema"))
        except ValueError as error:
            raise exits.Quit(exits.USAGE, f"the schema {args.schema} is not valid JSON: {error}") from None
        if not isinstance(schema, dict):
            raise exits.Quit(exits.USAGE, f"the schema {args.schema} must be a JSON object")
    instruction = args.instruction
    if instruction.startswith("@"):
        instruction = _read(instruction[1:], "instruction")
    return RunJob(
        input_path=args.input,
        instruction=instruction,
        output_path=args.output,
        id_column=args.id_column,
        name=args.name,
        max_concurrency=args.max_concurrency,
        max_runtime_seconds=args.max_runtime,
        max_attempts=args.max_attempts,
        output_schema=schema,
        auto_export=not args.no_export,
        raw=args.raw,
    )


def _in_folder(command: RunJob, settings: Settings) -> RunJob:
    """Files on the command line are meant from where the operator stands, not from the agents' folder."""
    from msgspec.structs import replace

    output = command.output_path
    return replace(
        command,
        cwd=str(settings.cwd),
        input_path=str(Path(command.input_path).expanduser().absolute()),
        output_path=str(Path(output).expanduser().absolute()) if output is not None else None,
    )


def _read(name: str, what: str) -> str:
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise exits.Quit(exits.USAGE, f"the {what} file {name} is larger than {MAX_FILE_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise exits.Quit(exits.USAGE, f"the {what} file {name} cannot be read: {reason}") from None
    except UnicodeDecodeError:
        raise exits.Quit(exits.USAGE, f"the {what} file {name} is not UTF-8 text") from None


# --- running ---------------------------------------------------------------------------------------------


async def _run(settings: Settings, command: RunJob, progress: str, engine: Connect, so_far: Run) -> int:
    async with engine(settings) as client:
        reply = headless.accepted(await client.send(command))
        so_far.swarm, so_far.job = str(reply.value["swarm"]), str(reply.value["job"])
        view = SwarmView()
        teller = _Teller(view, so_far, _mode(progress), SystemClock())
        try:
            await headless.until_quiet(
                client,
                so_far.swarm,
                view,
                teller.tell,
                lambda state: so_far.job in state.jobs and _over(state.jobs[so_far.job]),
            )
        finally:
            await teller.progress.end()
    return _judge(so_far)


def _over(job: JobState) -> bool:
    return job.ended or job.status == "paused"


class _Teller:
    """Progress, failures, warnings and asks on standard error."""

    def __init__(
        self, view: SwarmView, so_far: Run, mode: Literal["line", "lines", "off"], clock: Clock
    ) -> None:
        err = Out.stderr()
        self.progress = ProgressLine(err, mode)
        self._view = view
        self._run = so_far
        self._clock = clock
        self._rate = Rate()
        self._glyphs = setup.glyphs_fit()
        self._lines = PlainLines(view, "headless", glyphs=self._glyphs)

    async def tell(self, event: AnyEvent) -> None:
        run, view = self._run, self._view
        run.state = view.state.jobs.get(run.job)
        said = self._lines.lines(event)
        if isinstance(event, JobRowEnded) and event.status == "failed":
            run.failures += 1
            if run.failures > SHOWN_FAILURES:
                rest = f"more rows failed: watchroom job show {run.job[:8]}"
                said = [rest] if run.failures == SHOWN_FAILURES + 1 else []
        for text in said:
            await self.progress.note(text)
        match event:
            case JobStarted():
                self._rate.begin(event.at)
            case JobRowEnded():
                self._rate.add(event.at)
            case JobExported():
                run.output = event.path
            case JobEnded():
                run.error = event.error
            case JobPaused():
                run.spent = event.reason
            case _:
                return
        await self._draw(event)

    async def _draw(self, event: AnyEvent) -> None:
        job = self._run.state
        if job is None:
            return
        width = _columns() if self.progress.in_place else None
        text = line(job, rate=self._rate.per_minute(event.at), width=width, glyphs=self._glyphs)
        await self.progress.show(text, self._clock.monotonic(), last=isinstance(event, JobEnded | JobPaused))


def _mode(progress: str) -> Literal["line", "lines", "off"]:
    if progress == "auto":
        return "line" if sys.stderr.isatty() else "lines"
    return "off" if progress == "off" else "line" if progress == "line" else "lines"


def _columns() -> int:
    import os

    try:
        return max(os.get_terminal_size(sys.stderr.fileno()).columns - 1, 20)
    except OSError:
        return 79


def _judge(so_far: Run) -> int:
    job = so_far.state
    if so_far.spent is not None:
        return exits.BUDGET
    if job is None or job.status == "failed" or so_far.error is not None:
        return exits.ERROR
    return exits.OK if job.status == "completed" and not job.failed else exits.FAILED_ROWS


def _close(so_far: Run, code: int | None) -> None:
    """The last words: what is stored and where, unless all went well."""
    job = so_far.state
    if code == exits.OK or not so_far.job:
        return
    if so_far.error is not None:
        _say(so_far.error)
    if so_far.spent is not None:
        _say(f"the budget stopped it: {so_far.spent}")
    if job is not None:
        done = f"{job.completed} of {job.total} rows done, {job.failed} failed"
        _say(f"{done}; results so far are stored: watchroom job show {so_far.job[:8]}")
    if so_far.spent is not None:
        _say(f"go on with: {spent.way_on(so_far.swarm, so_far.spent)}")
    elif job is None or not job.ended:
        _say(f"go on with: watchroom resume {short_id(so_far.swarm)}")


def _say(text: str) -> None:
    print(f"watchroom: {clean_line(text)}", file=sys.stderr)


# --- without running -------------------------------------------------------------------------------------


def dry_run(args: Namespace, command: RunJob) -> int:
    """Read and check everything, show what row 1 would be told and what would be written. Stores nothing."""
    from core.jobs.prompt import first_message
    from core.jobs.schema import check_schema
    from core.jobs.table import read_table
    from core.jobs.template import Template

    settings = setup.settings_of(args, asks_model=False)
    command = _in_folder(command, settings)
    found = read_table(Path(command.input_path), id_column=command.id_column)
    template = Template.parse(command.instruction, found.headers)
    if command.output_schema is not None:
        check_schema(command.output_schema)
    first = found.first
    row = dict(zip(found.headers, first.values, strict=True))
    message = first_message(
        job="<job>", item=first.item, instruction=template.render(row), row=row, schema=command.output_schema
    )
    if args.json:
        _print_json(
            {"rows": len(found.rows), "blank": found.blank, "columns": found.headers, "first": message}
        )
        return exits.OK
    blank = f" ({found.blank} blank rows left out)" if found.blank else ""
    target = command.output_path or "a CSV beside the input" if command.auto_export else "no CSV"
    workers = min(command.max_concurrency or settings.jobs.max_concurrency, len(found.rows))
    print(f"{len(found.rows)} rows{blank}, {workers} workers at a time, writes {clean_line(target)}.")
    print(
        f"The worker of row 1, {clean_line(first.item)}, would read:\n\n{clean(message)}\n\n"
        "Nothing was stored."
    )
    return exits.OK


def show_list(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: reader.jobs())
    if args.json:
        _print_json(found)
        return exits.OK
    if not found["jobs"]:
        print("no jobs yet", file=sys.stderr)
        return exits.OK
    rows = [{**job, "id": job["job_id"][:8], "created": moment(job["created_at"])} for job in found["jobs"]]
    columns = (
        ("id", "job"),
        ("created", "created"),
        ("status", "status"),
        ("total_items", "rows"),
        ("completed_items", "done"),
        ("failed_items", "failed"),
        ("name", "name"),
    )
    show(columns, rows)
    return exits.OK


def show_one(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: reader.job(args.id))
    if args.json:
        _print_json(found)
        return exits.OK
    width = max(len(key) for key in found)
    facts = {
        **found,
        "created_at": moment(found["created_at"]),
        "tokens": (found["tokens"] or {}).get("total"),
        "cost": cost_cell(found),
    }
    del facts["cost_partial"]
    for key, value in facts.items():
        if not isinstance(value, list | dict):
            shown = "–" if value is None or value == "" else clean_line(str(value))
            print(f"{key.replace('_', ' '):{width}}  {shown}")
    for failure in found.get("failed_item_errors") or []:
        print(f"failed  {clean_line(_failure(failure))}")
    return exits.OK


def _failure(failure: Any) -> str:
    if isinstance(failure, dict):
        item = failure.get("item_id", "")
        return f"{item}: {failure.get('last_error') or failure.get('error') or ''}"
    return str(failure)


def _print_json(value: object) -> None:
    reading.print_json(value)
