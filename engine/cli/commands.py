"""The command `flashgrid`: serves the engine, manages its private services, lists its settings."""

import asyncio
from typing import Any, ClassVar

import click

from engine.cli.operations import dead_letters, reconcile
from engine.cli.stack import stack
from engine.errors import FlashgridError
from engine.settings import describe_settings, read_settings
from engine.stages.process import Role, set_up_logging


class Commands(click.Group):
    """Commands that end with one clear line and an exit code when they say why they can't go on."""

    program: ClassVar[str] = "flashgrid"
    errors: ClassVar[tuple[type[Exception], ...]] = (FlashgridError,)
    exit_code: ClassVar[int] = 1

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except self.errors as error:
            click.echo(f"{self.program}: {error}", err=True)
            ctx.exit(self.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashgrid")
def main() -> None:
    """Flashgrid sells a fixed stock to a crowd that arrives all at once, every unit exactly once."""


@main.command()
@click.option("--host", help="Address to bind; beyond loopback FLASHGRID_ADMIN_TOKEN is needed.")
@click.option("--port", type=int, help="Port of the front door [default: 8080]; 0 takes a free one.")
@click.option("--workers", type=int, help="Front-door processes that share the port [default: 1].")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    multiple=True,
    help="Serve only this stage; may be given more than once. [default: all]",
)
@click.option("--data-dir", help="Folder of the private backing services [default: .flashgrid].")
def serve(
    host: str | None, port: int | None, workers: int | None, role: tuple[str, ...], data_dir: str | None
) -> None:
    """Serve the engine: front door, relay and fulfilment.

    A backing service whose URL is not set (FLASHGRID_REDIS_URL, FLASHGRID_AMQP_URL, FLASHGRID_POSTGRES_URL)
    is started privately on a free loopback port, and keeps its data for the next start. Ctrl-C stops all in
    order.
    """
    from engine.server import serve as run_server

    settings = read_settings(host=host, port=port, workers=workers, data_dir=data_dir)
    set_up_logging(settings)
    roles = [Role(name) for name in role] or list(Role)
    asyncio.run(run_server(settings, roles, lambda line: click.echo(f"flashgrid: {line}", err=True)))


@main.command()
def settings() -> None:
    """List every setting: environment name, default, unit, meaning."""
    for name, unit, default, meaning in describe_settings():
        value = "" if default == "None" else f"{default} {unit}".strip()
        click.echo(f"{name:32} {value:18} {meaning}")


main.add_command(dead_letters)
main.add_command(reconcile)
main.add_command(stack)
