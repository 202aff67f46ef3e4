"""The gate as a front-door worker sees it: all shards, what is for sale, and which orders are pending."""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.client import Script, connect_redis
from engine.gate.fence import read_generations
from engine.gate.keys import ShardKeys, shard_of
from engine.gate.lane import Lane
from engine.model.order_id import split_order_id
from engine.model.purchase import Outcome, Purchase
from engine.model.sale import Sale
from engine.settings import Settings

OPEN_SALE: Final = Script("open_sale.lua")


class Stock(NamedTuple):
    """The gate's view of a product's current sale, in units."""

    sale_id: int
    initial: int
    remaining: int


class Gate:
    """All shards of the gate, as one front-door worker sees them."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise ValueError("the gate needs redis_url")
        self._redis = connect_redis(settings.redis_url, settings.gate_timeout_ms)
        self._shards = settings.gate_shards
        self._sold_out_s = settings.sold_out_ms / 1000
        self._lanes = [Lane(ShardKeys(shard), settings, settings.redis_url) for shard in range(self._shards)]
        only = self._lanes[0] if self._shards == 1 else None
        self.submit: Callable[[Purchase], None] = only.submit if only else self._submit
        """Puts a purchase into the next batch of its shard; its `answer` is called later, exactly once."""
        self.send_away: Callable[[bytes], bool] = only.send_away if only else self._send_away
        """Whether the product is known to be sold out, for who comes without a key; counts the refusal."""

    async def close(self) -> None:
        """Answer the purchases that wait, then disconnect."""
        for lane in self._lanes:
            lane.refuse_more()
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._redis.aclose()

    @property
    def waiting(self) -> int:
        """Purchases that wait for the next batch."""
        return sum(len(lane.waiting) for lane in self._lanes)

    def _submit(self, purchase: Purchase) -> None:
        self._lane_of(int(purchase[1])).submit(purchase)

    def _send_away(self, product_id: bytes) -> bool:
        return self._lane_of(int(product_id)).send_away(product_id)

    async def reserve(self, user_id: int, product_id: int, key: str | None) -> tuple[Outcome, str | None]:
        """Outcome and order id of one purchase. A caller that goes away does not take its purchase back."""
        future: asyncio.Future[tuple[Outcome, str | None]] = asyncio.get_running_loop().create_future()

        def answer(outcome: Outcome, order_id: str | None) -> None:
            if not future.done():
                future.set_result((outcome, order_id))

        self.submit((b"%d" % user_id, b"%d" % product_id, key, answer))
        return await future

    async def open_sale(self, sale: Sale) -> None:
        """Put the sale on offer in place of the product's older one. Raises GateUnavailable.

        Returns once no front door of any machine repeats what it heard of the older one.
        """
        terms = sale.terms
        lane = self._lane_of(terms.product_id)
        keys = lane.keys
        arguments = (
            lane.witness.testimony[0], keys.prefix, sale.sale_id, terms.stock, terms.limit or 0,
            terms.quantity, terms.starts_ms or 0, terms.ends_ms or 0,
        )  # fmt: skip
        try:
            generation, writes, replaced = await OPEN_SALE.run(
                self._redis, [keys.mark, keys.sale(terms.product_id)], arguments
            )
        except (RedisError, OSError) as error:
            raise GateUnavailable(f"the sale could not be opened at the gate: {error}") from error
        lane.witness.note(generation, writes)
        if replaced:
            await asyncio.sleep(self._sold_out_s)

    async def read_stock(self, product_id: int) -> Stock | None:
        """Stock of the product's current sale, None if it has none. Raises GateUnavailable."""
        keys = self._lane_of(product_id).keys
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hget(keys.mark, "open")
                pipeline.hmget(keys.sale(product_id), ["sale_id", "stock", "remaining"])
                generation, fields = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        if not generation:
            raise GateUnavailable("the gate waits to be rebuilt")
        numbers = [int(field) for field in fields if field is not None]
        return Stock(*numbers) if numbers else None

    async def is_pending(self, order_id: str) -> bool:
        """Whether the order was accepted and not yet settled. Raises GateUnavailable."""
        stem, place = split_order_id(order_id)
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for lane in self._lanes:
                    pipeline.hget(lane.keys.pending, stem)
                batches = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        pending = any(digits and digits[place : place + 1] == b"1" for digits in batches)
        if not pending:
            # A gate that lost its memory can't say that it never accepted the order.
            await self.check_open()
        return pending

    async def check_open(self) -> None:
        """Raises GateUnavailable if Redis does not answer, or a shard is closed."""
        try:
            generations = await read_generations(self._redis, [lane.keys for lane in self._lanes])
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        if not all(generations):
            raise GateUnavailable("the gate waits to be rebuilt")

    def _lane_of(self, product_id: int) -> "Lane":
        return self._lanes[shard_of(product_id, self._shards)]
