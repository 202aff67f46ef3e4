import asyncio
from collections.abc import AsyncIterator

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from engine.bus import DEAD, PURCHASES, REASON, Consumer, Publisher
from engine.delivery import Delivery
from engine.errors import BusUnavailable
from engine.reservation import Poison
from engine.sale import Sale
from engine.tests.orders import make_terms, reserve
from engine.tests.proxy import Proxy

SALE = Sale(sale_id=3, terms=make_terms(stock=1_000))


@pytest.fixture
async def channel(bus_url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
        yield channel


@pytest.fixture
async def publisher(bus_url: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(bus_url)
    yield publisher
    await publisher.close()


@pytest.fixture
async def consumer(bus_url: str) -> AsyncIterator[Consumer]:
    consumer = Consumer(bus_url, prefetch=10)
    yield consumer
    await consumer.close()


async def read(consumer: Consumer, messages: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < messages:
        deliveries += await consumer.read(1)
    return deliveries


async def test_what_is_published_arrives(publisher: Publisher, consumer: Consumer) -> None:
    batch = reserve(SALE, 256, key="key")
    await publisher.publish(batch)
    [delivery] = await read(consumer, 1)
    assert delivery.reservations == batch
    assert not delivery.repeated
    await consumer.acknowledge([delivery])


async def test_a_message_survives_on_disk(publisher: Publisher, channel: AbstractChannel) -> None:
    await publisher.publish(reserve(SALE))
    queue = await channel.declare_queue(PURCHASES, passive=True)
    message = await queue.get()
    assert message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT


async def test_what_was_not_acknowledged_comes_again_marked_as_repeated(
    publisher: Publisher, bus_url: str, consumer: Consumer
) -> None:
    for order in reserve(SALE, 3):
        await publisher.publish([order])
    first = Consumer(bus_url, prefetch=10)
    seen = await read(first, 3)
    await first.acknowledge(seen[:1])
    await first.close()
    again = await read(consumer, 2)
    assert sorted(d.reservations[0].order_id for d in again) == sorted(
        d.reservations[0].order_id for d in seen[1:]
    )
    assert all(delivery.repeated for delivery in again)


async def test_a_message_that_no_queue_takes_is_an_error(
    publisher: Publisher, channel: AbstractChannel
) -> None:
    await publisher.publish(reserve(SALE))
    await channel.queue_delete(PURCHASES)
    with pytest.raises(BusUnavailable):
        await publisher.publish(reserve(SALE))
    await publisher.close()
    await publisher.publish(reserve(SALE))


async def test_a_deleted_queue_is_declared_again_by_its_consumer(
    publisher: Publisher, consumer: Consumer, channel: AbstractChannel
) -> None:
    await publisher.publish(reserve(SALE))
    await read(consumer, 1)
    await channel.queue_delete(PURCHASES)
    with pytest.raises(BusUnavailable):
        await read(consumer, 1)
    await consumer.read(0.01)
    await publisher.publish(reserve(SALE))
    assert len(await read(consumer, 1)) == 1


async def test_a_cut_connection_is_an_error_once_and_then_made_anew(
    bus_url: str, publisher: Publisher
) -> None:
    async with Proxy(bus_url).listen() as proxy:
        consumer = Consumer(proxy.url, prefetch=10)
        await consumer.read(0.01)
        proxy.cut()
        with pytest.raises(BusUnavailable):
            await consumer.read(10)
        await publisher.publish(reserve(SALE))
        assert len(await read(consumer, 1)) == 1
        await consumer.close()


async def test_an_acknowledgement_on_a_lost_channel_does_no_harm(bus_url: str, publisher: Publisher) -> None:
    async with Proxy(bus_url).listen() as proxy:
        consumer = Consumer(proxy.url, prefetch=10)
        await publisher.publish(reserve(SALE))
        stale = await read(consumer, 1)
        proxy.cut()
        with pytest.raises(BusUnavailable):
            await consumer.read(10)
        await consumer.acknowledge(stale)
        again = await read(consumer, 1)
        assert again[0].reservations == stale[0].reservations
        await consumer.close()


async def test_who_waits_for_a_confirm_hears_of_a_cut_connection(bus_url: str) -> None:
    async with Proxy(bus_url).listen() as proxy:
        publisher = Publisher(proxy.url)
        await publisher.publish(reserve(SALE))
        sending = [asyncio.create_task(publisher.publish(reserve(SALE, 256))) for _ in range(50)]
        await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        proxy.cut()
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), BusUnavailable}
        await publisher.close()


async def test_an_absent_bus_is_named_unavailable() -> None:
    publisher, consumer = Publisher("amqp://127.0.0.1:1/"), Consumer("amqp://127.0.0.1:1/", prefetch=1)
    with pytest.raises(BusUnavailable):
        await publisher.publish(reserve(SALE))
    with pytest.raises(BusUnavailable):
        await consumer.read(0.01)
    await publisher.close()
    await consumer.close()


async def test_a_dead_letter_says_why_and_whence_it_came(
    publisher: Publisher, channel: AbstractChannel
) -> None:
    await publisher.dead_letter([Poison(b"rubbish", "not a purchase")])
    queue = await channel.declare_queue(DEAD, passive=True)
    message = await queue.get()
    assert message.body == b"rubbish"
    assert message.headers[REASON] == "not a purchase"
    assert message.headers["x-flashgrid-exchange"] == PURCHASES
    assert message.headers["x-flashgrid-routing-key"] == PURCHASES


async def test_messages_are_counted(publisher: Publisher) -> None:
    assert await publisher.count_messages() == 0
    for order in reserve(SALE, 3):
        await publisher.publish([order])
    while await publisher.count_messages() < 3:
        pass
