"""The files that a pattern names as the rows of a job: their path, name and size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple

from core.jobs.errors import JobInputError
from core.jobs.sources import Record, Stamp
from core.jobs.table import Table, table_of
from core.safety.text import clean_line, shorten

COLUMNS = ["path", "name", "size"]
MAX_FILES = 1_000_000
MAX_PATTERN = 1000
MAGIC = frozenset("*?[")


class Found(NamedTuple):
    path: str
    """As the pattern is written: relative to the folder that it counts from, or absolute."""
    name: str
    size: int
    real: Path


def read_glob(pattern: str, cwd: Path, *, inside: bool = False, id_column: str | None = None) -> Table:
    """The files that a pattern like `src/**/*.py` names, as a table with the columns path, name, size, sorted
    by path. `**` stands for any folders, `*`, `?` and `[…]` for characters of a name.

    Hidden files and folders are left out unless the pattern names the dot. What version control ignores is
    not. Links to folders are not followed, nor links to files outside of the folder that is searched.
    `inside`: the pattern must stay below `cwd`. Raises JobInputError. Blocks: call it in a thread.
    """
    return table_of(_GlobSource(pattern, find_files(pattern, cwd, inside=inside)), id_column=id_column)


def find_files(pattern: str, cwd: Path, *, inside: bool = False) -> list[Found]:
    """The regular files that `pattern` names. Raises JobInputError, also when there is none."""
    shown = repr(shorten(clean_line(pattern), 100))
    parts = _parts(pattern, shown)
    # The plain folders at the beginning are a place that somebody chose: there links are followed.
    plain = 0
    while not inside and plain < len(parts) - 1 and not MAGIC & set(parts[plain]):
        plain += 1
    absolute = pattern.startswith("/")
    if inside and (absolute or ".." in parts):
        raise JobInputError(f"the pattern {shown} leads out of the workspace {cwd}")
    if ".." in parts[plain:]:
        raise JobInputError(f"the pattern {shown} has '..' behind a wildcard; begin it where it shall search")
    prefix = "/".join(parts[:plain])
    base = Path("/" + prefix) if absolute else cwd / prefix
    before = ("/" if absolute else "") + (prefix + "/" if prefix else "")
    found = sorted(_walk(base, before, _Pattern(parts[plain:])))
    if not found:
        raise JobInputError(
            f"no file matches {shown} in {cwd} (hidden files are left out, links to folders not followed)"
        )
    return found


def _parts(pattern: str, shown: str) -> list[str]:
    if not pattern.strip() or "\0" in pattern or len(pattern) > MAX_PATTERN:
        raise JobInputError(f"{shown} is not a pattern of files")
    if pattern.endswith("/"):
        raise JobInputError(f"the pattern {shown} names folders; a job needs files: end it with /*")
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    return [*parts, "*"] if parts[-1:] == ["**"] else parts


class _Pattern:
    """All the ways in which the beginning of a path can match, followed at once: however many wildcards there
    are, a name is looked at once for each part. A state is the set of the parts that may come next."""

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts
        self._names = [re.compile(translate(part)) for part in parts]
        self.start = self._closed({0})

    def step(self, state: frozenset[int], name: str) -> frozenset[int]:
        """Where it stands behind `name`; nowhere: nothing below can match."""
        hidden = name.startswith(".")
        following: set[int] = set()
        for at in state:
            if at == len(self._parts):
                continue
            part = self._parts[at]
            if part == "**":
                if not hidden:
                    following.add(at)
            elif self._names[at].match(name) and (not hidden or part.startswith(".")):
                following.add(at + 1)
        return self._closed(following)

    def over(self, state: frozenset[int]) -> bool:
        """Whether a path may end here."""
        return len(self._parts) in state

    def _closed(self, state: set[int]) -> frozenset[int]:
        """`**` may stand for no folder at all."""
        for at, part in enumerate(self._parts):
            if at in state and part == "**":
                state.add(at + 1)
        return frozenset(state)


def _walk(base: Path, before: str, pattern: _Pattern) -> Iterator[Found]:
    """The files below `base` that match; `before` stands before their paths."""
    root = Path(os.path.realpath(base))
    folders = [(base, before, pattern.start)]
    count = 0
    while folders:
        folder, prefix, state = folders.pop()
        for entry in _entries(folder):
            after = pattern.step(state, entry.name)
            if not after:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((folder / entry.name, f"{prefix}{entry.name}/", after))
                    continue
                if not pattern.over(after) or not entry.is_file():
                    continue
                real = Path(os.path.realpath(entry.path)) if entry.is_symlink() else Path(entry.path)
                if entry.is_symlink() and not real.is_relative_to(root):
                    continue
                size = entry.stat().st_size
            except OSError as error:
                path = clean_line(prefix + entry.name)
                raise JobInputError(f"the file {path} cannot be looked at: {error.strerror}") from None
            count += 1
            if count > MAX_FILES:
                raise JobInputError(f"the pattern names more than {MAX_FILES:,} files, the most for a job")
            yield Found(_text(prefix + entry.name), entry.name, size, real)


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise JobInputError(f"the folder {clean_line(str(folder))} cannot be read: {reason}") from None


def _text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = clean_line(path.encode("utf-8", "replace").decode())
        raise JobInputError(f"the name of the file {shown} is not UTF-8, so it cannot be a value") from None
    return path


class _GlobSource:
    """Found once: a folder that changes later changes nothing."""

    header = ""
    unit = "file"

    def __init__(self, pattern: str, found: list[Found]) -> None:
        self.name = shorten(clean_line(pattern), 100)
        self._found = found

    def stamp(self) -> Stamp:
        return ()

    def columns(self) -> list[str]:
        return [*COLUMNS]

    def records(self, columns: list[str]) -> Iterator[Record]:
        for number, file in enumerate(self._found, start=1):
            yield number, [file.path, file.name, str(file.size)]

    def is_input(self, path: Path) -> bool:
        """Whether `path` is one of the files."""
        real = Path(os.path.realpath(path))
        return any(real == file.real for file in self._found)
