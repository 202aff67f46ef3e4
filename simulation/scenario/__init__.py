"""Scenarios: what is sold, who buys and when, which faults are done, and what a run must reach.

All rooms above may import it. The types are pure; `loading`, `checks` and `traces` read files and settings.
"""
