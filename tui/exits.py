"""Exit codes, and the exception that carries one out."""

from __future__ import annotations

OK = 0
ERROR = 1
USAGE = 2
FAILED_ROWS = 3
BUDGET = 4
QUOTA = 5
PIPE = 141
"""128 + SIGPIPE: whoever read standard output has gone. Nothing is said."""


class Quit(Exception):
    """End with `code` and one sentence on standard error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
