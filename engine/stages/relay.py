"""The relay: takes purchases out of the outbox and hands them to the bus.

An entry leaves the outbox only after the bus confirmed every message that holds some of it. Where a confirm
is lost nobody knows, and the entry is published again: fulfilment settles an order once however often
it comes.
"""

import asyncio
from typing import Final

from redis.exceptions import RedisError

from engine.bus.publisher import Publisher
from engine.errors import BusUnavailable, SettingsError
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.gate.outbox import Outbox, name_consumer
from engine.metrics import RELAYED
from engine.model.delivery import Delivery, make_messages
from engine.settings import Settings
from engine.stages.lifecycle import Outage, cancel, drain, running

_REDIS_TIMEOUT_MS: Final = 5_000
_WAIT_S: Final = 0.25
"""Longest wait of one read, and so for a stop to be noticed."""
_LANES: Final = 2
"""Reads that are under way at the same time: while one waits for its confirms, the next one is packed."""


async def run_relay(settings: Settings, stop: asyncio.Event) -> None:
    """Relay every shard's outbox until `stop` is set; then until it is empty, or `drain_s` is over.

    Outages of Redis and RabbitMQ are waited for. Raises SettingsError without the URLs of both.
    """
    if settings.redis_url is None or settings.amqp_url is None:
        raise SettingsError("a relay needs Redis and RabbitMQ")
    async with connect_redis(settings.redis_url, _REDIS_TIMEOUT_MS) as redis:
        shards = [ShardKeys(shard) for shard in range(settings.gate_shards)]
        outbox = Outbox(
            redis, shards, name_consumer("relay"), settings.relay_claim_ms, settings.outbox_wait_ms
        )
        relay = Relay(outbox, Publisher(settings.amqp_url), settings.relay_batch)
        try:
            await drain(relay.run(stop), stop, settings.drain_s)
        finally:
            await relay.close()


class Relay:
    """Carries what is in one outbox to one publisher."""

    def __init__(self, outbox: Outbox, publisher: Publisher, batch: int) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._batch = batch
        self._outage = Outage("the relay")

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set and the outbox is empty."""
        async with running(self._outbox.watch(), self._publisher.watch()):
            while failure := await self._run_lanes(stop):
                # Which of the messages under way arrived is unknown.
                self._outbox.release()
                await self._publisher.close()
                await self._outage.wait(failure)

    async def close(self) -> None:
        """Leave the outbox and close the bus."""
        await self._outbox.close()
        await self._publisher.close()

    async def _run_lanes(self, stop: asyncio.Event) -> BaseException | None:
        """What went wrong, or None if the work is done."""
        lanes = [asyncio.create_task(self._run_lane(stop)) for _ in range(_LANES)]
        try:
            await asyncio.wait(lanes, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # No task group, which cancels once: a lane that loses that goes on alone, and what the failed
            # one held waits for ever.
            await cancel(*lanes)
        failures = [lane.exception() for lane in lanes if not lane.cancelled()]
        failure = next(filter(None, failures), None)
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        if failure is not None and not isinstance(failure, (BusUnavailable, RedisError)):
            raise failure
        return failure

    async def _run_lane(self, stop: asyncio.Event) -> None:
        while True:
            deliveries = await self._outbox.read(_WAIT_S)
            if deliveries:
                await self._relay(deliveries)
                self._outage.end()
            elif stop.is_set() and not await self._outbox.length():
                return

    async def _relay(self, deliveries: list[Delivery]) -> None:
        async with asyncio.TaskGroup() as publishing:
            for lines in make_messages(deliveries, self._batch):
                publishing.create_task(self._publisher.publish(lines))
        await self._outbox.acknowledge(deliveries)
        RELAYED.inc(sum(delivery.orders for delivery in deliveries))
