"""The commands `flashgrid stack …`: private backing services without the engine."""

import asyncio
from pathlib import Path

import click

from engine.settings import read_settings

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the services' data and logs [default: FLASHGRID_DATA_DIR, or .flashgrid].",
)


@click.group()
def stack() -> None:
    """Run private Redis, PostgreSQL and RabbitMQ on free loopback ports."""


@stack.command()
@_data_dir
def up(data_dir: Path | None) -> None:
    """Start the services that do not run yet, and leave them running.

    Prints the lines that point an engine at them: eval "$(flashgrid stack up)".
    """
    from engine.local.stack import start_stack

    running = asyncio.run(start_stack(_folder(data_dir)))
    for note in running.notes:
        click.echo(f"flashgrid: {note}", err=True)
    urls = {"REDIS": running.urls.redis, "POSTGRES": running.urls.postgres, "AMQP": running.urls.amqp}
    for name, url in urls.items():
        if url:
            click.echo(f"export FLASHGRID_{name}_URL={url}")


@stack.command()
@_data_dir
def down(data_dir: Path | None) -> None:
    """Stop the services; their data stay."""
    from engine.local.stack import stop_stack

    stopped = asyncio.run(stop_stack(_folder(data_dir)))
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing ran")


@stack.command()
@_data_dir
def status(data_dir: Path | None) -> None:
    """Show the services; the exit code is 0 if all run, 1 otherwise."""
    from engine.local.stack import stack_status

    rows = stack_status(_folder(data_dir))
    for row in rows:
        where = f"pid {row.pid:<8} {row.url}" if row.pid else "down"
        click.echo(f"{row.name:10} {row.version:8} {where}")
    if not all(row.pid for row in rows):
        raise SystemExit(1)


def _folder(data_dir: Path | None) -> Path:
    return data_dir or Path(read_settings().data_dir)
