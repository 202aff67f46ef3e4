"""What those who look ask the gate: stock, and whether orders are pending."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.client import latest_connect, latest_reconnect
from engine.gate.fence import NOTICED_S, Fence, ask_primary
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
    """Reads of all shards. Methods raise GateUnavailable if Redis does not answer."""

    def __init__(self, redis: Redis, shards: Sequence[tuple[ShardKeys, Fence]]) -> None:
        self._redis = redis
        self._shards = shards
        self.away_at = -math.inf
        """When orders could last not be asked for in time, on time.monotonic."""

    async def read_stocks(self, product_ids: Iterable[int]) -> dict[int, Stock | None]:
        """Return the stock of each product's current sale, None if it has none, in one round trip.

        Products of a shard that waits to be rebuilt are left out.
        """
        homes = {product_id: shard_of(product_id, self._shards)[0] for product_id in product_ids}
        shards = [*dict.fromkeys(homes.values())]
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for product_id, shard in homes.items():
                    pipe.hmget(shard.sale(product_id), ["sale_id", "stock", "remaining"])
                # After the fields: a gate that loses its memory in between is closed.
                for shard in shards:
                    pipe.hget(shard.fence, "open")
                answers = await ask_primary(pipe, shards[0])
        is_open = dict(zip(shards, answers[len(homes) :], strict=True))
        return {
            product_id: None if fields[0] is None else Stock(*map(int, fields))
            for (product_id, shard), fields in zip(homes.items(), answers, strict=False)
            if is_open[shard]
        }

    async def find_pending(self, order_ids: Sequence[str]) -> dict[str, bool]:
        """Return for each order whether it was accepted and is not settled yet, in one round trip.

        Orders that the gate does not know and may have forgotten are left out.
        """
        places = {order_id: split_order_id(order_id) for order_id in order_ids}
        stems = [*dict.fromkeys(stem for stem, _ in places.values())]
        # Before they are asked: what this process hears meanwhile may be newer than the answer.
        seen = [fence.seen for _, fence in self._shards]
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for (shard, _), (writer, *_) in zip(self._shards, seen, strict=True):
                    pipe.hmget(shard.pending, stems)
                    pipe.hmget(shard.fence, ["open", writer, "doubt"])
                answers = await ask_primary(pipe, self._shards[0][0])
        memories = answers[1::2]
        forgotten_ms = self._read_forgotten_ms(memories, seen)
        known = [each for each in places if forgotten_ms < 0 or read_time_ms(each) > forgotten_ms]
        found = dict.fromkeys(known, False)
        for batches, (generation, *_) in zip(answers[::2], memories, strict=True):
            digits_of = {stem: digits for stem, digits in zip(stems, batches, strict=True) if digits}
            if generation and digits_of:
                for order_id, (stem, place) in places.items():
                    if digits_of.get(stem, b"")[place : place + 1] == b"1":
                        found[order_id] = True
        return found

    def _read_forgotten_ms(self, memories: Sequence[Any], seen: Sequence[tuple[str, int, int]]) -> float:
        """Return up to which time in their ids the shards may have forgotten orders."""
        forgotten_ms = -1
        for (generation, writes, doubt), (_, *own) in zip(memories, seen, strict=True):
            if not generation or [int(generation), int(writes or 0)] < own:
                return math.inf
            if doubt:
                forgotten_ms = max(forgotten_ms, int(doubt) + _CLOCKS_MS)
        # A new server may have an older copy of what the one before knew.
        is_new = time.monotonic() - latest_connect(self._redis) < NOTICED_S
        return math.inf if is_new else forgotten_ms

    @property
    def is_late(self) -> bool:
        """Whether orders that are pending here may have been shown as settled while the gate was away."""
        return time.monotonic() - max(self.away_at, latest_reconnect(self._redis)) < _LATE_S
