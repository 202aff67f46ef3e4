"""Witnesses: what an engine holds at the end of a run, by its own stores, by SQL of one's own, or over HTTP.

`run` imports this room; it imports the target's other modules.
"""
