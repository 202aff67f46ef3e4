"""The command `flashsim`."""

from simulation.cli.commands import main

__all__ = ["main"]
