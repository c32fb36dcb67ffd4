"""The fold that every face reads: the swarm's state, loaded transcripts and job rows, streaming text.

Text is cleaned here, where it enters. No I/O, no widget, no colour.
"""
