"""`watchroom resume` without a console: what was killed goes on, and the verb ends when nothing does."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.core.test_engine import reporting
from tests.tui.terminal import ROOT
from tui import exits

ENTRY = "import sys; from tui.cli import main; sys.exit(main())"
ROWS = 12


def environment(home: Path) -> dict[str, str]:
    unset = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "ACCESSIBLE", "COLUMNS", "LINES"), "")
    return {**os.environ, **unset, "WATCHROOM_HOME": str(home)}


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words],
        env=environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=40,
    )


def test_a_job_run_that_was_killed_is_ended_by_resume(tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "in.csv"
    source.write_text("n\n" + "".join(f"{n}\n" for n in range(ROWS)))
    (tmp_path / "slow.toml").write_text("chunk_chars = 200\n" + reporting(400))
    model = ("--base-url", f"scripted:{tmp_path / 'slow.toml'}")
    words = ["job", "run", str(source), "--instruction", "Do {n}.", "--output", str(tmp_path / "out.csv")]
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words, "--max-concurrency", "2", "--progress", "lines", *model],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            done = 0
            while done < 1:
                line = process.stderr.readline()
                assert line, "it ended by itself"
                done = int(found[1]) if (found := re.search(rf"\] (\d+)/{ROWS} ", line)) else done
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / "out.csv").exists()
    ran = run(home, "resume", "--plain", *model)
    assert ran.returncode == exits.OK, ran.stderr
    assert "swarm resumed" in ran.stdout
    assert "swarm started" not in ran.stdout
    assert f"{ROWS} of {ROWS} rows done, 0 failed" in ran.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["n"], row["status"], row["attempt_count"]) for row in rows] == [
        (str(n), "completed", "1") for n in range(ROWS)
    ]
    # There is nothing to go on with now, and it says so by ending.
    again = run(home, "resume", "--plain", *model)
    assert again.returncode == exits.OK, again.stderr
