from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests keeps its handlers. With those of a verb, ctrl+c would end it on the
    spot: no fixture would end what it has started."""
    monkeypatch.setattr("tui.signals._install", lambda handler: None)
