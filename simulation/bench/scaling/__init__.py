"""Scaling: what more machines give, each of which is a process that is held to a share of a core.

Imported by the benchmark alone.
"""
