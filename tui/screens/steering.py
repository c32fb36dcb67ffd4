"""Steering: what the keys do to an agent, with the question before it that says whom else it touches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.domain.commands import Close, Decide, Interrupt, ResumeAgent
from core.domain.state import AgentState
from tui.screens.confirm import ConfirmScope
from tui.widgets.needs import NeedsBar

if TYPE_CHECKING:
    from tui.screens.swarm import SwarmScreen

GUARD_SECONDS = 0.3
"""A decision so soon after the bar changed was meant for what stood there before."""
SHOWN_NAMES = 40


class Steering:
    """Sends commands for the screen that it belongs to."""

    def __init__(self, screen: SwarmScreen) -> None:
        self.screen = screen
        self.view = screen.view

    def decide(self, bar: NeedsBar, approve: bool) -> None:
        """Answer the approval that is painted in the bar, by its id."""
        app = self.screen.app
        approval = self.view.state.approvals.get(bar.painted or "")
        if approval is None:
            app.say("nothing is asked any more")
            return
        if self.screen.clock.monotonic() - bar.painted_at < GUARD_SECONDS:
            app.say("the question just changed: look, then press again", "amber")
            return
        name = self.view.name_of(approval.thread)
        done = f"{'approved' if approve else 'denied'} for {name}: {approval.command}"
        app.command(Decide(swarm=self.view.state.swarm, approval=approval.approval, approve=approve), done)

    def below(self, thread: str) -> list[AgentState]:
        """Open agents below `thread`, in spawn order."""
        members = {thread}
        found: list[AgentState] = []
        for agent in self.view.state.agents.values():
            if agent.parent in members:
                members.add(agent.thread)
                if agent.status != "shutdown":
                    found.append(agent)
        return found

    def interrupt(self, agent: AgentState | None) -> None:
        if agent is None:
            self.screen.app.say("select an agent to interrupt")
            return
        live = [below for below in self.below(agent.thread) if below.live]
        if not live and not agent.live:
            self.screen.app.say(f"{agent.nickname} is not running")
            return
        if not live:
            self._interrupt(agent, cascade=False)
            return
        number = len(live)
        choices = [
            ("i", f"{agent.nickname} alone", "one"),
            ("I", f"{agent.nickname} and its {number}", "all"),
        ]
        title = f"Interrupt {agent.nickname}? {number} running below:"

        def answer(choice: str | None) -> None:
            if choice is not None:
                self._interrupt(agent, cascade=choice == "all")

        question = ConfirmScope(title, names(live), choices, self.screen.glyphs)
        self.screen.app.push_screen(question, answer)

    def _interrupt(self, agent: AgentState, *, cascade: bool) -> None:
        command = Interrupt(swarm=self.view.state.swarm, thread=agent.thread, cascade=cascade)
        self.screen.app.command(command, f"interrupted {agent.nickname}", names="stopped")

    def close(self, agent: AgentState | None) -> None:
        if agent is None or agent.status == "shutdown":
            self.screen.app.say("select an open agent to close")
            return
        below = self.below(agent.thread)
        about = f"{len(below)} below: {names(below)}" if below else ""
        words = f"close {agent.nickname}" + (f" and its {len(below)}" if below else "")

        def answer(choice: str | None) -> None:
            if choice is not None:
                command = Close(swarm=self.view.state.swarm, thread=agent.thread)
                self.screen.app.command(command, f"closed {agent.nickname}", names="closed")

        question = ConfirmScope(
            f"Close {agent.nickname}?", about, [("x", words, "close")], self.screen.glyphs
        )
        self.screen.app.push_screen(question, answer)

    def resume(self, agent: AgentState | None) -> None:
        """Open a closed agent again, or start up one that failed to; first ask if others come with it."""
        closed = agent is not None and agent.status == "shutdown"
        if agent is None or not (closed or agent.start_failed):
            self.screen.app.say("select a closed agent, or one whose start-up failed, to resume it")
            return
        others = self.view.state.closed_together(agent.thread)[1:] if closed else []

        def resume() -> None:
            command = ResumeAgent(swarm=self.view.state.swarm, thread=agent.thread)
            self.screen.app.command(command, f"resumed {agent.nickname}", names="resumed")

        if not others:
            resume()
            return

        def answer(choice: str | None) -> None:
            if choice is not None:
                resume()

        number = len(others)
        title = (
            f"Resume {agent.nickname}? {number} closed with it {'comes' if number == 1 else 'come'} back too:"
        )
        choices = [("u", f"resume {agent.nickname} and its {number}", "resume")]
        question = ConfirmScope(title, names(others), choices, self.screen.glyphs)
        self.screen.app.push_screen(question, answer)


def names(agents: Sequence[AgentState]) -> str:
    return " ".join(agent.nickname for agent in agents[:SHOWN_NAMES])
