"""The audit: whether gate and ledger say the same of every sale on offer, while the gate sells.

A unit that the gate has taken is in the ledger as sold, or its order is still pending; so

    0 <= stock - sold - remaining <= units of the sale's pending orders

at any moment at which nobody writes to the gate, whatever is under way, and though orders may be pending for
long: dead letters, or payments that take their time. The pending set does not say which sale an order belongs
to, so the right side is checked for all sales of a shard together. Nothing here looks at orders of the
ledger: the cost follows the sales on offer.

What only the gate knows is withdrawn from it: nobody could settle its purchases. The evidence of those that
were accepted stays in the pending set, and they end as dead letters. In the same way a sale leaves gate and
ledger's offers some time after its end, once all of its units are accounted for.
"""

import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

from engine.errors import LedgerLocked
from engine.gate.clearing import count_pending
from engine.gate.client import Script, Shard, ask_each
from engine.gate.connection.wire import Argument
from engine.gate.fence import forget_writers
from engine.gate.keys import shard_of
from engine.ledger.ledger import Ledger, Offer

log = logging.getLogger(__name__)

_COMPARE: Final = Script("compare.lua")
_WITHDRAW: Final = Script("withdraw.lua")
_INTERVAL_S: Final = 5.0
"""How often at least sales are compared, also if purchases keep coming, or none come."""
_CHUNK: Final = 250
"""Sales in one script call: shoppers wait meanwhile."""
_SCANNED: Final = 250
"""Keys of a shard that one audit looks through for sales that only the gate knows."""


class Comparison(NamedTuple):
    """A product's current sale as ledger and gate see it, in units."""

    offer: Offer
    sale_id: int
    """The gate's; 0 if it has no sale of the product."""
    remaining: int

    @property
    def expected(self) -> int:
        """Units that the gate must have once nothing is under way."""
        return self.offer.stock - self.offer.sold

    @property
    def missing(self) -> int:
        """Units that the gate has fewer than that."""
        return self.expected - self.remaining

    @property
    def is_possible(self) -> bool:
        """Whether purchases under way may explain the difference."""
        return (
            self.sale_id == self.offer.sale_id
            and self.missing >= 0
            and self.missing % self.offer.quantity == 0
        )

    @property
    def is_coming(self) -> bool:
        """Whether the sale is on its way from the ledger to the gate."""
        return not self.offer.offered and not self.offer.sold and self.sale_id < self.offer.sale_id

    @property
    def is_forgotten(self) -> bool:
        """Whether the gate has had the sale, and has an older one, or none though it is not over."""
        is_older = 0 < self.sale_id < self.offer.sale_id
        return not self.is_coming and (is_older or not (self.sale_id or self.offer.is_over))


class Audit:
    """Compares one gate with its ledger, again and again."""

    def __init__(self, ledger: Ledger, shards: Sequence[Shard], keep_s: float) -> None:
        self._ledger = ledger
        self._shards = shards
        self._keep_s = keep_s
        self._cursors = [0] * len(shards)
        self._last: Any = None
        self._audited: Any = None
        self._due_s = 0.0
        self._suspects = dict[int, int]()
        """Sales that differed once, and their products."""

    async def run(self, generation: int) -> list[Comparison]:
        """Return the sales in which gate and ledger disagree twice; withdraw what only the gate knows.

        It compares nothing while the gate is busy or idle, but for once in a while. If somebody writes to a
        shard meanwhile, the comparison of its sales is worth nothing, and it returns none of them.
        """
        before = await self._read_fences()
        is_quiet, self._last = before == self._last, before
        if time.monotonic() < self._due_s and (not is_quiet or before == self._audited):
            return []
        self._due_s = time.monotonic() + _INTERVAL_S
        # The gate before the ledger, which knows each sale before the gate does.
        sales, buyers = await self._scan()
        offers = await self._ledger.find_offers(self._keep_s)
        differing = await self._find_differing(offers)
        impossible = await self._find_impossible(differing)
        after = await self._read_fences()
        written = {shard for shard, was, now in zip(self._shards, before, after, strict=True) if was != now}
        if len(written) == len(self._shards):
            return []

        def is_valid(product_id: int) -> bool:
            return shard_of(product_id, self._shards) not in written

        on_offer = {offer.sale_id for offer in offers}
        offers = [offer for offer in offers if is_valid(offer.product_id)]
        differing = [c for c in differing if is_valid(c.offer.product_id)]
        impossible = [c for c in impossible if is_valid(c.offer.product_id)]
        unknown = {sale for sale in sales if sale[1] not in on_offer}
        unknown |= {(c.offer.product_id, c.sale_id) for c in differing if c.sale_id > c.offer.sale_id}
        if unknown:
            product_id, sale_id = min(unknown)
            log.warning(
                "withdrew %d sales that the ledger does not offer, the first one: sale %d of product %d",
                await self._withdraw(generation, unknown),
                sale_id,
                product_id,
            )
        await self._withdraw(generation, {(0, sale_id) for sale_id in buyers - on_offer})
        with suppress(LedgerLocked):  # it is tried again
            await self._retire(generation, offers, {c.offer.product_id: c for c in differing})
        await forget_writers(self._shards)
        if not impossible and not written:
            self._audited = before
        found = [c for c in impossible if (c.offer.product_id, c.sale_id) not in unknown]
        again = [c for c in found if c.offer.sale_id in self._suspects]
        unseen = {sale_id: product for sale_id, product in self._suspects.items() if not is_valid(product)}
        self._suspects = {} if again else unseen | {c.offer.sale_id: c.offer.product_id for c in found}
        return again

    async def compare(self) -> list[Comparison]:
        """Return every product's current sale; what is under way is a difference of gate and ledger."""
        offers = _drop_replaced(await self._ledger.find_offers(self._keep_s))
        return [comparison async for chunk in self._ask(offers) for comparison in map(Comparison, *chunk)]

    async def _find_differing(self, offers: Iterable[Offer]) -> list[Comparison]:
        return [
            Comparison(offer, sale_id, remaining)
            async for chunk in self._ask(_drop_replaced(offers))
            for offer, sale_id, remaining in zip(*chunk, strict=True)
            if sale_id != offer.sale_id or remaining != offer.stock - offer.sold
        ]

    async def _ask(
        self, offers: Iterable[Offer]
    ) -> AsyncIterator[tuple[Sequence[Offer], list[int], list[int]]]:
        """Yield offers, and sale id and remaining units that the gate has of their products, 0 if none."""
        by_shard: dict[Shard, list[Offer]] = {shard: [] for shard in self._shards}
        for offer in offers:
            by_shard[shard_of(offer.product_id, self._shards)].append(offer)
        for shard, its in by_shard.items():
            for start in range(0, len(its), _CHUNK):
                chunk = its[start : start + _CHUNK]
                yield chunk, *await self._read_sales(shard, [offer.product_id for offer in chunk])

    async def _read_sales(self, shard: Shard, products: Sequence[int]) -> tuple[list[int], list[int]]:
        words = " ".join(map(str, products))
        answer = await _COMPARE.run(shard.redis.execute_command, [shard.fence], [shard.prefix, words])
        numbers = list(map(int, answer.split()))
        return numbers[::2], numbers[1::2]

    async def _find_impossible(self, differing: Iterable[Comparison]) -> list[Comparison]:
        """Return the sales whose differences the pending orders do not explain."""
        found: list[Comparison] = []
        short: dict[Shard, list[Comparison]] = {}
        for comparison in differing:
            if comparison.is_possible:
                shard = shard_of(comparison.offer.product_id, self._shards)
                short.setdefault(shard, []).append(comparison)
            elif comparison.is_forgotten or comparison.sale_id >= comparison.offer.sale_id:
                found.append(comparison)
        for shard, its in short.items():
            orders = sum(comparison.missing // comparison.offer.quantity for comparison in its)
            if orders > await shard.redis.hlen(shard.pending):  # each field holds at least one
                batches: Any = await shard.redis.hvals(shard.pending)
                if orders > count_pending(batches):
                    found += its
        return found

    async def _retire(
        self, generation: int, offers: Sequence[Offer], differing: Mapping[int, Comparison]
    ) -> None:
        """Take sales that were replaced or are over, and of which no unit is under way, off the offers."""
        newest = {offer.product_id: offer.sale_id for offer in reversed(offers)}
        replaced, over = set[int](), set[tuple[int, int]]()
        for offer in offers:
            current = differing.get(offer.product_id)
            if offer.sale_id != newest[offer.product_id]:
                # Not before the gate has the newer one.
                if current is None or current.sale_id == current.offer.sale_id:
                    replaced.add(offer.sale_id)
            elif offer.is_over and (current is None or not current.sale_id):
                over.add((offer.product_id, offer.sale_id))
        if replaced or over:
            await self._ledger.retire_sales(replaced | {sale_id for _, sale_id in over})
            await self._withdraw(generation, over)
            log.info(
                "%d sales that were replaced or are long over are on offer no more", len(replaced | over)
            )

    async def _scan(self) -> tuple[set[tuple[int, int]], set[int]]:
        """Return products and ids of some of the gate's sales, and ids of sales with buyers there."""
        sales, buyers = set[tuple[int, int]](), set[int]()
        for place, shard in enumerate(self._shards):
            cursor, names = await shard.redis.scan(
                self._cursors[place], match=f"{shard.prefix}[sb]*:*", count=_SCANNED
            )
            self._cursors[place] = int(cursor)
            numbers: dict[bytes, list[int]] = {b"sale": [], b"buyers": []}
            for name in cast(list[bytes], names):
                _, kind, number = name.rsplit(b":", 2)
                if kind in numbers and number.isdigit():
                    numbers[kind].append(int(number))
            products = numbers[b"sale"]
            ids, _ = await self._read_sales(shard, products) if products else ([], [])
            sales |= {pair for pair in zip(products, ids, strict=True) if pair[1]}
            buyers |= set(numbers[b"buyers"])
        return sales, buyers

    async def _withdraw(self, generation: int, sales: Iterable[tuple[int, int]]) -> int:
        """Remove sales from the gate unless it was rebuilt since; return how many were on offer there."""
        removed = 0
        for shard in self._shards:
            words = [
                number
                for product_id, sale_id in sales
                if not product_id or shard_of(product_id, self._shards) is shard
                for number in (product_id, sale_id)
            ]
            for start in range(0, len(words), 2 * _CHUNK):
                arguments: list[Argument] = [generation, shard.prefix, *words[start : start + 2 * _CHUNK]]
                removed += await _WITHDRAW.run(shard.redis.execute_command, [shard.fence], arguments)
        return removed

    async def _read_fences(self) -> list[dict[bytes, bytes]]:
        """Return every shard's fence, which changes with each write to the shard."""

        async def read(shard: Shard) -> dict[bytes, bytes]:
            fence: Any = await shard.redis.hgetall(shard.fence)
            return dict(fence)

        return await ask_each(self._shards, read)


def _drop_replaced(offers: Iterable[Offer]) -> Iterator[Offer]:
    """Yield the first offer of each product, which is the newest."""
    last = 0
    for offer in offers:
        if offer.product_id != last:
            yield offer
            last = offer.product_id
