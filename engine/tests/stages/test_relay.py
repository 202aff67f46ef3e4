import asyncio
from collections.abc import Iterable
from itertools import pairwise

import aio_pika
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.bus.topology import PURCHASES
from engine.errors import SettingsError
from engine.gate.client import Shard
from engine.gate.keys import ShardKeys
from engine.gate.outbox import Outbox, read_newest
from engine.model.lot import count_orders, decode_lots, encode_lots
from engine.model.message import Message
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages import lifecycle
from engine.stages.fulfilment import run_fulfilment
from engine.stages.relay import Relay, join_entries, run_relay
from engine.tests.backend import (
    CONFIRMED,
    count_statuses,
    open_sale,
    read_sold,
    read_statuses,
    running,
    take_dead_letters,
    until_relayed,
    until_settled,
)
from engine.tests.orders import SHARD, accept, ids, make_terms, mark_pending, reserve, unpack
from engine.tests.proxy import Proxy
from engine.tests.test_server import eventually

SALE = Sale(sale_id=3, terms=make_terms(stock=1_000))


async def drain_bus(url: str, purchases: int) -> list[Message]:
    """Read messages until they hold so many purchases."""
    consumer = Consumer(url, prefetch=10_000)
    messages: list[Message] = []
    while len(unpack(messages)) < purchases:
        messages += await consumer.read(1)
    await consumer.acknowledge(messages)
    await consumer.close()
    return messages


async def test_entries_leave_the_outbox_for_the_bus(redis: Redis, settings: Settings, bus_url: str) -> None:
    batch = reserve(SALE, 1_000)
    async with running(settings, run_relay):
        await accept(redis, batch, entry_size=7)
        await until_relayed(redis)
    messages = await drain_bus(bus_url, 1_000)
    assert sorted(ids(unpack(messages))) == sorted(ids(batch))


async def test_small_entries_share_a_message_and_a_large_one_is_a_message_of_its_own(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    settings = msgspec.structs.replace(settings, relay_batch=10)
    await accept(redis, reserve(SALE, 30), entry_size=1)
    await accept(redis, reserve(SALE, 25), entry_size=25)
    await accept(redis, reserve(SALE, 5), entry_size=1)
    async with running(settings, run_relay):
        await until_relayed(redis)
    sizes = [len(unpack([message])) for message in await drain_bus(bus_url, 60)]
    assert sum(sizes) == 60
    assert [size for size in sizes if size > 10] == [25]
    assert len(sizes) <= 7


async def test_a_relay_killed_between_publish_and_acknowledge_loses_nothing_and_sells_nothing_twice(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    sale = await open_sale(settings, redis)
    batch = reserve(sale, 500)
    await accept(redis, batch, entry_size=50)
    # All that a relay does up to its death: it read, published, and got every confirm.
    victim, publisher = Outbox(Shard(redis), "killed", 3_600_000), Publisher(bus_url)
    for message in await victim.read(1):
        await publisher.publish(message.lines)
    await publisher.close()
    async with running(msgspec.structs.replace(settings, relay_claim_ms=100)):
        await until_settled(redis)
    assert await read_statuses(settings) == dict.fromkeys(ids(batch), CONFIRMED)
    assert await read_sold(settings, sale) == 500


async def test_what_is_no_purchase_ends_as_a_dead_letter_and_its_neighbours_are_fulfilled(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    orders = reserve(await open_sale(settings, redis), 2)
    await mark_pending(redis, orders)
    lines = b"\n".join((encode_lots(orders[:1]), b"rubbish", encode_lots(orders[1:])))
    await redis.xadd(SHARD.outbox, {"purchases": lines})
    async with running(settings):
        await until_settled(redis)
        [(body, reason)] = await take_dead_letters(bus_url, 1)
    assert body == b"rubbish"
    assert reason
    assert await read_statuses(settings) == dict.fromkeys(ids(orders), CONFIRMED)


async def test_a_dropped_connection_is_made_again_and_nothing_is_lost(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    sale = await open_sale(settings, redis)
    batch = reserve(sale, 4_000)
    proxy = Proxy(bus_url)
    async with proxy.listen(), running(msgspec.structs.replace(settings, amqp_url=proxy.url)):
        for start in range(0, 4_000, 400):
            await accept(redis, batch[start : start + 400], entry_size=20)
            proxy.cut()
        await until_settled(redis)
    assert await read_statuses(settings) == dict.fromkeys(ids(batch), CONFIRMED)
    assert await read_sold(settings, sale) == 4_000


class Careless(Outbox):
    """Fails one acknowledgement while another read waits, and loses the cancellation that comes of it."""

    reads = 0
    failed = lost = False

    def __init__(self, redis: Redis) -> None:
        super().__init__(Shard(redis), "careless", 3_600_000)
        self.other_waits = asyncio.Event()

    async def read(self, wait_s: float) -> list[Message]:
        self.reads += 1
        if self.reads > 2:
            self.other_waits.set()
        try:
            return await super().read(wait_s)
        except asyncio.CancelledError:
            if self.lost:
                raise
            self.lost = True
            return []

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        if not self.failed:
            self.failed = True
            await self.other_waits.wait()
            raise RedisError("no answer")
        await super().acknowledge(messages)


async def test_what_a_failed_task_held_is_relayed_though_the_other_lost_its_cancellation(
    redis: Redis, bus_url: str
) -> None:
    outbox, stop = Careless(redis), asyncio.Event()
    relay = Relay(outbox, Publisher(bus_url), 10)
    await accept(redis, reserve(SALE, 5))
    work = asyncio.create_task(relay.run(stop))
    await until_relayed(redis)
    stop.set()
    await work
    await relay.close()
    assert outbox.lost
    assert unpack(await drain_bus(bus_url, 10))


async def test_a_deleted_queue_comes_back(redis: Redis, settings: Settings, bus_url: str) -> None:
    async with running(settings, run_relay):
        await accept(redis, reserve(SALE, 5))
        await until_relayed(redis)
        async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
            await channel.queue_delete(PURCHASES)
        await accept(redis, reserve(SALE, 6))
        await until_relayed(redis)
    assert len(unpack(await drain_bus(bus_url, 6))) == 6


async def test_a_stopped_relay_first_empties_the_outbox(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    await accept(redis, reserve(SALE, 2_000), entry_size=10)
    stop = asyncio.Event()
    stop.set()
    await run_relay(settings, stop)
    assert await redis.xlen(SHARD.outbox) == 0
    assert await redis.xinfo_consumers(SHARD.outbox, ShardKeys.GROUP) == []
    assert len(await drain_bus(bus_url, 2_000)) > 0


async def test_a_stopped_relay_first_takes_over_from_the_dead(redis: Redis, settings: Settings) -> None:
    await accept(redis, reserve(SALE, 50))
    await Outbox(Shard(redis), "killed", 3_600_000).read(1)
    stop = asyncio.Event()
    stop.set()
    await run_relay(msgspec.structs.replace(settings, relay_claim_ms=500), stop)
    assert await redis.xlen(SHARD.outbox) == 0


def count_relayed() -> float:
    return REGISTRY.get_sample_value("flashgrid_relayed_purchases_total") or 0.0


async def test_a_stopped_relay_leaves_to_others_what_is_accepted_later(
    redis: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    stop, before = asyncio.Event(), count_relayed()

    async def arrive() -> None:
        while True:
            await accept(redis, reserve(SALE, 5))

    async with lifecycle.running(arrive()):
        relay = asyncio.create_task(run_relay(msgspec.structs.replace(settings, drain_s=10), stop))
        await eventually(lambda: count_relayed() > before)
        newest_ms = await read_newest(Shard(redis))
        stop.set()
        await relay
        assert await redis.xlen(SHARD.outbox)
    assert "work is left" not in caplog.text
    assert not await redis.xrange(SHARD.outbox, max=str(newest_ms))


async def test_a_stopped_relay_without_a_bus_gives_up_after_the_drain_time_and_keeps_everything(
    redis: Redis, settings: Settings
) -> None:
    await accept(redis, reserve(SALE, 5))
    stop = asyncio.Event()
    stop.set()
    await run_relay(msgspec.structs.replace(settings, amqp_url="amqp://127.0.0.1:1/", drain_s=0.3), stop)
    assert await redis.xlen(SHARD.outbox) == 1


async def test_a_relay_needs_a_bus(settings_without_bus: Settings) -> None:
    with pytest.raises(SettingsError):
        await run_relay(settings_without_bus, asyncio.Event())


async def test_two_relays_share_the_work(redis: Redis, settings: Settings) -> None:
    sale = await open_sale(settings, redis)
    batch = reserve(sale, 2_000)
    await accept(redis, batch, entry_size=5)
    async with running(settings, run_relay, run_relay, run_fulfilment):
        await until_settled(redis)
    assert await count_statuses(settings) == {CONFIRMED: 2_000}


@given(size=st.integers(1, 20), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_messages_hold_whole_entries_in_order_and_as_many_as_fit(size: int, lengths: list[int]) -> None:
    batches = [reserve(SALE, length, size=3) for length in lengths]
    entries = [
        Message(tag=0, lines=encode_lots(lots), repeated=False, orders=count_orders(lots)) for lots in batches
    ]
    read = [decode_lots(lines)[0] for lines in join_entries(entries, size)]
    assert ids(lot for lots in read for lot in lots) == ids(lot for lots in batches for lot in lots)
    assert all(count_orders(lots) <= size or count_orders(lots) in lengths for lots in read)
    sizes = {lots[0].stem: count_orders(lots) for lots in batches}
    for lots, following in pairwise(read):
        assert count_orders(lots) + sizes[following[0].stem] > size
