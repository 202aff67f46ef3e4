"""What a rebuild, an audit and the gate's memory cost after many orders: a test by hand, of some minutes.

    python -m simulation.bench.measures.bounds [--orders 5000000] [--purchases 1000000] [--sales 10000]

It fills private services: orders within the hours in which keys are remembered, every other one in a sale
with a limit, of a million buyers, and 100,000 of them under a key. Then Redis loses its memory, and
fulfilment opens the gate again. At last a million users buy under keys, and their sale is over.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from redis.asyncio import Redis

from engine.gate.client import Shard, connect_redis
from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys
from engine.ledger.ledger import Ledger
from engine.local.stack import start_stack
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.stages.audit import Audit
from engine.stages.fulfilment import run_fulfilment
from engine.stages.reconciliation import reconciling
from simulation.errors import BenchError
from simulation.signals import run_until_signal
from simulation.target.stores import connect_ledger

_FILL: Final = Path(__file__).with_name("fill_sales.sql").read_text()
_FILLED_AT_ONCE: Final = 250_000
_TWENTY_HOURS_MS: Final = 20 * 3_600_000
_KEYS: Final = 100_000
_BOUGHT_AT_ONCE: Final = 5_000
_ROUNDS: Final = 20
_WAIT_S: Final = 1_200.0
_SHARD: Final = ShardKeys(0)
_MIB: Final = 2**20


@click.command()
@click.option("--orders", default=5_000_000, show_default=True, help="Settled orders in the ledger.")
@click.option("--purchases", default=1_000_000, show_default=True, help="Purchases under keys at the gate.")
@click.option("--sales", default=10_000, show_default=True, help="Open sales that are audited.")
def main(orders: int, purchases: int, sales: int) -> None:
    """Measure what a rebuild, an audit and the gate's memory cost after many orders."""
    run_until_signal(_measure(orders, purchases, sales))


async def _measure(orders: int, purchases: int, sales: int) -> None:
    with TemporaryDirectory(prefix="flashsim-", ignore_cleanup_errors=True) as folder:
        stack = await start_stack(Path(folder), ["redis", "postgres"])
        try:
            settings = Settings(redis_url=stack.urls["redis"], postgres_url=stack.urls["postgres"])
            ledger = await Ledger.connect(settings.postgres_url)
            async with connect_redis(settings.redis_url, 60_000) as redis, ledger:
                await ledger.migrate()
                async with reconciling(settings) as reconciliation:
                    await reconciliation.open_new()
                await _open_sales(settings, ledger, sales)
                await _measure_audit(redis, ledger, "no order")
                await _fill(settings, ledger, orders)
                await _measure_rebuild(settings, redis)
                await _measure_audit(redis, ledger, f"{orders:,} orders")
                await _measure_memory(settings, redis, ledger, purchases)
        finally:
            await stack.stop()


async def _wait(what: str, holds: Callable[[], Awaitable[Any]]) -> None:
    """Wait until `holds()`. Raises BenchError, which says what is not so in time."""
    try:
        async with asyncio.timeout(_WAIT_S):
            while not await holds():  # noqa: ASYNC110 - the stores have no event for it
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise BenchError(f"{what} in {_WAIT_S:g} s") from None


async def _lacks(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def _open_sales(settings: Settings, ledger: Ledger, count: int) -> None:
    gate = Gate(settings)
    for number in range(count):
        await gate.open_sale(await ledger.open_sale(SaleTerms(product_id=1_000 + number, stock=100, limit=1)))
    await gate.close()


async def _fill(settings: Settings, ledger: Ledger, orders: int) -> None:
    """Fill the ledger, and let it be vacuumed and written to disk."""
    limited = await ledger.open_sale(SaleTerms(product_id=1, stock=10**9, limit=100))
    plain = await ledger.open_sale(SaleTerms(product_id=2, stock=10**9))
    sales = (limited.sale_id, plain.sale_id)
    since_ms = time.time_ns() // 1_000_000 - _TWENTY_HOURS_MS
    every = max(1, orders // _KEYS)
    async with connect_ledger(settings.postgres_url or "") as connection:
        for first in range(1, orders + 1, _FILLED_AT_ONCE):
            last = min(first + _FILLED_AT_ONCE - 1, orders)
            await connection.execute(_FILL, first, last, since_ms, orders, *sales, every)
        await connection.execute("UPDATE sales SET sold = $1 WHERE sale_id = ANY ($2)", orders // 2, sales)
        await connection.execute("VACUUM (ANALYZE) orders")
        await connection.execute("CHECKPOINT")
        size = await connection.fetchval("SELECT pg_total_relation_size('orders')")
    click.echo(f"ledger: {orders:,} orders, {size / _MIB:,.0f} MiB with indexes")


async def _measure_rebuild(settings: Settings, redis: Redis) -> None:
    await redis.flushall()
    started = time.monotonic()
    async with _fulfilling(settings):
        await _wait("the gate does not open", lambda: redis.hexists(_SHARD.fence, "open"))
        took_s = time.monotonic() - started
        sale_id: Any = await redis.hget(_SHARD.sale(1), "sale_id")
        buyers: Any = await redis.hlen(f"{_SHARD.prefix}buyers:{int(sale_id)}")
        keys = await redis.dbsize()
    click.echo(
        f"rebuild: open {took_s:.1f} s after Redis lost everything; {keys:,} keys in it, {buyers:,} buyers"
    )


async def _measure_audit(redis: Redis, ledger: Ledger, beside: str) -> None:
    took_ms, busy_ms, differing = [], [], 0
    generation = int(await redis.hget(_SHARD.fence, "open") or 0)
    for _ in range(_ROUNDS):
        audit = Audit(ledger, [Shard(redis)], keep_s=86_400)
        started, started_busy = time.monotonic(), time.process_time()
        differing += len(await audit.run(generation))
        took_ms.append((time.monotonic() - started) * 1000)
        busy_ms.append((time.process_time() - started_busy) * 1000)
    sales = len(await ledger.find_offers(86_400))
    click.echo(
        f"audit: {min(took_ms):.1f} ms at best, median {median(took_ms):.1f}, of which the keeper computes"
        f" {median(busy_ms):.1f}; {sales:,} open sales beside {beside}; {differing} differ"
    )


async def _measure_memory(settings: Settings, redis: Redis, ledger: Ledger, purchases: int) -> None:
    """Let so many users buy under keys in a sale with a limit; then let the sale be long over."""
    gate = Gate(settings)
    sale = await ledger.open_sale(SaleTerms(product_id=3, stock=purchases, limit=1))
    await gate.open_sale(sale)
    before, keys = await _read_memory(redis), await redis.dbsize()
    async with _fulfilling(settings):
        for first in range(1, purchases + 1, _BOUGHT_AT_ONCE):
            users = range(first, min(first + _BOUGHT_AT_ONCE, purchases + 1))
            await asyncio.gather(*(gate.reserve(user, 3, f"order-of-user-{user:08}") for user in users))
        await _wait("purchases are not settled", partial(_lacks, redis, _SHARD.pending))
        bought = await _read_memory(redis)
        keys = await redis.dbsize() - keys
        longest_s = await redis.ttl(f"{_SHARD.prefix}answer:3:{purchases}:order-of-user-{purchases:08}")
        click.echo(
            f"memory: {(bought - before) / _MIB:,.0f} MiB for {purchases:,} purchases under keys in a sale"
            f" with a limit; {keys:,} keys, gone in {longest_s:,} s at the latest"
        )
        await _end_sale(settings, redis, sale)
        await _wait("the gate does not forget the sale", partial(_lacks, redis, _SHARD.sale(3)))
    await asyncio.sleep(3)  # Redis frees what is unlinked by and by
    after = await _read_memory(redis)
    click.echo(f"memory: {(after - before) / _MIB:,.0f} MiB once the sale is over for a day, keys alone")
    await gate.close()


async def _end_sale(settings: Settings, redis: Redis, sale: Sale) -> None:
    """Let the sale have ended two days ago."""
    ended_ms = time.time_ns() // 1_000_000 - 2 * 86_400_000
    await redis.hset(_SHARD.sale(sale.terms.product_id), "ends_ms", ended_ms)
    async with connect_ledger(settings.postgres_url or "") as connection:
        await connection.execute(
            "UPDATE sales SET ends_at = now() - interval '2 days' WHERE sale_id = $1", sale.sale_id
        )


async def _read_memory(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


@contextlib.asynccontextmanager
async def _fulfilling(settings: Settings) -> AsyncIterator[None]:
    """Run fulfilment, which keeps the gate, until the end of the block."""
    stop = asyncio.Event()
    fulfilment = asyncio.create_task(run_fulfilment(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await fulfilment


if __name__ == "__main__":
    main()
