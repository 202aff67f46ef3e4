"""Compensation: the gate learns how orders ended, and gets back the units of those that failed."""

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from engine.keys import ShardKeys, shard_of
from engine.redis_client import Script
from engine.reservation import Order, OrderStatus

SETTLE: Final = Script("settle.lua")


async def settle_at_gate(redis: Redis, shards: Sequence[ShardKeys], orders: Sequence[Order]) -> int:
    """Take the orders out of the gate's pending sets; return how many units went back into sale.

    Only FAILED orders give their units back. REJECTED ones never do: the ledger found that there was no unit.
    Telling the gate again changes nothing, so a lost answer is safe to repeat. Raises RedisError.
    """
    by_shard: dict[int, list[Order]] = {}
    if len(shards) == 1:
        by_shard[0] = list(orders)
    else:
        for order in orders:
            by_shard.setdefault(shard_of(order.product_id, len(shards)), []).append(order)
    released = 0
    for shard, members in by_shard.items():
        released += await _settle_shard(redis, shards[shard], members)
    return released


async def _settle_shard(redis: Redis, shard: ShardKeys, orders: Sequence[Order]) -> int:
    plain = [order.order_id for order in orders if order.status is not OrderStatus.FAILED]
    places: dict[int, int] = {}
    releases: list[str | int] = []
    for order in orders:
        if order.status is OrderStatus.FAILED:
            place = places.setdefault(order.product_id, len(places) + 2)
            releases += (order.order_id, place, order.sale_id, order.user_id, order.quantity)
    keys = [shard.pending, *map(shard.sale, places)]
    units: int = await SETTLE.run(redis, keys, [shard.prefix, len(plain), *plain, *releases])
    return units
