"""`watchroom scripted-server`: the offline model as a Responses server on this machine."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import TYPE_CHECKING

from core.clock import SystemClock
from tui import exits, signals

if TYPE_CHECKING:
    from core.scripted.scenario import Scenario

HOST = "127.0.0.1"


def run(args: Namespace) -> int:
    from core.scripted.scenario import ScenarioError, load_scenario

    try:
        scenario = load_scenario(args.scenario)
    except ScenarioError as error:
        raise exits.Quit(exits.USAGE, str(error)) from None
    return signals.run(lambda: _serve(scenario, args.port))


async def _serve(scenario: Scenario, port: int) -> int:
    from core.scripted.server import serve

    try:
        async with serve(scenario, host=HOST, port=port, clock=SystemClock()) as server:
            print(server.base_url, flush=True)
            await asyncio.Event().wait()
    except OSError as error:
        reason = error.strerror or str(error)
        raise exits.Quit(exits.ERROR, f"port {port} of {HOST} cannot be served: {reason}") from None
    return exits.OK
