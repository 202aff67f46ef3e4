"""Flashgrid's engine: sells a fixed stock to a crowd that arrives all at once."""
