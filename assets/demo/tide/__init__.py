"""Water levels of a harbour gauge: read, calibrate, find the extremes, report."""

__version__ = "0.3"
