"""What a job's rows are read from: CSV, TSV, JSON lines or Parquet, chosen by the file's ending.

Every source tells its columns and then its records, each as often as it is asked, reading its file from the
start: nothing is kept, so a file of any length costs no memory. Values stay the text that they are; nothing
is guessed and nothing repaired.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import msgspec

from core.jobs.errors import JobInputError
from core.safety.text import clean_line, shorten

MAX_BYTES = 4 * 1024**3
MAX_RECORD = 16 * 1024**2
"""Characters of one record: what has more is no table, or a quote in it is never closed."""
MAX_COLUMNS = 1000
PARQUET_ROWS = 20_000
"""Rows of a Parquet file that are in memory at once."""
_BREAK = re.compile("\r\n|\r|\n")
_CHUNK = 1024**2

Stamp = tuple[int, ...]
Record = tuple[int, list[str]]
"""(line or row on which it starts, counted from 1; its values)."""


class Source(Protocol):
    name: str
    header: str
    """Where the names of the columns stand, for messages: "line 1, " or nothing."""
    unit: str
    """What a record's number counts: "line", "row" or "file"."""

    def stamp(self) -> Stamp:
        """Changes when the file does."""
        ...

    def columns(self) -> list[str]:
        """The names of the columns. Raises JobInputError."""
        ...

    def records(self, columns: list[str]) -> Iterator[Record]:
        """The records in order; blank lines too. Raises JobInputError."""
        ...

    def is_input(self, path: Path) -> bool:
        """Whether `path` is one of the files that are its records."""
        ...


def file_source(path: Path) -> Source:
    """The source for a file, by its ending; CSV if it is none of the others."""
    ending = path.suffix.lower()
    if ending in (".tsv", ".tab"):
        return CsvSource(path, "\t")
    if ending in (".jsonl", ".ndjson"):
        return JsonLinesSource(path)
    if ending in (".parquet", ".pq"):
        return ParquetSource(path)
    return CsvSource(path, ",")


class _File:
    header = ""
    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name or str(path)

    def stamp(self) -> Stamp:
        try:
            info = self.path.stat()
        except OSError:
            return ()
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns

    def is_input(self, path: Path) -> bool:
        return False

    def descriptor(self) -> int:
        """A regular file and nothing else: a pipe or a device would block, or never end."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise JobInputError(f"there is no file {self.path}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise JobInputError(f"{self.name} cannot be read: {reason}") from None
        info = os.fstat(fd)
        problem = None
        if not stat.S_ISREG(info.st_mode):
            what = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            problem = f"{self.name} is {what}; a job needs a file of CSV, TSV, JSON lines or Parquet"
        elif info.st_size > MAX_BYTES:
            problem = f"{self.name} has {info.st_size:,} bytes; a job's input may have at most {MAX_BYTES:,}"
        if problem is not None:
            os.close(fd)
            raise JobInputError(problem)
        return fd

    def text(self, newline: str | None) -> TextIOWrapper:
        return open(self.descriptor(), encoding="utf-8-sig", newline=newline)


# --- CSV and TSV -----------------------------------------------------------------------------------------


class CsvSource(_File):
    """The standard library's reader in strict mode (decision 32). Fields of a TSV file may be quoted, too."""

    header = "line 1, "

    def __init__(self, path: Path, delimiter: str) -> None:
        super().__init__(path)
        self.delimiter = delimiter

    def columns(self) -> list[str]:
        first = next(self._parsed(), None)
        if first is None:
            raise JobInputError(f"{self.name} is empty; it needs a header and at least one row")
        return first[1]

    def records(self, columns: list[str]) -> Iterator[Record]:
        parsed = self._parsed()
        next(parsed, None)
        return parsed

    def _parsed(self) -> Iterator[Record]:
        """(line on which the record starts, its fields) for every record, the header's too."""
        csv.field_size_limit(MAX_RECORD)  # one per process; the default of 128 KiB refuses honest files
        with self.text(newline="") as file:
            lines = _Lines(file, self.name)
            parser = csv.reader(lines, delimiter=self.delimiter, strict=True)
            while True:
                lines.begin()
                start = lines.number + 1
                try:
                    record = next(parser)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise JobInputError(self._malformed(start, lines.record, str(error))) from None
                except UnicodeDecodeError:
                    raise JobInputError(_not_utf8(self.path)) from None
                yield start, record

    def _malformed(self, start: int, record: list[str], problem: str) -> str:
        """Where in its record the parser failed. Its error names no place, so the record is parsed again."""
        line = start + len(record) - 1
        if "end of data" in problem:
            fields = next(csv.reader(record, delimiter=self.delimiter, strict=False))
            breaks = len(_BREAK.findall("".join(record))) - len(_BREAK.findall(fields[-1]))
            opened = start + breaks
            return f"{self.name}, line {opened}, column {len(fields)}: a quote is opened and never closed"
        low, high = 0, len(record[-1])
        while low < high:
            middle = (low + high) // 2
            if self._fails([*record[:-1], record[-1][:middle]], problem):
                high = middle
            else:
                low = middle + 1
        if "expected after" in problem:
            problem = "text after a closing quote; a quote inside a field is doubled"
        return f"{self.name}, line {line}, character {low}: {problem}"

    def _fails(self, record: list[str], problem: str) -> bool:
        try:
            list(csv.reader(record, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            return str(error) == problem
        return False


class _Lines:
    """Feeds the parser line by line and remembers the lines of the record that it is in."""

    def __init__(self, file: TextIOWrapper, name: str) -> None:
        self._file = file
        self._name = name
        self._size = 0
        self.number = 0
        self.record: list[str] = []

    def begin(self) -> None:
        self.record.clear()
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.record.append(line)
        self._size += len(line)
        if self._size > MAX_RECORD:
            raise JobInputError(_too_long(self._name, self.number - len(self.record) + 1, "quote"))
        if (at := line.find("\0")) >= 0:
            raise JobInputError(
                f"{self._name}, line {self.number}, character {at + 1}: a NUL byte; "
                "is this really a CSV file in UTF-8?"
            )
        return line


def _too_long(name: str, line: int, what: str) -> str:
    return f"{name}, line {line}: a record of more than {MAX_RECORD:,} characters; is there a {what} missing?"


def _not_utf8(path: Path) -> str:
    """Where the first byte stands that is not UTF-8."""
    line, character = 1, 1
    held = b""
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            data = held + data
            bad = None
            try:
                text, held = data.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                text, held = data[: error.start].decode("utf-8"), data[error.start :]
                # The chunk may have cut a character whose end is still to come.
                bad = None if error.reason == "unexpected end of data" else held[0]
            if bad is None and text.endswith("\r"):
                text, held = text[:-1], b"\r" + held
            parts = _BREAK.split(text)
            line += len(parts) - 1
            character = len(parts[-1]) + (character if len(parts) == 1 else 1)
            if bad is not None:
                break
    if held.startswith(b"\r") and len(held) > 1:
        line, character, held = line + 1, 1, held[1:]
    if held.strip(b"\r"):
        return (
            f"{path.name}, line {line}, character {character}: "
            f"the byte 0x{held[0]:02x} is not UTF-8; save the file as UTF-8"
        )
    return f"{path.name} is not UTF-8, or changed while it was read"


# --- JSON lines ------------------------------------------------------------------------------------------


class JsonLinesSource(_File):
    """One JSON object a line. The columns are all keys in the order in which they first appear; a key that a
    line lacks is empty there, like null. A number stays as it is written, what is nested is its JSON text."""

    def columns(self) -> list[str]:
        found: dict[str, None] = {}
        for line, value in self._objects():
            for key in value:
                if key not in found and len(found) == MAX_COLUMNS:
                    raise JobInputError(f"{self.name}, line {line}: more than {MAX_COLUMNS:,} different keys")
                found[key] = None
        if not found:
            raise JobInputError(f"{self.name} is empty; it needs at least one JSON object with a key")
        return list(found)

    def records(self, columns: list[str]) -> Iterator[Record]:
        for line, value in self._objects():
            try:
                yield line, [_json_text(value[key]) if key in value else "" for key in columns]
            except (msgspec.DecodeError, ValueError) as error:
                raise JobInputError(f"{self.name}, line {line}: {clean_line(str(error))}") from None

    def _objects(self) -> Iterator[tuple[int, dict[str, msgspec.Raw]]]:
        """Every line with its object; a blank line is one without keys."""
        decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        number = 0
        with self.text(newline=None) as file:
            try:
                while line := file.readline(MAX_RECORD + 1):
                    number += 1
                    if len(line) > MAX_RECORD:
                        raise JobInputError(_too_long(self.name, number, "line break"))
                    yield number, decoder.decode(line) if line.strip() else {}
            except UnicodeDecodeError:
                raise JobInputError(_not_utf8(self.path)) from None
            except (msgspec.DecodeError, RecursionError) as error:
                problem = clean_line(str(error))
                raise JobInputError(f"{self.name}, line {number}: not a JSON object: {problem}") from None


def _json_text(value: msgspec.Raw) -> str:
    raw = bytes(value)
    if raw == b"null":
        return ""
    text = msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
    if "\0" in text:
        raise ValueError("a NUL character in a value")
    return text


# --- Parquet ---------------------------------------------------------------------------------------------


class ParquetSource(_File):
    """Text stays as it is; numbers, dates and times as they are usually written; what is nested is JSON text;
    null is empty. Columns of bytes are refused."""

    unit = "row"

    def columns(self) -> list[str]:
        os.close(self.descriptor())
        schema = self._do(lambda frame: frame.collect_schema())
        if not schema:
            raise JobInputError(f"{self.name} has no columns")
        for name, kind in schema.items():
            if str(kind) in ("Binary", "Object"):
                shown = shorten(clean_line(name), 40)
                raise JobInputError(f"{self.name}: the column {shown!r} holds bytes, which are no text")
        return list(schema)

    def records(self, columns: list[str]) -> Iterator[Record]:
        os.close(self.descriptor())
        number = 0
        while True:
            rows = self._do(lambda frame, at=number: frame.slice(at, PARQUET_ROWS).collect().rows())
            for row in rows:
                number += 1
                try:
                    yield number, [_plain_text(value) for value in row]
                except ValueError as error:
                    raise JobInputError(f"{self.name}, row {number}: {clean_line(str(error))}") from None
            if len(rows) < PARQUET_ROWS:
                return

    def _do(self, work: Any) -> Any:
        import polars  # 34 MiB and a third of a second, for whoever has such a file

        wrong = (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError)
        try:
            return work(polars.scan_parquet(self.path, glob=False, hive_partitioning=False))
        except wrong as error:
            problem = shorten(clean_line(str(error)), 200)
            raise JobInputError(f"{self.name} is not a Parquet file that can be read: {problem}") from None


def _plain_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            text = value
        case bool():
            text = "true" if value else "false"
        case int() | float() | Decimal():
            text = str(value)
        case datetime():
            text = value.isoformat(" ")
        case date() | time():
            text = value.isoformat()
        case timedelta():
            text = f"{value.total_seconds()} s"
        case _:
            text = json.dumps(value, ensure_ascii=False, default=_plain_text)
    if "\0" in text:
        raise ValueError("a NUL character in a value")
    return text
