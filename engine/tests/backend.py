"""The back half as tests run it: relay and fulfilment as tasks, and what they left behind."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aio_pika
import asyncpg
from redis.asyncio import Redis

from engine.bus.topology import DEAD, REASON
from engine.ledger.ledger import Ledger
from engine.model.order import OrderStatus
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.fulfilment import run_fulfilment
from engine.stages.relay import run_relay
from engine.tests.orders import SHARD, make_terms, open_at_gate

Stage = Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def running(settings: Settings, *stages: Stage) -> AsyncIterator[None]:
    """Run stages for as long as the block lasts, then let them drain."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for stage in stages or (run_relay, run_fulfilment):
            group.create_task(stage(settings, stop))
        try:
            yield
        finally:
            stop.set()


async def open_sale(
    settings: Settings, redis: Redis, stock: int = 10_000, product_id: int = 1, limit: int | None = None
) -> Sale:
    """A sale in a ledger with its schema and in the gate, where every unit is taken already."""
    assert settings.postgres_url
    ledger = await Ledger.connect(settings.postgres_url)
    await ledger.migrate()
    sale = await ledger.open_sale(make_terms(stock, product_id, limit))
    await ledger.close()
    await open_at_gate(redis, sale, remaining=0)
    return sale


async def until_relayed(redis: Redis) -> None:
    """Wait until the outbox is empty."""
    while await redis.xlen(SHARD.outbox):  # noqa: ASYNC110 - Redis has no event for it
        await asyncio.sleep(0.01)


async def until_settled(redis: Redis) -> None:
    """Wait until no accepted order is pending and the outbox is empty."""
    while await redis.exists(SHARD.pending) or await redis.xlen(SHARD.outbox):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def read_statuses(settings: Settings) -> dict[str, str]:
    """The status of every order in the ledger."""
    assert settings.postgres_url
    connection = await asyncpg.connect(settings.postgres_url)
    rows = await connection.fetch("SELECT order_id::text, status FROM orders")
    await connection.close()
    return {row["order_id"]: row["status"] for row in rows}


async def count_statuses(settings: Settings) -> dict[str, int]:
    """Number of orders in the ledger by status."""
    return dict(Counter((await read_statuses(settings)).values()))


async def read_sold(settings: Settings, sale: Sale) -> int:
    assert settings.postgres_url
    connection = await asyncpg.connect(settings.postgres_url)
    sold: int = await connection.fetchval("SELECT sold FROM sales WHERE sale_id = $1", sale.sale_id)
    await connection.close()
    return sold


async def take_dead_letters(url: str, count: int) -> list[tuple[bytes, str]]:
    """Wait for so many dead letters on the bus: body and reason of each."""
    dead_letters: list[tuple[bytes, str]] = []
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(DEAD, passive=True)
        while len(dead_letters) < count:
            if message := await queue.get(fail=False):
                await message.ack()
                dead_letters.append((message.body, str(message.headers[REASON])))
        assert await queue.get(fail=False) is None
    return dead_letters


CONFIRMED, FAILED, REJECTED = (
    str(status) for status in (OrderStatus.CONFIRMED, OrderStatus.FAILED, OrderStatus.REJECTED)
)
