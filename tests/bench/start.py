"""How long the command takes to start: `--version`, `--help`, and the console's first full frame on a pty.

    .venv/bin/python -m tests.bench.start [--runs 15] [--out FILE]

Beside them, in the same run: an empty interpreter, and the smallest Textual app that fills its screen.
Figures are medians in milliseconds (wall, and user + system CPU of the process). JSON on stdout.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import resource
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyte

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = (45, 160)
LIMIT_SECONDS = 20.0
FRAME_SECONDS = 1.5
"""How long after the first byte the first frame must be there."""
HEAVY = (
    "textual",
    "rich",
    "asyncio",
    "httpx",
    "aiohttp",
    "polars",
    "pydantic",
    "aiosqlite",
    "msgspec",
    "core.engine.engine",
)
ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
SMALLEST = """
from textual.app import App, ComposeResult
from textual.widgets import Static
class Smallest(App):
    def compose(self) -> ComposeResult:
        yield Static("ready " * 2000)
Smallest().run()
"""


def ran(words: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command that ends by itself."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, env=env, cwd=env["HOME"], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    return wall, cpu_since(before)


def cpu_since(before: resource.struct_rusage) -> float:
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def first_frame(
    words: list[str], env: dict[str, str], full: Callable[[list[str]], bool]
) -> tuple[float, float]:
    """Wall seconds from exec until what came makes a full frame, and the process's CPU by then."""
    started = time.perf_counter()
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(env["HOME"])
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        os.execve(words[0], words, env)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
    try:
        chunks = record(fd, pid, started)
    finally:
        os.kill(pid, signal.SIGTERM)
        drain(fd)
        os.waitpid(pid, 0)
        os.close(fd)
    screen = pyte.Screen(SIZE[1], SIZE[0])
    stream = pyte.ByteStream(screen)
    for wall, cpu, data in chunks:
        stream.feed(data)
        if full(screen.display):
            return wall, cpu
    raise SystemExit("no full frame:\n" + "\n".join(screen.display))


def record(fd: int, pid: int, started: float) -> list[tuple[float, float, bytes]]:
    """What came, when, and the CPU used by then. Read at once and looked at later: a terminal that is slow to
    take bytes would slow the program down."""
    chunks: list[tuple[float, float, bytes]] = []
    end = LIMIT_SECONDS
    while (left := end - (time.perf_counter() - started)) > 0:
        if not select.select([fd], [], [], left)[0]:
            break
        try:
            data = os.read(fd, 1 << 16)
        except OSError:
            break
        wall = time.perf_counter() - started
        if not chunks:
            end = wall + FRAME_SECONDS
        chunks.append((wall, cpu_of(pid), data))
    return chunks


def drain(fd: int) -> None:
    """Read until the program has gone: it restores the terminal first, and must not block on that."""
    try:
        while select.select([fd], [], [], 5.0)[0] and os.read(fd, 1 << 16):
            pass
    except OSError:
        return


def cpu_of(pid: int) -> float:
    """User + system seconds of a running process; Linux only, else 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def imported(words: list[str], env: dict[str, str]) -> dict[str, object]:
    script = (
        f"import json, sys; from tui.cli import main; main({words!r});"
        f"print(json.dumps([len(sys.modules), [m for m in {HEAVY!r} if m in sys.modules]]), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=env["HOME"], capture_output=True, text=True, check=True
    )
    count, heavy = json.loads(run.stderr.splitlines()[-1])
    return {"modules": count, "heavy": heavy}


def console_is_up(lines: list[str]) -> bool:
    """Head line, tree and key line are painted."""
    return "SWARM" in lines[0] and any("AGENTS" in text for text in lines) and "help" in "".join(lines[-3:])


def smallest_is_up(lines: list[str]) -> bool:
    return "ready" in lines[0]


def median(samples: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*samples, strict=True)
    return {
        "wall_ms": round(statistics.median(wall) * 1000, 1),
        "cpu_ms": round(statistics.median(cpu) * 1000, 1),
        "wall_min_ms": round(min(wall) * 1000, 1),
        "wall_max_ms": round(max(wall) * 1000, 1),
    }


def measure(runs: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as home:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "WATCHROOM_HOME": home,
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
        }
        python = sys.executable
        cases: dict[str, Callable[[], tuple[float, float]]] = {
            "python -c pass": lambda: ran([python, "-c", "pass"], env),
            "watchroom --version": lambda: ran([python, "-c", ENTRY, "--version"], env),
            "watchroom --help": lambda: ran([python, "-c", ENTRY, "--help"], env),
            "smallest Textual app, first frame": lambda: first_frame(
                [python, "-c", SMALLEST], env, smallest_is_up
            ),
            "watchroom demo, first frame": lambda: first_frame(
                [python, "-c", ENTRY, "demo"], env, console_is_up
            ),
        }
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for round_number in range(runs + 1):  # the first round warms the page cache and the bytecode
            for name, case in cases.items():
                taken = case()
                if round_number:
                    samples[name].append(taken)
        return {
            "benchmark": "start",
            "runs": runs,
            "terminal": {"rows": SIZE[0], "columns": SIZE[1]},
            "median": {name: median(taken) for name, taken in samples.items()},
            "imports": {
                "watchroom --version": imported(["--version"], env),
                "watchroom --help": imported(["--help"], env),
            },
            "machine": {
                "python": platform.python_version(),
                "system": f"{platform.system()} {platform.machine()}",
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 2),
                "textual": version("textual"),
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to start.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(measure(max(args.runs, 1)), indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
