"""What holds for every test."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# No test asserts a time: on a busy machine an example may take long. On top of whatever profile there is.
settings.register_profile("watchroom", parent=settings(), deadline=None)
settings.load_profile("watchroom")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Property tests log, and fail with, half surrogate pairs. A worker process cannot send these to the one
    that reports, and would end the whole run instead."""
    report = yield
    report.sections = [(name, _sendable(text)) for name, text in report.sections]
    told: Any = report.longrepr
    if told is not None and not isinstance(told, tuple):
        text = str(told)
        if _sendable(text) != text:
            report.longrepr = _sendable(text)
    return report


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
