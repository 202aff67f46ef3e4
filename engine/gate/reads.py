"""What the gate is asked beside purchases: stock, whether an order is pending, whether the gate is open."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.fence import ask_primary, read_generations
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
        raise GateUnavailable(f"Redis: {error}") from error


class GateReads:
    """Reads of all shards. Methods raise GateUnavailable if Redis does not answer, or the gate can't say."""

    def __init__(self, redis: Redis, shards: Sequence[ShardKeys]) -> None:
        self._redis = redis
        self._shards = shards

    async def read_stock(self, product_id: int) -> Stock | None:
        """Return the stock of the product's current sale, None if it has none."""
        shard = shard_of(product_id, self._shards)
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hmget(shard.sale(product_id), ["sale_id", "stock", "remaining"])
                # After the fields: a gate that loses its memory in between is closed.
                pipe.hget(shard.fence, "open")
                fields, generation = await ask_primary(pipe, shard)
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
                    pipe.hget(shard.fence, "open")
                answers = await ask_primary(pipe, self._shards[0])
        batches, generations = answers[::2], answers[1::2]
        for digits, generation in zip(batches, generations, strict=True):
            if generation and digits and digits[place : place + 1] == b"1":
                return True
        # A gate that lost its memory can't say that it never accepted the order.
        _check_generations(generations)
        return False

    async def is_open(self) -> bool:
        """Return whether every shard is open. Raises GateUnavailable also if Redis takes no writes."""
        with translate_errors():
            await self._redis.hdel(self._shards[0].fence, "")
            return all(await read_generations(self._redis, self._shards))


def _check_generations(generations: Sequence[int | bytes | None]) -> None:
    if not all(generations):
        raise GateUnavailable("the gate waits to be rebuilt")
