"""`watchroom job pause|cancel|retry|skip|set|export`: steer one job, and answer what changed (decision 46).

An engine that runs the job's swarm carries the command out; where none lives, it is written to the store.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from core.channel.client import ClientError
from core.clock import Clock, SystemClock
from core.config import Settings
from core.domain.commands import CancelJob, PauseJob, Reply, RetryRows, SetJob, SkipRows
from core.domain.state import JobState
from core.safety.text import clean, clean_line
from core.store.errors import NotFound, Owned, StoreError
from core.store.readers import Reader
from tui import exits, reading, setup, signals
from tui.owners import owner
from tui.run_agent import Refused, author_of, failed

PATIENCE_SECONDS = 5.0
"""How long another verb's write is waited for."""
LOOK_SECONDS = 0.05
Steer = PauseJob | CancelJob | RetryRows | SkipRows | SetJob


@dataclass(frozen=True)
class Result:
    """What one command did."""

    before: JobState
    after: JobState
    value: dict[str, Any]
    dry_run: bool
    engine: dict[str, Any] | None
    """Who runs the swarm; None: nobody, it was written to the store."""

    @property
    def short(self) -> str:
        return self.before.job[:8]

    @property
    def changed(self) -> bool:
        return bool(self.value.get("changed"))


def pause(args: Namespace) -> int:
    return _steer(args, lambda who: PauseJob(**who), _paused)


def cancel(args: Namespace) -> int:
    return _steer(args, lambda who: CancelJob(**who), _cancelled)


def retry(args: Namespace) -> int:
    if args.failed and args.row:
        raise exits.Quit(exits.USAGE, "--failed means all failed rows: leave out --row")
    return _steer(args, lambda who: RetryRows(**who, items=tuple(args.row)), _retried)


def skip(args: Namespace) -> int:
    return _steer(args, lambda who: SkipRows(**who, items=tuple(args.row)), _skipped)


def change(args: Namespace) -> int:
    wanted = args.max_concurrency
    return _steer(args, lambda who: SetJob(**who, max_concurrency=wanted), lambda it: _resized(it, wanted))


def _steer(
    args: Namespace, make: Callable[[dict[str, Any]], Steer], lines: Callable[[Result], list[str]]
) -> int:
    settings = setup.settings_of(args, asks_model=False)
    author = author_of(args)
    results: list[Result] = []

    async def main() -> int:
        async with Reader.open(settings.home) as reader:
            swarm, before = await reader.job_state(args.id)
            who = {"swarm": swarm, "job": before.job, "author": author, "dry_run": args.dry_run}
            reply, engine = await _carry_out(settings, make(who))
            if not reply.ok:
                raise Refused(reply)
            _, after = await reader.job_state(before.job)
            results.append(Result(before, after, reply.value, args.dry_run, engine))
        return exits.OK

    try:
        if code := signals.run(main):
            return code
    except (Refused, ClientError, NotFound, StoreError) as error:
        return failed(error, args.json)
    if args.json:
        reading.print_json(_json(results[0]))
    else:
        for line in lines(results[0]):
            print(clean_line(line))
    return exits.OK


async def _carry_out(settings: Settings, command: Steer) -> tuple[Reply, dict[str, Any] | None]:
    """The reply, and who runs the swarm. An engine that lives and does not answer is an error, never taken
    for one that does not live. Raises ClientError or StoreError."""
    from core.channel.launch import engine_of
    from core.store.locks import VERB, owner_alive

    clock = SystemClock()
    until = clock.monotonic() + PATIENCE_SECONDS
    while clock.monotonic() < until:
        if not await asyncio.to_thread(owner_alive, settings.home, command.swarm):
            try:
                return await _in_store(settings, command, clock), None
            except Owned:
                pass  # somebody has come since we looked
        who = owner(settings.home, command.swarm)
        if who is not None and who["kind"] != VERB:
            break
        await clock.sleep(LOOK_SECONDS)  # another verb writes, for a moment
    async with engine_of(settings.home, command.swarm) as client:
        reply = await client.send(command)
    return reply, owner(settings.home, command.swarm)


async def _in_store(settings: Settings, command: Steer, clock: Clock) -> Reply:
    import os

    from core.engine.offline import steer_ownerless
    from core.safety.redact import Redactor

    redact = Redactor(os.environ, [settings.api_key_env])
    return await steer_ownerless(settings.home, command, clock=clock, redact=redact)


# --- what is said ----------------------------------------------------------------------------------------


def _json(result: Result) -> dict[str, Any]:
    facts = {
        "rows": result.value.get("rows"),
        "running_items": result.value.get("running"),
        "max_concurrency": result.value.get("concurrency"),
    }
    return {
        "job_id": result.before.job,
        "status": result.after.status,
        "changed": result.changed,
        "dry_run": result.dry_run,
        **{name: value for name, value in facts.items() if value is not None},
        "engine": result.engine,
    }


def _paused(result: Result) -> list[str]:
    running = result.value["running"]
    rest = f"; {_rows(running)} at work {_verb(running, 'goes', 'go')} on to the end" if running else ""
    if result.changed:
        return [f"job {result.short} is paused{rest}", f"go on with: watchroom job resume {result.short}"]
    if result.value["could"] and result.dry_run:
        return [f"job {result.short} would be paused{rest}"]
    job = result.before
    by = f" by {job.paused_by}" if job.paused_by else ""
    return [_nothing(result, f"is paused already{by}" if job.status == "paused" else _ended(job))]


def _cancelled(result: Result) -> list[str]:
    running = result.value["running"]
    stopped = f"; {_rows(running)} at work {_verb(running, 'is', 'are')} stopped" if running else ""
    if result.changed:
        done = "is cancelled" if result.after.ended else "is being cancelled"
        return [
            f"job {result.short} {done}{stopped}",
            f"what is done so far: watchroom job export {result.short}",
        ]
    if result.value["could"] and result.dry_run:
        return [f"job {result.short} would be cancelled{stopped}"]
    if result.after.cancelling:
        return [_nothing(result, "is being cancelled already")]
    return [_nothing(result, _ended(result.after) if result.after.ended else "is ending already")]


def _retried(result: Result) -> list[str]:
    rows = result.value["rows"]
    if not rows:
        return [_nothing(result, "has no failed rows")]
    if result.dry_run:
        return [f"{_rows(rows)} of job {result.short} would go back into its queue"]
    lines = [f"{_rows(rows)} of job {result.short} {_verb(rows, 'is', 'are')} back in its queue"]
    if result.engine is None or result.after.status == "paused":
        lines.append(f"run {_verb(rows, 'it', 'them')} with: watchroom job resume {result.short}")
    return lines


def _skipped(result: Result) -> list[str]:
    rows = result.value["rows"]
    would = "would be" if result.dry_run else _verb(rows, "is", "are")
    return [f"{_rows(rows)} of job {result.short} {would} skipped"]


def _resized(result: Result, wanted: int) -> list[str]:
    now, before = result.value["concurrency"], result.before.concurrency
    capped = f"; its swarm has no slots for {wanted}" if now < wanted else ""
    if result.changed:
        return [f"job {result.short} works on {_rows(now)} side by side, not {before} any more{capped}"]
    if result.before.ended:
        return [_nothing(result, _ended(result.before))]
    if now == before:
        return [_nothing(result, f"works on {_rows(now)} side by side already{capped}")]
    return [f"job {result.short} would work on {_rows(now)} side by side, not {before} any more{capped}"]


def _nothing(result: Result, why: str) -> str:
    return f"nothing to do for job {result.short}: it {why}"


def _ended(job: JobState) -> str:
    return f"has ended: {job.status}"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


# --- export ----------------------------------------------------------------------------------------------


def export(args: Namespace) -> int:
    """At any moment, from the store alone: an engine at work is not disturbed."""
    settings = setup.settings_of(args, asks_model=False)
    written: dict[str, Any] = {}

    async def main() -> int:
        from core.jobs.export import Format, export_job
        from core.store.job_reads import JobReads

        async with Reader.open(settings.home) as reader:
            jobs = JobReads(reader, SystemClock())
            _, job = await reader.job_state(args.id)
            output = _target(args, job)
            rows = await export_job(
                jobs, job.job, output, format=cast("Format", args.format), raw=True if args.raw else None
            )
            written.update(job_id=job.job, output_path=str(output), format=args.format, rows=rows)
        return exits.OK

    from core.jobs.errors import ExportError

    try:
        if code := signals.run(main):
            return code
    except (ExportError, NotFound, StoreError) as error:
        return failed(error, args.json)
    if args.json:
        reading.print_json(written)
    else:
        print(clean(written["output_path"]))
    return exits.OK


def _target(args: Namespace, job: JobState) -> Path:
    """Where to: what was asked for, else where the job's own output is, with the ending of the format."""
    if args.output is not None:
        return Path(args.output).expanduser().absolute()
    if job.output_path is not None:
        output = Path(job.output_path)
    else:
        from core.jobs.request import default_output

        output = default_output(Path(job.input_path), job.job)
    return output if args.format == "csv" else output.with_suffix(f".{args.format}")
