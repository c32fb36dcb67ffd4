"""What agents and commands are told when the rules of a swarm say no."""

from __future__ import annotations


class Refused(Exception):
    """A command that the rules do not allow; the message says which rule."""


class SwarmEnding(Refused):
    """Nothing is started any more."""
