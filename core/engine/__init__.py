"""Puts the rooms together: an engine owns a store, its swarms, and the model clients that they ask."""
