"""What an operator does to the agents of a running swarm."""

from __future__ import annotations

from typing import Any

from core.agents.bounds import check_message
from core.agents.swarm import Swarm
from core.domain import commands as c
from core.engine.errors import CommandError

Steering = c.SendInput | c.Interrupt | c.Close | c.ResumeAgent | c.SetBudget | c.Compact | c.Decide


async def steer(command: Steering, swarm: Swarm) -> dict[str, Any]:
    """What is done to one agent of a swarm."""
    by = command.author
    match command:
        case c.SendInput():
            if not command.text.strip():
                raise CommandError("there is nothing to send", "usage")
            check_message(command.text)
            if command.dry_run:
                swarm.check_input(command.thread)
            else:
                await swarm.send_input(command.thread, command.text, by)
            return {"changed": not command.dry_run}
        case c.Interrupt():
            if command.dry_run:
                return {"stopped": swarm.would_stop(command.thread, command.cascade), "changed": False}
            stopped = await swarm.interrupt(command.thread, by=by, cascade=command.cascade)
            return {"stopped": stopped, "changed": bool(stopped)}
        case c.Close():
            if swarm.is_closed(command.thread):
                return {"closed": [], "changed": False}
            if command.dry_run:
                return {"closed": swarm.would_close(command.thread), "changed": False}
            return {"closed": await swarm.close(command.thread, by=by), "changed": True}
        case c.ResumeAgent():
            if command.dry_run:
                would = [known.thread for known in swarm.comeback.would_resume(command.thread)]
                return {"resumed": would, "changed": False}
            resumed = await swarm.comeback.resume(command.thread, by=by)
            return {"resumed": resumed, "changed": bool(resumed)}
        case c.SetBudget() | c.Compact():
            raise CommandError("not in this version", "refused")
        case c.Decide():
            await swarm.approvals.decide(command.approval, approve=command.approve, by=by)
            return {"changed": True}
