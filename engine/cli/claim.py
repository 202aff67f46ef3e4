"""The command `flashgrid claim`: gives gate and bus to a ledger that lost its identity."""

import logging
from contextlib import suppress
from typing import Final

import click
import msgspec
from redis.exceptions import ResponseError

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import LEDGER
from engine.cli.options import run_async, settings_option
from engine.errors import SettingsError
from engine.gate.client import Shards, connect_shards
from engine.gate.fence import claim_gate
from engine.gate.looks.reads import translate_errors as translate_gate_errors
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings
from engine.stages.reconciliation import reconciling
from engine.startup import find_services, prepare_ledger

_OF_ENGINES: Final = ("xreadgroup", "evalsha", "eval")
"""Commands that relay, fulfilment and front doors repeat all the time."""
_IDLE_S: Final = 5
"""A connection that has said nothing for so long is of an engine whose machine is gone."""


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
    with translate_gate_errors():
        async with connect_shards(settings) as shards, reconciling(settings) as reconciliation:
            await _check_engines(shards)
            if settings.amqp_url:
                await _release_bus(settings.amqp_url)
            await claim_gate(shards[0], identity, anew=True)
            await reconciliation.close(await reconciliation.read_generation())
    click.echo(f"gate and bus serve the ledger {identity} from the next start on")


async def _check_engines(shards: Shards) -> None:
    """Raise SettingsError while an engine works at the gate, be it of this ledger or of another one.

    Only Redis' list of connections tells of it.
    """
    for redis in {shard.redis for shard in shards}:
        clients = []
        with suppress(ResponseError):  # not every user may look at them
            clients = await redis.client_list()
        database = str(redis.connection_pool.connection_kwargs.get("db") or 0)
        if busy := [
            client
            for client in clients
            if client["db"] == database and client["cmd"] in _OF_ENGINES and int(client["idle"]) < _IDLE_S
        ]:
            raise SettingsError(
                f"{PREFIX}REDIS_URL: {len(busy)} connections of engines use the gate: stop every engine"
            )


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
