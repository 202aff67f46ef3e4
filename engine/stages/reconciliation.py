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
nothing, and the audit (audit.py) finds the unit that the gate now has too many: if gate and ledger disagree
on a sale twice in a row, the gate is rebuilt.

The gate follows the ledger in everything: a sale that the gate lacks is offered, one that only the gate has
is withdrawn. A rebuild's cost follows what the gate must know: the sales on offer, their buyers if they have
limits, the keys that are not too old. Any number of processes may reconcile at once. PostgreSQL's advisory
lock lets one of them rebuild. If it loses the lock and goes on, its writes are refused as soon as the next
one has begun or has opened the gate. So a rebuild first begins and then looks whether nothing is under way:
what it sees stays so, whatever others have done before.
"""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from operator import attrgetter
from typing import Any, Final, NamedTuple

from engine.bus.publisher import Publisher
from engine.gate.clearing import Clearing, count_pending, scan_pending
from engine.gate.client import Shard, ask_each, connect_shards
from engine.gate.fence import Fence, close_shard, read_copies, read_generations, read_latest
from engine.gate.gate import offer_sale
from engine.gate.keys import shard_of
from engine.gate.outbox import read_newest
from engine.gate.restoring import Restoring
from engine.ledger.ledger import KeyedOrder, Ledger
from engine.model.lot import Lot
from engine.model.order import OrderStatus
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.audit import Audit

log = logging.getLogger(__name__)

_OPENING_S: Final = 5.0
"""Time that a front door has to open a sale, more than its longest."""

_LATE_S: Final = 60.0
"""Time in which a relay publishes or gives up what it read of a lost outbox: twice its wait for a confirm."""


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


class Reconciliation:
    """Gate, bus and ledger side by side.

    Every method raises RedisError, BusUnavailable or LedgerUnavailable if one of them does not answer.
    """

    def __init__(
        self, settings: Settings, shards: Sequence[Shard], ledger: Ledger, bus: Publisher | None
    ) -> None:
        self._shards = shards
        self._ledger = ledger
        self._bus = bus
        self._fences = [(shard, Fence()) for shard in self._shards]
        self._remember_s = settings.idempotency_s
        self._sold_out_s = settings.sold_out_ms / 1000
        self.audit: Final = Audit(ledger, shards, settings.sale_keep_s)

    async def is_open(self) -> bool:
        """Return whether every shard is open in the latest generation; if not, close all of them."""
        latest = await self._ledger.read_generation()
        generations = await read_generations(self._shards)
        if min(generations) >= max(latest, 1):
            return True
        if any(generations):
            await self.close(max(generations))
        return False

    async def read_generation(self) -> int:
        """Return the gate's latest generation; 0 if every shard is closed."""
        return max(await read_generations(self._shards))

    async def read_servers(self) -> list[list[bytes | None]]:
        """Return what tells each shard's server from the one before."""

        async def read(shard: Shard) -> list[bytes | None]:
            row: Any = await shard.redis.hmget(shard.fence, ["server", "since"])
            return list(row)

        return await ask_each(self._shards, read)

    async def close(self, generation: int, seen: int = 0) -> None:
        """Close the gate unless another process has rebuilt it since this generation.

        Its next generation will be later than `seen`, too.
        """
        for shard in self._shards:
            await close_shard(shard, generation, max(generation, seen))

    async def is_outdated(self) -> bool:
        """Return whether the ledger has settled an order newer than all that its shard has ever accepted.

        Or newer than what a server had when it was new, and accepted before the server sold anything. Or
        whether it offers a sale that the gate has forgotten.
        """
        # The ledger first: an order accepted and settled in between must not make the gate look older.
        settled_ms = [0] * len(self._shards)
        for product_id, accepted_ms in (await self._ledger.find_newest()).items():
            shard = shard_of(product_id, self._shards)
            settled_ms[shard.shard] = max(settled_ms[shard.shard], accepted_ms)
        for shard in self._shards:
            newest_ms = int(await shard.redis.hget(shard.fence, "newest") or 0)
            if max(newest_ms, await read_newest(shard)) < settled_ms[shard.shard]:
                return True
        for copy in await read_copies(self._shards):
            for product_id in await self._ledger.find_accepted(copy.newest_ms, copy.sells_ms):
                if shard_of(product_id, self._shards) in copy.shards:
                    return True
        return any(comparison.is_forgotten for comparison in await self.audit.compare())

    async def clear_settled(self, clearing: Clearing) -> None:
        """Clear again what a new server may have as pending, from a copy older than the clearing.

        Only the process that cleared these orders could notice, and it may be gone.
        """
        for shard in self._shards:
            async for pending in scan_pending(shard):
                found = await self._ledger.find_orders(pending)
                # Neighbours of a batch leave the pending set together.
                settled = sorted(found, key=attrgetter("order_id"))
                failed = [order for order in settled if order.status is OrderStatus.FAILED]
                await clearing.clear(map(Lot.of_order, settled), failed)

    async def read_traffic(self) -> Traffic:
        """Return what is under way."""

        async def read(shard: Shard) -> tuple[int, int]:
            async with shard.redis.pipeline(transaction=False) as pipe:
                pipe.xlen(shard.outbox)
                pipe.hvals(shard.pending)
                entries, batches = await pipe.execute()
            return entries, count_pending(batches)

        answers = await ask_each(self._shards, read)
        messages, consumers = await self._bus.read_queue() if self._bus else (0, 0)
        entries, pending = map(sum, zip(*answers, strict=True))
        return Traffic(entries, messages, consumers, pending)

    async def offer_left(self) -> None:
        """Offer the sales that their front doors could not offer; no other sale is closed for them."""
        left = await self._ledger.find_unoffered(_OPENING_S)
        # The gate has had those of which something was sold.
        new = [sale for sale, sold in left if not sold]
        if any([await offer_sale(*shard_of(sale.terms.product_id, self._fences), sale) for sale in new]):
            # Its operator may ask again, and is told at once of what is noted here (gate.py).
            await asyncio.sleep(self._sold_out_s)
        for sale_id in await self._ledger.note_offered(*(sale.sale_id for sale, _ in left)) if left else []:
            log.info("sale %d opened: its front door could not offer it", sale_id)

    async def end_doubt(self) -> None:
        """Let the gate deny orders from before its rebuild, once none that it forgot is under way.

        Dead letters may be such orders, until somebody looks after them.
        """

        async def read_age_s(shard: Shard) -> float:
            async with shard.redis.pipeline(transaction=False) as pipe:
                pipe.hget(shard.fence, "doubt")
                pipe.time()
                doubt, (now_s, _) = await pipe.execute()
            return now_s - int(doubt) / 1000 if doubt else math.inf

        ages_s = [age_s for age_s in await ask_each(self._shards, read_age_s) if age_s < math.inf]
        if ages_s and min(ages_s) > _LATE_S:
            traffic = await self.read_traffic()
            waiting = traffic.entries or traffic.messages or await self.count_dead_letters()
            for shard in [] if waiting else self._shards:
                await shard.redis.hdel(shard.fence, "doubt")

    async def count_dead_letters(self) -> int:
        """Return the number of dead letters."""
        if self._bus:
            return await self._bus.count_dead_letters()
        return int(await self._shards[0].redis.xlen(self._shards[0].dead))

    async def open_new(self) -> None:
        """Open a gate that has never had a sale: there is nothing to rebuild, and so nothing to wait for."""
        if not await self.is_open() and not await self._ledger.find_current_sales():
            await self.rebuild()

    async def rebuild(self) -> bool:
        """Rebuild a closed gate while nothing is under way, and open it.

        Returns False if another process does it or has done it, or if something is under way. Raises
        ResponseError (CLOSED) if another one began or ended meanwhile.
        """
        async with self._ledger.try_lock() as mine:
            if not mine or await self.is_open():
                return False
            restoring = Restoring(self._shards, await self._next_generation())
            await restoring.begin()
            if await self._ledger.find_current_sales() and not (await self.read_traffic()).drained:
                return False
            await self._restore(restoring)
        return True

    async def change_shards(self, shards: Sequence[Shard]) -> bool:
        """Rebuild a closed gate with other shards while nothing is under way, and open it; see rebuild."""
        async with self._ledger.try_lock() as mine:
            if not mine:
                return False
            old = Restoring(self._shards, await self._next_generation())
            await old.begin()
            if not (await self.read_traffic()).drained:
                return False
            restoring = Restoring(shards, await self._ledger.change_shards(len(shards)))
            await restoring.forget_everything()  # of another time with so many shards
            await restoring.begin()
            await self._restore(restoring)
        await old.forget_everything()
        return True

    async def _next_generation(self) -> int:
        # PostgreSQL may have been restored, and forgotten generations that the gate has had.
        return await self._ledger.next_generation(await read_latest(self._shards), len(self._shards))

    async def _restore(self, restoring: Restoring) -> None:
        """Give the gate, to which nothing is under way, what the ledger knows, and open it."""
        balances = await self._ledger.find_current_sales()
        await restoring.forget_sales({balance.sale.terms.product_id for balance in balances})
        # Read again: a sale may have been opened, at a gate that has forgotten it by now.
        balances = await self._ledger.find_current_sales()
        await restoring.restore_sales((sale, sale.terms.stock - sold) for sale, sold in balances)
        await self._restore_buyers(restoring, [sale for sale, _ in balances if sale.terms.limit])
        async for orders in self._ledger.find_keys(self._remember_s):
            await self._restore_answers(restoring, orders)
        newest_ms = max((await self._ledger.find_newest()).values(), default=0)
        await restoring.reopen(newest_ms, doubtful=bool(balances))
        units = sum(balance.sale.terms.stock - balance.sold for balance in balances)
        opened = restoring.generation, len(balances), units
        log.info("the gate is open in generation %d: %d sales, %d units left", *opened)

    async def _restore_buyers(self, restoring: Restoring, sales: Iterable[Sale]) -> None:
        limited = {sale.sale_id: sale for sale in sales}
        async with aclosing(self._ledger.count_bought(list(limited))) as pages:
            async for page in pages:
                by_sale: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
                for sale_id, user_id, units in page:
                    by_sale[sale_id].append((user_id, units))
                for sale_id, counts in by_sale.items():
                    await restoring.restore_buyers(limited[sale_id], counts)

    async def _restore_answers(self, restoring: Restoring, orders: Iterable[KeyedOrder]) -> None:
        await restoring.restore_answers(
            (order.product_id, f"{order.product_id}:{order.user_id}:{order.key} {order.order_id} {seconds}")
            for order in orders
            for seconds in [max(1, round(self._remember_s - order.age_s))]
        )


KEEPER_CONNECTIONS: Final = 2
"""To PostgreSQL: one holds the lock."""


@asynccontextmanager
async def reconciling(settings: Settings) -> AsyncIterator[Reconciliation]:
    """Yield a reconciliation with connections of its own to every service."""
    bus = Publisher(settings.amqp_url) if settings.amqp_url else None
    # A rebuild looks at every order of a sale.
    ledger = await Ledger.connect(settings.postgres_url, connections=KEEPER_CONNECTIONS, timeout_ms=60_000)
    async with connect_shards(settings) as shards, ledger:
        try:
            yield Reconciliation(settings, shards, ledger, bus)
        finally:
            if bus:
                await bus.close()
