"""The pending set, and its clearing: orders leave it as they settle, and units that failed come back.

The pending set is the evidence that units are out: the orders that are accepted and not yet settled. It is a
hash with a field for each batch, the stem of its order ids (order_id.py). The value holds a digit for each
order by its place: 1 while it is pending, 0 once it is settled. A field without a 1 is deleted. So a batch
costs one write when it is accepted and one when it is settled, however many orders are in it.

A crowd that has just bought looks at its orders. So what the ledger has confirmed is kept here for a while,
and the ledger need not be asked. It may be missing, and is not wrong: a confirmed order does not change until
it is pruned, or the ledger is restored from a backup that lacks it.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, cast

from engine.gate.client import Script, Shard
from engine.gate.fence import Fence, read_memory
from engine.gate.keys import shard_of
from engine.gate.outbox import read_newest
from engine.model.lot import Lot, without_orders
from engine.model.order import Order
from engine.model.order_id import PLACES, is_stem, split_order_id

_CLEAR: Final = Script("clear.lua")
_CONFIRMED_S: Final = 15
"""For so long the gate keeps what was confirmed."""
_MOST_LOTS: Final = 64
"""Most lots of a batch that it keeps at a time: of more of them the ledger answers as fast."""
_MOST_BATCHES: Final = 256
"""Most batches of which it keeps something at a time: Redis serves nobody else meanwhile."""
_SCANNED: Final = 250
"""Batches, and at least as many orders, at a time."""

KeptLot = tuple[int, int, int, int]
"""First place, number, product and quantity of a lot that is confirmed."""


class Clearing:
    """Tells the gate which orders are settled, and notices if the gate has lost its memory."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = [(shard, Fence()) for shard in shards]

    @property
    def generation(self) -> int:
        """The latest generation that this process has seen."""
        return max(fence.generation for _, fence in self._shards)

    async def find_newest(self) -> int:
        """Return when the gate accepted its newest purchase, Unix milliseconds of its clock; 0 without any.

        Raises RedisError.
        """
        return max([await read_newest(shard) for shard, _ in self._shards])

    async def clear(
        self, lots: Iterable[Lot], failed: Sequence[Order] = (), *, are_confirmed: bool = False
    ) -> int:
        """Take settled orders out of the pending sets, and release the units of those that FAILED.

        `are_confirmed` says that all others are CONFIRMED, which is kept for those who look. Returns how
        many units went back into sale. REJECTED orders never give units back: the ledger found that there was
        none. Clearing an order again changes nothing, so a lost answer is safe to repeat. A gate that forgot
        an order, or was rebuilt without it, holds no evidence that its unit is out, and gets nothing back:
        the rebuild has counted the unit as not sold. Raises RedisError.
        """
        by_shard: defaultdict[tuple[Shard, Fence], tuple[list[Lot], list[Order]]]
        by_shard = defaultdict(lambda: ([], []))
        # A plain clearing of a failed order would delete the evidence that its release needs.
        for lot in without_orders(lots, {order.order_id for order in failed}):
            by_shard[shard_of(lot.product_id, self._shards)][0].append(lot)
        for order in failed:
            by_shard[shard_of(order.product_id, self._shards)][1].append(order)
        released = 0
        for (shard, fence), (its_lots, its_failed) in by_shard.items():
            places: dict[int, int] = {}
            releases: list[str | int] = []
            for order in its_failed:
                place = places.setdefault(order.product_id, len(places) + 3)
                releases += (
                    *split_order_id(order.order_id), place, order.sale_id, order.user_id, order.quantity,
                )  # fmt: skip
            confirmed = _write_confirmed(its_lots) if are_confirmed else ""
            released += await self._run(
                shard, fence, map(shard.sale, places), [_write_runs(its_lots), confirmed], releases
            )
        return released

    async def is_remembered(self) -> bool:
        """Return whether every open shard still holds what this process has written. Raises RedisError.

        A process that has settled nothing for hours writes, so that the shard goes on to hold something.
        """
        for shard, fence in self._shards:
            writer, *seen = fence.seen
            found = await read_memory(shard, writer)
            if found[0] and found < seen:
                return False
            if found[0] and fence.is_silent:
                await self._run(shard, fence, [], ["", ""], [])
        return True

    async def _run(
        self,
        shard: Shard,
        fence: Fence,
        sales: Iterable[str],
        cleared: Sequence[str],
        releases: Sequence[str | int],
    ) -> int:
        keys = [shard.fence, shard.pending, *sales]
        seen = fence.seen
        arguments = [*seen, shard.prefix, *cleared, _CONFIRMED_S, *releases]
        generation, writes, units = await _CLEAR.run(shard.write, keys, arguments)
        fence.note(seen[0], generation, writes)
        return int(units)


def _write_runs(lots: Iterable[Lot]) -> str:
    """Return stem, first place and number of each run of orders whose places follow one another."""
    runs: list[str] = []
    stem, first, after = "", 0, 0
    for lot in lots:
        if lot.stem != stem or lot.first_place != after:
            if stem:
                runs.append(f"{stem} {first} {after - first}")
            stem, first = lot.stem, lot.first_place
        after = lot.first_place + len(lot.user_ids)
    if stem:
        runs.append(f"{stem} {first} {after - first}")
    return " ".join(runs)


def _write_confirmed(lots: Iterable[Lot]) -> str:
    """Return a line for each batch: its stem, then first place, number, product and quantity of each lot."""
    by_stem: defaultdict[str, list[Lot]] = defaultdict(list)
    for lot in lots:
        by_stem[lot.stem].append(lot)
    return "\n".join(
        stem + "".join([f" {lot.first_place} {len(lot)} {lot.product_id} {lot.quantity}" for lot in its_lots])
        for stem, its_lots in islice(by_stem.items(), _MOST_BATCHES)
        if len(its_lots) <= _MOST_LOTS
    )


def decode_confirmed(kept: bytes) -> list[KeptLot]:
    """Return the lots that are kept of a batch."""
    numbers = map(int, kept.split())
    return list(zip(numbers, numbers, numbers, numbers, strict=True))


def find_confirmed(lots: Iterable[KeptLot], place: int) -> tuple[int, int] | None:
    """Return product and quantity of the order with a place in its batch, None if that is not kept."""
    for first, count, product_id, quantity in lots:
        if first <= place < first + count:
            return product_id, quantity
    return None


def count_pending(values: Iterable[bytes]) -> int:
    """Return the number of pending orders in the values of a shard's hash."""
    return sum(value.count(b"1") for value in values)


async def find_oldest(shards: Iterable[Shard]) -> str | None:
    """Return the stem of the oldest batch with a pending order, None if there is none. Raises RedisError."""
    stems: list[bytes] = []
    for shard in shards:
        stems += cast(list[bytes], await shard.redis.hkeys(shard.pending))
    return min(stems).decode() if stems else None


async def read_pending(shard: Shard) -> set[str]:
    """Return the ids of a shard's pending orders. Raises RedisError."""
    batches: Any = await shard.redis.hgetall(shard.pending)
    return set(_list_pending(batches.items()))


async def scan_pending(shard: Shard) -> AsyncIterator[list[str]]:
    """Yield the ids of a shard's pending orders, some at a time and perhaps twice. Raises RedisError."""
    page: list[str] = []
    async for batch in shard.redis.hscan_iter(shard.pending, count=_SCANNED):
        page += _list_pending([batch])
        if len(page) >= _SCANNED:
            yield page
            page = []
    if page:
        yield page


def _list_pending(batches: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
    for stem, digits in batches:
        if is_stem(text := stem.decode(errors="replace")):
            for place, digit in zip(PLACES, digits, strict=False):
                if digit == ord("1"):
                    yield text + place
