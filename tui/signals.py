"""Ctrl-C, SIGTERM and SIGHUP at any moment: no traceback, no orphan, 128 + the signal's number.

Before there is an engine the process leaves on the spot: it holds nothing yet. While one runs, the first
signal cancels the main task, which takes the engine down in order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_SECONDS = 10.0
"""How long shutting down may take before one more signal leaves at once."""

_Handler = Callable[[int, FrameType | None], object]


def leave_at_once() -> None:
    """From now on a signal ends the process on the spot."""
    _install(lambda signum, _: os._exit(128 + signum))


def _install(handler: _Handler) -> None:
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, and background jobs of a shell
            signal.signal(signum, handler)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run `main` on a loop of its own. A signal cancels it; then the result is 128 + the signal's number."""
    import asyncio

    stopper = _Stopper()

    async def guarded() -> int:
        stopper.watch(asyncio.get_running_loop(), asyncio.current_task())
        try:
            return await main()
        except asyncio.CancelledError:
            if stopper.signum is None:
                raise
            return 128 + stopper.signum
        except Exception as error:
            if stopper.signum is None:
                raise
            raise Signalled(128 + stopper.signum) from error

    try:
        with asyncio.Runner() as runner:
            return runner.run(guarded())
    finally:
        leave_at_once()


class Signalled(Exception):
    """A signal ended the run, and shutting down failed as `__cause__` says."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - 128}")
        self.code = code


class _Stopper:
    def __init__(self) -> None:
        self.signum: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._since = 0.0

    def watch(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        self._loop, self._task = loop, task
        _install(self._stop)

    def _stop(self, signum: int, _: FrameType | None) -> None:
        assert self._loop is not None
        assert self._task is not None
        now = self._loop.time()
        if self.signum is None:
            self.signum, self._since = signum, now
            self._loop.call_soon_threadsafe(self._task.cancel)
        elif now - self._since > PATIENCE_SECONDS:
            os._exit(128 + signum)
