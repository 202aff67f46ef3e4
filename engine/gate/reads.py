"""What the gate is asked beside purchases: stock, whether an order is pending, whether the gate is open."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.fence import read_generations
from engine.gate.keys import ShardKeys, shard_of
from engine.model.order_id import split_order_id


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
        raise GateUnavailable(str(error)) from error


class GateReads:
    """Reads of all shards. Methods raise GateUnavailable if Redis does not answer or a shard is closed."""

    def __init__(self, redis: Redis, shards: Sequence[ShardKeys]) -> None:
        self._redis = redis
        self._shards = shards

    async def read_stock(self, product_id: int) -> Stock | None:
        """Return the stock of the product's current sale, None if it has none."""
        shard = self._shards[shard_of(product_id, len(self._shards))]
        with translate_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(shard.fence, "open")
                pipe.hmget(shard.sale(product_id), ["sale_id", "stock", "remaining"])
                generation, fields = await pipe.execute()
        _check_generations([generation])
        numbers = [int(field) for field in fields if field is not None]
        return Stock(*numbers) if numbers else None

    async def is_pending(self, order_id: str) -> bool:
        """Return whether the order was accepted and is not settled yet."""
        stem, place = split_order_id(order_id)
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for shard in self._shards:
                    pipe.hget(shard.pending, stem)
                batches = await pipe.execute()
        pending = any(digits and digits[place : place + 1] == b"1" for digits in batches)
        if not pending:
            # A gate that lost its memory can't say that it never accepted the order.
            await self.check_open()
        return pending

    async def check_open(self) -> None:
        """Return if every shard is open."""
        with translate_errors():
            generations = await read_generations(self._redis, self._shards)
        _check_generations(generations)


def _check_generations(generations: Sequence[int | bytes | None]) -> None:
    if not all(generations):
        raise GateUnavailable("the gate waits to be rebuilt")
