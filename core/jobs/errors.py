"""What the jobs room raises."""

from __future__ import annotations


class JobInputError(Exception):
    """A job that cannot be created as asked. One sentence that names the file or argument, and the place.
    Nothing was stored."""


class ExportError(Exception):
    """The CSV of a job could not be written; one sentence."""
