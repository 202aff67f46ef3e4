"""Fulfilment: payment, the ledger, the gate, the acknowledgement - in this order, a batch at a time.

A step that fails is tried again until it works. Every step may run twice: an order is charged under its id,
settled once by the ledger, and released once by the gate. What can't be paid leaves the line (payments.py),
and so do orders of a sale that another session of PostgreSQL holds: they hold up no other.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final

from redis.exceptions import RedisError

from engine.bus.consumer import Consumer
from engine.errors import FlashgridError, LedgerLocked, LedgerUnavailable, PaymentUnavailable
from engine.gate.clearing import Clearing
from engine.gate.client import connect_shards
from engine.gate.looks.backlog import Illness
from engine.gate.outbox import Outbox, Outboxes, make_outboxes
from engine.ledger.ledger import Ledger
from engine.ledger.settling import Settlement
from engine.metrics import DEAD_LETTERS, FULFILMENT_DELAY, OUTBOX_LENGTH
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, without_orders
from engine.model.message import Message
from engine.model.order import Order, OrderStatus
from engine.payment.gateway import PaymentGateway
from engine.payment.simulated import SimulatedGateway
from engine.settings import Settings
from engine.stages.batch import Batch, Packer
from engine.stages.keeper import run_keeper
from engine.stages.lifecycle import Outage, Pause, drain, report, running, sample
from engine.stages.payments import Payments

log = logging.getLogger(__name__)

_QUIET_S: Final = 0.5
"""A source that gave nothing for so long is empty."""
_MOST_LOCKED: Final = 20_000
"""Orders of sales that other sessions hold. Further ones hold up those behind them."""

Source = Consumer | Outbox | Outboxes
"""Where purchases come from: the bus, or the outboxes themselves. It repeats what is not acknowledged."""


async def run_fulfilment(settings: Settings, stop: asyncio.Event) -> None:
    """Fulfil purchases until `stop` is set; then until the source is empty, or `drain_s` is over.

    The source is the bus, or the outbox itself if there is no amqp_url. The keeper runs beside it. Outages of
    every service are waited for. Raises SettingsError without the URLs of Redis and PostgreSQL.
    """
    gateway = SimulatedGateway(
        settings.payment_latency_ms, settings.payment_decline_rate, settings.payment_seed
    )
    async with AsyncExitStack() as cleanup:
        shards = await cleanup.enter_async_context(connect_shards(settings))
        ledger = await cleanup.enter_async_context(
            await Ledger.connect(settings.postgres_url, connections=settings.fulfilment_in_flight)
        )
        if settings.amqp_url is None:
            outboxes = Outboxes(make_outboxes(shards, "fulfilment", settings))
            await cleanup.enter_async_context(running(sample(OUTBOX_LENGTH, outboxes.count_entries)))
            source: Source = outboxes
        else:
            messages = 2 * settings.fulfilment_in_flight * settings.fulfilment_batch // settings.relay_batch
            # Purchases that arrive in ones and twos must be able to fill batches, too.
            source = Consumer(settings.amqp_url, prefetch=max(256, messages))
        cleanup.push_async_callback(source.close)
        clearing, pause = Clearing(shards), Pause()
        fulfilment = Fulfilment(source, gateway, ledger, clearing, pause, settings)
        await cleanup.enter_async_context(
            running(run_keeper(settings, clearing, pause), report(shards[0], fulfilment.find_illnesses))
        )
        await drain(fulfilment.run(stop), stop, settings.drain_s)


class Fulfilment:
    """Brings every purchase of one source to its terminal state."""

    def __init__(
        self,
        source: Source,
        gateway: PaymentGateway,
        ledger: Ledger,
        clearing: Clearing,
        pause: Pause,
        settings: Settings,
    ) -> None:
        self._source = source
        self._payments = Payments(gateway, pause, settings)
        self._ledger = ledger
        self._clearing = clearing
        self._pause = pause
        self._wait_s = settings.fulfilment_wait_ms / 1000
        self._remember_s = settings.idempotency_s
        self._packer = Packer(settings.fulfilment_batch)
        self._slots = asyncio.Semaphore(settings.fulfilment_in_flight)
        self._working = 0
        self._locked: defaultdict[int, list[Batch]] = defaultdict(list)
        """For each sale that another session of PostgreSQL holds the batches that wait for it."""
        self._locked_orders = 0
        self._locked_since = 0.0
        self._reading = Outage("fulfilment's source")
        self._settling = Outage("fulfilment")

    async def run(self, stop: asyncio.Event) -> None:
        """Fulfil until `stop` is set and the source has been empty for a moment."""
        leaves_at = 0.0
        quiet_since = time.monotonic()
        async with asyncio.TaskGroup() as group:
            self._group, self._stop = group, stop
            while True:
                wait_s = _QUIET_S / 2 if self._packer.empty else max(0.0, leaves_at - time.monotonic())
                messages = await self._read(wait_s)
                for message in messages:
                    if self._packer.empty:
                        leaves_at = time.monotonic() + self._wait_s
                    for batch in self._packer.add(message):
                        leaves_at = time.monotonic() + self._wait_s
                        await self._start(group, batch)
                now = time.monotonic()
                if now >= leaves_at:
                    for batch in self._packer.flush():
                        await self._start(group, batch)
                apart = self._payments.waiting or self._locked_orders
                if messages or self._working or apart or not self._packer.empty:
                    quiet_since = now
                elif now - quiet_since >= _QUIET_S:
                    if stop.is_set():
                        return
                    if self._pause.wanted:
                        await self._source.close()
                        await self._pause.rest(stop)
                        quiet_since = time.monotonic()

    def find_illnesses(self) -> dict[str, Illness]:
        """Return what keeps it from fulfilling."""
        found = {}
        if lasts_s := self._reading.lasts_s:
            found["fulfilment"] = Illness(lasts_s, "fulfilment's source does not work")
        if lasts_s := self._settling.lasts_s:
            if isinstance(self._settling.error, LedgerUnavailable):
                found["ledger"] = Illness(lasts_s, "the ledger does not take orders")
            elif not isinstance(self._settling.error, PaymentUnavailable):
                found["fulfilment"] = Illness(lasts_s, "fulfilment does not work")
        if self._locked_orders:
            lasts_s = time.monotonic() - self._locked_since
            text = f"another session of PostgreSQL holds sales that {self._locked_orders} orders wait for"
            found.setdefault("ledger", Illness(lasts_s, text))
        return found | self._payments.find_illnesses()

    async def _read(self, wait_s: float) -> list[Message]:
        try:
            messages = await self._source.read(wait_s)
        except (FlashgridError, RedisError) as error:
            await self._reading.wait(error)
            return []
        self._reading.end()
        return messages

    async def _start(self, group: asyncio.TaskGroup, batch: Batch) -> None:
        await self._slots.acquire()
        self._working += 1
        group.create_task(self._fulfil_in_line(batch))

    async def _fulfil_in_line(self, batch: Batch) -> None:
        try:
            await self._fulfil(batch)
        finally:
            self._working -= 1
            self._slots.release()

    async def _fulfil(self, batch: Batch) -> None:
        # Whatever a step raises, the purchases must not be lost.
        await self._settling.insist(partial(self._settle, batch))
        if finished := batch.finish():
            await self._settling.insist(partial(self._source.acknowledge, finished))

    async def _settle(self, batch: Batch) -> None:
        dead_letters = list(batch.dead_letters)
        repeated, batch.repeated = batch.repeated, True
        if batch.lots:
            dead_letters += await self._settle_lots(batch, batch.lots, repeated)
        if dead_letters:
            await self._source.put_aside(dead_letters)
            DEAD_LETTERS.inc(len(dead_letters))
            log.warning("%d dead letters, the first one: %s", len(dead_letters), dead_letters[0].reason)

    async def _settle_lots(self, batch: Batch, lots: Sequence[Lot], repeated: bool) -> Iterable[DeadLetter]:
        """Charge, settle and clear the orders; return those that can't be paid or written."""
        lots = self._leave_locked(batch, lots, self._locked)
        new, known = lots, list[Order]()
        if repeated:
            # Orders that are in the ledger are not charged again.
            known = await self._ledger.find_orders([order_id for lot in lots for order_id in lot.order_ids])
            new = without_orders(lots, {order.order_id for order in known})
        dead_letters = list[DeadLetter]()
        try:
            declines = await self._payments.charge(new)
        except PaymentUnavailable as error:
            pieces, dead_letters = self._payments.set_apart(batch, new, error)
            for piece in pieces:
                self._group.create_task(self._payments.retry(piece, self._fulfil, self._stop))
            lots = without_orders(lots, {order_id for lot in new for order_id in lot.order_ids})
            new, declines = [], {}
        try:
            settlement = await self._ledger.settle(new, declines, self._remember_s) if new else Settlement()
        except LedgerLocked:
            locked = await self._ledger.find_locked({lot.sale_id for lot in new})
            if not locked:
                raise
            self._leave_locked(batch, new, locked)
            return await self._settle_lots(batch, batch.lots, repeated=True)
        failed = settlement.failed + [order for order in known if order.status is OrderStatus.FAILED]
        await self._clearing.clear(without_orders(lots, settlement.dead_letters.keys()), failed)
        if settlement.settled.total():
            # They arrive in the order in which they were accepted, but for a few.
            FULFILMENT_DELAY.observe(max(0.0, time.time() - new[0].accepted_ms / 1000))
        return [*dead_letters, *settlement.dead_letters.values()]

    def _leave_locked(self, batch: Batch, lots: Sequence[Lot], sales: Collection[int]) -> Sequence[Lot]:
        """Let orders of these sales wait apart until nobody else holds them; return the other lots.

        Raises LedgerLocked if too many orders wait already.
        """
        for sale_id in [sale_id for sale_id in {lot.sale_id for lot in lots} if sale_id in sales]:
            its_lots = [lot for lot in lots if lot.sale_id == sale_id]
            orders = count_orders(its_lots)
            if self._locked_orders + orders > _MOST_LOCKED:
                raise LedgerLocked(f"{self._locked_orders} orders wait for sales that others hold")
            if not self._locked_orders:
                self._locked_since = time.monotonic()
            self._locked_orders += orders
            if sale_id not in self._locked:
                log.warning("another session of PostgreSQL holds sale %d: its orders wait apart", sale_id)
                self._group.create_task(self._wait_for_sale(sale_id))
            self._locked[sale_id] += batch.take_out(its_lots, batch.trials, into=1)
            lots = [lot for lot in lots if lot.sale_id != sale_id]
        return lots

    async def _wait_for_sale(self, sale_id: int) -> None:
        """Fulfil the batches that wait for a sale once nobody else holds it; leave them at a stop."""
        is_locked, pause_s = True, 0.1
        while is_locked and not self._stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
            pause_s = min(2 * pause_s, 1.0)
            with suppress(LedgerUnavailable):
                is_locked = bool(await self._ledger.find_locked([sale_id]))
        for batch in self._locked.pop(sale_id):
            orders = count_orders(batch.lots)
            try:
                if not is_locked:
                    async with self._slots:
                        await self._fulfil(batch)
            finally:
                self._locked_orders -= orders
