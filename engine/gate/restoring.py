"""Restoring: a closed gate gets back what the ledger knows, in calls that are short for Redis.

Every method raises RedisError, and ResponseError (CLOSED) if another process began to rebuild meanwhile.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final, TypeVar

from engine.gate.client import Script, Shard
from engine.gate.connection.wire import Argument
from engine.gate.keys import shard_of
from engine.model.sale import Sale

T = TypeVar("T")

_BEGIN: Final = Script("begin.lua")
_FORGET_SALES: Final = Script("forget_sales.lua")
_RESTORE: Final = Script("restore.lua")
_RESTORE_BUYERS: Final = Script("restore_buyers.lua")
_REMEMBER: Final = Script("remember.lua")
_REOPEN: Final = Script("reopen.lua")
CHUNK: Final = 1_000
"""Sales, buyers or keys in one script call: Redis serves nobody else meanwhile."""


class Restoring:
    """One process that rebuilds the gate in one generation."""

    def __init__(self, shards: Sequence[Shard], generation: int) -> None:
        self.shards = shards
        self.generation = generation

    async def begin(self) -> None:
        """Forget what was pending. From here on only this process, or a later one, opens the gate."""
        for shard in self.shards:
            await _BEGIN.run(shard.write, [shard.fence, shard.pending], [self.generation])

    async def forget_everything(self) -> None:
        """Delete all that the shards hold: they are shards no more."""
        for shard in self.shards:
            async for name in shard.redis.scan_iter(match=f"{shard.prefix}*", count=CHUNK):
                await shard.redis.unlink(name)

    async def forget_sales(self, known: Collection[int]) -> None:
        """Forget sales of products that are not known."""
        for shard in self.shards:
            names = [name async for name in shard.redis.scan_iter(match=f"{shard.prefix}sale:*", count=CHUNK)]
            numbers = {int(number) for name in names if (number := name.rpartition(b":")[2]).isdigit()}
            for chunk in _cut(sorted(numbers.difference(known))):
                arguments: list[Argument] = [self.generation, shard.prefix, " ".join(map(str, chunk))]
                await _FORGET_SALES.run(shard.write, [shard.fence], arguments)

    async def restore_sales(self, sales: Iterable[tuple[Sale, int]]) -> None:
        """Offer these sales with so many units left, and nobody's units counted yet."""
        for shard, its_sales in self._by_shard((sale.terms.product_id, (sale, left)) for sale, left in sales):
            for chunk in _cut(its_sales):
                lines = "\n".join(_write_sale(sale, left) for sale, left in chunk)
                arguments: list[Argument] = [self.generation, shard.prefix, lines]
                await _RESTORE.run(shard.write, [shard.fence], arguments)

    async def restore_buyers(self, sale: Sale, counts: Sequence[tuple[int, int]]) -> None:
        """Add what each of these users has bought in a restored sale, in units."""
        terms = sale.terms
        shard = shard_of(terms.product_id, self.shards)
        keys = [shard.fence, shard.sale(terms.product_id)]
        for chunk in _cut(counts):
            words = " ".join(f"{user_id} {units}" for user_id, units in chunk)
            arguments: list[Argument] = [self.generation, shard.prefix, sale.sale_id, words]
            await _RESTORE_BUYERS.run(shard.write, keys, arguments)

    async def restore_answers(self, answers: Iterable[tuple[int, str]]) -> None:
        """Remember what remember.lua is given for each key; the product comes first."""
        for shard, its_answers in self._by_shard(answers):
            for chunk in _cut(its_answers):
                arguments: list[Argument] = [self.generation, shard.prefix, "\n".join(chunk)]
                await _REMEMBER.run(shard.write, [shard.fence], arguments)

    async def reopen(self, newest_ms: int, doubtful: bool) -> None:
        """Open every shard; `doubtful` says whether orders may be under way of which it knows nothing."""
        for shard in self.shards:
            arguments = [self.generation, newest_ms, int(doubtful)]
            await _REOPEN.run(shard.write, [shard.fence], arguments)

    def _by_shard(self, rows: Iterable[tuple[int, T]]) -> Iterable[tuple[Shard, list[T]]]:
        by_shard: defaultdict[Shard, list[T]] = defaultdict(list)
        for product_id, row in rows:
            by_shard[shard_of(product_id, self.shards)].append(row)
        return by_shard.items()


def _cut(rows: Sequence[T]) -> Iterable[Sequence[T]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _write_sale(sale: Sale, left: int) -> str:
    terms = sale.terms
    return (
        f"{terms.product_id} {sale.sale_id} {terms.stock} {left} {terms.limit or 0} {terms.quantity}"
        f" {terms.starts_ms or 0} {terms.ends_ms or 0}"
    )
