"""Engines that are not ours: described in a TOML file, reset and started by commands of their own.

`library/` holds descriptions to begin with. `run` imports this room; it imports the target's other modules.
"""
