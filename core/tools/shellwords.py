"""A small, strict part of the shell's grammar: plain commands joined by | && || ; and newlines.

Whoever decides that a command is harmless must read it exactly as the shell will. So this reads only what
every POSIX shell reads in one way; anything beyond it (substitution, variables, redirection to files,
background, groups, reserved syntax) is Unreadable, never guessed at.
"""

from __future__ import annotations

import re

import msgspec

from core.safety.text import is_clean

_SILENCER = re.compile(r"(?:[12]?>{1,2}[ \t]*/dev/null|[12]?>&[12])(?=[ \t\n;|&]|\Z)")
"""The redirections that write nowhere: to /dev/null, and of one output into the other."""
_OPERATOR = re.compile(r"&&|\|\||[|;\n]")
_WORDS = """
! [[ ]] { } if then else elif fi do done case esac while until for in select function time coproc
"""
_RESERVED = frozenset(_WORDS.split())
"""First words that are no program to the shell. Quoted they would be one; that is not worth telling apart."""


class Unreadable(ValueError):
    """The command uses more of the shell than is read here. The text names what."""


class Word(msgspec.Struct, frozen=True):
    text: str
    glob: bool = False
    """Holds an unquoted * or ?, so that the shell may replace it by file names."""
    quoted_glob: bool = False
    """Holds a quoted or escaped * ? or [ as well."""


class Part(msgspec.Struct, frozen=True):
    """One command; `operator` is what stands before it ("" for the first, ";" also for a newline)."""

    operator: str
    words: tuple[Word, ...]


def read(command: str) -> list[Part]:
    """The commands of `command` in order. Raises Unreadable."""
    if not is_clean(command):
        raise Unreadable("it holds control or invisible characters")
    reader = _Reader(command)
    parts: list[Part] = []
    operator = ""
    while True:
        words = reader.words()
        follows = reader.operator()
        if words and words[0].text in _RESERVED:
            raise Unreadable(f"it uses the shell's own word {words[0].text}")
        if words:
            parts.append(Part(operator, tuple(words)))
        elif not (operator in ("", ";") and follows in ("\n", None) and (parts or follows)):
            raise Unreadable("a command is missing in it")
        if follows is None:
            return parts
        if words or not parts:
            operator = ";" if follows == "\n" else follows
        if not parts:
            operator = ""


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def operator(self) -> str | None:
        """The operator here; None at the end."""
        if self._at == len(self._text):
            return None
        match = _OPERATOR.match(self._text, self._at)
        if match is None:
            raise Unreadable("it uses & to run in the background")
        self._at = match.end()
        if self._text.startswith(("&", ";"), self._at) or (
            match.group() in ("|", "||") and self._text.startswith("|", self._at)
        ):
            raise Unreadable(f"it uses {match.group()}{self._text[self._at]}")
        return match.group()

    def words(self) -> list[Word]:
        words: list[Word] = []
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t":
                self._at += 1
            if self._at == len(self._text) or self._text[self._at] in "\n;|&":
                return words
            if silencer := _SILENCER.match(self._text, self._at):
                self._at = silencer.end()
            else:
                words.append(self._word())

    def _word(self) -> Word:
        out: list[str] = []
        glob = quoted_glob = False
        text = self._text
        start = self._at
        while self._at < len(text) and text[self._at] not in " \t\n;|&":
            char = text[self._at]
            if char in "'\"\\":
                quoted = self._quoted(char)
                quoted_glob = quoted_glob or any(c in "*?[" for c in quoted)
                out.append(quoted)
                continue
            self._refuse(char, start)
            glob = glob or char in "*?"
            out.append(char)
            self._at += 1
        return Word("".join(out), glob, quoted_glob)

    def _refuse(self, char: str, start: int) -> None:
        """Raise for an unquoted character that the shell may give a meaning."""
        text = self._text
        if char in "$`":
            raise Unreadable("it uses variables or substitution")
        if char in "<>":
            raise Unreadable("it redirects to or from a file")
        if char in "(){}":
            raise Unreadable(f"it uses unquoted {char}")
        if char == "[" and not re.match(r"\[(?=[ \t])", text[self._at :] if self._at == start else ""):
            raise Unreadable("it uses a [ ] pattern")
        if char == "~" and (self._at == start or text[self._at - 1] in "=:"):
            raise Unreadable("it uses ~")
        if char == "#" and self._at == start:
            raise Unreadable("it holds a comment")
        if char.isspace():
            raise Unreadable("it holds unusual white space")

    def _quoted(self, kind: str) -> str:
        """The literal text of the quotation or escape at this place."""
        text = self._text
        if kind == "\\":
            char = text[self._at + 1 : self._at + 2]
            if char in ("", "\n"):
                raise Unreadable("it ends a line with a backslash")
            self._at += 2
            return char
        end = self._at + 1
        out: list[str] = []
        while end < len(text) and text[end] != kind:
            if kind == '"' and text[end] in "$`":
                raise Unreadable("it uses variables or substitution")
            if kind == '"' and text[end] == "\\" and text[end + 1 : end + 2] in ("$", "`", '"', "\\", "\n"):
                end += 1
                if text[end] == "\n":
                    raise Unreadable("it ends a line with a backslash")
            out.append(text[end])
            end += 1
        if end == len(text):
            raise Unreadable("a quotation in it has no end")
        self._at = end + 1
        return "".join(out)
