"""The README's picture: the real console on the real demo swarm, as SVG.

    python -m tests.tui.picture [FILE]

Approves what the demo asks, waits until the job has ended, and writes what the console shows then.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from datetime import UTC
from pathlib import Path

from textual.pilot import Pilot

from core.channel.local import open_engine
from core.config import load_settings
from core.domain.commands import StartSwarm
from core.domain.state import SwarmState
from tui.app import WatchroomApp
from tui.run_demo import FOLDER, TASK

DEFAULT = Path(__file__).parents[2] / "assets" / "console.svg"
SIZE = (160, 45)


async def until(pilot: Pilot[object], app: WatchroomApp, condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition(app.view.state):
            await pilot.pause(0.1)


async def picture(scratch: Path) -> str:
    folder = scratch / "demo"
    shutil.copytree(FOLDER, folder)
    settings = load_settings(
        options={"base_url": "scripted:demo"}, home=scratch / "home", cwd=folder, environ={}
    )
    start = StartSwarm(task=TASK, cwd=str(folder), title="demo", source="demo")
    app = WatchroomApp(lambda: open_engine(settings), start, tz=UTC)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, app, lambda state: bool(state.approvals))
        await pilot.pause(0.5)
        await pilot.press("a")
        await until(pilot, app, job_under_way)
        await pilot.pause(0.6)
        return app.export_screenshot(title="watchroom demo")


def job_under_way(state: SwarmState) -> bool:
    return any(0 < job.completed < job.total for job in state.jobs.values())


def without_fonts(svg: str) -> str:
    """No address of anybody's in the file: the viewer's own monospace font does."""
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    with tempfile.TemporaryDirectory() as scratch:
        target.write_text(without_fonts(asyncio.run(picture(Path(scratch)))))


if __name__ == "__main__":
    main()
