"""What an agent, a call, a row looks like: one glyph, one word, one colour. Glyph and word alone must do."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from core.domain.state import AgentState
from core.view.budget import stopped

SILENT_SECONDS = 120
"""A running agent that did nothing for so long is said to be silent."""
QUIET_SECONDS = 30
"""Completed work keeps its green for so long, then it is muted."""


class Look(NamedTuple):
    glyph: str
    word: str
    style: str


class Glyphs(NamedTuple):
    """One glyph set. All are one cell wide, also where East Asian ambiguous characters are two."""

    states: dict[str, str]
    unfold: str
    folded: str
    guide: str
    bar: str
    rest: str
    dot: str
    horizontal: str
    vertical: str
    tee_down: str
    tee_up: str
    arrow: str
    ellipsis: str
    prompt: str
    plain: dict[int, str]
    """Characters of ours and of others that a terminal without Unicode gets in a plain form."""


UNICODE = Glyphs(
    states={
        "queued": "◌",
        "running": "◍",
        "waiting": "⧗",
        "asks": "⚑",
        "done": "✓",
        "failed": "✗",
        "stopped": "↯",
        "closed": "⊘",
        "lost": "∅",
        "idle": "◌",
        "note": "┆",
    },
    unfold="▾",
    folded="▸",
    guide="┆",
    bar="▒",
    rest="░",
    dot="·",
    horizontal="─",
    vertical="│",
    tee_down="┬",
    tee_up="┴",
    arrow="▸",
    ellipsis="…",
    prompt="›",
    plain={},
)

ASCII = Glyphs(
    states={
        "queued": ".",
        "running": "*",
        "waiting": "w",
        "asks": "!",
        "done": "+",
        "failed": "x",
        "stopped": "~",
        "closed": "-",
        "lost": "?",
        "idle": ".",
        "note": ":",
    },
    unfold="v",
    folded=">",
    guide=":",
    bar="#",
    rest=".",
    dot="-",
    horizontal="-",
    vertical="|",
    tee_down="+",
    tee_up="+",
    arrow=">",
    ellipsis="...",
    prompt=">",
    plain=str.maketrans("…“”‘’–—·↑↓←→", "~\"\"''---^v<>"),
)

STYLES = {
    "queued": "muted",
    "running": "teal",
    "waiting": "teal",
    "asks": "amber+rb",
    "done": "green",
    "failed": "red+b",
    "stopped": "muted+i",
    "closed": "violet",
    "lost": "amber",
    "idle": "muted",
    "note": "muted",
}

WORST = ("asks", "failed", "lost", "running", "waiting", "queued", "stopped", "idle", "done", "closed")
"""States from what calls loudest to what is settled; a bin of the roll call shows its first."""


def agent_state(agent: AgentState, now: datetime) -> str:
    """The name of an agent's state, one of the keys of `STYLES`. `now` decides who is silent."""
    if agent.status == "shutdown":
        return "closed"
    if agent.asks:
        return "asks"
    wait = agent.wait
    if agent.status == "pending_init" or (wait is not None and wait.reason in ("slot", "startup")):
        return "queued"
    match agent.status:
        case "running" if wait is not None:
            return "waiting"
        case "running":
            silent = (now - agent.last_at).total_seconds() > SILENT_SECONDS
            return "lost" if silent else "running"
        case "completed":
            return "done"
        case "errored":
            return "failed"
        case "interrupted":
            return "stopped"
        case "not_found":
            return "lost"
        case _:
            return "idle"


_WORDS = {
    "queued": "queued",
    "running": "runs",
    "waiting": "waits",
    "asks": "asks",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "closed": "closed",
    "lost": "silent",
    "idle": "idle",
}


def agent_look(agent: AgentState, now: datetime, glyphs: Glyphs) -> Look:
    """Glyph, word and colour of an agent."""
    name = agent_state(agent, now)
    style = STYLES[name]
    if name == "done" and (now - agent.last_at).total_seconds() > QUIET_SECONDS:
        style = "muted"
    if name == "waiting" and stopped(agent):
        style = "amber"
    word = "lost" if agent.status == "not_found" else _WORDS[name]
    if name == "queued" and (agent.wait is None or agent.wait.reason == "startup"):
        word = "starts"
    return Look(glyphs.states[name], word, style)


_CALLS = {
    "open": ("running", "runs"),
    "asks": ("asks", "asks"),
    "ok": ("done", "ok"),
    "error": ("failed", "error"),
    "refused": ("closed", "refused"),
    "aborted": ("stopped", "stopped"),
}


def call_look(status: str, glyphs: Glyphs) -> Look:
    """Glyph, word and colour of a tool call; a call that went well goes quiet."""
    name, word = _CALLS.get(status, ("note", status))
    return Look(glyphs.states[name], word, "muted" if status == "ok" else STYLES[name])


_RESULTS = {
    "": "note",
    "ok": "done",
    "completed": "done",
    "approved": "done",
    "accepted": "done",
    "delivered": "done",
    "error": "failed",
    "errored": "failed",
    "failed": "failed",
    "timeout": "failed",
    "refused": "closed",
    "denied": "closed",
    "shutdown": "closed",
    "closed": "closed",
    "interrupted": "stopped",
    "aborted": "stopped",
    "running": "running",
    "started": "running",
    "spawned": "running",
    "pending_init": "queued",
    "queued": "queued",
    "waiting": "waiting",
    "asks": "asks",
    "approval": "asks",
    "not_found": "lost",
}


def result_look(status: str, glyphs: Glyphs) -> Look:
    """Glyph, word and colour of one result event, by the status that its source gave it."""
    name = _RESULTS.get(status.lower())
    if name is None:
        name = "note"
        if status.startswith("exit "):
            name = "done" if status == "exit 0" else "failed"
    style = "amber" if name == "asks" else STYLES[name]
    return Look(glyphs.states[name], status, style)


_ROWS = {
    "pending": ("queued", "queued"),
    "running": ("running", "running"),
    "completed": ("done", "done"),
    "failed": ("failed", "failed"),
    "skipped": ("closed", "skipped"),
    "paused": ("waiting", "paused"),
    "cancelled": ("stopped", "stopped"),
}


def row_look(status: str, glyphs: Glyphs) -> Look:
    """Glyph, word and colour of a job row, or of a job."""
    name, word = _ROWS.get(status, ("note", status))
    return Look(glyphs.states[name], word, "muted" if name == "done" else STYLES[name])
