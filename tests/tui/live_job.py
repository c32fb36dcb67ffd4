"""A `job run` in a process of its own, whose rows come to an end when the test lets them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_SECONDS = 30.0
COMMAND = "echo up > up.fifo; dd bs=1 count=1 status=none < go.fifo; echo done"
SCENARIO = f"""
[[agents]]
path = "*/job_*"
[agents.captures]
job = {{ in = "first", match = '^Job ID: (.+)$' }}
item = {{ in = "first", match = '^Item ID: (.+)$' }}
[[agents.steps]]
calls = [{{ name = "exec_command", arguments = {{ cmd = "{COMMAND}" }} }}]
[[agents.steps]]
[[agents.steps.calls]]
name = "report_agent_job_result"
arguments = {{ job_id = "{{job}}", item_id = "{{item}}", result = {{ ok = true }} }}
"""


class Gate:
    """Each worker's command says on one pipe that it runs, and reads a byte of another before it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "worker.toml").write_text(SCENARIO)
        self._pipes = []
        for name in ("up.fifo", "go.fifo"):
            os.mkfifo(folder / name)
            # For reading and writing: neither side ever waits for the other to open it.
            self._pipes.append(os.open(folder / name, os.O_RDWR | os.O_NONBLOCK))
        self._seen = b""

    def wait_for(self, workers: int) -> None:
        """Until so many more commands run."""
        up, _ = self._pipes
        while self._seen.count(b"\n") < workers:
            assert select.select([up], [], [], PATIENCE_SECONDS)[0], f"of {workers}: {self._seen!r}"
            self._seen += os.read(up, 4096)
        self._seen = self._seen.split(b"\n", workers)[-1]

    def let(self, rows: int) -> None:
        os.write(self._pipes[1], b"." * rows)

    def close(self) -> None:
        self.let(1000)  # so that no command waits for ever
        for pipe in self._pipes:
            os.close(pipe)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--base-url", f"scripted:{self.folder}/worker.toml", "--approval-policy", "never")


@contextmanager
def watchroom(*words: str | Path, home: Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A verb in a process of its own, that is gone in the end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "WATCHROOM"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tui", *map(str, words), "--home", str(home)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**env, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=PATIENCE_SECONDS)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, err.splitlines()
