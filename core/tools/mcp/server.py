"""One server: started, watched and ended by one task; called by any agent of the swarm."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from core.clock import Clock
from core.config import McpSettings
from core.safety.text import clean, clean_line, is_clean, shorten
from core.tools.environment import listed, search_path
from core.tools.mcp.errors import CLOSED, Disconnected, McpError
from core.tools.mcp.offers import Offer, check, show

INSTALL = "MCP servers need the package mcp, which is not installed: pip install 'watchroom[mcp]'"
NOT_RESTARTED = "it is not restarted while the swarm runs"
MAX_QUESTIONS = 4
"""Questions of one server that wait for an operator at once; more are declined."""
MAX_NOTES = 3

State = Literal["starting", "ready", "failed", "ended"]
_T = TypeVar("_T")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is. `detail`: why it failed or ended, or what is wrong with what it offers."""

    server: str
    state: State
    detail: str = ""
    tools: int = 0
    required: bool = False
    seconds: float | None = None
    """How long its start-up took; None while it starts."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a server wants to know from an operator. All text is cleaned, and none of it is to be trusted."""

    server: str
    message: str
    schema: dict[str, Any]
    """JSON Schema of a flat object: the form's fields."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    action: Literal["accept", "decline", "cancel"]
    content: dict[str, Any] | None = None
    """The form's values, for accept."""
    reason: str = ""
    """Why it was declined; told to the model whose call it was for."""


Elicit = Callable[[Question], Awaitable[Reply]]
Blocked = Callable[[str], contextlib.AbstractAsyncContextManager[None]]
NOBODY = "nobody can be asked in this run"
NO_CALL = "no call of its tools was running any more"


class McpServer:
    """`run` it in a task of its own; `ready()` tells when it has started; `stop` ends it."""

    def __init__(
        self,
        name: str,
        settings: McpSettings,
        *,
        cwd: Path,
        environment: Mapping[str, str],
        clock: Clock,
        elicit: Elicit | None,
        on_status: Callable[[Status], None],
    ) -> None:
        self.name = show(name)
        self.settings = settings
        self.offers: dict[str, Offer] = {}
        """What it offered when it started, by its own names, after the allow and deny lists."""
        self.problems: list[str] = []
        """What is wrong with what it offers, a sentence each."""
        self.status = Status(server=self.name, state="starting", required=settings.required)
        self._cwd = cwd
        self._environment = environment
        self._clock = clock
        self._elicit = elicit
        self._on_status = on_status
        self._connection: Any = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolved with the reason when the connection is lost; with "" by `stop`."""
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = False
        self._current: dict[str, str] = {}
        """The digests of what it offers by now."""
        self._turn = asyncio.Lock()
        self._asking = 0
        self._one_question = asyncio.Lock()
        self._question = ""
        """What an operator thinks about."""
        self._asked = asyncio.Event()
        """Set while an operator thinks about a question; `_answered` while nobody does."""
        self._answered = asyncio.Event()
        self._answered.set()
        self._called_now = 0
        """Calls that the server works on."""
        self._quiet = asyncio.Event()
        """Set while no call runs: nothing is asked then."""
        self._quiet.set()
        self._notes: list[list[str]] = []
        """One list per running call: what it should be told besides its answer."""

    # --- its life -----------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until it has started. Raises McpError if it does not."""
        await asyncio.shield(self._started)

    def stop(self) -> None:
        self._lost("")

    async def run(self) -> None:
        """The owner: starts the server, waits for its end, and leaves the conversation in the same task. Ends
        without an exception, but for a cancellation."""
        began = self._clock.monotonic()
        why = "it was stopped"
        try:
            async with contextlib.AsyncExitStack() as stack:
                module = await sdk()
                began = self._clock.monotonic()
                try:
                    async with self._clock.timeout(self.settings.startup_timeout_sec):
                        connection = await stack.enter_async_context(self._opened(module))
                        await self._take(await connection.list_tools())
                except TimeoutError:
                    raise McpError(
                        f"it did not start within {self.settings.startup_timeout_sec:g} s"
                        " (startup_timeout_sec sets how long it may take)"
                    ) from None
                self._connection = connection
                self._tell("ready", "; ".join(self.problems), self._clock.monotonic() - began)
                self._started.set_result(None)
                # Not awaited itself: if the connection breaks, this task is cancelled, and a future with it.
                await asyncio.wait({self._end})
                why = self._end.result() or why
        except asyncio.CancelledError:
            self._over(began, why)
            raise
        except Exception as error:
            self._over(began, self._why(error))
        else:
            self._over(began, why)

    def _over(self, began: float, why: str) -> None:
        self._connection = None
        if self._started.done():
            self._tell("ended", why, self.status.seconds)
        else:
            self._tell("failed", why, self._clock.monotonic() - began)
            self._started.set_exception(McpError(why))
            self._started.exception()  # whoever asks gets it again; nobody has to
        self._finished.set_result(None)

    def _tell(self, state: State, detail: str, seconds: float | None) -> None:
        self.status = Status(
            server=self.name,
            state=state,
            detail=shorten(detail, 1_000),
            tools=len(self.offers) if state == "ready" else 0,
            required=self.settings.required,
            seconds=None if seconds is None else round(seconds, 3),
        )
        self._on_status(self.status)

    def _why(self, error: BaseException) -> str:
        """The reason in a sentence: what the transport said, else the innermost error."""
        if self._end.done() and (said := self._end.result()) not in ("", CLOSED):
            return said
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, McpError):
            return str(error)
        text = shorten(clean_line(str(error)), 300)
        return f"{text} ({type(error).__name__})" if text else type(error).__name__

    def _lost(self, why: str) -> None:
        if not self._end.done():
            self._end.set_result(why)

    @contextlib.asynccontextmanager
    async def _opened(self, module: Any) -> AsyncIterator[Any]:
        settings = self.settings
        if (settings.command is None) == (settings.url is None):
            raise McpError("it needs either a command or a url")
        if settings.url is not None:
            transport = module.over_http(_checked(settings.url), self._clock, self._lost, self._lost)
            async with module.conversation(transport, self) as connection:
                yield connection
            return
        # Its module is light, but only reached from here.
        from core.tools.mcp.stdio import ServerProcess

        assert settings.command is not None
        process = await ServerProcess.start(
            [settings.command, *settings.args],
            cwd=self._folder(),
            env=self.environment(),
            clock=self._clock,
        )
        greeted = False
        try:
            transport = module.over_stdio(process, self._clock, self._lost)
            async with module.conversation(transport, self) as connection:
                greeted = True
                yield connection
        finally:
            # Who floods or hangs is not waited for.
            await process.aclose(kindly=greeted and not (self._end.done() and self._end.result()))

    def _folder(self) -> Path:
        return folder_of(self.settings, self._cwd)

    def environment(self) -> dict[str, str]:
        return environment_of(self.settings, self._environment)

    # --- its tools ----------------------------------------------------------------------------------------

    async def _take(self, tools: list[Any]) -> None:
        """What it offers at its start, after the lists of the settings."""
        offers, self.problems = await asyncio.to_thread(check, tools)
        self._current = {name: offer.digest for name, offer in offers.items()}
        wanted = self.settings.enabled_tools
        unknown = sorted({*(wanted or ()), *self.settings.disabled_tools} - offers.keys())
        if unknown:
            self.problems.append(f"it has no tool {', '.join(show(name) for name in unknown)}")
        self.offers = {
            name: offer
            for name, offer in offers.items()
            if (wanted is None or name in wanted) and name not in self.settings.disabled_tools
        }

    def tools_changed(self) -> None:
        self._changed = True

    async def _compare(self) -> None:
        """List its tools again after it said that they changed. What agents were told stays as it was."""
        self._changed = False
        offers, _ = await asyncio.to_thread(check, await self._connection.list_tools())
        self._current = {name: offer.digest for name, offer in offers.items()}
        if stale := [name for name, offer in self.offers.items() if self._current.get(name) != offer.digest]:
            shown = ", ".join(show(name) for name in stale[:10])
            self._tell("ready", f"it changed or removed {shown} since its start", self.status.seconds)

    def _refuse_stale(self, offer: Offer) -> None:
        digest = self._current.get(offer.tool)
        if digest is None:
            raise McpError(
                f"it no longer offers {show(offer.tool)},"
                " which was removed or renamed since the swarm started"
            )
        if digest != offer.digest:
            raise McpError(
                f"it changed what {show(offer.tool)} is since the swarm started, so that is no longer called"
            )

    # --- calls --------------------------------------------------------------------------------------------

    async def call(
        self, offer: Offer, arguments: dict[str, Any], progress: Any, blocked: Blocked
    ) -> tuple[Any, list[str]]:
        """mcp's `CallToolResult` and notes for the model. Raises McpError with a whole sentence. `blocked` is
        entered with what the call waits for, while that is an operator's answer."""
        turn = contextlib.nullcontext() if self.settings.supports_parallel_tool_calls else self._turn
        notes: list[str] = []
        self._notes.append(notes)
        self._quiet.clear()
        try:
            async with turn:
                return await self._limited(self._called(offer, arguments, progress), blocked), notes
        finally:
            # By identity: lists that are equal are not the same call's.
            self._notes = [other for other in self._notes if other is not notes]
            if not self._notes:
                self._quiet.set()

    async def _called(self, offer: Offer, arguments: dict[str, Any], progress: Any) -> Any:
        connection = self._connection
        if connection is None or self._end.done():
            raise McpError(self._gone())
        try:
            if self._changed:
                await self._compare()
            self._refuse_stale(offer)
            return await connection.call(offer.tool, arguments, progress)
        except Disconnected as error:
            if not (self._end.done() or connection.over):
                # Over HTTP one answer can be lost, and not the server.
                raise McpError(f"the MCP server {self.name}: {error}") from None
            if not self._end.done() or self._end.result() == CLOSED:
                # The owner is on its way out, and then knows why.
                await asyncio.wait({self._finished})
            raise McpError(self._gone()) from None
        except McpError as error:
            if self._end.done() and self._end.result() not in ("", CLOSED):
                # The transport knows better what an answer meant: that it wants a login, say.
                raise McpError(self._gone()) from None
            raise McpError(f"the MCP server {self.name}: {error}") from None

    def _gone(self) -> str:
        if self.status.state == "ended":
            why = self.status.detail
        else:
            why = self._end.result() if self._end.done() else ""
        return f"the MCP server {self.name} is gone: {why or 'it was stopped'}; {NOT_RESTARTED}"

    async def _limited(self, work: Awaitable[_T], blocked: Blocked) -> _T:
        """`work` within the call time-out. The time while an operator thinks about a question does not
        count. Cancelled or late, the work is cancelled too, which tells the server."""
        limit = left = self.settings.tool_timeout_sec
        task = asyncio.ensure_future(work)
        self._called_now += 1
        try:
            while not task.done():
                if self._asked.is_set():
                    # Of several calls nobody knows which one the question is for.
                    alone = self._called_now == 1
                    async with blocked(self._question) if alone else contextlib.nullcontext():
                        await _either(task, self._answered)
                    continue
                began = self._clock.monotonic()
                try:
                    async with self._clock.timeout(max(left, 0.0)):
                        await _either(task, self._asked)
                except TimeoutError:
                    raise McpError(
                        f"the MCP server {self.name} did not answer within {limit:g} s"
                        " (tool_timeout_sec sets how long a call may take)"
                    ) from None
                left -= self._clock.monotonic() - began
            return task.result()
        finally:
            self._called_now -= 1
            if not task.done():
                task.cancel()
                task.add_done_callback(_taken)
                await asyncio.wait({task})

    # --- its questions ------------------------------------------------------------------------------------

    async def elicit(
        self, message: str, schema: dict[str, Any] | None, url: str | None
    ) -> tuple[str, dict[str, Any] | None]:
        """Answer a question of the server: asked through the swarm's callback, one at a time, or declined."""
        said = shorten(clean(message).strip(), 2_000)
        if url is not None or schema is None:
            return self._declined(said, "opening a page for a server is not supported")
        if self._elicit is None:
            return self._declined(said, NOBODY)
        if self._quiet.is_set():
            # Nobody sees a question that is withdrawn at once, nor reads of thousands in the journal.
            return self._declined(said, NO_CALL)
        if not all(is_clean(key) for key in _keys(schema)):
            return self._declined(said, "its form has field names that cannot be shown")
        if self._asking >= MAX_QUESTIONS:
            return self._declined(said, f"it asks more than {MAX_QUESTIONS} questions at once")
        self._asking += 1
        try:
            async with self._one_question:
                question = Question(server=self.name, message=said, schema=_cleaned(schema))
                reply = await self._while_called(self._elicit(question), said)
        finally:
            self._asking -= 1
        if reply.action != "accept":
            return self._declined(said, reply.reason or f"the operator chose {reply.action}", reply.action)
        return "accept", reply.content or {}

    async def _while_called(self, asking: Awaitable[Reply], said: str) -> Reply:
        """The reply, if it comes before the end of the calls that a question may be for; else the question is
        withdrawn (`asking` is cancelled)."""
        task = asyncio.ensure_future(asking)
        try:
            # What is declined at once is no wait, and gives the server no time.
            await self._clock.sleep(0)
            if not task.done():
                self._question = f"{self.name} asks: {clean_line(said)}"
                self._answered.clear()
                self._asked.set()
                await _either(task, self._quiet)
            if task.done():
                return task.result()
            return Reply(action="cancel", reason=NO_CALL)
        finally:
            self._asked.clear()
            self._answered.set()
            if not task.done():
                task.cancel()
                task.add_done_callback(_taken)
                await asyncio.wait({task})

    def _declined(self, said: str, reason: str, action: str = "decline") -> tuple[str, None]:
        for notes in self._notes:
            if len(notes) < MAX_NOTES:
                notes.append(f"[the server asked: {shorten(clean_line(said), 300)}; declined: {reason}]")
        return action, None


async def _either(task: asyncio.Future[Any], event: asyncio.Event) -> None:
    """Wait for the end of `task` or for `event`."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def folder_of(settings: McpSettings, cwd: Path) -> Path:
    """Where its process runs; `cwd`: the swarm's folder."""
    return cwd / Path(settings.cwd or "").expanduser()


def environment_of(settings: McpSettings, source: Mapping[str, str]) -> dict[str, str]:
    """What its process gets: the harmless part of the swarm's environment, what `env_vars` names of the rest,
    and `env`."""
    env = listed(source)
    env["PATH"] = search_path(source)
    env |= {name: source[name] for name in settings.env_vars if name in source}
    return env | settings.env


def _taken(task: asyncio.Future[Any]) -> None:
    """Look at a task's error, so that nobody is told that nobody did."""
    if not task.cancelled():
        task.exception()


def _cleaned(value: Any) -> Any:
    """Its text without what drives a terminal. Names of fields stay: a question with others is declined."""
    if isinstance(value, dict):
        return {key: _cleaned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return clean(value) if isinstance(value, str) else value


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _keys(part)


def _checked(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise McpError("its url must look like https://HOST/PATH")
    return url


async def sdk() -> Any:
    """The module `client`, with the package under it. The first time that takes two seconds: in a thread, so
    that the loop goes on. Raises McpError where the package is not installed."""
    if importlib.util.find_spec("mcp") is None:
        raise McpError(INSTALL)
    return await asyncio.to_thread(importlib.import_module, "core.tools.mcp.client")
