"""The command `flashsim`: runs scenarios, and judges and reports what they recorded."""

import logging
from itertools import chain
from typing import Final

import click

from engine.cli.commands import Commands
from simulation.cli import exporting, judging, planning, proving, running
from simulation.cli.shared import EXIT_CODES
from simulation.errors import SimulationError, suggest

GROUPS: Final = {
    "Run a scenario": (running.list_command, running.show, running.run, running.locust),
    "Look at what was recorded": (
        judging.explain, judging.report, judging.index, exporting.export, exporting.schema,
    ),
    "Prove that the engine is correct": (
        judging.verify, proving.matrix, proving.mutants, proving.fuzz, proving.soak,
        proving.model, proving.interleave,
    ),
    "Measure": (judging.compare, proving.bench, planning.capacity, proving.worth),
}  # fmt: skip
"""The commands, as the help lists them."""


class SimulationCommands(Commands):
    """Commands that also end with one clear line for an error of the simulation, and exit code 2."""

    program = "flashsim"
    errors = (*Commands.errors, SimulationError)
    exit_code = EXIT_CODES["unknown"]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named. Raises UsageError, which names one that is like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"{error.message.rstrip('.')}{suggest(args[0], self.commands)}", ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by their groups."""
        limit = formatter.width - 6 - max(len(name) for name in self.commands)
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(each.name or "", each.get_short_help_str(limit)) for each in commands])


@click.group(cls=SimulationCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashgrid")
def main() -> None:
    """Flashsim drives simulated crowds at a flash-sale engine and judges every purchase.

    The engine is Flashgrid, or one that a TOML file describes (run --engine).

    Exit codes: 0 pass, 1 fail, 2 unknown or an error of use.
    """
    # A probe that can't read leaves a gap in the timeline; its client library need not log it as well.
    logging.basicConfig(level=logging.ERROR)
    for name in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


for command in chain(*GROUPS.values()):
    main.add_command(command)
