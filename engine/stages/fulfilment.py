"""Fulfilment: payment, the ledger, the gate, the acknowledgement - in this order, a batch at a time.

A step that fails is tried again until it works. Every step may run twice: an order is charged under its id,
settled once by the ledger, and released once by the gate. What can't be paid leaves the line (payments.py).
Orders of a sale that another session of PostgreSQL holds go back to the line's end: they hold up no other.
"""

import asyncio
import logging
import time
from collections.abc import Sequence, Set
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final

from redis.exceptions import RedisError

from engine.bus.consumer import Consumer
from engine.errors import FlashgridError, LedgerLocked, LedgerUnavailable, PaymentUnavailable
from engine.gate.clearing import Clearing
from engine.gate.client import connect_shards
from engine.gate.fence import find_owner
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
from engine.stages.keeper import run_keeper, watch_settings
from engine.stages.lifecycle import Outage, Pause, drain, report, running, sample
from engine.stages.payments import Payments

log = logging.getLogger(__name__)

_QUIET_S: Final = 0.5
"""A source that gave nothing for so long is empty."""
_HELD_S: Final = 2.0
"""For so long a sale is taken for held by another session; then the orders of one batch try again."""
_HELD_PAUSE_S: Final = 0.25
"""Shortest time between two looks at an order of a sale that is held."""

Source = Consumer | Outbox | Outboxes
"""Where purchases come from: the bus, or the outboxes themselves. It repeats what is not acknowledged."""


async def run_fulfilment(settings: Settings, stop: asyncio.Event) -> None:
    """Fulfil purchases until `stop` is set; then what was accepted before, or until `drain_s` is over.

    The source is the bus, or the outbox itself if there is no amqp_url. What is accepted later is left there
    to other fulfilments. The keeper runs beside it. Outages of every service are waited for. Raises
    SettingsError without the URLs of Redis and PostgreSQL.
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
            source = Consumer(settings.amqp_url, max(256, messages), partial(find_owner, shards[0]))
        cleanup.push_async_callback(source.close)
        clearing, pause = Clearing(shards), Pause()
        fulfilment = Fulfilment(source, gateway, ledger, clearing, pause, settings)
        await cleanup.enter_async_context(
            running(
                run_keeper(settings, clearing, pause),
                report(shards[0], fulfilment.find_illnesses),
                watch_settings(shards, ledger, settings.amqp_url),
            )
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
        self._held = dict[int, float]()
        """Sales that another session of PostgreSQL holds, and until when they are taken for that."""
        self._held_since = 0.0
        self._reading = Outage("fulfilment's source")
        self._settling = Outage("fulfilment")

    async def run(self, stop: asyncio.Event) -> None:
        """Fulfil until `stop` is set; then until the source has been empty for a moment, or gives what was
        accepted later.
        """
        leaves_at = 0.0
        stopped_ms = 0
        quiet_since = time.monotonic()
        self._stop = stop
        async with asyncio.TaskGroup() as group:
            self._group = group
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
                if stop.is_set():
                    with suppress(RedisError):
                        stopped_ms = stopped_ms or await self._clearing.find_newest()
                    if 0 < stopped_ms < self._packer.newest_ms:
                        for batch in self._packer.flush():
                            await self._start(group, batch)
                        return
                if messages or self._working or self._payments.waiting or not self._packer.empty:
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
        now = time.monotonic()
        # One that nobody asked for since may be free, or was settled by another process.
        if held := [sale_id for sale_id, until in self._held.items() if now < until + _HELD_S]:
            text = f"another session of PostgreSQL holds {len(held)} sales, as sale {held[0]}"
            found.setdefault("ledger", Illness(now - self._held_since, text))
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
        repeated, batch.repeated = batch.repeated, True
        if batch.lots:
            batch.dead_letters += await self._settle_unheld(batch, repeated)
            batch.lots = []
        if dead_letters := batch.dead_letters:
            await self._source.put_aside(dead_letters)
            DEAD_LETTERS.inc(len(dead_letters))
            log.warning("%d dead letters, the first one: %s", len(dead_letters), dead_letters[0].reason)
            batch.dead_letters = []
        if batch.held:
            if self._stop.is_set():
                # There is no later turn. What is still held when the time to drain is over stays where it is.
                batch.lots, batch.held = batch.held, []
                raise LedgerLocked("another session of PostgreSQL holds a sale")
            await asyncio.sleep(_HELD_PAUSE_S)
            await self._source.put_back(batch.held)
            batch.held = []

    async def _settle_unheld(self, batch: Batch, repeated: bool) -> list[DeadLetter]:
        """Settle the orders of all sales that no other session holds; return those that can't be."""
        held = self._find_held({lot.sale_id for lot in batch.lots})
        while True:
            batch.held += [lot for lot in batch.lots if lot.sale_id in held]
            batch.lots = [lot for lot in batch.lots if lot.sale_id not in held]
            try:
                return await self._settle_lots(batch, repeated) if batch.lots else []
            except LedgerLocked:
                held = await self._ledger.find_locked({lot.sale_id for lot in batch.lots})
                if not held:
                    raise
                self._note_held(held)
                repeated = True

    def _find_held(self, sale_ids: Set[int]) -> set[int]:
        """Return those of the sales that are to be left for now; others of the batch may be tried again."""
        now = time.monotonic()
        known = sale_ids & self._held.keys()
        held = set[int]() if self._stop.is_set() else {each for each in known if now < self._held[each]}
        # No other batch tries the same meanwhile.
        self._held |= dict.fromkeys(known - held, now + _HELD_S)
        return held

    def _note_held(self, sale_ids: Set[int]) -> None:
        now = time.monotonic()
        if all(until + _HELD_S <= now for until in self._held.values()):
            self._held, self._held_since = {}, now
        for sale_id in sale_ids - self._held.keys():
            log.warning("another session of PostgreSQL holds sale %d: its orders wait", sale_id)
        self._held |= dict.fromkeys(sale_ids, now + _HELD_S)

    async def _settle_lots(self, batch: Batch, repeated: bool) -> list[DeadLetter]:
        """Charge, settle and clear the orders; return those that can't be paid or written."""
        lots: Sequence[Lot] = batch.lots
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
        settlement = await self._ledger.settle(new, declines, self._remember_s) if new else Settlement()
        failed = settlement.failed + [order for order in known if order.status is OrderStatus.FAILED]
        settled = without_orders(lots, settlement.dead_letters.keys())
        are_confirmed = settlement.settled[OrderStatus.CONFIRMED] == count_orders(settled) - len(failed)
        await self._clearing.clear(settled, failed, are_confirmed=are_confirmed)
        for sale_id in self._held.keys() & {lot.sale_id for lot in new}:
            log.info("no other session holds sale %d any more", sale_id)
            del self._held[sale_id]
        if settlement.settled.total():
            # They arrive in the order in which they were accepted, but for a few.
            FULFILMENT_DELAY.observe(max(0.0, time.time() - new[0].accepted_ms / 1000))
        return [*dead_letters, *settlement.dead_letters.values()]
