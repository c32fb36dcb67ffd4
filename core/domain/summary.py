"""What a folded tool call shows, and `tool_calls.result_content` holds: derived from its result events."""

from __future__ import annotations

LastTexts = dict[str | None, str]
"""The last text of a call per agent it was about (None: about nobody), in first-seen order."""


def note_result(last: LastTexts, about: str | None, text: str, status: str) -> None:
    """Take one result event in. One without text counts with its status; one with neither says nothing."""
    if text or status:
        last[about] = text or status


def summary_of(last: LastTexts) -> str:
    """The last text, or one line per agent in first-seen order."""
    agents = [key for key in last if key is not None]
    if not agents:
        return last.get(None, "")
    return "\n".join(last[key] for key in agents)
