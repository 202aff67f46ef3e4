"""Probes: what gate, outbox, bus, ledger and processes hold while a run goes on, several times a second.

The timeline has one row for each sample. A probe that could not read leaves its cells empty.

t_s                     seconds from the run's start
stock_remaining         units left at the gate, of the run's sales
outbox_entries          batches accepted and not yet relayed
pending_orders          orders accepted and not yet settled
queue_messages          messages ready in the bus
ledger_confirmed        orders confirmed, by the ledger's own count of sold units
ledger_failed           orders whose payment failed, by the units that came back to the gate
cpu_percent NAME        CPU of the processes of that name; 100 is one core
rss_mib NAME            their resident memory
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import aio_pika
import asyncpg
import msgspec
import pandas as pd
from aio_pika.exceptions import AMQPError
from redis.exceptions import RedisError

from engine.bus.connection import connect_bus
from engine.bus.topology import PURCHASES
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys, shard_of
from engine.gate.pending import count_pending
from engine.model.sale import Sale
from engine.stages.lifecycle import cancel
from simulation.errors import Unreadable
from simulation.target.process_meter import ProcessMeter, Usage
from simulation.target.reading import read_within
from simulation.target.services import Services

SAMPLE_S: Final = 0.2
TIMEOUT_S: Final = 0.5
LAST_S: Final = 10.0
"""What the last sample may take: no other comes after it that would show what it missed."""
_SOLD: Final = Path(__file__).with_name("probe_sold.sql").read_text()
_UNREADABLE: Final = (RedisError, AMQPError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

Counts = dict[str, int]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the probes read at one moment; None where one could not. The fields are the timeline's columns."""

    at_ns: int
    """time.monotonic_ns()"""
    stock_remaining: int | None = None
    outbox_entries: int | None = None
    pending_orders: int | None = None
    queue_messages: int | None = None
    ledger_confirmed: int | None = None
    ledger_failed: int | None = None
    processes: dict[str, Usage] = {}


_COUNTS: Final = [name for name in Sample.__struct_fields__ if name not in ("at_ns", "processes")]


class Store(Protocol):
    """One store that can be sampled. It connects at its first reading, and again after it was closed."""

    def read(self) -> Coroutine[Any, Any, Counts]:
        """Some of the timeline's columns."""

    def close(self) -> Coroutine[Any, Any, None]:
        """Disconnect; must not raise."""


class Probe:
    """Samples from `async with` to its end, about five times a second.

    Without `services` it reads processes alone. `sales` may grow meanwhile.
    """

    def __init__(
        self, services: Services | None, sales: Sequence[Sale], shards: int, meter: ProcessMeter
    ) -> None:
        self.samples: list[Sample] = []
        self._stores: list[Store] = []
        self._meter = meter
        if services is not None:
            self._stores += [_Gate(services.redis_url, sales, shards), _Ledger(services.postgres_url, sales)]
            if services.amqp_url is not None:
                self._stores.append(_Bus(services.amqp_url))

    @property
    def latest(self) -> Sample | None:
        """The newest sample."""
        return self.samples[-1] if self.samples else None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="probe")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel(self._task)
        if error is None:
            # The end itself: what drained since the sample before would not be seen to have drained.
            # On a connection of before, the question that was interrupted just now stands in the way.
            await asyncio.gather(*map(_reset, self._stores))
            self.samples.append(await self._sample(LAST_S))
        await asyncio.gather(*(store.close() for store in self._stores))

    def timeline(self, t0_ns: int) -> pd.DataFrame:
        """The samples since the run's start, `t0_ns` on time.monotonic_ns()."""
        rows = []
        for sample in self.samples:
            if sample.at_ns < t0_ns:
                continue
            row: dict[str, float | int | None] = {"t_s": round((sample.at_ns - t0_ns) / 1e9, 3)}
            row |= {name: getattr(sample, name) for name in _COUNTS}
            for name, usage in sample.processes.items():
                row[f"cpu_percent {name}"] = usage.cpu_percent
                row[f"rss_mib {name}"] = usage.rss_mib
            rows.append(row)
        columns = ["t_s", *_COUNTS, *sorted({name for row in rows for name in row} - {"t_s", *_COUNTS})]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype(dict.fromkeys(_COUNTS, "Int64") | {"t_s": "float64"})

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self.samples.append(await self._sample())
            due = max(due + SAMPLE_S, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _sample(self, timeout_s: float = TIMEOUT_S) -> Sample:
        at_ns = time.monotonic_ns()
        processes = self._meter.read()
        counts: Counts = {}
        for part in await asyncio.gather(*(_attempt(store, timeout_s) for store in self._stores)):
            counts |= part
        return Sample(at_ns=at_ns, processes=processes, **counts)


async def _attempt(store: Store, timeout_s: float) -> Counts:
    try:
        return await read_within(store.read(), timeout_s)
    except Unreadable:
        await _reset(store)
        return {}


async def _reset(store: Store) -> None:
    with contextlib.suppress(Unreadable):
        await read_within(store.close(), TIMEOUT_S)


class _Gate:
    def __init__(self, url: str, sales: Sequence[Sale], shards: int) -> None:
        self._redis = connect_redis(url, round(TIMEOUT_S * 1000))
        self._shards = [ShardKeys(shard) for shard in range(shards)]
        self._sales = sales
        self._failed: dict[int, int] = {}
        """Orders that failed, by sale id: of one that was replaced, the last that its product's gate knew."""

    async def read(self) -> Counts:
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys in self._shards:
                pipe.xlen(keys.outbox)
                pipe.hvals(keys.pending)
            sales = list(self._sales)
            for sale in sales:
                product = sale.terms.product_id
                key = self._shards[shard_of(product, len(self._shards))].sale(product)
                pipe.hmget(key, ["sale_id", "remaining", "released"])
            answers = await pipe.execute()
        cut = 2 * len(self._shards)
        remaining = 0
        for sale, fields in zip(sales, answers[cut:], strict=True):
            sale_id, left, released = (int(field or 0) for field in fields)
            if sale_id == sale.sale_id:
                remaining += left
                self._failed[sale_id] = released // sale.terms.quantity
        return {
            "outbox_entries": sum(answers[0:cut:2]),
            "pending_orders": sum(map(count_pending, answers[1:cut:2])),
            "stock_remaining": remaining,
            "ledger_failed": sum(self._failed.values()),
        }

    async def close(self) -> None:
        with contextlib.suppress(*_UNREADABLE):
            await self._redis.aclose()


class _Ledger:
    def __init__(self, url: str, sales: Sequence[Sale]) -> None:
        self._url = url
        self._sales = sales
        self._connection: asyncpg.Connection | None = None

    async def read(self) -> Counts:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._url)
        quantities = {sale.sale_id: sale.terms.quantity for sale in self._sales}
        rows = await self._connection.fetch(_SOLD, list(quantities))
        return {"ledger_confirmed": sum(sold // quantities[sale_id] for sale_id, sold in rows)}

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class _Bus:
    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._channel: aio_pika.abc.AbstractChannel | None = None

    async def read(self) -> Counts:
        if self._channel is None:
            self._connection = await connect_bus(self._url, "probe")
            self._channel = await self._connection.channel()
        queue = await self._channel.declare_queue(PURCHASES, passive=True)
        return {"queue_messages": queue.declaration_result.message_count or 0}

    async def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*_UNREADABLE):
                await connection.close()
