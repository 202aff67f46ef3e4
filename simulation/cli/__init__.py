"""The command `flashsim`: one module for each group of commands. Nothing else imports it."""

from simulation.cli.commands import main

__all__ = ["main"]
