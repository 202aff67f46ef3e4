"""The command `flashsim`: runs scenarios, and judges and reports what they recorded."""

import logging

import click

from engine.cli.commands import Commands
from simulation.cli import judging, proving, running
from simulation.cli.shared import EXIT_CODES
from simulation.errors import SimulationError


class SimulationCommands(Commands):
    """Commands that also end with one clear line for an error of the simulation, and exit code 2."""

    program = "flashsim"
    errors = (*Commands.errors, SimulationError)
    exit_code = EXIT_CODES["unknown"]


@click.group(cls=SimulationCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashgrid")
def main() -> None:
    """Flashsim drives simulated crowds at a Flashgrid engine and judges every purchase.

    Exit codes: 0 pass, 1 fail, 2 unknown or an error of use.
    """
    # A probe that can't read leaves a gap in the timeline; its client library need not log it as well.
    logging.basicConfig(level=logging.ERROR)
    for name in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


for command in (
    running.list_command,
    running.show,
    running.run,
    running.locust,
    judging.verify,
    judging.explain,
    judging.report,
    judging.index,
    judging.compare,
    proving.fuzz,
    proving.matrix,
    proving.mutants,
    proving.soak,
    proving.bench,
):
    main.add_command(command)
