import asyncio
import random
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange

from engine.bus import connection as bus_connection
from engine.bus import consumer as bus_consumer
from engine.bus import publisher as bus_publisher
from engine.bus.connection import Nodes, connect_bus
from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD, PURCHASES, REASON
from engine.checks import check_bus_if_it_answers
from engine.errors import BusUnavailable
from engine.local.ports import free_port
from engine.local.stack import Stack
from engine.model.dead_letter import DeadLetter
from engine.model.lot import encode_lots
from engine.model.message import Message
from engine.model.sale import Sale
from engine.tests.orders import make_terms, reserve, unpack
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


async def read(consumer: Consumer, messages: int) -> list[Message]:
    arrived: list[Message] = []
    while len(arrived) < messages:
        arrived += await consumer.read(1)
    return arrived


async def test_what_is_published_arrives(publisher: Publisher, consumer: Consumer) -> None:
    batch = reserve(SALE, 256, key="key", size=30)
    await publisher.publish(encode_lots(batch))
    [message] = await read(consumer, 1)
    assert unpack([message]) == batch
    assert not message.repeated
    await consumer.acknowledge([message])


async def test_a_message_survives_on_disk(publisher: Publisher, channel: AbstractChannel) -> None:
    await publisher.publish(encode_lots(reserve(SALE)))
    queue = await channel.declare_queue(PURCHASES, passive=True)
    message = await queue.get()
    assert message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT


async def test_what_was_not_acknowledged_comes_again_marked_as_repeated(
    publisher: Publisher, bus_url: str, consumer: Consumer
) -> None:
    for order in reserve(SALE, 3):
        await publisher.publish(encode_lots([order]))
    first = Consumer(bus_url, prefetch=10)
    seen = await read(first, 3)
    await first.acknowledge(seen[:1])
    await first.close()
    again = await read(consumer, 2)
    assert sorted(message.lines for message in again) == sorted(message.lines for message in seen[1:])
    assert all(message.repeated for message in again)


async def test_a_message_that_no_queue_takes_is_an_error(
    publisher: Publisher, channel: AbstractChannel
) -> None:
    await publisher.publish(encode_lots(reserve(SALE)))
    await channel.queue_delete(PURCHASES)
    with pytest.raises(BusUnavailable):
        await publisher.publish(encode_lots(reserve(SALE)))
    await publisher.close()
    await publisher.publish(encode_lots(reserve(SALE)))


async def test_a_deleted_queue_is_declared_again_by_its_consumer(
    publisher: Publisher, consumer: Consumer, channel: AbstractChannel
) -> None:
    await publisher.publish(encode_lots(reserve(SALE)))
    await read(consumer, 1)
    await channel.queue_delete(PURCHASES)
    with pytest.raises(BusUnavailable):
        await read(consumer, 1)
    await consumer.read(0.01)
    await publisher.publish(encode_lots(reserve(SALE)))
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
        await publisher.publish(encode_lots(reserve(SALE)))
        assert len(await read(consumer, 1)) == 1
        await consumer.close()


async def test_an_acknowledgement_on_a_lost_channel_does_no_harm(bus_url: str, publisher: Publisher) -> None:
    async with Proxy(bus_url).listen() as proxy:
        consumer = Consumer(proxy.url, prefetch=10)
        await publisher.publish(encode_lots(reserve(SALE)))
        stale = await read(consumer, 1)
        proxy.cut()
        with pytest.raises(BusUnavailable):
            await consumer.read(10)
        await consumer.acknowledge(stale)
        again = await read(consumer, 1)
        assert again[0].lines == stale[0].lines
        await consumer.close()


async def test_a_cut_connection_ends_the_wait_for_a_confirm(bus_url: str) -> None:
    async with Proxy(bus_url).listen() as proxy:
        publisher = Publisher(proxy.url)
        await publisher.publish(encode_lots(reserve(SALE)))
        sending = [asyncio.create_task(publisher.publish(encode_lots(reserve(SALE, 256)))) for _ in range(50)]
        await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        proxy.cut()
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), BusUnavailable}
        await publisher.close()


async def test_a_connection_is_given_up_when_the_broker_does_not_say_goodbye(
    bus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_connection, "_CLOSE_S", 0.05)
    async with Proxy(bus_url).listen() as proxy:
        connection = await connect_bus(proxy.url, "test")
        proxy.freeze()
        await connection.close()
        assert connection.is_closed, "or the library closes it when it is collected, in any loop or none"


async def test_no_connection_stays_behind_where_the_queues_can_not_be_declared(
    bus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = list[AbstractConnection](), Nodes.connect

    async def connect(nodes: Nodes, name: str) -> AbstractConnection:
        made.append(await make(nodes, name))
        return made[-1]

    async def fail(_channel: AbstractChannel, _ledger: str) -> AbstractExchange:
        raise BusUnavailable("not now")

    monkeypatch.setattr(Nodes, "connect", connect)
    monkeypatch.setattr(bus_connection, "declare_topology", fail)
    publisher, consumer = Publisher(bus_url), Consumer(bus_url, prefetch=1)
    for _ in range(2):
        with pytest.raises(BusUnavailable):
            await publisher.read_queue()
        with pytest.raises(BusUnavailable):
            await consumer.read(0)
    assert [connection.is_closed for connection in made] == [True] * 4
    await publisher.close()
    await consumer.close()


async def test_an_absent_bus_is_named_unavailable() -> None:
    publisher, consumer = Publisher("amqp://127.0.0.1:1/"), Consumer("amqp://127.0.0.1:1/", prefetch=1)
    with pytest.raises(BusUnavailable):
        await publisher.publish(encode_lots(reserve(SALE)))
    with pytest.raises(BusUnavailable):
        await consumer.read(0.01)
    await publisher.close()
    await consumer.close()


async def test_a_dead_letter_says_why_and_where_it_comes_from(
    publisher: Publisher, channel: AbstractChannel
) -> None:
    await publisher.put_aside([DeadLetter(b"rubbish", "not a purchase")])
    queue = await channel.declare_queue(DEAD, passive=True)
    message = await queue.get()
    assert message.body == b"rubbish"
    assert message.headers[REASON] == "not a purchase"
    assert message.headers["x-flashgrid-exchange"] == PURCHASES
    assert message.headers["x-flashgrid-routing-key"] == PURCHASES


async def test_messages_are_counted(publisher: Publisher) -> None:
    assert await publisher.count_messages() == 0
    for order in reserve(SALE, 3):
        await publisher.publish(encode_lots([order]))
    while await publisher.count_messages() < 3:
        pass


async def test_a_broker_that_blocks_publishers_is_not_waited_for_forever(
    publisher: Publisher, consumer: Consumer, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [encode_lots([lot]) for lot in reserve(SALE, 2)]
    await publisher.publish(messages[0])
    await stack.control_rabbitmq("set_vm_memory_high_watermark", "0")
    try:
        monkeypatch.setattr(bus_publisher, "_CONFIRM_S", 0.2)
        with pytest.raises(BusUnavailable, match="no confirm"):
            await publisher.publish(messages[1])
        await publisher.close()
    finally:
        await stack.control_rabbitmq("set_vm_memory_high_watermark", "0.4")
    monkeypatch.undo()
    await publisher.publish(messages[1])
    arrived = [message.lines for message in await read(consumer, 2)]
    assert arrived[0] == messages[0]
    assert set(arrived[1:]) == {messages[1]}, "perhaps more than once"


async def test_a_question_that_fails_ends_its_connection(
    publisher: Publisher, channel: AbstractChannel
) -> None:
    await publisher.publish(encode_lots(reserve(SALE)))
    await channel.queue_delete(PURCHASES)
    with pytest.raises(BusUnavailable, match="NOT_FOUND"):
        await publisher.read_queue()
    assert await publisher.read_queue() == (0, 0), "the queue is declared again"


async def test_an_idle_consumer_connects_anew_unless_it_holds_messages(
    bus_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = list[AbstractConnection](), Nodes.connect

    async def connect(nodes: Nodes, name: str) -> AbstractConnection:
        connection = await make(nodes, name)
        if name == "consumer":
            made.append(connection)
        return connection

    monkeypatch.setattr(Nodes, "connect", connect)
    consumer = Consumer(bus_url, prefetch=10)
    await consumer.read(0.01)
    await publisher.publish(encode_lots(reserve(SALE)))
    messages = await read(consumer, 1)
    assert len(made) == 1
    monkeypatch.setattr(bus_consumer, "_IDLE_S", 1e-9)
    await consumer.read(0.01)
    assert len(made) == 1
    await consumer.acknowledge(messages)
    assert await consumer.read(0.01) == []
    assert [connection.is_closed for connection in made] == [True, False]
    await consumer.close()


async def test_of_several_nodes_a_silent_one_is_left_and_a_closed_one_passed_over(
    bus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing else notices it: neither the library, nor a consumer that has had nothing for long.
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 1_000)
    monkeypatch.setattr(bus_consumer, "_IDLE_S", 1_000)
    monkeypatch.setattr(bus_connection, "_HEARTBEAT_OF_SEVERAL_S", 2)
    monkeypatch.setattr(random, "sample", lambda urls, _: urls)  # they connect to the first one
    async with Proxy(bus_url).listen() as proxy:
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in (proxy.url, bus_url)]
        url = bus_url.replace(hosts[1], f"{hosts[0]},127.0.0.1:{free_port()},{hosts[1]}")
        publisher, consumer = Publisher(url), Consumer(url, prefetch=10)
        await publisher.publish(encode_lots(reserve(SALE)))
        await consumer.acknowledge(await read(consumer, 1))
        assert proxy.connects == 2
        proxy.freeze()
        with pytest.raises(BusUnavailable, match="closed"):
            await asyncio.wait_for(publisher.publish(encode_lots(reserve(SALE))), 20)
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(read(consumer, 1), 30)
        last = encode_lots(reserve(SALE))
        await publisher.publish(last)
        async with asyncio.timeout(30):
            # What was sent to the silent node may have arrived.
            while last not in [message.lines for message in await read(consumer, 1)]:
                pass
        assert proxy.connects == 2
        await publisher.close()
        await consumer.close()


def test_each_of_several_nodes_has_the_same_short_time_for_its_first_confirm_and_then_more() -> None:
    publisher, waits_s = Publisher("amqp://one,two,three"), list[float]()
    for publisher._unproven in range(30):
        waits_s.append(publisher._first_s())
    assert len(set(waits_s[:3])) == 1, "none of them was asked before"
    assert waits_s[2] < waits_s[3] < waits_s[4], "all of them may be slow"
    assert waits_s[-1] == bus_publisher._CONFIRM_S


async def test_a_full_virtual_host_is_no_refusal_and_is_said(
    bus_url: str, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that stops makes room for the next one."""
    await stack.control_rabbitmq("set_vhost_limits", '{"max-connections":0}')
    try:
        await check_bus_if_it_answers(bus_url, "AMQP_URL", "", is_private=True)
    finally:
        await stack.control_rabbitmq("clear_vhost_limits")
    [said] = [line.getMessage() for line in caplog.records if line.name == "engine.checks"]
    assert "connection limit (0) is reached" in said
