"""The command `flashgrid`."""

from engine.cli.commands import main

__all__ = ["main"]
