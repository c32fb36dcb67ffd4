"""NeedsBar: what waits for the operator, above the line to type in."""

from __future__ import annotations

from rich.cells import cell_len

from core.clock import Clock
from core.domain.state import Approval, call_key
from core.view import budget
from core.view.swarm import SwarmView
from tui import text
from tui.glyphs import UNICODE, Glyphs
from tui.paint import Line, spread, width_of
from tui.widgets.painted import Painted

COMMAND_LINES = 6
COMMAND = "exec_command"
"""The tool whose questions are about a command, which runs in a folder."""
"""Lines of a command that the bar shows."""


class NeedsBar(Painted):
    """The approval that is asked now: agent, the exact command, its folder; below it, a budget that is used
    up. `painted` is the approval on the screen; a decision names that one and no other."""

    def __init__(
        self, view: SwarmView, clock: Clock, *, id: str | None = None, glyphs: Glyphs = UNICODE
    ) -> None:
        super().__init__(id=id, glyphs=glyphs)
        self.view = view
        self.clock = clock
        self.wanted: str | None = None
        """Thread whose approval is shown first; None: the oldest of all."""
        self.composing = False
        self.raising = False
        """The new limit is being typed: how to begin that is not said."""
        self.offline = False
        """Nobody can be answered now: no key is offered."""
        self.painted: str | None = None
        self.painted_at = 0.0

    def approval(self) -> Approval | None:
        approvals = list(self.view.state.approvals.values())
        mine = [a for a in approvals if a.thread == self.wanted]
        return next(iter(mine or approvals), None)

    def lines(self, width: int) -> list[Line]:
        approval = self.approval()
        shown = approval.approval if approval is not None else None
        if shown != self.painted:
            self.painted, self.painted_at = shown, self.clock.monotonic()
        lines = self._approval(approval, width) if approval is not None else []
        return lines + self._budget(width)

    def _approval(self, approval: Approval, width: int) -> list[Line]:
        count = len(self.view.state.approvals)
        keys = "esc, then a approve  d deny" if self.composing else "a approve   d deny"
        more = f"   ! next (1 of {count})" if count > 1 else ""
        right: Line = [("  " + keys + more + " ", "amber+b")]
        if self.offline:
            right = [("  asked when the engine went ", "muted")]
        badge = f" {self.glyphs.states['asks']} " + ("needs you " if width >= 100 else "")
        name = text.cut(text.one_line(self.view.name_of(approval.thread)), 16)
        left: Line = [(badge, "amber+rb"), (f" {name}  ", "fg+b")]
        about = self._about(approval)
        room = width - width_of(left) - width_of(right)
        command = approval.command.strip()
        if "\n" not in command and width_of([(f"{command}   {about}", "")]) < room:
            return [spread([*left, (command, "amber"), (f"   {about}", "muted")], right, width)]
        head = spread([*left, (text.cut(about, max(room - 1, 0)), "muted")], right, width)
        return [head, *self._command(command, width)]

    def _about(self, approval: Approval) -> str:
        """Where a command runs; of what is no command, what it is."""
        call = self.view.state.calls.get(call_key(approval.thread, approval.call))
        if approval.reason and (call is None or call.name != COMMAND):
            return text.one_line(approval.reason)
        return f"in {text.one_line(approval.cwd)}"

    def _command(self, command: str, width: int) -> list[Line]:
        """The exact command on lines of its own; of a very long one, how much more there is."""
        whole = text.wrap(command[: COMMAND_LINES * 4 * width], width - 4)
        lines: list[Line] = [[("   ", "fg"), (line, "amber")] for line in whole[:COMMAND_LINES]]
        if len(whole) > COMMAND_LINES:
            hidden = len(command) - sum(len(line) + 1 for line in whole[: COMMAND_LINES - 1])
            words = f"{self.glyphs.ellipsis} {hidden:,} more chars: l on its call shows all"
            lines[-1] = [("   ", "fg"), (words, "amber+b")]
        return lines

    def _budget(self, width: int) -> list[Line]:
        """Who waits until a limit is raised."""
        stopped = budget.waiting(self.view.state)
        if not stopped:
            return []
        number = len(stopped)
        who = f"{number} agents wait"
        if number == 1:
            who = f"{text.cut(text.one_line(stopped[0].nickname), 16)} waits"
        limit = budget.binding(self.view.state)
        said = f"{limit.words()}; {who}" if limit is not None else who
        keys = "esc, then b raise" if self.composing else "b raise"
        right: Line = [(f"  {keys} ", "amber+b")] if not (self.offline or self.raising) else []
        left: Line = [(f" {self.glyphs.states['asks']} budget ", "amber+rb")]
        room = width - width_of(left) - width_of(right) - 2
        if limit is not None and limit.needed:
            longer = f"{said} for {limit.amount(limit.needed)} more"
            said = longer if cell_len(longer) <= room else said
        return [spread([*left, ("  " + text.cut(said, max(room, 0)), "amber")], right, width)]

    def height_needed(self, width: int) -> int:
        """Lines that it takes; 0 when nobody needs the operator."""
        return len(self.lines(width))
