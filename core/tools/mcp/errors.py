"""What can go wrong with a server, for whoever starts it and for the model that calls it."""

from __future__ import annotations

CLOSED = "the connection was closed"
"""What is known when a connection ends before the error that ended it is."""


class McpError(Exception):
    """A server cannot start or answer. One sentence, fit for one line."""


class Disconnected(McpError):
    """The connection is over; the server's owner knows why."""


class McpStartError(McpError):
    """Required servers did not start: `server: error`, sorted, joined by `; `. None is left running."""

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = dict(sorted(errors.items()))
        super().__init__("; ".join(f"{name}: {error}" for name, error in self.errors.items()))
