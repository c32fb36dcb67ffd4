"""Pure data and rules: paths, statuses, events, commands, limits and the fold `apply`.

No I/O, no clock, no task lives here; every other room may import this one and it imports none of them.
"""
