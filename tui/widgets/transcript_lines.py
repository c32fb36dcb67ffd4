"""How one row of a transcript looks: a message, a notice, or a call with its result events. Pure functions.

Columns: 0 the cursor's, 1-8 the time, 10 on who speaks or the call, then the text. Result events hang below
their call on a dashed guide, the same mark as in the tree: "came from".
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from core.safety.text import clean
from core.view.transcript import Call, ResultEvent, Row
from tui import text
from tui.glyphs import Glyphs, call_look, result_look
from tui.paint import Line, spread, width_of

EVENT_LINES = 8
"""Lines of one result event that an unfolded call shows."""
FULL_CHARS = 20_000
"""Characters of one text that are ever shown; the rest is counted."""
FULL_LINES = 4000
FOLDED_AGENTS = 6
NAME_CELLS = 8

FOLDED, OPEN, FULL = 0, 1, 2


class Setting(NamedTuple):
    """What the lines of a row depend on beside the row itself."""

    width: int
    glyphs: Glyphs
    time: Callable[[datetime], str]
    name: Callable[[str | None], str]
    """A short name for a thread id or a path."""
    agent: str
    """Nickname of the agent whose transcript this is."""
    asked: frozenset[str] = frozenset()
    """Its calls that wait for an operator's answer."""


def default_fold(call: Call) -> int:
    """What went well folds away; what is open or failed shows its events."""
    return FOLDED if call.status == "ok" else OPEN


def row_lines(row: Row, setting: Setting, fold: int | None, now: datetime) -> list[Line]:
    """All lines of a row. `now` only changes the seconds of a running call, never the number of lines."""
    if row.call is not None:
        return call_lines(row, row.call, setting, default_fold(row.call) if fold is None else fold, now)
    name, name_style, style = _speaker(row, setting)
    body = row.text.strip("\n")
    if row.folds and fold in (None, FOLDED) and "\n" in body:
        body, _, hidden = body.partition("\n")
        many = hidden.count("\n") + 1
        body += f"\n{setting.glyphs.folded} {many:,} {'line' if many == 1 else 'lines'}: l shows them"
    return message_lines(setting.time(row.at), name, name_style, body, style, setting)


def message_lines(
    time: str, name: str, name_style: str, body: str, style: str, setting: Setting
) -> list[Line]:
    """A message: time, who, and its text beside them, wrapped."""
    name_cells = NAME_CELLS if setting.width >= 60 else 6
    indent = 1 + 8 + 2 + name_cells + 1
    body, more = capped(body)
    lines = text.wrap(body, max(setting.width - indent - 1, 10))
    head: Line = [
        (" ", "fg"),
        (text.fit(time, 8), "muted"),
        ("  ", "fg"),
        (text.fit(name, name_cells) + " ", name_style),
    ]
    result = [[*head, (lines[0], style)]]
    result += [[(" " * indent, "fg"), (line, style)] for line in lines[1:]]
    if more:
        result.append([(" " * indent, "fg"), (f"{setting.glyphs.ellipsis} {more:,} more chars", "muted+i")])
    return result


def capped(body: str) -> tuple[str, int]:
    """`body` for the screen, and how many characters of it are left out."""
    body = body.strip("\n")
    if len(body) <= FULL_CHARS:
        return body, 0
    return body[:FULL_CHARS], len(body) - FULL_CHARS


def _speaker(row: Row, setting: Setting) -> tuple[str, str, str]:
    """Name, its style and the style of the text."""
    match row.role:
        case "user":
            return ("you" if row.author in ("", "operator") else row.author), "fg+b", "fg"
        case "agent":
            return setting.name(row.author), "violet", "fg"
        case "reasoning":
            return "thinks", "muted+i", "muted+i"
        case "notice":
            style = {"error": "red+b", "warning": "amber"}.get(row.level, "muted")
            word = {"warning": "warn"}.get(row.level, row.level)
            glyph = {"error": "failed", "warning": "lost"}.get(row.level, "note")
            return f"{setting.glyphs.states[glyph]} {word}", style, style.replace("+b", "")
        case _:
            return setting.agent, "teal", "fg"


def call_lines(row: Row, call: Call, setting: Setting, fold: int, now: datetime) -> list[Line]:
    """The head of a call, and below it what its fold shows of the result events."""
    lines = [_call_head(row, call, setting, fold, now)]
    if fold == FOLDED:
        return lines + _folded(call, setting)
    if fold == FULL:
        lines += _arguments(call, setting)
    for event in call.events:
        lines += _event(event, setting, FULL_LINES if fold == FULL else EVENT_LINES)
    return lines


def _arguments(call: Call, setting: Setting) -> list[Line]:
    """What the call was asked, word for word."""
    body, more = capped(call.arguments)
    lines = text.wrap(body, max(setting.width - 14, 10)) if body else []
    result: list[Line] = [[*_guide(setting), (line, "fg")] for line in lines]
    return [*result, _more(more, "chars", setting)] if more else result


def _call_head(row: Row, call: Call, setting: Setting, fold: int, now: datetime) -> Line:
    look = call_look("asks" if call.call in setting.asked else call.status, setting.glyphs)
    if call.seconds is not None:
        time = text.took(call.seconds)
    else:
        time = text.running((now - row.at).total_seconds()) if call.status == "open" else ""
    mark = setting.glyphs.folded if fold == FOLDED else setting.glyphs.unfold
    left: Line = [
        (" ", "fg"),
        (text.fit(setting.time(row.at), 8), "muted"),
        (f" {mark} ", "muted"),
        (
            text.cut(text.one_line(call.name), max(setting.width // 4, 14)),
            "fg+b" if call.status == "open" else "fg",
        ),
        ("  ", "fg"),
    ]
    right: Line = [
        (f"  {look.glyph} {look.word:<7}", look.style),
        (text.fit(time, 7, right=True), "muted"),
        (" ", "fg"),
    ]
    if fold == FOLDED and len(call.events) > 1 and setting.width >= 76:
        right.insert(0, (f"  {len(call.events)} events", "muted"))
    room = setting.width - width_of(left) - width_of(right)
    brief = text.cut(text.one_line(call.brief or call.arguments), max(room - 1, 0))
    return spread([*left, (brief, "muted")], right, setting.width)


def _folded(call: Call, setting: Setting) -> list[Line]:
    """One line per agent in first-seen order, or the first line of the last text."""
    last: dict[str | None, ResultEvent] = {}
    for event in call.events:
        if event.text or event.status:
            last[event.about] = event
    agents = [event for about, event in last.items() if about is not None]
    if not agents:
        return _folded_text(last[None].text, setting) if None in last else []
    lines = [_event(event, setting, 1)[0] for event in agents[:FOLDED_AGENTS]]
    if len(agents) > FOLDED_AGENTS:
        lines.append(_more(len(agents) - FOLDED_AGENTS, "agents", setting))
    return lines


def _folded_text(body: str, setting: Setting) -> list[Line]:
    body, _ = capped(body)
    lines = [line for line in body.splitlines() if line.strip()]
    if not lines:
        return []
    guide = _guide(setting)
    rest = f"  {setting.glyphs.ellipsis} {len(lines) - 1} more lines" if len(lines) > 1 else ""
    room = setting.width - width_of(guide) - len(rest) - 1
    shown = text.cut(lines[0].strip().replace("\t", text.TAB), max(room, 8))
    return [[*guide, (shown, "muted"), (rest, "muted+i")]]


def _guide(setting: Setting) -> Line:
    return [(" " * 11, "fg"), (setting.glyphs.guide + " ", "faint")]


def _more(number: int, what: str, setting: Setting) -> Line:
    return [*_guide(setting), (f"{setting.glyphs.ellipsis} {number:,} more {what}", "muted+i")]


def _event(event: ResultEvent, setting: Setting, limit: int) -> list[Line]:
    """One result event: time, state and agent, then its text; text of several lines goes below."""
    look = result_look(text.one_line(event.status), setting.glyphs)
    guide = _guide(setting)
    body, more = capped(event.text)
    head: Line = [*guide]
    if event.about is not None or event.status:
        if setting.width >= 60:
            head.append((text.fit(setting.time(event.at), 8) + "  ", "muted"))
        head.append((f"{look.glyph} {text.fit(look.word or event.source, 10)} ", look.style))
    if event.about is not None:
        head.append((text.fit(text.one_line(setting.name(event.about)), 7) + " ", "fg"))
    if event.about is not None and "\n" not in body:
        body = f"“{body}”" if body else ""
    indent = width_of(guide)
    room = setting.width - width_of(head) - 1
    flat = body.replace("\t", text.TAB)
    if len(head) > len(guide) and "\n" not in body and text.cut(flat, room) == flat:
        return [[*head, (flat, "fg")]]
    if limit == 1:
        return [[*head, (text.cut(text.one_line(flat), max(room, 4)), "muted")]]
    lines = text.wrap(body, max(setting.width - indent - 1, 10)) if body else []
    result = [head] if len(head) > len(guide) else []
    result += [[*guide, (line, "muted")] for line in lines[:limit]]
    if len(lines) > limit:
        result.append(_more(len(lines) - limit, "lines", setting))
    if more:
        result.append(_more(more, "chars", setting))
    return result or [[*guide, (clean(event.source), "muted")]]
