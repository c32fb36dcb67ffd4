"""The command line. Light on purpose: `--version` and `--help` load neither Textual nor the engine.

A verb's words may stand anywhere among the common options; the first word that is no verb is the console's
task. Each verb's work is in a module of its own, loaded when it is called.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from tui import exits
from tui.verbs import COMMON, LATER, PROGRAM, TAKES_VALUE, VERBS, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    if os.name != "posix":
        print(f"{PROGRAM}: this system is not supported; use Linux or macOS", file=sys.stderr)
        return exits.ERROR
    from tui import signals

    signals.leave_at_once()
    _open_streams()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_stdout()
        return exits.PIPE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _drop_stdout()
        return _fail(f"the output cannot be written: {error.strerror}", exits.ERROR)


def _run(argv: list[str]) -> int:
    from tui.signals import Signalled

    try:
        name, rest = find_verb(argv)
        args = parser_of(name).parse_args(rest)
        _hear_warnings()
        return _load(VERBS[name].run)(args)
    except exits.Quit as error:
        return _fail(str(error), error.code)
    except Signalled as error:
        known = _foreseen(error.__cause__)
        return _fail(known[0] if known else f"shutting down failed: {error.__cause__!r}", error.code)
    except SystemExit as error:  # argparse has said what there is to say
        return error.code if isinstance(error.code, int) else exits.USAGE
    except Exception as error:
        known = _foreseen(error)
        if known is None:
            raise
        return _fail(*known)


def _hear_warnings() -> None:
    """What the engine's rooms log is a note on standard error. Python's own last resort would print it as it
    is, and a damaged store or a server has a say in its words."""
    import logging

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from core.safety.text import clean_line

            print(f"{PROGRAM}: note: {clean_line(record.getMessage())}", file=sys.stderr)

    logging.lastResort = Note(logging.WARNING)


def _load(target: str) -> Callable[[Namespace], int]:
    import importlib

    module, _, name = target.partition(":")
    run: Callable[[Namespace], int] = getattr(importlib.import_module(module), name)
    return run


# --- which verb ------------------------------------------------------------------------------------------


def find_verb(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that `argv` names ("" is the console) and the words without it. Raises Quit."""
    first = _word(argv, 0)
    if first is None:
        return "", list(argv)
    word = argv[first]
    rest = [*argv[:first], *argv[first + 1 :]]
    if word in VERBS and word:
        return word, rest
    group = sorted(name.split()[1] for name in VERBS if name.startswith(word + " "))
    if group:
        second = _word(rest, first)
        if second is not None and rest[second] in group:
            return f"{word} {rest[second]}", [*rest[:second], *rest[second + 1 :]]
        if second is None and {"-h", "--help"} & set(rest):
            print(_group_help(word, group))
            raise SystemExit(exits.OK)
        instead = "" if second is None else f", not {quote(rest[second])}"
        raise exits.Quit(exits.USAGE, f"{word} needs one of {', '.join(group)} after it{instead}")
    _refuse_near_verb(word)
    return "", list(argv)


def _word(argv: Sequence[str], start: int) -> int | None:
    """Index of the first word at or after `start` that is neither an option nor an option's value."""
    index = start
    while index < len(argv):
        arg = argv[index]
        if arg == "--":
            return None  # what follows is never a verb
        if arg == "-" or not arg.startswith("-"):
            return index
        index += 2 if arg in TAKES_VALUE else 1
    return None


def _refuse_near_verb(word: str) -> None:
    """One bare word that looks like a verb is a slip, not a task for a swarm with a shell."""
    force = f"(to give it to the console as a task: {PROGRAM} -- {quote(word)})"
    if word in LATER:
        raise exits.Quit(exits.USAGE, f"this version has no verb {quote(word)} {force}")
    if word.isascii() and word.isalpha() and word.islower():
        import difflib

        listed = {name.split()[0] for name, verb in VERBS.items() if name and not verb.hidden}
        known = sorted(listed | {"help", "version"})
        near = difflib.get_close_matches(word, known, 1, 0.75)
        if near:
            hint = f"--{near[0]}" if near[0] in ("help", "version") else near[0]
            raise exits.Quit(exits.USAGE, f"there is no verb {quote(word)}; did you mean {hint}? {force}")


# --- parsers ---------------------------------------------------------------------------------------------


def parser_of(name: str) -> ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            from core.safety.text import clean_line

            hint = f"see: {self.prog} --help"
            left_over = message.startswith("unrecognized arguments: ") and " -" not in message
            if left_over and (what := {"": "task", "exec": "task", "agent send": "text"}.get(name)):
                hint = f"a {what} of several words goes into quotes; {hint}"
            raise exits.Quit(exits.USAGE, f"{clean_line(message)} ({hint})")

    verb = VERBS[name]
    epilog = f"{verb.notes}\n\nexample:\n  {verb.example}".lstrip()
    if not name:
        width = max(len(other) for other in VERBS)
        shown = {other: verb for other, verb in VERBS.items() if other and not verb.hidden}
        listed = "\n".join(f"  {other:{width}}  {verb.summary}" for other, verb in shown.items())
        epilog = f"verbs (each has its own --help):\n{listed}\n\n{epilog}"
    parser = Parser(
        prog=f"{PROGRAM} {name}".strip(),
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if not name:
        from core.version import VERSION

        parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    verb.arguments(parser)
    group = parser.add_argument_group("common options")
    for flags, how in COMMON:
        shown_how = how if flags[0] in verb.options else {**how, "help": argparse.SUPPRESS}
        group.add_argument(*flags, **shown_how)  # type: ignore[arg-type]
    return parser


def _group_help(word: str, group: list[str]) -> str:
    listed = "\n".join(f"  {name:9}  {VERBS[f'{word} {name}'].summary}" for name in group)
    return f"usage: {PROGRAM} {word} {{{','.join(group)}}} ...\n\n{listed}"


# --- the end ---------------------------------------------------------------------------------------------


_FORESEEN = {
    "ConfigError": exits.USAGE,
    "ScenarioError": exits.USAGE,
    "JobInputError": exits.USAGE,
    "ClientError": exits.ERROR,
    "StoreError": exits.ERROR,
    "NotFound": exits.ERROR,
    "ModelError": exits.ERROR,
}
"""Errors of the engine's rooms, by name: this module must not import them. Their text is one sentence."""


def _foreseen(error: BaseException | None) -> tuple[str, int] | None:
    """What to say about an error that was foreseen and the exit code, or None for one that was not."""
    if isinstance(error, BaseExceptionGroup):
        found = [_foreseen(inner) for inner in error.exceptions]
        return found[0] if all(found) else None
    code = sentence = None
    while error is not None:
        for kind in type(error).mro():
            if kind.__module__.startswith("core.") and kind.__name__ in _FORESEEN:
                sentence = sentence or str(error)
                code = max(code or 0, _FORESEEN[kind.__name__])  # a wrong word of the user's behind it: usage
        error = error.__cause__
    return (sentence, code) if sentence is not None and code is not None else None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _open_streams() -> None:
    """Closed standard streams become empty ones: their numbers must not go to the files opened next, and
    nothing below has to ask whether they are there. Letters that a stream cannot carry become `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order: the lowest free number is the closed stream's own
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            setattr(sys, name, open(null, mode, closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _fail(message: str, code: int) -> int:
    from core.safety.text import clean_line

    print(f"{PROGRAM}: {clean_line(message)}", file=sys.stderr)
    return code


def _drop_stdout() -> None:
    """Nobody reads any more: what is still buffered must not fail at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
