"""Agent jobs over the rows of a file: read, render, schedule, report, export; and their tools."""
