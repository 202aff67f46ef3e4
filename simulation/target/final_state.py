"""What the engine's stores hold once a run has settled: gate, outbox, bus and ledger.

The state is read past the engine, straight from Redis, RabbitMQ and PostgreSQL, and kept in the run's folder
under `final/`, so that a verdict can be computed again from the record alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import aio_pika
import asyncpg
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from redis.asyncio import Redis

from engine.bus.connection import connect_bus
from engine.bus.topology import DEAD, PURCHASES
from engine.gate.fence import read_generations
from engine.gate.keys import ShardKeys
from engine.gate.pending import read_pending
from simulation.errors import Unreadable
from simulation.model.state import GATE_COLUMNS, ORDER_TYPES, SALE_TYPES, FinalState
from simulation.target.reading import read_within

POLL_S: Final = 0.05
READ_TIMEOUT_S: Final = 60.0


_Part = TypeVar("_Part")


class _Gate(NamedTuple):
    sales: pd.DataFrame
    pending: frozenset[str]
    outbox: int
    dead: int


async def read_final_state(
    redis_url: str,
    amqp_url: str | None,
    postgres_url: str,
    shards: int = 1,
    *,
    sale_ids: Collection[int] | None = None,
    drain_timeout_s: float = 30.0,
    steady_s: float = 0.0,
) -> FinalState:
    """Wait for the drain, then read every part; `sale_ids` limits the ledger to the run's own sales.

    The drain must last for `steady_s`: the engine may need a moment to notice what its gate has forgotten.
    A store that is down raises nothing: its part is None.
    """
    drained_s = await await_drain(redis_url, amqp_url, shards, drain_timeout_s, steady_s)
    unread: dict[str, str] = {}
    gate = await _attempt("gate", _read_gate(redis_url, shards), unread)
    bus = await _attempt("bus", _read_bus(amqp_url), unread)
    ledger = await _attempt("ledger", _read_ledger(postgres_url, sale_ids), unread)
    return FinalState(
        gate=gate.sales if gate else None,
        pending=gate.pending if gate else None,
        outbox=gate.outbox if gate else None,
        queue=bus[0] if bus else None,
        dead=bus[1] + gate.dead if bus and gate else None,
        sales=ledger[0] if ledger else None,
        orders=ledger[1] if ledger else None,
        bus=amqp_url is not None,
        drained_s=drained_s,
        unread=unread,
    )


async def await_drain(
    redis_url: str, amqp_url: str | None, shards: int, timeout_s: float, steady_s: float = 0.0
) -> float | None:
    """Wait until outbox, bus and pending set are empty and the gate is open, and stay so for `steady_s`.

    Returns the seconds until then, or None after `timeout_s`.

    A passive declare counts only messages that are ready: those in a consumer's hands show in the pending
    set, which an order leaves last of all. A store that is down counts as not drained and is asked again.
    """
    started = time.monotonic()
    while True:
        left_s = max(0.001, started + timeout_s - time.monotonic())
        try:
            return await read_within(_until_empty(redis_url, amqp_url, shards, steady_s), left_s) - started
        except Unreadable:
            await asyncio.sleep(POLL_S)
        if time.monotonic() - started >= timeout_s:
            return None


async def _until_empty(redis_url: str, amqp_url: str | None, shards: int, steady_s: float) -> float:
    """The moment from which on they were empty, on time.monotonic."""
    keys = [ShardKeys(shard) for shard in range(shards)]
    empty_since = None
    async with _redis(redis_url) as redis, _queue_lengths(amqp_url) as lengths:
        while True:
            left = [await redis.xlen(key.outbox) + await redis.hlen(key.pending) for key in keys]
            is_open = all(await read_generations(redis, keys))
            if is_open and not any(left) and await lengths.ready() == 0:
                now = time.monotonic()
                empty_since = empty_since or now
                if now - empty_since >= steady_s:
                    return empty_since
            else:
                empty_since = None
            await asyncio.sleep(POLL_S)


async def _attempt(part: str, reading: Coroutine[Any, Any, _Part], unread: dict[str, str]) -> _Part | None:
    try:
        return await read_within(reading, READ_TIMEOUT_S)
    except Unreadable as error:
        unread[part] = str(error)
        return None


@asynccontextmanager
async def _redis(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


async def _read_gate(url: str, shards: int) -> _Gate:
    rows: list[list[int]] = []
    pending: set[str] = set()
    outbox = dead = 0
    async with _redis(url) as redis:
        for keys in map(ShardKeys, range(shards)):
            names = [name async for name in redis.scan_iter(match=f"{keys.prefix}sale:*", count=1000)]
            pipe = redis.pipeline(transaction=False)
            for name in names:
                pipe.hmget(name, GATE_COLUMNS[1:])
            for name, values in zip(names, await pipe.execute(), strict=True):
                rows.append([int(name.rpartition(b":")[2]), *(int(value or 0) for value in values)])
            pending |= await read_pending(redis, keys)
            outbox += await redis.xlen(keys.outbox)
            dead += await redis.xlen(keys.dead)
    return _Gate(
        pd.DataFrame(rows, columns=list(GATE_COLUMNS), dtype="int64"), frozenset(pending), outbox, dead
    )


class _QueueLengths:
    """Ready messages of the bus's queues, by passive declares; zero where there is no bus."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel | None) -> None:
        self._channel = channel

    async def ready(self, name: str = PURCHASES) -> int:
        if self._channel is None:
            return 0
        queue = await self._channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


@asynccontextmanager
async def _queue_lengths(url: str | None) -> AsyncIterator[_QueueLengths]:
    if url is None:
        yield _QueueLengths(None)
        return
    async with await connect_bus(url, "final state") as connection, connection.channel() as channel:
        yield _QueueLengths(channel)


async def _read_bus(url: str | None) -> tuple[int, int]:
    async with _queue_lengths(url) as lengths:
        return await lengths.ready(), await lengths.ready(DEAD)


async def _read_ledger(url: str, sale_ids: Collection[int] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    wanted = None if sale_ids is None else sorted(sale_ids)
    connection = await asyncpg.connect(url)
    try:
        # One snapshot for both tables: a straggler that settles in between must not look like a wrong count.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            sales = await _copy(connection, "final_sales.sql", wanted, SALE_TYPES)
            orders = await _copy(connection, "final_orders.sql", wanted, ORDER_TYPES)
    finally:
        await connection.close()
    return sales, orders


async def _copy(
    connection: asyncpg.Connection, file: str, wanted: list[int] | None, types: dict[str, pa.DataType]
) -> pd.DataFrame:
    """The query's rows by COPY: a million orders come as columns, without an object for each."""
    output = BytesIO()
    query = Path(__file__).with_name(file).read_text()
    await connection.copy_from_query(query, wanted, output=output, format="csv", header=True)
    output.seek(0)
    convert = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    return _to_pandas(pa_csv.read_csv(output, convert_options=convert))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    # Arrow's nullable integers stay integers: a float holds neither microseconds nor ids exactly.
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame
