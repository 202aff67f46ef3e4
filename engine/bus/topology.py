"""The exchanges and queues of the bus."""

from typing import Final

from aio_pika.abc import AbstractChannel, AbstractExchange

PURCHASES: Final = "flashgrid.purchases"
"""Exchange, queue and routing key of the purchases."""
DEAD: Final = "flashgrid.dead"
"""Exchange, queue and routing key of the dead letters."""
REASON: Final = "x-flashgrid-reason"
"""Header of a dead letter: why it can't be fulfilled."""
_DELIVERY_LIMIT: Final = 1_000_000
"""A purchase must outlive any number of outages; by default RabbitMQ 4 drops it after 20 deliveries."""


async def declare_topology(channel: AbstractChannel) -> AbstractExchange:
    """Declare every exchange and queue, all durable; return the exchange of the purchases."""
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
            "x-delivery-limit": _DELIVERY_LIMIT,
        },
    )
    await queue.bind(purchases, PURCHASES)
    return purchases
