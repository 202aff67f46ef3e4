"""The pending set: orders that are accepted and not yet settled, the evidence that their units are out.

It is a hash with a field for each batch, the stem of its order ids (order_id.py). The value holds a digit for
each order by its place: 1 while it is pending, 0 once it is settled. A field without a 1 is deleted. So a
batch costs one write when it is accepted and one when it is settled, however many orders are in it.
"""

from collections.abc import Iterable
from typing import Any, cast

from redis.asyncio import Redis

from engine.gate.keys import ShardKeys
from engine.model.order_id import PLACES


def count_pending(values: Iterable[bytes]) -> int:
    """Return the number of pending orders in the values of a shard's hash."""
    return sum(value.count(b"1") for value in values)


async def find_oldest(redis: Redis, shards: Iterable[ShardKeys]) -> str | None:
    """Return the stem of the oldest batch with a pending order, None if there is none. Raises RedisError."""
    stems: list[bytes] = []
    for shard in shards:
        stems += cast(list[bytes], await redis.hkeys(shard.pending))
    return min(stems).decode() if stems else None


async def read_pending(redis: Redis, shard: ShardKeys) -> set[str]:
    """Return the ids of a shard's pending orders. Raises RedisError."""
    batches: Any = await redis.hgetall(shard.pending)
    return {
        stem.decode() + PLACES[place]
        for stem, digits in batches.items()
        for place, digit in enumerate(digits)
        if digit == ord("1")
    }
