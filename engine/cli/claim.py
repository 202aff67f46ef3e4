"""The command `flashgrid claim`: gives gate and bus to a ledger that lost its identity."""

import logging

import click
import msgspec

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import LEDGER
from engine.cli.options import run_async, settings_option
from engine.errors import SettingsError
from engine.gate.client import connect_shards
from engine.gate.fence import claim_gate
from engine.gate.looks.reads import translate_errors as translate_gate_errors
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings
from engine.stages.reconciliation import reconciling
from engine.startup import find_services, prepare_ledger


@click.command()
@click.confirmation_option(
    prompt=f"Do the gate at {PREFIX}REDIS_URL and the queues at {PREFIX}AMQP_URL belong to this ledger?"
)
@settings_option
@run_async
async def claim(settings: Settings) -> None:
    """Let gate and bus serve this ledger from now on, whatever ledger they knew before.

    For a ledger that was restored from a backup of before it had an identity (migration 0070). Stop every
    engine before; the next one rebuilds the gate from the ledger, and settles what is in the queue.
    """
    # The command prints what it does; log lines would say it again.
    logging.getLogger("engine").setLevel(logging.ERROR)
    settings = find_services(settings)
    await prepare_ledger(settings.postgres_url or "")
    async with await Ledger.connect(settings.postgres_url, connections=1) as ledger:
        identity = await ledger.read_identity()
        count = await ledger.claim_shards(None) or settings.gate_shards
    settings = msgspec.structs.replace(settings, gate_shards=count)
    if settings.amqp_url:
        await _release_bus(settings.amqp_url)
    with translate_gate_errors():
        async with connect_shards(settings) as shards, reconciling(settings) as reconciliation:
            await claim_gate(shards[0], identity, anew=True)
            await reconciliation.close(await reconciliation.read_generation())
    click.echo(f"gate and bus serve the ledger {identity} from the next start on")


async def _release_bus(url: str) -> None:
    """Let the virtual host be the next ledger's that asks. Raises SettingsError while anybody reads there."""
    publisher = Publisher(url)
    try:
        _, consumers = await publisher.read_queue()
    finally:
        await publisher.close()
    if consumers:
        raise SettingsError(f"{PREFIX}AMQP_URL: the queue has {consumers} consumers: stop every engine")
    connection = await connect_bus(url, "claim")
    try:
        with translate_errors():
            await (await connection.channel()).exchange_delete(LEDGER)
    finally:
        await close_connection(connection)
