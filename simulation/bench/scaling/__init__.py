"""Scaling: what more machines give, each a process held to a share of a core, and what more copies take.

Imported by the benchmark alone.
"""
