"""A connect, a command or a goodbye that is cancelled at any step leaves no connection open."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from redis.asyncio import Redis

from engine.bus.connection import close_connection, connect_bus
from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.gate.client import connect_redis
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.settings import Settings
from engine.tests.interruption import interrupt_at_every_step

pytestmark = pytest.mark.slow


async def use_redis(settings: Settings) -> None:
    async with connect_redis(settings.redis_url) as redis:
        await asyncio.gather(redis.ping(), redis.ping())


async def use_gate(settings: Settings) -> None:
    gate = Gate(msgspec.structs.replace(settings, gate_shards=2))
    try:
        await asyncio.gather(gate.reserve(1, 1, None), gate.reserve(1, 2, None))
    finally:
        await gate.close()


async def use_bus(settings: Settings) -> None:
    connection = await connect_bus(settings.amqp_url or "", "test")
    try:
        await connection.channel()
    finally:
        await close_connection(connection)


async def publish(settings: Settings) -> None:
    publisher = Publisher(settings.amqp_url or "")
    try:
        await publisher.read_queue()
    finally:
        await publisher.close()


async def consume(settings: Settings) -> None:
    consumer = Consumer(settings.amqp_url or "", prefetch=1)
    try:
        await consumer.read(0)
    finally:
        await consumer.close()


async def use_ledger(settings: Settings) -> None:
    async with await Ledger.connect(settings.postgres_url) as ledger:
        await ledger.migrate()


@pytest.mark.parametrize("use", [use_redis, use_gate, use_bus, publish, consume, use_ledger])
async def test_what_is_interrupted_leaves_no_connection(
    use: Callable[[Settings], Awaitable[None]], settings: Settings
) -> None:
    assert await interrupt_at_every_step(lambda: use(settings)) == set()


async def test_a_connection_that_is_left_open_is_found(redis: Redis) -> None:
    """`redis` itself is open, too, and was so before."""
    place = redis.connection_pool.connection_kwargs
    left = []

    async def forget() -> None:
        _, writer = await asyncio.open_connection(place["host"], place["port"])
        left.append(writer)

    found = await interrupt_at_every_step(forget)
    assert found == {writer.transport for writer in left}
    for writer in left:
        writer.close()
        await writer.wait_closed()
