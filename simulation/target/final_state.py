"""What the engine's stores hold once a run has settled: gate, outbox, bus and ledger.

The run's record keeps the state, so that a verdict can be computed again from the record alone.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import asyncpg
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from simulation.errors import Unreadable
from simulation.model.formats import DEAD, PURCHASES, decode_pending, decode_sales, name_key
from simulation.model.state import ORDER_TYPES, SALE_TYPES, FinalState
from simulation.target.services import Services
from simulation.target.stores import (
    BusStore,
    GateStore,
    Store,
    close_stores,
    connect_ledger,
    open_gate,
    read_stores,
    read_within,
)

POLL_S: Final = 0.05
LOOK_S: Final = 1.0
"""Shortest time to look whether everything has drained."""
READ_S: Final = 60.0
"""Longest time to read one store whole."""

_Part = dict[str, Any]
"""Some of the fields of FinalState."""


async def read_final_state(
    services: Services,
    shards: int = 1,
    *,
    sale_ids: Collection[int] | None = None,
    drain_timeout_s: float = 30.0,
    steady_s: float = 0.0,
) -> FinalState:
    """Wait for the drain, then read every store; `sale_ids` limits the ledger to the run's own sales.

    The drain must last for `steady_s`: the engine may need a moment to notice what its gate has forgotten.
    A store that is down raises nothing: its part is None.
    """
    drained_s = await await_drain(services, shards, drain_timeout_s, steady_s)
    unread: dict[str, str] = {}
    gate = await _attempt("gate", _read_gate(services.redis_url, shards), unread)
    bus = await _attempt("bus", _read_bus(services.amqp_url), unread)
    ledger = await _attempt("ledger", _read_ledger(services.postgres_url, sale_ids), unread)
    parts = gate | bus | ledger | {"dead": gate["dead"] + bus["dead"] if gate and bus else None}
    return FinalState(**parts, bus=services.amqp_url is not None, drained_s=drained_s, unread=unread)


async def await_drain(
    services: Services, shards: int, timeout_s: float, steady_s: float = 0.0
) -> float | None:
    """Wait until outbox, bus and pending set are empty and the gate is open, and stay so for `steady_s`.

    Returns the seconds until then, or None after `timeout_s`.

    A passive declare counts only messages that are ready. A message that a consumer holds shows in the
    pending set: that is the last place that an order leaves. A store that is down counts as not drained.
    """
    stores: list[Store] = [GateStore(services.redis_url, [], shards)]
    left = ["outbox_entries", "pending_orders", "closed_shards"]
    if services.amqp_url is not None:
        stores.append(BusStore(services.amqp_url))
        left.append("queue_messages")
    started = now = time.monotonic()
    empty_since = None
    try:
        while now < started + timeout_s or now == started:
            counts = await read_stores(stores, max(started + timeout_s - now, LOOK_S))
            now = time.monotonic()
            if any(counts.get(name) != 0 for name in left):
                empty_since = None
            elif now - (empty_since := empty_since or now) >= steady_s:
                return empty_since - started
            await asyncio.sleep(POLL_S)
        return None
    finally:
        await close_stores(stores)


async def _attempt(part: str, reading: Coroutine[Any, Any, _Part], unread: dict[str, str]) -> _Part:
    try:
        return await read_within(reading, READ_S)
    except Unreadable as error:
        unread[part] = str(error)
        return {}


async def _read_gate(url: str, shards: int) -> _Part:
    hashes: dict[bytes, dict[bytes, bytes]] = {}
    pending: set[str] = set()
    outbox = dead = 0
    async with open_gate(url, shards) as gate:
        for shard, redis in enumerate(gate):
            match = name_key(shard, "sale:*", shards)
            names = [name async for name in redis.scan_iter(match=match, count=1000)]
            pipe = redis.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(name)
            hashes |= dict(zip(names, await pipe.execute(), strict=True))
            batches: Any = await redis.hgetall(name_key(shard, "pending", shards))
            pending |= decode_pending(batches)
            outbox += await redis.xlen(name_key(shard, "outbox", shards))
            dead += await redis.xlen(name_key(shard, "dead", shards))
    return {"gate": decode_sales(hashes), "pending": frozenset(pending), "outbox": outbox, "dead": dead}


async def _read_bus(url: str | None) -> _Part:
    if url is None:
        return {"queue": 0, "dead": 0}
    bus = BusStore(url)
    try:
        return {"queue": await bus.count(PURCHASES), "dead": await bus.count(DEAD)}
    finally:
        await bus.close()


async def _read_ledger(url: str, sale_ids: Collection[int] | None) -> _Part:
    wanted = None if sale_ids is None else sorted(sale_ids)
    # One snapshot for both tables: an order that settles in between must not look like a wrong count.
    async with (
        connect_ledger(url) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        return {
            "sales": await _copy(connection, "final_sales.sql", wanted, SALE_TYPES),
            "orders": await _copy(connection, "final_orders.sql", wanted, ORDER_TYPES),
        }


async def _copy(
    connection: asyncpg.Connection, file: str, wanted: list[int] | None, types: dict[str, pa.DataType]
) -> pd.DataFrame:
    """Return the query's rows by COPY: a million orders come as columns, without an object for each."""
    output = BytesIO()
    query = Path(__file__).with_name(file).read_text()
    await connection.copy_from_query(query, wanted, output=output, format="csv", header=True)
    output.seek(0)
    convert = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    table = pa_csv.read_csv(output, convert_options=convert)
    # Arrow's nullable integers stay integers: a float holds neither microseconds nor ids exactly.
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame
