"""Faults: what they are, when they happen, how they are done and healed."""
