"""Where dead letters wait until a person replays or drops them.

They are in a queue of the bus or, in an engine without a bus, in a stream of the gate's Redis. A dead letter
is deleted only after what was to be done with it is on disk. If the command is interrupted in between, it may
run again: the ledger settles an order once.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ClassVar, Final

from aio_pika.abc import AbstractIncomingMessage
from redis.asyncio import Redis

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD, REASON, declare_topology
from engine.gate.keys import ShardKeys
from engine.model.delivery import decode_lines
from engine.settings import Settings

_ID_LENGTH: Final = 12
_SHARD: Final = ShardKeys(0)
"""Its stream holds the dead letters of all shards. Its outbox may carry the purchases of any product."""


class StoredDeadLetter:
    """A dead letter in its store. Methods raise BusUnavailable or RedisError."""

    where: ClassVar[str]

    def __init__(self, body: bytes, reason: str) -> None:
        self.id = hashlib.sha256(body).hexdigest()[:_ID_LENGTH]
        """The same for dead letters with the same body: they are about the same purchases."""
        self.body = body
        self.reason = reason
        reservations, unreadable = decode_lines(body)
        self.reservations = [] if unreadable else reservations
        """What is in it; nothing if any part can't be read."""

    async def replay(self) -> None:
        """Send its purchases to fulfilment once more, then delete it."""
        raise NotImplementedError

    async def delete(self) -> None:
        """Delete it."""
        raise NotImplementedError


@asynccontextmanager
async def open_stores(settings: Settings, redis: Redis) -> AsyncIterator[list[StoredDeadLetter]]:
    """Read every dead letter of this engine, oldest first. Raises BusUnavailable or RedisError.

    Those of the bus are held until the block ends, and then go back to their queue unless they are deleted.
    """
    async with AsyncExitStack() as cleanup:
        queued = await _read_queue(settings.amqp_url, cleanup) if settings.amqp_url else []
        streamed = [_Streamed(redis, *entry) for entry in await redis.xrange(_SHARD.dead)]
        yield [*queued, *streamed]


class _Streamed(StoredDeadLetter):
    where = "stream"

    def __init__(self, redis: Redis, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        super().__init__(fields[b"body"], fields[b"reason"].decode())
        self._redis = redis
        self._entry_id = entry_id

    async def replay(self) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(_SHARD.outbox, {"orders": len(self.reservations), "purchases": self.body})
            pipe.xdel(_SHARD.dead, self._entry_id)
            await pipe.execute()

    async def delete(self) -> None:
        await self._redis.xdel(_SHARD.dead, self._entry_id)


class _Queued(StoredDeadLetter):
    where = "queue"

    def __init__(self, publisher: Publisher, message: AbstractIncomingMessage) -> None:
        reason = message.headers.get(REASON) or message.headers.get("x-first-death-reason") or ""
        super().__init__(message.body, str(reason))
        self._publisher = publisher
        self._message = message

    async def replay(self) -> None:
        await self._publisher.publish(self.body)
        await self.delete()

    async def delete(self) -> None:
        with translate_errors():
            await self._message.ack()


async def _read_queue(url: str, cleanup: AsyncExitStack) -> list[StoredDeadLetter]:
    publisher = Publisher(url)
    cleanup.push_async_callback(publisher.close)
    with translate_errors():
        connection = await connect_bus(url, "dead letters")
        cleanup.push_async_callback(close_connection, connection)
        channel = await connection.channel()
        await declare_topology(channel)
        queue = await channel.get_queue(DEAD, ensure=False)
        found: list[StoredDeadLetter] = []
        while message := await queue.get(fail=False):
            found.append(_Queued(publisher, message))
        return found
