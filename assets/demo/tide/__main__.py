"""`python -m tide LOG [--day YYYY-MM-DD] [--unit m|ft]`: print a day's report."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from tide.log import LogError, read_log
from tide.report import daily_report


def main() -> int:
    parser = argparse.ArgumentParser(prog="tide")
    parser.add_argument("log", type=Path)
    parser.add_argument("--day", type=date.fromisoformat)
    parser.add_argument("--unit", choices=["m", "ft"], default="m")
    args = parser.parse_args()
    try:
        levels = read_log(args.log)
    except (LogError, OSError) as error:
        print(f"tide: {error}", file=sys.stderr)
        return 1
    day = args.day or levels[-1].at.date()
    print(daily_report([level for level in levels if level.at.date() == day], day, args.unit))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
