"""The commands `flashgrid serve` and `flashgrid settings`."""

import asyncio

import click

from engine.cli.options import settings_option
from engine.server import serve as run_server
from engine.settings import Settings, describe_settings, read_settings
from engine.stages.process import Role, set_up_logging


@click.command()
@click.option("--host", help="Address to bind; any but loopback needs FLASHGRID_ADMIN_TOKEN.")
@click.option("--dev", is_flag=True, help="Let any program on this machine open a sale without a token.")
@click.option("--port", type=int, help="Port of the front door [default: 8080]; 0 takes a free one.")
@click.option("--workers", type=int, help="Front-door processes that share the port [default: 1].")
@click.option(
    "--role",
    "roles",
    type=click.Choice([role.value for role in Role]),
    multiple=True,
    help="Serve only this stage; may be given more than once. [default: all]",
)
@settings_option
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    dev: bool,
    roles: tuple[str, ...],
    settings: Settings,
) -> None:
    """Serve the engine: front door, relay and fulfilment.

    A backing service whose URL is not set (FLASHGRID_REDIS_URL, FLASHGRID_AMQP_URL, FLASHGRID_POSTGRES_URL)
    is started privately on a free loopback port, and keeps its data for the next start. But beside Redis or
    PostgreSQL of your own there is a bus only if you name one. Ctrl-C stops the stages in order.
    """
    settings = read_settings(
        host=host, port=port, workers=workers, dev=dev or None, data_dir=settings.data_dir
    )
    set_up_logging(settings)
    asyncio.run(
        run_server(
            settings,
            [Role(role) for role in roles] or list(Role),
            lambda line: click.echo(f"flashgrid: {line}", err=True),
        )
    )


@click.command()
@click.option("--markdown", is_flag=True, help="As a table in Markdown.")
def settings(markdown: bool) -> None:
    """List every setting: environment name, default, unit, meaning.

    Empty is unset. FLASHGRID_ADMIN_TOKEN and the URLs may also lie in files, which FLASHGRID_ADMIN_TOKEN_FILE
    and so on name.
    """
    if markdown:
        click.echo("| setting | default | meaning |\n|---|---|---|")
    row = "| `{}` | {} | {} |" if markdown else "{:32} {:18} {}"
    for name, unit, default, meaning in describe_settings():
        click.echo(row.format(name, f"{default} {unit}".strip() if default else "", meaning))
