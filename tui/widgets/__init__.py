"""Widgets of the console. Each paints plain spans through `tui.paint`.

None parses markup or holds a runtime object.
"""
