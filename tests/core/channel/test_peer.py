"""Who is at the other end of a socket."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import cast

import pytest

from core.channel import peer
from core.channel.peer import peer_uid


class Answers:
    """A socket of another system: answers one option, or fails."""

    def __init__(self, answer: bytes | OSError) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        self.asked.append((level, option))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer[:size]


def test_the_other_end_of_a_real_pair_is_us() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()


def test_macos_answers_with_a_structure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    xucred = struct.pack("=IIh2x16I", 0, 501, 1, *range(16))
    sock = Answers(xucred)
    assert peer_uid(cast("socket.socket", sock)) == 501
    assert sock.asked == [(0, 1)]


@pytest.mark.parametrize("answer", [OSError("no such option"), b"\x00"])
@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_a_system_that_does_not_tell_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, platform: str, answer: bytes | OSError
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert peer_uid(cast("socket.socket", Answers(answer))) is None


def test_a_system_without_the_option_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    monkeypatch.delattr(peer.socket, "SO_PEERCRED", raising=False)
    assert peer_uid(cast("socket.socket", Answers(b"x" * 12))) is None
