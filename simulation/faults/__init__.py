"""Faults: what is done to a running engine and its services, and how it is undone."""
