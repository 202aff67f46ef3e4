"""The command `flashgrid migrate`: brings the ledger's schema up to date."""

import logging

import click

from engine.cli.options import run_async, settings_option
from engine.settings import Settings
from engine.startup import find_services, prepare_ledger


@click.command()
@settings_option
@run_async
async def migrate(settings: Settings) -> None:
    """Apply the migrations that the ledger's schema lacks, and print their names.

    An engine applies them itself when it starts, if its role may. Where that role may only read and write,
    run this before, with the role in FLASHGRID_POSTGRES_URL that owns the schema. Engines may serve
    meanwhile: a migration only adds, and an older engine goes on beside it.
    """
    # The command prints what it does; log lines would say it again.
    logging.getLogger("engine").setLevel(logging.ERROR)
    applied = await prepare_ledger(settings.postgres_url or find_services(settings).postgres_url or "")
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("the schema is up to date")
