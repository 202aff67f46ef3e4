"""Dead letters: records that could not be fulfilled, until a person replays or drops them.

They wait in a queue of the bus and, where there was no bus, in a stream of the gate's Redis. A letter is
deleted only after what was to be done with it is done and safe. Who is interrupted in between does it again,
and that changes nothing: an order is settled once.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol

import msgspec
from aio_pika.abc import AbstractIncomingMessage
from redis.asyncio import Redis

from engine.bus.connection import connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD, REASON, declare_topology
from engine.gate.keys import ShardKeys, shard_of
from engine.model.lot import Lot, count_orders, decode_lots, encode_lots
from engine.settings import Settings

_ID_LENGTH: Final = 12


class StoredDeadLetter(msgspec.Struct, frozen=True, eq=False):
    """One record that could not be fulfilled."""

    letter_id: str
    """The same for letters with the same body: they are about the same purchases."""
    where: str
    """"queue" or "stream"."""
    body: bytes
    reason: str
    lots: list[Lot]
    """The purchases in it; none if any part of the record can't be read."""
    tag: Any
    """What its store knows it by."""


class Store(Protocol):
    """A place where dead letters wait. Methods raise BusUnavailable or RedisError."""

    async def read(self) -> list[StoredDeadLetter]:
        """Every letter, oldest first."""
        ...

    async def replay(self, letter: StoredDeadLetter) -> None:
        """Send its purchases on their way once more, then delete it."""
        ...

    async def delete(self, letter: StoredDeadLetter) -> None:
        """Delete it."""
        ...


@asynccontextmanager
async def open_stores(settings: Settings, redis: Redis) -> AsyncIterator[list[Store]]:
    """Every place where this engine's dead letters may be. Raises BusUnavailable."""
    async with AsyncExitStack() as cleanup:
        stores: list[Store] = [_Stream(redis, [ShardKeys(shard) for shard in range(settings.gate_shards)])]
        if settings.amqp_url:
            queue = _Queue(settings.amqp_url)
            cleanup.push_async_callback(queue.close)
            stores.insert(0, queue)
        yield stores


class _Stream:
    """The stream of an engine without a bus."""

    def __init__(self, redis: Redis, shards: Sequence[ShardKeys]) -> None:
        self._redis = redis
        self._shards = shards
        self._dead = shards[0].dead

    async def read(self) -> list[StoredDeadLetter]:
        entries: Any = await self._redis.xrange(self._dead)
        return [
            _read_letter("stream", fields[b"body"], fields[b"reason"].decode(), entry_id)
            for entry_id, fields in entries
        ]

    async def replay(self, letter: StoredDeadLetter) -> None:
        # Back into the outbox, whence fulfilment or a relay takes it.
        by_shard: dict[int, list[Lot]] = {}
        for lot in letter.lots:
            by_shard.setdefault(shard_of(lot.product_id, len(self._shards)), []).append(lot)
        async with self._redis.pipeline(transaction=True) as pipe:
            for shard, lots in by_shard.items():
                pipe.xadd(
                    self._shards[shard].outbox,
                    {"orders": count_orders(lots), "purchases": encode_lots(lots)},
                )
            pipe.xdel(self._dead, letter.tag)
            await pipe.execute()

    async def delete(self, letter: StoredDeadLetter) -> None:
        await self._redis.xdel(self._dead, letter.tag)


class _Queue:
    """The queue of the bus. Letters that are read are held, and go back to the queue at the end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._publisher = Publisher(url)
        self._cleanup = AsyncExitStack()

    async def read(self) -> list[StoredDeadLetter]:
        with translate_errors():
            connection = await self._cleanup.enter_async_context(await connect_bus(self._url, "dead letters"))
            channel = await connection.channel()
            await declare_topology(channel)
            queue = await channel.get_queue(DEAD, ensure=False)
            letters = []
            while message := await queue.get(fail=False):
                reason = str(message.headers.get(REASON) or message.headers.get("x-first-death-reason") or "")
                letters.append(_read_letter("queue", message.body, reason, message))
            return letters

    async def replay(self, letter: StoredDeadLetter) -> None:
        await self._publisher.publish(encode_lots(letter.lots))
        await self.delete(letter)

    async def delete(self, letter: StoredDeadLetter) -> None:
        message: AbstractIncomingMessage = letter.tag
        with translate_errors():
            await message.ack()

    async def close(self) -> None:
        """Let go of what was read."""
        with translate_errors():
            await self._cleanup.aclose()
        await self._publisher.close()


def _read_letter(where: str, body: bytes, reason: str, tag: Any) -> StoredDeadLetter:
    letter_id = hashlib.sha256(body).hexdigest()[:_ID_LENGTH]
    lots, unreadable = decode_lots(body)
    return StoredDeadLetter(letter_id, where, body, reason, [] if unreadable else lots, tag)
