"""The log of a background engine: every line is JSON, nothing in it is secret, and it stays small."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.channel import logfile
from core.channel.client import ClientError
from core.safety.redact import Redactor
from core.safety.text import is_clean

log = logging.getLogger("watchroom.test")


def lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / logfile.NAME).read_text("ascii").splitlines()]


def test_a_line_says_when_who_and_what(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "logs"
    before = logging.getLogger().handlers[:]
    with logfile.logging_to(folder):
        log.info("hello %s", "there")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("it failed")
    log.warning("nobody hears this here")
    assert [stat.S_IMODE(made.stat().st_mode) for made in (folder.parent, folder)] == [0o700, 0o700]
    first, second = lines(folder)
    assert (first["level"], first["logger"], first["message"]) == ("info", "watchroom.test", "hello there")
    assert first["at"].endswith("+00:00")
    assert second["error"].endswith("ValueError: broken\n")
    assert stat.S_IMODE((folder / logfile.NAME).stat().st_mode) == 0o600
    assert logging.getLogger().handlers == before


def test_what_libraries_chat_about_is_left_out(tmp_path: Path) -> None:
    levels = logging.getLogger().level, logging.getLogger("watchroom").level
    with logfile.logging_to(tmp_path):
        logging.getLogger("httpx").info("one line for each request")
        logging.getLogger("httpx").warning("something is wrong")
    assert [line["message"] for line in lines(tmp_path)] == ["something is wrong"]
    assert (logging.getLogger().level, logging.getLogger("watchroom").level) == levels


@given(text=st.text(st.characters(codec=None, categories=None), max_size=100))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_one_clean_line(tmp_path: Path, text: str) -> None:
    (tmp_path / logfile.NAME).unlink(missing_ok=True)
    with logfile.logging_to(tmp_path):
        log.warning("%s", f"\x1b[2J{text}\x9b31m")
    (line,) = lines(tmp_path)
    assert is_clean(line["message"])


def test_secrets_are_taken_out_also_those_learned_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "from-the-environment")
    with logfile.logging_to(tmp_path) as file:
        log.info("a from-the-environment b")
        redactor = Redactor({})
        redactor.learn(["came-with-a-command"])
        file.redact = redactor
        try:
            raise ValueError("came-with-a-command")
        except ValueError:
            log.exception("c came-with-a-command d")
    text = (tmp_path / logfile.NAME).read_text()
    assert "from-the-environment" not in text
    assert "came-with-a-command" not in text
    assert text.count("[redacted]") >= 3


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    with logfile.logging_to(tmp_path):
        for number in range(300):
            log.info("%d %s", number, "x" * 30_000)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + logfile.OLD_FILES
    assert all(path.stat().st_size <= logfile.MOST_BYTES for path in files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert lines(tmp_path)[-1]["message"].startswith("299 ")


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    room = [10**9]
    write = os.write

    def short(fd: int, data: bytes) -> int:
        """A disk with so much room; like the real one it takes a part, then nothing."""
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(fd, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", short)
    with logfile.logging_to(tmp_path) as file:
        log.info("first")
        room[0] = 20
        log.info("torn")
        log.info("lost")
        file.handle(logging.LogRecord("watchroom", logging.INFO, "", 0, "%d fits not", ("x",), None))
        room[0] = 10**9
        log.info("after")
        log.info("and on")
        room[0] = 0
    texts = (tmp_path / logfile.NAME).read_text().splitlines()
    assert len(texts) == 4
    assert len(texts[1]) == 20
    said = [json.loads(text)["message"] for text in (texts[0], *texts[2:])]
    assert said == ["first", "after (3 lines before this are lost)", "and on"]
    assert capfd.readouterr() == ("", "")


def test_two_engines_may_share_the_folder(tmp_path: Path) -> None:
    """Also when one of them begins a new file while the other writes on."""
    one, two = (logfile.LogFile(tmp_path / logfile.NAME, lambda text: text) for _ in range(2))
    for number in range(100):
        for name, file in (("one", one), ("two", two)):
            said = f"{name} {number} {'x' * 15_000}"
            file.handle(logging.LogRecord("watchroom", logging.INFO, "", 0, said, (), None))
    one.close()
    two.close()
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert len(files) == 1 + logfile.OLD_FILES
    assert all(path.stat().st_size <= logfile.MOST_BYTES for path in files)
    kept = [
        json.loads(line)["message"].split()[:2] for path in files for line in path.read_text().splitlines()
    ]
    written = [[name, str(number)] for number in range(100) for name in ("one", "two")]
    assert kept == written[-len(kept) :]  # only the oldest are gone
    assert len(kept) > 130


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / logfile.NAME).symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path / "file", tmp_path / "away"):
        with pytest.raises(ClientError, match="cannot be written"), logfile.logging_to(folder):
            pass
    assert not (tmp_path / "elsewhere").exists()
