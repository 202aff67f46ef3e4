"""Reconciliation: a gate that has lost its memory is closed, rebuilt from the ledger, and opened again.

fence.py says how the loss is noticed. From then on every script refuses, so nothing new is accepted, while
relay and fulfilment go on. Once nothing is under way any more, the ledger knows the state of every purchase
that survived, and the gate follows from it: remaining units = stock - confirmed units, each user's count =
their confirmed units, each Idempotency-Key = its order. The new generation, written last, opens the gate.

Nothing is under way if every outbox is empty, and the purchases' queue has neither messages nor consumers.
While the gate is closed each fulfilment leaves the bus when it holds nothing, and returns when something
arrives, so the bus itself says that nobody holds anything. It can't know of purchases that a relay read from
an outbox that was wiped afterwards, and has not published yet. Such a purchase is settled all the same: the
ledger's guard keeps its unit from being sold twice, clear.lua finds no evidence of it and so releases
nothing, and the audit finds the unit that the gate now has too many: whenever nothing is under way, gate and
ledger must agree, and if they differ twice in a row, the gate is rebuilt.

The gate follows the ledger in everything: a sale that the gate lacks is offered, one that only the gate has
is withdrawn. Any number of processes may reconcile at once. PostgreSQL's advisory lock lets one of them
rebuild. If it loses the lock and goes on, its writes are refused as soon as the next one has begun.
"""

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from engine.bus.publisher import Publisher
from engine.gate.client import Script, connect_redis
from engine.gate.fence import read_generations
from engine.gate.keys import ShardKeys, shard_of
from engine.gate.pending import count_pending
from engine.ledger.ledger import Balance, KeyedOrder, Ledger
from engine.settings import Settings

log = logging.getLogger(__name__)

_CLOSE: Final = Script("close.lua")
_RESTORE: Final = Script("restore.lua")
_REMEMBER: Final = Script("remember.lua")
_REOPEN: Final = Script("reopen.lua")
_CHUNK: Final = 1_000
"""Buyers in one script call: Redis serves nobody else meanwhile, and Lua's stack bounds it, too."""


class Comparison(NamedTuple):
    """A product's current sale as ledger and gate see it, in units."""

    balance: Balance
    sale_id: int | None
    """The gate's; None if it has no sale of the product."""
    remaining: int

    @property
    def expected(self) -> int:
        """Units that the gate must have once nothing is under way."""
        return self.balance.sale.terms.stock - self.balance.sold

    @property
    def agrees(self) -> bool:
        """Whether gate and ledger say the same."""
        return self.sale_id == self.balance.sale.sale_id and self.remaining == self.expected


class Traffic(NamedTuple):
    """What is under way between gate and ledger."""

    entries: int
    """Entries of the outboxes."""
    messages: int
    """Messages of the purchases' queue; those that a consumer holds don't count."""
    consumers: int
    """Consumers of the purchases' queue."""
    pending: int
    """Orders that the gate remembers as accepted and not settled."""

    @property
    def drained(self) -> bool:
        """Whether the ledger knows every purchase that outbox and bus held."""
        return not (self.entries or self.messages or self.consumers)

    @property
    def settled(self) -> bool:
        """Whether every order that the gate remembers is settled, and none waits."""
        return not (self.entries or self.messages or self.pending)


class Reconciliation:
    """Gate, bus and ledger side by side.

    Every method raises RedisError, BusUnavailable or LedgerUnavailable if one of them does not answer.
    """

    def __init__(self, settings: Settings, redis: Redis, ledger: Ledger, bus: Publisher | None) -> None:
        self._redis = redis
        self._ledger = ledger
        self._bus = bus
        self._shards = [ShardKeys(shard) for shard in range(settings.gate_shards)]
        self._remember_s = settings.idempotency_s
        self._audited: Any = None

    async def is_open(self) -> bool:
        """Return whether every shard is open in the latest generation; if not, close all of them."""
        latest = await self._ledger.read_generation()
        generations = await read_generations(self._redis, self._shards)
        if min(generations) >= max(latest, 1):
            return True
        if any(generations):
            await self.close(max(generations))
        return False

    async def read_generation(self) -> int:
        """Return the gate's latest generation; 0 if every shard is closed."""
        return max(await read_generations(self._redis, self._shards))

    async def close(self, generation: int) -> None:
        """Close the gate unless another process has rebuilt it since this generation."""
        for shard in self._shards:
            await _CLOSE.run(self._redis.execute_command, [shard.fence], [generation])

    async def is_outdated(self) -> bool:
        """Return whether the ledger has settled an order newer than all that the gate has ever accepted."""
        # The ledger first: an order accepted and settled in between must not make the gate look older.
        settled_ms = await self._ledger.find_newest()
        newest_ms = 0
        for shard in self._shards:
            newest_ms = max(newest_ms, int(await self._redis.hget(shard.fence, "newest") or 0))
            try:
                stream: Any = await self._redis.xinfo_stream(shard.outbox)
            except ResponseError:
                continue  # there is no stream yet
            newest_ms = max(newest_ms, int(stream["last-generated-id"].partition(b"-")[0]))
        return newest_ms < settled_ms

    async def read_traffic(self) -> Traffic:
        """Return what is under way."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for shard in self._shards:
                pipe.xlen(shard.outbox)
                pipe.hvals(shard.pending)
            answers = await pipe.execute()
        messages, consumers = await self._bus.read_queue() if self._bus else (0, 0)
        return Traffic(sum(answers[::2]), messages, consumers, sum(map(count_pending, answers[1::2])))

    async def compare(self) -> list[Comparison]:
        """Return every product's current sale; what is under way is a difference of gate and ledger."""
        balances = await self._ledger.find_current_sales()
        async with self._redis.pipeline(transaction=False) as pipe:
            for balance in balances:
                product_id = balance.sale.terms.product_id
                pipe.hmget(shard_of(product_id, self._shards).sale(product_id), ["sale_id", "remaining"])
            rows = await pipe.execute()
        return [
            Comparison(balance, int(sale_id) if sale_id else None, int(remaining or 0))
            for balance, (sale_id, remaining) in zip(balances, rows, strict=True)
        ]

    async def audit(self) -> list[Comparison]:
        """Return the sales in which gate and ledger disagree though nothing is under way.

        Returns none, too, while something is under way, or if nothing happened since an audit without any.
        """
        before = await self._read_fences()
        if before == self._audited or not (await self.read_traffic()).settled:
            return []
        differing = [comparison for comparison in await self.compare() if not comparison.agrees]
        if not (await self.read_traffic()).settled or await self._read_fences() != before:
            return []
        if not differing:
            self._audited = before
        return differing

    async def open_new(self) -> None:
        """Open a gate that has never had a sale: there is nothing to rebuild, and so nothing to wait for."""
        if not await self.is_open() and not await self._ledger.find_current_sales():
            await self.rebuild()

    async def rebuild(self) -> bool:
        """Rebuild a closed gate while nothing is under way, and open it.

        Returns False if another process does it or has done it. Raises ResponseError (CLOSED) if another one
        began meanwhile.
        """
        async with self._ledger.try_lock() as mine:
            if not mine or await self.is_open():
                return False
            generation = await self._ledger.next_generation()
            balances = await self._ledger.find_current_sales()
            await self._begin(generation, balances)
            # Read again: a sale may have been opened, at a gate that has forgotten it by now.
            balances = await self._ledger.find_current_sales()
            for balance in balances:
                await self._restore_sale(generation, balance)
            async for orders in self._ledger.find_keys(self._remember_s):
                await self._restore_answers(generation, orders)
            newest_ms = await self._ledger.find_newest()
            for shard in self._shards:
                await _REOPEN.run(self._redis.execute_command, [shard.fence], [generation, newest_ms])
        units = sum(balance.sale.terms.stock - balance.sold for balance in balances)
        log.info(
            "the gate is open in generation %d: %d sales, %d units left", generation, len(balances), units
        )
        return True

    async def _begin(self, generation: int, balances: Sequence[Balance]) -> None:
        """Forget what is rebuilt; keep sales that are newer."""
        known = {balance.sale.terms.product_id for balance in balances}
        for shard in self._shards:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(shard.fence, shard.pending)
                pipe.hset(shard.fence, "rebuilding", generation)
                await pipe.execute()
            async for name in self._redis.scan_iter(match=f"{shard.prefix}sale:*", count=_CHUNK):
                if int(name.rpartition(b":")[2]) not in known:
                    await self._redis.unlink(name)

    async def _restore_sale(self, generation: int, balance: Balance) -> None:
        terms, sale_id = balance.sale.terms, balance.sale.sale_id
        shard = shard_of(terms.product_id, self._shards)
        keys = [shard.fence, shard.sale(terms.product_id)]
        fields = [
            sale_id, terms.stock, terms.stock - balance.sold, terms.limit or 0, terms.quantity,
            terms.starts_ms or 0, terms.ends_ms or 0,
        ]  # fmt: skip
        buyers = await self._ledger.count_bought(sale_id) if terms.limit else []
        for start in range(0, max(len(buyers), 1), _CHUNK):
            chunk = buyers[start : start + _CHUNK]
            counts = [number for buyer in chunk for number in buyer]
            arguments: list[str | int] = [generation, shard.prefix, int(start == 0), *fields, *counts]
            await _RESTORE.run(self._redis.execute_command, keys, arguments)

    async def _restore_answers(self, generation: int, orders: Iterable[KeyedOrder]) -> None:
        by_shard: defaultdict[ShardKeys, list[str | int]] = defaultdict(list)
        for order in orders:
            by_shard[shard_of(order.product_id, self._shards)] += (
                f"{order.product_id}:{order.user_id}:{order.key}",
                order.order_id,
                max(1, round(self._remember_s - order.age_s)),
            )
        for shard, words in by_shard.items():
            arguments = [generation, shard.prefix, *words]
            await _REMEMBER.run(self._redis.execute_command, [shard.fence], arguments)

    async def _read_fences(self) -> list[dict[bytes, bytes]]:
        """Return every shard's fence, which changes with each write to the shard."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for shard in self._shards:
                pipe.hgetall(shard.fence)
            return await pipe.execute()


KEEPER_CONNECTIONS: Final = 2
"""To PostgreSQL: one holds the lock."""


@asynccontextmanager
async def reconciling(settings: Settings) -> AsyncIterator[Reconciliation]:
    """Yield a reconciliation with connections of its own to every service."""
    bus = Publisher(settings.amqp_url) if settings.amqp_url else None
    # A rebuild looks at every order of a sale.
    ledger = await Ledger.connect(settings.postgres_url, connections=KEEPER_CONNECTIONS, timeout_ms=60_000)
    async with connect_redis(settings.redis_url) as redis, ledger:
        try:
            yield Reconciliation(settings, redis, ledger, bus)
        finally:
            if bus:
                await bus.close()
