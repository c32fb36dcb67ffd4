"""The console and the command line: faces of an engine they reach through core.channel only."""
