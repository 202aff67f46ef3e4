"""The gate as a front-door worker sees it: the lanes of all shards, one for each."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from engine.gate.client import Script, connect_redis
from engine.gate.keys import ShardKeys, shard_of
from engine.gate.lane import Lane
from engine.gate.reads import GateReads, translate_errors
from engine.model.purchase import Outcome, Purchase
from engine.model.sale import Sale
from engine.settings import Settings

_OPEN_SALE: Final = Script("open_sale.lua")


class Gate:
    """All shards of the gate, as one front-door worker sees them."""

    def __init__(self, settings: Settings) -> None:
        self._redis = connect_redis(settings.redis_url, settings.look_timeout_ms)
        self._sold_out_s = settings.sold_out_ms / 1000
        shards = [ShardKeys(shard) for shard in range(settings.gate_shards)]
        self._lanes = [Lane(shard, settings) for shard in shards]
        self.reads = GateReads(self._redis, shards)
        only = self._lanes[0] if len(shards) == 1 else None
        self.submit: Callable[[Purchase], None] = only.submit if only else self._submit
        """Put a purchase into the next batch of its shard; its reply is called later, exactly once."""
        self.send_away: Callable[[bytes], bool] = only.send_away if only else self._send_away
        """Return whether a product is known to be sold out, and if so count a refusal; not for keys."""

    async def close(self) -> None:
        """Reply to the purchases that wait, then disconnect."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._redis.aclose)
            for lane in self._lanes:
                lane.refuse_more()
                closing.push_async_callback(lane.close)

    def _submit(self, purchase: Purchase) -> None:
        _, product_id, _, _ = purchase
        shard_of(int(product_id), self._lanes).submit(purchase)

    def _send_away(self, product_id: bytes) -> bool:
        return shard_of(int(product_id), self._lanes).send_away(product_id)

    async def reserve(self, user_id: int, product_id: int, key: str | None) -> tuple[Outcome, str | None]:
        """Return outcome and order id of one purchase; cancelling this does not take the purchase back."""
        future: asyncio.Future[tuple[Outcome, str | None]] = asyncio.get_running_loop().create_future()

        def reply(outcome: Outcome, order_id: str | None) -> None:
            if not future.done():
                future.set_result((outcome, order_id))

        self.submit((b"%d" % user_id, b"%d" % product_id, key, reply))
        return await future

    async def open_sale(self, sale: Sale) -> None:
        """Offer the sale in place of the product's older one. Raises GateUnavailable.

        Returns once no front door of any machine repeats a refusal of the older one.
        """
        terms = sale.terms
        lane = shard_of(terms.product_id, self._lanes)
        keys = [lane.keys.fence, lane.keys.sale(terms.product_id)]
        arguments = (
            lane.fence.seen[0], lane.keys.prefix, sale.sale_id, terms.stock, terms.limit or 0,
            terms.quantity, terms.starts_ms or 0, terms.ends_ms or 0,
        )  # fmt: skip
        with translate_errors():
            generation, writes, replaced = await _OPEN_SALE.run(self._redis.execute_command, keys, arguments)
        lane.fence.note(generation, writes)
        if replaced:
            await asyncio.sleep(self._sold_out_s)
