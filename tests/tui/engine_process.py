"""An engine in a process of its own, that listens, with a swarm that stands still in the middle of its work.

`python -m tests.tui.engine_process HOME KIND` prints one line {"swarm", "thread", "pid"} when every agent
has come as far as it will, and ends in order when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SCENARIO = """
[[agents]]
path = "/root"
[[agents.steps]]
calls = [
  { name = "spawn_agent", arguments = { task_name = "audit", message = "Look." } },
  { name = "spawn_agent", arguments = { task_name = "quick", message = "Be quick." } },
]
[[agents.steps]]
calls = [{ name = "wait_agent", arguments = { targets = ["audit"], mode = "all", timeout_ms = 3600000 } }]
[[agents.steps]]
text = "All is well."
[[agents]]
path = "/root/audit"
[[agents.steps]]
calls = [{ name = "spawn_agent", arguments = { task_name = "deep", message = "Dig." } }]
[[agents.steps]]
calls = [{ name = "wait_agent", arguments = { targets = ["deep"], timeout_ms = 3600000 } }]
[[agents.steps]]
text = "Looked."
[[agents]]
path = "/root/quick"
[[agents.steps]]
text = "Quick."
[[agents]]
path = "*"
[[agents.steps]]
text = "never said"
fault = { kind = "hang", times = 0 }
"""
STILL = {
    "/root": "running",
    "/root/audit": "running",
    "/root/audit/deep": "running",
    "/root/quick": "completed",
}
"""Statuses by path when nothing moves any more."""


@contextmanager
def engine_with_swarm(home: Path, kind: str = "exec") -> Iterator[dict[str, Any]]:
    """What the process says about itself. It is ended at the end, however that comes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "WATCHROOM"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tui.engine_process", str(home), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        process.communicate(timeout=20)


def main(home: str, kind: str) -> None:
    from core.config import load_settings

    folder = Path(home)
    folder.mkdir(parents=True, exist_ok=True)
    scenario = folder / "still.toml"
    scenario.write_text(SCENARIO)
    settings = load_settings(home=home, options={"base_url": f"scripted:{scenario}"}, cwd=home)
    asyncio.run(_run(settings, kind))


async def _run(settings: Any, kind: str) -> None:
    from core.channel.host import host_engine
    from core.domain.apply import apply
    from core.domain.commands import Batch, Snapshot, StartSwarm

    async with host_engine(settings, kind=kind) as client:
        reply = await client.send(StartSwarm(task="Look at it.", cwd=str(settings.cwd), title="still"))
        assert reply.ok, reply.error
        state = None
        async with client.subscribe(reply.value["swarm"]) as feed:
            async for item in feed:
                if isinstance(item, Snapshot):
                    state = item.state
                elif isinstance(item, Batch) and state is not None:
                    for event in item.events:
                        apply(state, event)
                if state is not None and _still(state):
                    break
        print(json.dumps({**reply.value, "pid": os.getpid()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def _still(state: Any) -> bool:
    waits = {agent.path: agent.wait.reason for agent in state.agents.values() if agent.wait is not None}
    return {agent.path: agent.status for agent in state.agents.values()} == STILL and waits == {
        "/root": "agents",
        "/root/audit": "agents",
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
