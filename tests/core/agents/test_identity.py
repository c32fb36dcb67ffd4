"""Who an agent is: its registration, path, nickname, role and what it takes over; each rule of its own."""

from __future__ import annotations

from typing import Any

from core.agents.history import History
from core.domain import events as e

# --- forks -----------------------------------------------------------------------------------------------


def told(history: History, turns: int | None) -> list[str]:
    return [item["content"][0]["text"].splitlines()[-1] for item in history.fork(turns)]


def mail(kind: Any, text: str) -> e.AgentMessage:
    return e.AgentMessage(kind=kind, author="/root/x", text=text)


def test_a_fork_takes_no_mail_but_tasks_and_counts_turns_by_them() -> None:
    history = History("/root/a")
    for event in (
        mail("NEW_TASK", "task one"),
        e.AssistantMessage(text="answer one"),
        mail("FINAL_ANSWER", "what a child found"),
        e.AssistantMessage(text="more on one"),
        e.UserMessage(text="typed"),
        e.UserMessage(text="and typed"),
        mail("MESSAGE", "by the way"),
        e.AssistantMessage(text="answer two"),
        mail("NEW_TASK", "task three"),
    ):
        history.add(event)
    everything = ["task one", "answer one", "more on one", "and typed", "answer two", "task three"]
    assert told(history, None) == told(history, 3) == told(history, 9) == everything
    assert told(history, 1) == ["task three"]
    assert told(history, 2) == ["and typed", "answer two", "task three"]
    # A fork of a fork: what was taken over counts as before, and the own task comes behind it.
    below = History("/root/a/b")
    below.inherit(history, "2")
    below.add(mail("NEW_TASK", "task of b"))
    below.add(mail("MESSAGE", "beside"))
    assert told(below, None) == ["and typed", "answer two", "task three", "task of b"]
    assert told(below, 2) == ["task three", "task of b"]


def test_a_compacted_history_forks_by_what_is_left_of_it() -> None:
    history = History("/root")
    for event in (
        e.UserMessage(text="one"),
        mail("FINAL_ANSWER", "found"),
        e.AssistantMessage(text="answer one"),
        e.UserMessage(text="two " * 300),
        e.AssistantMessage(text="answer two"),
        e.HistoryCompacted(summary="all of it", keep=1000),
        e.UserMessage(text="three"),
        mail("MESSAGE", "beside"),
        e.AssistantMessage(text="answer three"),
    ):
        history.add(event)
    assert told(history, 1) == ["three", "answer three"]
    whole = told(history, 2)
    assert whole[0].startswith("two two")  # cut, and still the begin of a turn
    assert whole[-2:] == ["three", "answer three"]
    assert "beside" not in told(history, None)
