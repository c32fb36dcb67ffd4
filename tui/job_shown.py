"""`watchroom job list|show|rows`: what the store knows of jobs; a busy engine is never disturbed."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from core.safety.text import clean_line, shorten
from tui import exits, reading, setup, signals
from tui.progress import duration
from tui.table import cost_cell, moment, show

if TYPE_CHECKING:
    from core.store.readers import Reader

SHOWN_GROUPS = 10
SHOWN_CHARS = 200
"""Of a result or an error in a table."""


def show_list(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    found = reading.read(settings, lambda reader: reader.jobs())
    if args.json:
        reading.print_json(found)
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
    if args.json:
        reading.print_json(reading.read(settings, lambda reader: reader.job(args.id)))
        return exits.OK

    async def look(reader: Reader) -> dict[str, Any]:
        job = await reader.job(args.id)
        return {**job, "groups": await reader.failure_groups(job["job_id"], SHOWN_GROUPS)}

    found = reading.read(settings, look)
    groups = found.pop("groups")
    width = max(len(key) for key in found)
    facts = {
        **found,
        "eta_seconds": duration(found["eta_seconds"]) if found["eta_seconds"] is not None else None,
        "created_at": moment(found["created_at"]),
        "tokens": (found["tokens"] or {}).get("total"),
        "cost": cost_cell(found),
    }
    for key in ("cost_partial", "failed_item_errors"):
        del facts[key]
    for key, value in facts.items():
        name = {"eta_seconds": "eta"}.get(key, key.replace("_", " "))
        shown = "–" if value is None or value == "" else clean_line(str(value))
        print(f"{name:{width}}  {shown}")
    for group in groups:
        print(f"failed  {clean_line(_group(group))}")
    if left := found["failed_items"] - sum(group["rows"] for group in groups):
        print(f"failed  {left} more: watchroom job rows {found['job_id'][:8]} --status failed")
    return exits.OK


def _group(group: dict[str, Any]) -> str:
    """`row-2: why` for one row, `12 rows, the first row-2: why` for several that say the same."""
    count, first = group["rows"], group["first"]
    who = first if count == 1 else f"{count} rows, the first {first}"
    return f"{who}: {group['message'] or ''}"


def show_rows(args: Namespace) -> int:
    settings = setup.settings_of(args, asks_model=False)
    rows: list[dict[str, Any]] = []

    async def main() -> int:
        from core.store.readers import Reader

        async with (
            Reader.open(settings.home) as reader,
            aclosing(reader.job_rows(args.id, args.status)) as found,
        ):
            if args.json:
                await reading.print_json_list("rows", found)
                return exits.OK
            async for row in found:
                rows.append(_row(row))
        return exits.OK

    if (code := signals.run(main)) or args.json:
        return code
    if not rows:
        print(f"no rows with status {args.status}" if args.status else "no rows", file=sys.stderr)
        return exits.OK
    columns = (
        ("item", "row"),
        ("status", "status"),
        ("tries", "tries"),
        ("took", "time"),
        ("tokens", "tokens"),
        ("said", "result or error"),
    )
    show(columns, rows, gives_way=("tokens", "took"), last=40)
    return exits.OK


def _row(row: dict[str, Any]) -> dict[str, Any]:
    tried = row["attempts"]
    last = tried[-1] if tried else None
    used = [attempt["tokens"] for attempt in tried if attempt["tokens"] is not None]
    said = row["last_error"]
    if row["status"] == "completed":
        import msgspec

        said = msgspec.json.encode(row["result"]).decode("utf-8", "replace")
    return {
        "item": row["item_id"],
        "status": row["status"],
        "tries": len(tried),
        "took": _took(last),
        "tokens": sum(used) if used else None,
        "said": shorten(clean_line((said or "")[: 4 * SHOWN_CHARS]), SHOWN_CHARS),
    }


def _took(attempt: dict[str, Any] | None) -> str | None:
    """How long the last attempt was at work, in its end."""
    if attempt is None or not attempt["started_at"] or not attempt["ended_at"]:
        return None
    began, ended = (datetime.fromisoformat(attempt[key]) for key in ("started_at", "ended_at"))
    return f"{(ended - began).total_seconds():.1f}s"
