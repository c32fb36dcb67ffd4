from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.tools.mcp.fakes import Fixture


@pytest.fixture
def mcp(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)
