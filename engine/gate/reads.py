"""What the gate is asked beside purchases: stock, whether an order is pending, whether the gate is open."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.client import latest_connect, latest_reconnect
from engine.gate.fence import NOTICED_S, Fence, ask_primary, read_generations
from engine.gate.keys import ShardKeys, shard_of
from engine.model.order_id import read_time_ms, split_order_id

_CLOCKS_MS: Final = 60_000
"""Most that the clock of a front door, which dates its orders, is ahead of the gate's."""


_LATE_S: Final = 60.0
"""Longest time in which the gate hears, once it is back, of what was settled while it was away."""


class Stock(NamedTuple):
    """The gate's view of a product's current sale, in units."""

    sale_id: int
    initial: int
    remaining: int


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise GateUnavailable if Redis does not answer."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise GateUnavailable(f"Redis: {error}") from error


class GateReads:
    """Reads of all shards. Methods raise GateUnavailable if Redis does not answer, or the gate can't say."""

    def __init__(self, redis: Redis, shards: Sequence[tuple[ShardKeys, Fence]]) -> None:
        self._redis = redis
        self._shards = shards

    async def read_stock(self, product_id: int) -> Stock | None:
        """Return the stock of the product's current sale, None if it has none."""
        shard, _ = shard_of(product_id, self._shards)
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hmget(shard.sale(product_id), ["sale_id", "stock", "remaining"])
                # After the fields: a gate that loses its memory in between is closed.
                pipe.hget(shard.fence, "open")
                fields, generation = await ask_primary(pipe, shard)
        _check_open([generation])
        numbers = [int(field) for field in fields if field is not None]
        return Stock(*numbers) if numbers else None

    async def is_pending(self, order_id: str) -> bool:
        """Return whether the order was accepted and is not settled yet.

        Raises GateUnavailable also where the gate does not know the order and may have forgotten it.
        """
        stem, place = split_order_id(order_id)
        # Before they are asked: what this process hears meanwhile may be newer than the answer.
        seen = [fence.seen for _, fence in self._shards]
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for (shard, _), (writer, *_) in zip(self._shards, seen, strict=True):
                    pipe.hget(shard.pending, stem)
                    pipe.hmget(shard.fence, ["open", writer, "doubt"])
                answers = await ask_primary(pipe, self._shards[0][0])
        batches, memories = answers[::2], answers[1::2]
        for digits, (generation, *_) in zip(batches, memories, strict=True):
            if generation and digits and digits[place : place + 1] == b"1":
                return True
        _check_open([generation for generation, *_ in memories])
        for (generation, writes, doubt), (_, *own) in zip(memories, seen, strict=True):
            if [int(generation), int(writes or 0)] < own:
                raise GateUnavailable("the gate has lost what it answered before")
            if doubt and read_time_ms(order_id) <= int(doubt) + _CLOCKS_MS:
                raise GateUnavailable("orders that the gate has forgotten may be under way")
        if time.monotonic() - latest_connect(self._redis) < NOTICED_S:
            raise GateUnavailable("a new server may have an older copy of what the one before knew")
        return False

    @property
    def is_late(self) -> bool:
        """Whether orders that are pending here may have been shown as settled while the gate was away."""
        return time.monotonic() - latest_reconnect(self._redis) < _LATE_S

    async def is_open(self) -> bool:
        """Return whether every shard is open. Raises GateUnavailable also if Redis takes no writes."""
        with translate_errors():
            shards = [shard for shard, _ in self._shards]
            await self._redis.hdel(shards[0].fence, "")
            return all(await read_generations(self._redis, shards))


def _check_open(generations: Sequence[int | bytes | None]) -> None:
    if not all(generations):
        raise GateUnavailable("the gate waits to be rebuilt")
