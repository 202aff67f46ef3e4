"""Compensation: the gate learns how orders ended, and gets back the units of those that failed."""

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from engine.gate.client import Script
from engine.gate.fence import Witness
from engine.gate.keys import ShardKeys, shard_of
from engine.model.order import Order, OrderStatus
from engine.model.order_id import split_order_id

SETTLE: Final = Script("clear.lua")


class Compensation:
    """Tells the gate how orders ended, and notices where the gate has lost its memory."""

    def __init__(self, redis: Redis, shards: Sequence[ShardKeys]) -> None:
        self._redis = redis
        self._shards = [(shard, Witness()) for shard in shards]

    async def settle(self, orders: Sequence[Order]) -> int:
        """Take the orders out of the gate's pending sets; return how many units went back into sale.

        Only FAILED orders give their units back. REJECTED ones never do: the ledger found that there was no
        unit. Telling the gate again changes nothing, so a lost answer is safe to repeat. A gate that forgot
        an order, or was rebuilt without it, holds no evidence that its unit is out, and gets nothing back:
        the rebuild has counted the unit as not sold. Raises RedisError.
        """
        by_shard: dict[int, list[Order]] = {}
        if len(self._shards) == 1:
            by_shard[0] = list(orders)
        else:
            for order in orders:
                by_shard.setdefault(shard_of(order.product_id, len(self._shards)), []).append(order)
        released = 0
        for shard, members in by_shard.items():
            released += await _settle_shard(self._redis, *self._shards[shard], members)
        return released

    async def is_remembered(self) -> bool:
        """Whether every open shard still holds what this process has written. Raises RedisError."""
        for shard, witness in self._shards:
            writer, generation, writes = witness.testimony
            found = await self._redis.hmget(shard.mark, ["open", writer])
            now_generation, now_writes = (int(number or 0) for number in found)
            if now_generation and (now_generation, now_writes) < (generation, writes):
                return False
        return True


async def _settle_shard(redis: Redis, shard: ShardKeys, witness: Witness, orders: Sequence[Order]) -> int:
    plain = _find_runs([order.order_id for order in orders if order.status is not OrderStatus.FAILED])
    places: dict[int, int] = {}
    releases: list[str | int] = []
    for order in orders:
        if order.status is OrderStatus.FAILED:
            place = places.setdefault(order.product_id, len(places) + 3)
            releases += (
                *split_order_id(order.order_id), place, order.sale_id, order.user_id, order.quantity,
            )  # fmt: skip
    keys = [shard.mark, shard.pending, *map(shard.sale, places)]
    arguments = [*witness.testimony, shard.prefix, plain, *releases]
    generation, writes, units = await SETTLE.run(redis, keys, arguments)
    witness.note(generation, writes)
    return int(units)


def _find_runs(order_ids: Sequence[str]) -> str:
    """Stem, first place and number of each run of orders whose places follow one another."""
    runs: list[str] = []
    run_stem, first, after = "", 0, 0
    for order_id in order_ids:
        stem, place = split_order_id(order_id)
        if stem != run_stem or place != after:
            runs.append(f"{run_stem} {first} {after - first}")
            run_stem, first = stem, place
        after = place + 1
    runs.append(f"{run_stem} {first} {after - first}")
    return " ".join(runs[1:])
