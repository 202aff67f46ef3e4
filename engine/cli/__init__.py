"""The command `flashgrid`: one module for each group of commands. Nothing in the engine imports it."""

from engine.cli.commands import main

__all__ = ["main"]
