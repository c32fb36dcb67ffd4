"""The keys of the swarm screen. Those of a list are its own."""

from __future__ import annotations

from textual.binding import Binding, BindingType

BINDINGS: list[BindingType] = [
    Binding("f", "follow", "follow", id="follow", tooltip="Follow the end of the transcript, or pause"),
    Binding("n", "error(1)", "error", key_display="n", id="error.next", tooltip="Next error in this pane"),
    Binding("N", "error(-1)", "", show=False, id="error.previous", tooltip="Previous error in this pane"),
    Binding("a", "decide(True)", "approve", show=False, id="approve", tooltip="Approve what the bar shows"),
    Binding("d", "decide(False)", "deny", show=False, id="deny", tooltip="Deny what the bar shows"),
    Binding(
        "exclamation_mark",
        "next_need",
        "next",
        show=False,
        id="needs.next",
        tooltip="Next that needs you",
    ),
    Binding("i", "interrupt", "interrupt", id="interrupt", tooltip="Interrupt the selected agent's turn"),
    Binding("x", "close", "close", id="close", tooltip="Close the selected agent and what is below it"),
    Binding(
        "u",
        "resume",
        "resume",
        show=False,
        id="resume",
        tooltip="Resume a closed agent, or one whose start-up failed",
    ),
    Binding(
        "b",
        "budget",
        "budget",
        show=False,
        priority=True,
        id="budget",
        tooltip="The budget: what is used of it, and a new limit",
    ),
    Binding("m", "message", "message", priority=True, id="message", tooltip="Write to the selected agent"),
    Binding(
        "c",
        "message_root",
        "to root",
        show=False,
        priority=True,
        id="message.root",
        tooltip="Write to the root",
    ),
    Binding("p", "parent", "parent", show=False, id="parent", tooltip="Select the parent"),
    Binding("J", "jobs", "jobs", id="jobs", tooltip="Open or close the job table"),
    Binding("tab", "pane(1)", "pane", show=False, id="pane.next", tooltip="Next pane"),
    Binding("shift+tab", "pane(-1)", "pane", show=False, id="pane.previous", tooltip="Previous pane"),
    Binding("1", "show('agents')", "agents", show=False, id="pane.agents", tooltip="The agents"),
    Binding("2", "show('thread')", "thread", show=False, id="pane.thread", tooltip="The transcript"),
    Binding("3", "show('jobs')", "jobs", show=False, id="pane.jobs", tooltip="The job table"),
    Binding("y", "copy_id", "copy id", show=False, id="copy", tooltip="Copy the selected agent's thread id"),
    Binding("escape", "back", "back", show=False, key_display="esc", id="back", tooltip="Back to the tree"),
    Binding("t", "theme", "theme", show=False, id="theme", tooltip="Dark or light"),
    Binding(
        "R",
        "connect_again",
        "start again",
        id="engine.again",
        tooltip="Start the engine again, or connect to it again, and go on",
    ),
    Binding("question_mark", "help", "help", id="help", tooltip="This help"),
]
