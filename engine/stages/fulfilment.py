"""Fulfilment: payment, the ledger, the gate, the acknowledgement - in this order, a batch at a time.

Whatever fails is tried again for as long as it takes. Every step may run twice: an order is charged under its
id, settled once by the ledger, and released once by the gate.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final, Protocol, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.bus.consumer import Consumer
from engine.errors import FlashgridError, SettingsError
from engine.gate.clearing import Compensation
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.gate.outbox import Outbox, name_consumer
from engine.ledger.ledger import Ledger
from engine.metrics import DEAD_LETTERS, FULFILMENT_LAG
from engine.model.dead_letter import Poison
from engine.model.delivery import Delivery, Packer, Parcel
from engine.payment.gateway import PaymentGateway
from engine.payment.simulated import SimulatedGateway
from engine.settings import Settings
from engine.stages.keeper import keep_gate
from engine.stages.lifecycle import Outage, drain, running
from engine.stages.reconciliation import reconciling

log = logging.getLogger(__name__)

_REDIS_TIMEOUT_MS: Final = 5_000
_QUIET_S: Final = 0.5
"""A source that gave nothing for so long is empty."""
_LEAST_PREFETCH: Final = 256
"""Messages: purchases that come in ones and twos must be able to fill batches, too."""

T = TypeVar("T")


class Source(Protocol):
    """Where purchases come from: the bus, or the outbox itself. What is not acknowledged comes again."""

    async def read(self, wait_s: float) -> list[Delivery]:
        """What arrived; waits up to `wait_s` for the first."""
        ...

    async def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Forget deliveries that are done."""
        ...

    async def dead_letter(self, poison: Iterable[Poison]) -> None:
        """Keep records that can't be fulfilled."""
        ...

    async def close(self) -> None:
        """Leave what was not acknowledged to another reader."""
        ...


async def run_fulfilment(settings: Settings, stop: asyncio.Event) -> None:
    """Fulfil purchases until `stop` is set; then until the source is empty, or `drain_s` is over.

    The source is the bus, or the outbox itself if there is no amqp_url. Outages of every service are waited
    for. Raises SettingsError without the URLs of Redis and PostgreSQL.
    """
    if settings.redis_url is None or settings.postgres_url is None:
        raise SettingsError("fulfilment needs Redis and PostgreSQL")
    shards = [ShardKeys(shard) for shard in range(settings.gate_shards)]
    gateway = SimulatedGateway(
        settings.payment_latency_ms, settings.payment_decline_rate, settings.payment_seed
    )
    async with AsyncExitStack() as cleanup:
        redis = await cleanup.enter_async_context(connect_redis(settings.redis_url, _REDIS_TIMEOUT_MS))
        ledger = await Ledger.connect(settings.postgres_url, connections=settings.fulfilment_in_flight)
        cleanup.push_async_callback(ledger.close)
        source: Source
        if settings.amqp_url is None:
            outbox = Outbox(
                redis, shards, name_consumer("fulfilment"), settings.relay_claim_ms, settings.outbox_wait_ms
            )
            await cleanup.enter_async_context(running(outbox.watch()))
            source = outbox
        else:
            messages = 2 * settings.fulfilment_in_flight * settings.fulfilment_batch // settings.relay_batch
            source = Consumer(settings.amqp_url, prefetch=max(_LEAST_PREFETCH, messages))
        cleanup.push_async_callback(source.close)
        fulfilment = Fulfilment(source, gateway, ledger, redis, shards, settings)
        reconciliation = await cleanup.enter_async_context(reconciling(settings, redis))
        await cleanup.enter_async_context(running(keep_gate(reconciliation, fulfilment)))
        await drain(fulfilment.run(stop), stop, settings.drain_s)


class Fulfilment:
    """Brings every purchase of one source to its terminal state."""

    def __init__(
        self,
        source: Source,
        gateway: PaymentGateway,
        ledger: Ledger,
        redis: Redis,
        shards: Sequence[ShardKeys],
        settings: Settings,
    ) -> None:
        self._source = source
        self._gateway = gateway
        self._ledger = ledger
        self._compensation = Compensation(redis, shards)
        self._wait_s = settings.fulfilment_wait_ms / 1000
        self._packer = Packer(settings.fulfilment_batch)
        self._in_flight = settings.fulfilment_in_flight
        self._slots = asyncio.Semaphore(self._in_flight)
        self._working = 0
        self._reading = Outage("fulfilment's source")
        self._settling = Outage("fulfilment")
        self._awake = asyncio.Event()
        self._awake.set()
        self._resting = asyncio.Event()

    async def rest(self) -> None:
        """Finish what is under way and leave the source, until `wake`; return when that is so."""
        self._awake.clear()
        await self._resting.wait()

    async def is_remembered(self) -> bool:
        """Whether the gate still knows what this fulfilment told it. Raises RedisError."""
        return await self._compensation.is_remembered()

    def wake(self) -> None:
        """Go on after `rest`."""
        self._awake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Fulfil until `stop` is set and the source has been empty for a moment."""
        leaves_at = 0.0
        quiet_since = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                wait_s = _QUIET_S / 2 if self._packer.empty else max(0.0, leaves_at - time.monotonic())
                deliveries = await self._read(wait_s)
                for delivery in deliveries:
                    if self._packer.empty:
                        leaves_at = time.monotonic() + self._wait_s
                    for parcel in self._packer.add(delivery):
                        leaves_at = time.monotonic() + self._wait_s
                        await self._start(group, parcel)
                now = time.monotonic()
                if now >= leaves_at:
                    for parcel in self._packer.flush():
                        await self._start(group, parcel)
                if deliveries or self._working or not self._packer.empty:
                    quiet_since = now
                elif now - quiet_since >= _QUIET_S:
                    if stop.is_set():
                        return
                    if not self._awake.is_set():
                        await self._rest(stop)
                        quiet_since = time.monotonic()

    async def _rest(self, stop: asyncio.Event) -> None:
        await self._source.close()
        self._resting.set()
        waiting = [asyncio.create_task(event.wait()) for event in (self._awake, stop)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            self._resting.clear()

    async def _read(self, wait_s: float) -> list[Delivery]:
        try:
            deliveries = await self._source.read(wait_s)
        except (FlashgridError, RedisError) as error:
            await self._reading.wait(error)
            return []
        self._reading.end()
        return deliveries

    async def _start(self, group: asyncio.TaskGroup, parcel: Parcel) -> None:
        await self._slots.acquire()
        self._working += 1
        group.create_task(self._fulfil(parcel))

    async def _fulfil(self, parcel: Parcel) -> None:
        try:
            await self._insist(self._settle, parcel)
            if finished := parcel.finish():
                await self._insist(self._source.acknowledge, finished)
        finally:
            self._working -= 1
            self._slots.release()

    async def _insist(self, step: Callable[[T], Awaitable[None]], argument: T) -> None:
        """Repeat a step until it succeeds."""
        while True:
            try:
                await step(argument)
            except (FlashgridError, RedisError) as error:
                await self._settling.wait(error)
            except Exception as error:
                # Nothing that a payment gateway may raise is a reason to lose the purchases.
                log.exception("a batch of purchases failed")
                await self._settling.wait(error)
            else:
                self._settling.end()
                return

    async def _settle(self, parcel: Parcel) -> None:
        batch, poison = parcel.reservations, list(parcel.poison)
        repeated, parcel.repeated = parcel.repeated, True
        if batch:
            orders = []
            if repeated:
                # What is in the ledger is not charged again.
                orders = await self._ledger.find_orders([r.order_id for r in batch])
                settled = {order.order_id for order in orders}
                batch = [r for r in batch if r.order_id not in settled]
            declines = await self._gateway.charge(batch)
            settlement = await self._ledger.settle(batch, declines)
            orders += settlement.settled + settlement.repeated
            poison += settlement.poison
            await self._compensation.settle(orders)
            if settlement.settled:
                # They come in the order in which they were accepted, but for a few.
                FULFILMENT_LAG.observe(max(0.0, time.time() - batch[0].accepted_ms / 1000))
        if poison:
            await self._source.dead_letter(poison)
            DEAD_LETTERS.inc(len(poison))
            log.warning("%d records can't be fulfilled, the first one: %s", len(poison), poison[0].reason)
