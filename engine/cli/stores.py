"""Where dead letters wait until a person replays or drops them.

They are in a queue of the bus or, in an engine without a bus, in a stream of the gate's Redis. A dead letter
is deleted only after what was to be done with it is on disk. If the command is interrupted in between, it may
run again: the ledger settles an order once.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

import msgspec
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD, REASON, declare_topology
from engine.gate.client import Shard
from engine.gate.fence import read_owner
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, decode_lots
from engine.settings import Settings

_MOST_RETURNS: Final = 10
"""One that went back to its queue so often is made anew: RabbitMQ 4 drops it after 20 times."""


class StoredDeadLetter(msgspec.Struct, frozen=True, eq=False):
    """A dead letter in its store."""

    where: str
    """"queue" or "stream"."""
    body: bytes
    reason: str
    send: Callable[[], Awaitable[object]]
    """Send its purchases to fulfilment once more. Raises BusUnavailable or RedisError."""
    delete: Callable[[], Awaitable[object]]
    """Delete it. Raises BusUnavailable or RedisError."""

    @property
    def id(self) -> str:
        """A short digest of the body: dead letters with the same body share it."""
        return hashlib.sha256(self.body).hexdigest()[:12]

    def read(self) -> list[Lot]:
        """Return the purchases in it; none if any part of it can't be read."""
        lots, unreadable = decode_lots(self.body)
        return [] if unreadable else lots


@asynccontextmanager
async def open_stores(settings: Settings, shards: Sequence[Shard]) -> AsyncIterator[list[StoredDeadLetter]]:
    """Read every dead letter of this engine, oldest first. Raises BusUnavailable or RedisError.

    Those of the bus are held until the block ends, and then go back to their queue unless they are deleted.
    """
    async with AsyncExitStack() as cleanup:
        stored = await _read_queue(settings.amqp_url, shards[0], cleanup) if settings.amqp_url else []
        # It holds the dead letters of all shards, and its outbox may carry the purchases of any product.
        shard = shards[0]
        entries: Any = await shard.redis.xrange(shard.dead)
        for entry_id, fields in entries:
            body = fields[b"body"]
            entry = "orders", count_orders(decode_lots(body)[0]), "purchases", body
            send = partial(shard.write, "XADD", shard.outbox, "*", *entry)
            delete = partial(shard.redis.xdel, shard.dead, entry_id)
            stored.append(StoredDeadLetter("stream", body, fields[b"reason"].decode(), send, delete))
        yield stored


async def _read_queue(url: str, first: Shard, cleanup: AsyncExitStack) -> list[StoredDeadLetter]:
    publisher = Publisher(url, partial(read_owner, first))
    cleanup.push_async_callback(publisher.close)
    with translate_errors():
        connection = await connect_bus(url, "dead letters")
        cleanup.push_async_callback(close_connection, connection)
        channel = await connection.channel()
        await declare_topology(channel, await read_owner(first))
        queue = await channel.get_queue(DEAD, ensure=False)
        messages = await _take_all(queue)
        if any(int(str(each.headers.get("x-delivery-count") or 0)) >= _MOST_RETURNS for each in messages):
            # All of them, so that they stay in their order.
            for message in messages:
                await publisher.put_aside([DeadLetter(message.body, _read_reason(message))])
                await _acknowledge(message)
            messages = await _take_all(queue)
        stored = []
        for message in messages:
            send, delete = partial(publisher.publish, message.body), partial(_acknowledge, message)
            stored.append(StoredDeadLetter("queue", message.body, _read_reason(message), send, delete))
        return stored


async def _take_all(queue: AbstractQueue) -> list[AbstractIncomingMessage]:
    messages = []
    while message := await queue.get(fail=False):
        messages.append(message)
    return messages


def _read_reason(message: AbstractIncomingMessage) -> str:
    return str(message.headers.get(REASON) or message.headers.get("x-first-death-reason") or "")


async def _acknowledge(message: AbstractIncomingMessage) -> None:
    with translate_errors():
        await message.ack()
