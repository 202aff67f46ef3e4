"""The exchanges and queues of the bus."""

from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractExchange
from aiormq.exceptions import ChannelPreconditionFailed

from engine.errors import BusUnavailable

PURCHASES: Final = "flashgrid.purchases"
"""Exchange, queue and routing key of the purchases."""
DEAD: Final = "flashgrid.dead"
"""Exchange, queue and routing key of the dead letters."""
REASON: Final = "x-flashgrid-reason"
"""Header of a dead letter: why it can't be fulfilled."""
DELIVERY_LIMIT: Final = 1_000_000
"""After so many deliveries a purchase is a dead letter."""
LEDGER: Final = "flashgrid.ledger"
"""Exchange that carries nothing: its argument names the ledger that settles the purchases."""


async def declare_topology(channel: AbstractChannel, ledger: str = "") -> AbstractExchange:
    """Declare every exchange and queue, all durable; return the exchange of the purchases.

    Raises BusUnavailable if the virtual host holds the purchases of another ledger than this one.
    """
    if ledger:
        await _claim(channel, ledger)
    dead = await channel.declare_exchange(DEAD, durable=True)
    dead_queue = await channel.declare_queue(DEAD, durable=True, arguments={"x-queue-type": "quorum"})
    await dead_queue.bind(dead, DEAD)
    purchases = await channel.declare_exchange(PURCHASES, durable=True)
    queue = await channel.declare_queue(
        PURCHASES,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-routing-key": DEAD,
            # A purchase must outlive any number of outages; RabbitMQ 4 drops it after 20 by default.
            "x-delivery-limit": DELIVERY_LIMIT,
        },
    )
    await queue.bind(purchases, PURCHASES)
    return purchases


def name_ledger(ledger: str) -> dict[str, Any]:
    """Return the arguments of the exchange LEDGER that name this one."""
    return {"alternate-exchange": f"{LEDGER}.{ledger}"}


async def _claim(channel: AbstractChannel, ledger: str) -> None:
    """Make the virtual host this ledger's unless it has one: a queue's arguments can't be added to."""
    try:
        # RabbitMQ compares no other argument of an exchange, and lets it name one that does not exist.
        await channel.declare_exchange(LEDGER, durable=True, arguments=name_ledger(ledger))
    except ChannelPreconditionFailed as error:
        raise BusUnavailable(
            "the virtual host holds the purchases of another ledger: give each engine one of its own"
            f" (amqp://host/name), or delete the exchange {LEDGER} and the queues if that ledger is no more,"
            " or run `flashgrid claim` if this ledger was restored from a backup of before migration 0070"
        ) from error
