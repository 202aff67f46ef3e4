"""The gate as a front-door worker sees it: the lanes of all shards, one for each."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final

from redis.exceptions import ResponseError

from engine.errors import GateUnavailable
from engine.gate.client import Script, Shard, connect_shards
from engine.gate.fence import NEW, Fence, vouch
from engine.gate.keys import shard_of
from engine.gate.lane import Lane
from engine.gate.looks.backlog import BacklogReads
from engine.gate.looks.reads import GateReads, translate_errors
from engine.model.purchase import Outcome, Purchase
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tasks import cancel

log = logging.getLogger(__name__)

_OPEN_SALE: Final = Script("open_sale.lua")
_WATCH_S: Final = 0.1
"""How often a shard is asked whether it remembers."""
_ASK_S: Final = 0.5
"""Longest wait for what a shard says to a probe, whose own wait is longer."""
_CONNECTIONS: Final = 8
"""To a shard: one that buys, one that watches, two for looks, and a few for operations."""
_WATCH_TIMEOUT_MS: Final = 350
"""Longest wait for its answer: an old server's, the pause and a new one's are less than NOTICED_S."""


class Gate:
    """All shards of the gate, as one front-door worker sees them."""

    def __init__(self, settings: Settings) -> None:
        self._shards = connect_shards(settings, settings.look_timeout_ms)
        self._sold_out_s = settings.sold_out_ms / 1000
        watched = connect_shards(settings, _WATCH_TIMEOUT_MS)
        self._lanes = [Lane(shard, settings) for shard in connect_shards(settings, settings.gate_timeout_ms)]
        self.connections: Final = _CONNECTIONS * len(self._lanes)
        """How many it may have."""
        fences = [lane.fence for lane in self._lanes]
        self.reads = GateReads([*zip(self._shards, fences, strict=True)])
        self.backlog = BacklogReads(self._shards)
        self._watching = [
            asyncio.create_task(_watch(shard, lane), name=f"gate watch {shard.shard}")
            for shard, lane in zip(watched, self._lanes, strict=True)
        ]
        self._connected = [watched, self._shards]
        only = self._lanes[0] if len(self._lanes) == 1 else None
        self.submit: Callable[[Purchase], None] = only.submit if only else self._submit
        """Put a purchase into the next batch of its shard; its reply is called later, exactly once."""
        self.send_away: Callable[[bytes], bool] = only.send_away if only else self._send_away
        """Return whether a product is known to be sold out, and if so count a refusal; not for keys."""

    async def close(self) -> None:
        """Reply to the purchases that wait, then disconnect."""
        async with AsyncExitStack() as closing:
            for shards in self._connected:
                closing.push_async_callback(shards.aclose)
            closing.callback(self.reads.close)
            closing.push_async_callback(cancel, *self._watching)
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

    async def find_obstacle(self) -> str:
        """Return why no shard sells anything, "" if one of them may sell.

        Raises GateUnavailable if that is because none takes writes.
        """
        # One shard that says nothing must not speak for the others.
        within_s = _ASK_S if len(self._lanes) > 1 else None
        asking = map(partial(_find_obstacle, within_s=within_s), self._shards, self._lanes)
        answers = await asyncio.gather(*asking, return_exceptions=True)
        if "" in answers:
            return ""
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return str(answers[0])

    async def check(self, product_id: int, within_s: float) -> None:
        """Raise GateUnavailable unless the product's shard takes writes now."""
        shard = shard_of(product_id, self._shards)
        with translate_errors():
            async with asyncio.timeout(within_s):
                await shard.redis.hdel(shard.fence, "")

    async def open_sale(self, sale: Sale, within_s: float | None = None) -> None:
        """Offer the sale in place of the product's older one. Raises GateUnavailable: it may be offered yet.

        Returns once no front door of any machine repeats a refusal of the older one.
        """
        shard = shard_of(sale.terms.product_id, self._shards)
        with translate_errors():
            async with asyncio.timeout(within_s):
                is_next = await offer_sale(shard, self._lanes[shard.shard].fence, sale)
        if is_next:
            await asyncio.sleep(self._sold_out_s)


async def _find_obstacle(shard: Shard, lane: Lane, within_s: float | None) -> str:
    """Return why a shard sells nothing, "" if it may. Raises GateUnavailable also if it takes no writes."""
    with translate_errors():
        try:
            async with asyncio.timeout(within_s):
                return NEW if await vouch(shard.redis.execute_command, shard, lane.fence) else ""
        except ResponseError as error:
            if str(error).startswith("CLOSED"):
                return "the gate waits to be rebuilt"
            raise


async def _watch(shard: Shard, lane: Lane) -> None:
    """Close a shard that has forgotten what this process heard of it, also while nobody buys here."""
    while True:
        await asyncio.sleep(_WATCH_S)
        try:
            with suppress(GateUnavailable), translate_errors():
                async with asyncio.timeout(_WATCH_TIMEOUT_MS / 1000):
                    if await vouch(shard.redis.execute_command, shard, lane.fence):
                        lane.is_vouched = False
        except Exception:
            # Nothing may end this task: the others sell on the word of it.
            log.exception("a shard could not be asked what it remembers")


async def offer_sale(shard: Shard, fence: Fence, sale: Sale) -> bool:
    """Offer a sale with its whole stock; return whether the product has had one before. Raises RedisError.

    It changes nothing if the gate has this sale, or a newer one of the product.
    """
    terms, writer = sale.terms, fence.seen[0]
    arguments = (
        writer, shard.prefix, sale.sale_id, terms.stock, terms.limit or 0, terms.quantity,
        terms.starts_ms or 0, terms.ends_ms or 0,
    )  # fmt: skip
    keys = [shard.fence, shard.sale(terms.product_id)]
    generation, writes, is_next = await _OPEN_SALE.run(shard.write, keys, arguments)
    fence.note(writer, generation, writes)
    return bool(is_next)
