"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# No test asserts a time: on a busy machine an example may take long. On top of whatever profile there is.
settings.register_profile("watchroom", parent=settings(), deadline=None)
settings.load_profile("watchroom")
