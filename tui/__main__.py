"""`python -m tui`: how an engine is started where no script of ours need be on PATH."""

from __future__ import annotations

from tui.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
