"""Capacity: what a purchase costs each process, by recorded runs, and what a crowd needs.

Imported by the command line and a notebook.
"""
