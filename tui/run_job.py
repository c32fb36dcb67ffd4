"""`watchroom job run|resume`: one worker agent over each row of a table, to the end."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.channel.client import ClientError
from core.config import Settings
from core.domain.commands import ContinueJob, ResumeSwarm, RunJob
from core.domain.state import JobState
from core.safety.text import clean, clean_line
from core.store.errors import NotFound, StoreError
from tui import exits, headless, reading, setup, signals
from tui.job_follow import MEANS, Run, close, follow, judge, say
from tui.owners import owner, owner_text
from tui.run_agent import author_of, failed
from tui.setup import Connect, own_engine

if TYPE_CHECKING:
    from core.store.readers import Reader

JOB_SOURCE = "job"
"""What a swarm says it comes from that a job's run made."""

MAX_FILE_BYTES = 1024 * 1024


def run(args: Namespace, engine: Connect | None = None) -> int:
    command = command_of(args)
    if args.dry_run:
        return dry_run(args, command)
    settings = setup.headless(setup.settings_of(args))
    command = _in_folder(command, settings)
    so_far = Run()

    async def main() -> int:
        async with (engine or own_engine("job"))(settings) as client:
            reply = headless.accepted(await client.send(command))
            so_far.swarm, so_far.job = str(reply.value["swarm"]), str(reply.value["job"])
            return await follow(client, so_far, args.progress)

    return told(settings, main, so_far, json=args.json)


def told(settings: Settings, main: Callable[[], Coroutine[Any, Any, int]], so_far: Run, *, json: bool) -> int:
    """Run `main` to its end, however that comes, and print what is known then: the last words, and the job as
    JSON or the path of its CSV."""
    code: int | None = None
    try:
        code = signals.run(main)
    finally:
        close(so_far, code)
    if json and so_far.job:
        reading.print_json(reading.read(settings, lambda reader: reader.job(so_far.job)))
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
    if (args.input is None) == (args.glob is None):
        raise exits.Quit(exits.USAGE, "give exactly one of INPUT and --glob")
    instruction = args.instruction
    if instruction.startswith("@"):
        instruction = _read(instruction[1:], "instruction")
    return RunJob(
        input_path=args.input or "",
        glob=args.glob,
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

    output, given, glob = command.output_path, command.input_path, command.glob
    if glob is not None and (glob.startswith("~") or Path.cwd() != settings.cwd):
        # The agents shall find what the rows name.
        glob = str(Path(glob).expanduser().absolute())
    return replace(
        command,
        cwd=str(settings.cwd),
        input_path=str(Path(given).expanduser().absolute()) if given else "",
        glob=glob,
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


# --- going on --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """A job as it was left, and where."""

    swarm: str
    job: JobState
    seq: int
    """Of its swarm's last stored event."""
    source: str
    server: str


def resume(args: Namespace) -> int:
    """In the engine that runs it, which is followed, else in one of its own."""
    settings = setup.settings_of(args, asks_model=False)
    author = author_of(args)
    try:
        left = _left(settings, args.id)
    except (NotFound, StoreError) as error:
        return failed(error, args.json)
    who = owner(settings.home, left.swarm)
    if left.job.ended or args.dry_run:
        return _no_resume(settings, left, who, args)
    so_far = Run(swarm=left.swarm, state=left.job, elsewhere=who is not None)
    proceed = ContinueJob(swarm=left.swarm, job=left.job.job, author=author)

    async def there() -> int:
        from core.channel.launch import engine_of

        async with engine_of(settings.home, left.swarm) as client:
            headless.accepted(await client.send(proceed))
            so_far.job = left.job.job
            return await follow(client, so_far, args.progress, after=left.seq)

    async def here() -> int:
        async with own_engine("job")(settings) as client:
            again = ResumeSwarm(swarm=left.swarm, unattended="refuse", author=author)
            headless.accepted(await client.send(again))
            so_far.job = left.job.job
            if left.job.paused_by not in ("", *MEANS):
                headless.accepted(await client.send(proceed))
            return await follow(
                client, so_far, args.progress, after=left.seq, whole=left.source != JOB_SOURCE
            )

    if who is not None:
        try:
            return told(settings, there, so_far, json=args.json)
        except ClientError as error:
            if so_far.job:
                raise
            return failed(error, args.json)  # busy is not absent
    if args.base_url is None and args.model is None:
        settings = setup.going_on(settings, left.server)
    if (missing := settings.missing()) is not None:
        raise exits.Quit(exits.USAGE, missing)
    settings = setup.headless(settings)
    return told(settings, here, so_far, json=args.json)


def _left(settings: Settings, ref: str) -> Left:
    async def look(reader: Reader) -> dict[str, Any]:
        swarm, job = await reader.job_state(ref)
        state = await reader.load_state(swarm)
        return {"left": Left(swarm, job, state.seq, state.source, state.server)}

    found: Left = reading.read(settings, look)["left"]
    return found


def _no_resume(settings: Settings, left: Left, who: dict[str, Any] | None, args: Namespace) -> int:
    """The job has ended, or it is only asked what would happen."""
    job, short = left.job, left.job.job[:8]
    if args.json and not args.dry_run:
        reading.print_json(reading.read(settings, lambda reader: reader.job(job.job)))
    elif args.json:
        reading.print_json(
            {
                "job_id": job.job,
                "swarm": left.swarm,
                "status": job.status,
                "changed": False,
                "dry_run": True,
                "rows": 0 if job.ended else job.pending + job.running,
                "engine": who,
            }
        )
    if job.ended:
        hint = f"; failed rows go back into its queue with: watchroom job retry {short}" if job.failed else ""
        say(f"job {short} has ended: it is {job.status}{hint}")
        return exits.OK if args.dry_run else judge(Run(state=job))
    if not args.json:
        where = f"in the engine that runs it ({owner_text(who)})" if who else "in an engine of its own"
        print(f"job {short} would go on {where}: {job.pending + job.running} of {job.total} rows are left")
    return exits.OK


# --- without running -------------------------------------------------------------------------------------


def dry_run(args: Namespace, command: RunJob) -> int:
    """Read and check everything, show what row 1 would be told and what would be written. Stores nothing."""
    from core.jobs.globs import read_glob
    from core.jobs.prompt import first_message
    from core.jobs.schema import check_schema
    from core.jobs.table import read_table
    from core.jobs.template import Template

    settings = setup.settings_of(args, asks_model=False)
    command = _in_folder(command, settings)
    if command.glob is not None:
        found = read_glob(command.glob, settings.cwd, id_column=command.id_column)
    else:
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
        reading.print_json(
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
