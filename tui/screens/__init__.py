"""Screens of the console: the swarm, help, and the one modal question."""
