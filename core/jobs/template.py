"""The instruction of a job: text with `{column}` placeholders, `{{` and `}}` for braces.

One pass from left to right: what a cell holds is put in as it is and never read as a template again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from core.jobs.errors import JobInputError
from core.jobs.table import columns_text
from core.safety.text import clean_line, shorten

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_HINT = "write {{ and }} for braces that are text"


class Template:
    """A checked instruction. `columns` are the ones it uses."""

    def __init__(self, parts: Sequence[tuple[str, bool]]) -> None:
        self._parts = tuple(parts)
        self.columns = frozenset(text for text, placeholder in parts if placeholder)

    @classmethod
    def parse(cls, text: str, headers: Sequence[str]) -> Template:
        """Raises JobInputError for a blank instruction, an unknown column or a single brace."""
        if not text.strip():
            raise JobInputError("the instruction is empty")
        parts: list[tuple[str, bool]] = []
        known = frozenset(headers)
        end = 0
        for match in _TOKEN.finditer(text):
            parts.append((text[end : match.start()], False))
            end = match.end()
            token, name = match.group(), match.group(1)
            if name is None and len(token) == 1:
                raise JobInputError(
                    f"the instruction has a single {token!r} at {_place(text, match.start())}; {_HINT}"
                )
            if name is None:
                parts.append((token[0], False))
            elif name in known:
                parts.append((name, True))
            else:
                asked = shorten(clean_line(name), 40)
                raise JobInputError(
                    f"the instruction names {{{asked}}} at {_place(text, match.start())}, "
                    f"but the columns are: {columns_text(list(headers))}; {_HINT}"
                )
        parts.append((text[end:], False))
        return cls([part for part in parts if part[0]])

    def render(self, row: Mapping[str, str]) -> str:
        """The text for one row, which has a value for each of `columns`."""
        return "".join(row[text] if placeholder else text for text, placeholder in self._parts)


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, character {at - (text.rfind(chr(10), 0, at) + 1) + 1}"
