"""The engine's stores, read past the engine: the gate with its outbox, the bus, and the ledger.

A store may be down, stopped or cut off while it is read. It is then unreadable, and nothing else happens.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import aio_pika
import asyncpg
from redis.asyncio import Redis

from engine.bus.connection import close_connection, connect_bus
from engine.gate.client import connect_redis
from engine.model.sale import Sale
from engine.tasks import cancel
from simulation.errors import Unreadable
from simulation.model.formats import OPEN, PURCHASES, count_pending, find_slot, name_key, place_product
from simulation.target.cluster.postgres import connect_postgres

TIMEOUT_S: Final = 30.0
"""Longest wait for a store; `read_within` allows less."""
TIMEOUT_MS: Final = round(TIMEOUT_S * 1000)
CLOSE_S: Final = 0.5
_SOLD: Final = Path(__file__).with_name("probe_sold.sql").read_text()

T = TypeVar("T")
Counts = dict[str, int]
"""Some of the fields of `probes.Sample`."""


async def read_within(reading: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return what `reading` returns. Raises Unreadable if it does not within `timeout_s`, for any reason.

    Client libraries raise errors of many kinds when a service dies, and aio_pika cancels the tasks that wait
    on a connection when it closes. So `reading` runs in its own task.
    """
    task = asyncio.ensure_future(reading)
    try:
        await asyncio.wait([task], timeout=max(timeout_s, 0.0))
        done = task.done()
    finally:
        await cancel(task)
    if not done:
        raise Unreadable("no answer in time")
    if task.cancelled():
        raise Unreadable("the connection was closed")
    if isinstance(error := task.exception(), Unreadable):
        raise error
    if error:
        raise Unreadable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
    return task.result()


@asynccontextmanager
async def connect_ledger(url: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to PostgreSQL until the end of the block; `settings` are the session's."""
    connection = await connect_postgres(url, TIMEOUT_S, **settings)
    try:
        yield connection
    finally:
        await connection.close()


async def measure_skew(redis_url: str, postgres_url: str) -> float:
    """Return the most by which the clocks of Redis and PostgreSQL may differ from this machine's, in seconds;
    0 where they can't be read."""

    async def read_redis() -> float:
        async with connect_redis(redis_url, TIMEOUT_MS) as redis:
            await redis.ping()
            before = time.time()
            seconds, micros = await redis.time()
            return _skew(before, seconds + micros / 1e6)

    async def read_postgres() -> float:
        async with connect_ledger(postgres_url) as connection:
            before = time.time()
            said = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
            return _skew(before, said)

    skews = [0.0]
    for reading in (read_redis(), read_postgres()):
        with contextlib.suppress(Unreadable):
            skews.append(await read_within(reading, TIMEOUT_S))
    return max(skews)


def _skew(before: float, said: float) -> float:
    """Return how far a clock was from here when it told its time, between `before` and now."""
    return max(before - said, said - time.time(), 0.0)


def connect_gate(url: str, shards: int) -> list[Redis]:
    """Return a client for each shard, which follows its primary; where no cluster is, all share one."""
    if not url.partition("://")[0].endswith("+cluster"):
        return [connect_redis(url, TIMEOUT_MS)] * shards
    return [connect_redis(url, TIMEOUT_MS, find_slot(shard, shards)) for shard in range(shards)]


@asynccontextmanager
async def open_gate(url: str, shards: int) -> AsyncIterator[list[Redis]]:
    """Yield a client for each shard until the end of the block."""
    async with AsyncExitStack() as closing:
        gate = connect_gate(url, shards)
        for redis in set(gate):
            closing.push_async_callback(redis.aclose)
        yield gate


class Store(Protocol):
    """Something that is read several times a second."""

    async def read(self) -> Counts:
        """Return what it holds."""

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""


class GateStore:
    """The gate, and of its products those that `sales` names. `sales` may grow."""

    def __init__(self, url: str, sales: Sequence[Sale], shards: int) -> None:
        self._gate = connect_gate(url, shards)
        self._sales = sales
        self._failed: dict[int, int] = {}
        """Failed orders by sale id; for a sale that was replaced, the last number that the gate knew."""

    async def read(self) -> Counts:
        """Return what the gate holds."""
        sales = list(self._sales)
        # A group has no reading left once it is cancelled.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._read_from(redis, sales)) for redis in set(self._gate)]
        counts, waits_ms = Counter[str](), list[int]()
        for task in tasks:
            found, wait_ms = task.result()
            counts.update(found)
            waits_ms.append(wait_ms)
        return dict(counts) | {
            "outbox_wait_ms": max(waits_ms),
            "ledger_failed": sum(self._failed.values()),
        }

    async def _read_from(self, redis: Redis, sales: Sequence[Sale]) -> tuple[Counts, int]:
        """Return what the shards of one client hold, and how long the first entry of an outbox has waited."""
        of, here = len(self._gate), [shard for shard, each in enumerate(self._gate) if each is redis]
        places = [place_product(sale.terms.product_id, of) for sale in sales]
        sales = [sale for sale, place in zip(sales, places, strict=True) if place in here]
        async with redis.pipeline(transaction=False) as pipe:
            for shard in here:
                pipe.xlen(name_key(shard, "outbox", of))
                pipe.hvals(name_key(shard, "pending", of))
                pipe.hget(name_key(shard, "mark", of), OPEN)
                pipe.xrange(name_key(shard, "outbox", of), count=1)
            pipe.time()
            for sale in sales:
                product = sale.terms.product_id
                key = name_key(place_product(product, of), f"sale:{product}", of)
                pipe.hmget(key, ["sale_id", "remaining", "released"])
            answers = await pipe.execute()
        cut = 4 * len(here)
        seconds, micros = answers[cut]
        now_ms, remaining = 1_000 * seconds + micros // 1_000, 0
        first_ms = [int(entries[0][0].partition(b"-")[0]) for entries in answers[3:cut:4] if entries]
        for sale, fields in zip(sales, answers[cut + 1 :], strict=True):
            sale_id, left, released = (int(field or 0) for field in fields)
            if sale_id == sale.sale_id:
                remaining += left
                self._failed[sale_id] = released // sale.terms.quantity
        counts = {
            "outbox_entries": sum(answers[0:cut:4]),
            "pending_orders": sum(map(count_pending, answers[1:cut:4])),
            "stock_remaining": remaining,
            "closed_shards": sum(not int(generation or 0) for generation in answers[2:cut:4]),
        }
        return counts, max(0, now_ms - min(first_ms, default=now_ms))

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""
        for redis in set(self._gate):
            await redis.aclose()


class LedgerStore:
    """The ledger's own count of the units sold."""

    def __init__(self, url: str, sales: Sequence[Sale]) -> None:
        self._url = url
        self._sales = sales
        self._connection: asyncpg.Connection | None = None
        self._took_writes = False

    async def read(self) -> Counts:
        """Return the number of confirmed orders. Raises Unreadable once the server takes writes no more."""
        if self._connection is None:
            self._took_writes = False
            self._connection = await connect_postgres(self._url, TIMEOUT_S)
        quantities = {sale.sale_id: sale.terms.quantity for sale in self._sales}
        rows = await self._connection.fetch(_SOLD, list(quantities))
        takes_writes = any(takes for *_, takes in rows)
        if self._took_writes and not takes_writes:
            raise Unreadable("another server is in charge by now")
        self._took_writes = takes_writes
        return {"ledger_confirmed": sum(sold // quantities[sale_id] for sale_id, sold, _ in rows)}

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class BusStore:
    """The bus's queues, of which `queue` holds accepted purchases."""

    def __init__(self, url: str, queue: str = PURCHASES) -> None:
        self._url = url
        self._queue = queue
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._channel: aio_pika.abc.AbstractChannel | None = None

    async def read(self) -> Counts:
        """Return the number of messages that are ready in the engine's queue."""
        return {"queue_messages": await self.count(self._queue)}

    async def count(self, queue: str) -> int:
        """Return the number of messages that are ready in a queue, by a passive declare."""
        if self._channel is None:
            self._connection = await connect_bus(self._url, "simulation")
            self._channel = await self._connection.channel()
        declared = await self._channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""
        connection, self._connection, self._channel = self._connection, None, None
        await close_connection(connection)


async def read_stores(stores: Sequence[Store], timeout_s: float) -> Counts:
    """Return the counts of all stores that can be read within `timeout_s`; the others connect anew."""
    # A group has no reading left once it is cancelled; gather leaves those that end last.
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read(store, timeout_s)) for store in stores]
    counts: Counts = {}
    for task in tasks:
        counts |= task.result()
    return counts


async def close_stores(stores: Sequence[Store]) -> None:
    """Disconnect from the stores. An error, or a store that does not say goodbye, is passed over."""
    async with AsyncExitStack() as closing:
        for store in stores:
            closing.push_async_callback(_close, store)


async def _close(store: Store) -> None:
    with contextlib.suppress(Unreadable):
        await read_within(store.close(), CLOSE_S)


async def _read(store: Store, timeout_s: float) -> Counts:
    try:
        return await read_within(store.read(), timeout_s)
    except Unreadable:
        await close_stores([store])
        return {}
