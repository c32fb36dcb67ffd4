"""Which layout a terminal of a given size gets. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Layout = Literal["wide", "medium", "narrow", "tiny"]

LEAST_WIDTH, LEAST_HEIGHT = 60, 15
TREE_WIDTH = {"wide": 56, "medium": 37}
ROLL_ROWS = {"wide": 5, "medium": 2, "narrow": 1, "tiny": 1}
JOB_ROWS = {"wide": 5, "medium": 8}
"""Rows of the job strip; the wide layout always has it, the medium one when it is opened."""


class Sizes(NamedTuple):
    layout: Layout
    tree: int
    """Cells of the tree beside the transcript; 0 when one pane has the screen."""
    roll: int


def sizes(width: int, height: int) -> Sizes:
    """The layout and its measures: wide from 140x40, medium from 100x30, else one pane at a time."""
    layout: Layout
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        layout = "tiny"
    elif width >= 140 and height >= 40:
        layout = "wide"
    elif width >= 100 and height >= 30:
        layout = "medium"
    else:
        layout = "narrow"
    return Sizes(layout, TREE_WIDTH.get(layout, 0), ROLL_ROWS[layout])
