"""The relay: takes purchases out of the outbox and hands them to the bus.

An entry leaves the outbox only after the bus confirmed the message that holds it. If a confirm is lost the
entry is published again: fulfilment settles an order once, however often it arrives.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from redis.exceptions import RedisError

from engine.bus.publisher import Publisher
from engine.errors import BusUnavailable, SettingsError
from engine.gate.client import connect_shards
from engine.gate.fence import read_owner
from engine.gate.looks.backlog import Illness
from engine.gate.outbox import Outbox, Outboxes, make_outboxes
from engine.metrics import OUTBOX_LENGTH, QUEUE_LENGTH, RELAYED
from engine.model.message import Message
from engine.settings import PREFIX, Settings
from engine.stages.lifecycle import Outage, drain, report, running, sample
from engine.tasks import cancel


async def run_relay(settings: Settings, stop: asyncio.Event) -> None:
    """Relay every shard's outbox until `stop` is set; then what it holds, or until `drain_s` is over.

    What is accepted later is left to other relays. Outages of Redis and RabbitMQ are waited for. Raises
    SettingsError without the URLs of both.
    """
    if settings.amqp_url is None:
        raise SettingsError(f"{PREFIX}AMQP_URL is not set")
    async with connect_shards(settings) as shards:
        outboxes = make_outboxes(shards, "relay", settings)
        publisher = Publisher(settings.amqp_url, partial(read_owner, shards[0]))
        # What one shard lacks holds up no other.
        relays = [Relay(outbox, publisher, settings.relay_batch) for outbox in outboxes]
        # A bus that blocks publishers does not answer what they ask, either.
        observer = Publisher(settings.amqp_url)
        try:
            async with running(
                sample(OUTBOX_LENGTH, Outboxes(outboxes).count_entries),
                sample(QUEUE_LENGTH, observer.count_messages),
                report(shards[0], partial(_find_illnesses, relays)),
            ):
                await drain(_run_all(relays, stop), stop, settings.drain_s)
        finally:
            await observer.close()
            for relay in relays:
                await relay.close()


async def _run_all(relays: Sequence["Relay"], stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        for relay in relays:
            group.create_task(relay.run(stop))


def _find_illnesses(relays: Sequence["Relay"]) -> dict[str, Illness]:
    """Return what keeps relays from relaying: what has lasted longest."""
    found = [illness for relay in relays for illness in relay.find_illnesses().values()]
    return {"relay": max(found)} if found else {}


class Relay:
    """Carries the entries of one outbox to one publisher."""

    def __init__(self, outbox: Outbox, publisher: Publisher, batch: int) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._batch = batch
        self._relaying = 0
        self._newest_ms: int | None = None
        """When the newest entry was accepted that was there at the stop."""
        self._outage = Outage("the relay")

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set and nothing is left of what was in the outbox then."""
        while failure := await self._run_tasks(stop):
            # Which of the messages under way arrived is unknown.
            self._outbox.forget_held()
            await self._outage.wait(failure)

    def find_illnesses(self) -> dict[str, Illness]:
        """Return what keeps it from relaying."""
        if not self._outage.lasts_s:
            return {}
        cause = "RabbitMQ" if isinstance(self._outage.error, BusUnavailable) else "Redis"
        return {"relay": Illness(self._outage.lasts_s, f"{cause} does not do what the relay asks")}

    async def close(self) -> None:
        """Leave the outbox and close the bus."""
        await self._outbox.close()
        await self._publisher.close()

    async def _run_tasks(self, stop: asyncio.Event) -> BaseException | None:
        """Relay until the work is done, or return what went wrong."""
        # While one task waits for its confirms, the other one reads.
        tasks = [asyncio.create_task(self._run_task(stop)) for _ in range(2)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Not a task group, which cancels once: a task that loses its cancellation would go on alone, and
            # the entries that the failed one held would wait forever.
            await cancel(*tasks)
        failure = next(filter(None, [task.exception() for task in tasks if not task.cancelled()]), None)
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        if failure is not None and not isinstance(failure, (BusUnavailable, RedisError)):
            raise failure
        return failure

    async def _run_task(self, stop: asyncio.Event) -> None:
        while True:
            entries = await self._outbox.read(0.25)  # a stop is noticed no later
            if entries:
                await self._relay(entries)
            if entries or not self._relaying:
                # Else the other task has something in its hands, which may not work.
                self._outage.end()
            if stop.is_set():
                if self._newest_ms is None:
                    self._newest_ms = await self._outbox.find_newest()
                if not await self._outbox.has_left(self._newest_ms):
                    return

    async def _relay(self, entries: list[Message]) -> None:
        self._relaying += 1
        try:
            async with asyncio.TaskGroup() as publishing:
                for lines in join_entries(entries, self._batch):
                    publishing.create_task(self._publisher.publish(lines))
            await self._outbox.acknowledge(entries)
        finally:
            self._relaying -= 1
        RELAYED.inc(sum(entry.orders for entry in entries))


def join_entries(entries: Iterable[Message], size: int) -> list[bytes]:
    """Return the lines of all entries in their order, whole entries of at most `size` orders together.

    A larger entry stays alone.
    """
    joined: list[list[bytes]] = []
    room = 0
    for entry in entries:
        if not joined or entry.orders > room:
            joined.append([])
            room = size
        joined[-1].append(entry.lines)
        room -= entry.orders
    return [b"\n".join(lines) for lines in joined]
