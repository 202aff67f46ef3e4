"""The command `flashgrid`."""

from typing import Any, ClassVar

import click

from engine.cli.claim import claim
from engine.cli.dead_letters import dead_letters
from engine.cli.migrate import migrate
from engine.cli.prune import prune
from engine.cli.reconcile import reconcile
from engine.cli.serve import serve, settings
from engine.cli.stack import stack
from engine.errors import FlashgridError
from engine.ledger.environment import forget_libpq_variables


class Commands(click.Group):
    """A group whose commands turn an expected error into one clear line and an exit code."""

    program: ClassVar[str] = "flashgrid"
    errors: ClassVar[tuple[type[Exception], ...]] = (FlashgridError,)
    exit_code: ClassVar[int] = 1

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of the command line."""
        forget_libpq_variables()
        try:
            return super().invoke(ctx)
        except self.errors as error:
            click.echo(f"{self.program}: {error}", err=True)
            ctx.exit(self.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashgrid")
def main() -> None:
    """Flashgrid sells a fixed stock to a crowd that arrives all at once, every unit exactly once."""


for command in (serve, settings, migrate, reconcile, claim, dead_letters, prune, stack):
    main.add_command(command)
