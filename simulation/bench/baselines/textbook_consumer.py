"""The textbook's consumer: writes each order and its unit to PostgreSQL, one message after the other.

A message that comes twice changes nothing. An order for which PostgreSQL has no unit is written as REJECTED.

`python -m simulation.bench.baselines.textbook_consumer AMQP_URL POSTGRES_URL`: one process.
"""

import sys
from importlib.resources import files
from typing import Final
from uuid import UUID

import aio_pika
import asyncpg
import msgspec
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from simulation.bench.baselines.textbook import QUEUE

AT_ONCE: Final = 50
"""Messages that RabbitMQ sends ahead."""
_HOME: Final = files("simulation.bench.baselines")
_SCHEMA: Final = _HOME.joinpath("textbook_schema.sql").read_text()
_TAKE, _INSERT, _FIND, _ = _HOME.joinpath("textbook_consumer.sql").read_text().split(";")


class Order(msgspec.Struct):
    """A message."""

    orderId: UUID  # noqa: N815 - the name in JSON
    userId: int  # noqa: N815
    productId: int  # noqa: N815
    acceptedAt: float  # noqa: N815


_order: Final = msgspec.json.Decoder(Order)


async def write(database: asyncpg.Connection, order: Order) -> None:
    """Write one order and its unit."""
    async with database.transaction():
        if await database.fetchval(_FIND, order.orderId):
            return
        taken = await database.execute(_TAKE, order.productId)
        status = "CONFIRMED" if taken == "UPDATE 1" else "REJECTED"
        await database.execute(
            _INSERT, order.orderId, order.userId, order.productId, status, order.acceptedAt
        )


async def consume(amqp_url: str, postgres_url: str) -> None:
    """Consume until the process is stopped.

    An error ends it: its supervisor starts it again, and RabbitMQ sends again what was not acknowledged.
    """
    database = await asyncpg.connect(postgres_url)
    await database.execute(_SCHEMA)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(AT_ONCE)
        queue = await channel.declare_queue(QUEUE, durable=True)
        message: AbstractIncomingMessage
        async with queue.iterator() as messages:
            async for message in messages:
                await write(database, _order.decode(message.body))
                await message.ack()


def main() -> None:
    """Consume until SIGTERM."""
    uvloop.run(consume(*sys.argv[1:]))


if __name__ == "__main__":
    main()
