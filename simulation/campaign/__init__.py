"""Campaigns: many runs that prove one thing. Imported by the command line alone."""
