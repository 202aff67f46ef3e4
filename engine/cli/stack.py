"""The commands `flashgrid stack …`: private backing services without the engine."""

import asyncio
from pathlib import Path
from typing import Final

import click

from engine.cli.options import settings_option
from engine.settings import PREFIX, Settings

_SETTINGS: Final = {
    "redis": "REDIS",
    "redis-cluster": "REDIS",
    "postgres": "POSTGRES",
    "postgres-cluster": "POSTGRES",
    "rabbitmq": "AMQP",
    "rabbitmq-cluster": "AMQP",
}


@click.group()
def stack() -> None:
    """Run private Redis, PostgreSQL and RabbitMQ on free loopback ports."""


@stack.command()
@click.option(
    "--machines",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="With 3, Redis has three primaries with two replicas each, PostgreSQL two standbys,"
    " and RabbitMQ three nodes: for root in network namespaces of this machine, else all on loopback.",
)
@settings_option
def up(machines: str, settings: Settings) -> None:
    """Start the services that do not run yet, and leave them running.

    Prints the lines that point an engine at them: eval "$(flashgrid stack up)".
    """
    from engine.local.stack import CLUSTER, SERVICES, start_stack

    services = CLUSTER if machines == "3" else SERVICES
    running = asyncio.run(start_stack(Path(settings.data_dir), services))
    for note in running.notes:
        click.echo(f"flashgrid: {note}", err=True)
    for name, setting in _SETTINGS.items():
        if name in running.urls:
            click.echo(f"export {PREFIX}{setting}_URL={running.urls[name]}")
    if "redis-cluster" in running.urls:
        click.echo(f"export {PREFIX}GATE_SHARDS={machines} {PREFIX}GATE_COPIES=2")


@stack.command()
@settings_option
def down(settings: Settings) -> None:
    """Stop the services. Their data stay."""
    from engine.local.stack import stop_stack

    stopped = asyncio.run(stop_stack(Path(settings.data_dir)))
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing ran")


@stack.command()
@settings_option
def status(settings: Settings) -> None:
    """Show the services. The exit code is 0 if all of them run, else 1."""
    from engine.local.stack import stack_status

    rows = stack_status(Path(settings.data_dir))
    for row in rows:
        where = f"pid {row.pid:<8} {row.url}" if row.pid else "down"
        click.echo(f"{row.name:16} {row.version:8} {where}")
    if not all(row.pid for row in rows):
        raise SystemExit(1)
