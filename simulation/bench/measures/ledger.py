"""Orders that the ledger alone settles per second: in batches as fulfilment does it, and one at a time."""

import asyncio
import time
from functools import partial
from importlib.resources import files
from typing import Final
from uuid import uuid4

from engine.ledger.ledger import Ledger
from engine.model.lot import Lot
from engine.model.order_id import make_stem
from engine.model.sale import Sale
from engine.settings import Settings
from simulation.bench.results import LedgerRates
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Spread
from simulation.bench.subjects import Engine
from simulation.errors import BenchError
from simulation.target.stores import connect_ledger

ORDERS_PER_SECOND: Final = 40_000
"""Orders to settle for each second that a measurement should take."""
_INSERT, _COUNT, _ = files("simulation.bench.baselines").joinpath("textbook.sql").read_text().split(";")


async def measure_ledger(engine: Engine, rounds: Rounds) -> LedgerRates:
    """Measure both ways in turn, on the engine's own tables, while the engine has nothing to do."""
    settings = Settings()
    sale = await engine.open_past_sale()
    measures = {"in batches": settle_batches, "one at a time": settle_one_by_one}
    batched, one_by_one = await rounds.repeat(
        {
            f"ledger, {name}": partial(measure, engine.services.postgres_url, sale, rounds.seconds)
            for name, measure in measures.items()
        }
    )
    return LedgerRates(
        batch=settings.fulfilment_batch,
        in_flight=settings.fulfilment_in_flight,
        batched_rps=Spread.of(batched),
        one_by_one_rps=Spread.of(one_by_one),
    )


async def settle_batches(postgres_url: str, sale: Sale, seconds: float) -> float:
    """Settle as fulfilment does, batches in flight together; return orders per second. Raises BenchError."""
    settings = Settings()
    size = settings.fulfilment_batch
    count = max(1, round(ORDERS_PER_SECOND * seconds / size))
    now_ms = time.time_ns() // 1_000_000
    # As the gate makes them: a lot for each batch.
    batches = [
        [Lot(make_stem(), 0, sale.terms.product_id, sale.sale_id, 1, now_ms, [101] * size)]
        for _ in range(count)
    ]
    ledger = await Ledger.connect(postgres_url, connections=settings.fulfilment_in_flight)

    async def work() -> None:
        while batches:
            settlement = await ledger.settle(batches.pop(), {})
            if settlement.settled.total() != size:
                raise BenchError(f"the ledger settled {settlement.settled.total()} of {size} orders")

    try:
        await ledger.read_generation()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as workers:
            for _ in range(settings.fulfilment_in_flight):
                workers.create_task(work())
        return count * size / (time.perf_counter() - started)
    finally:
        await ledger.close()


async def settle_one_by_one(postgres_url: str, sale: Sale, seconds: float) -> float:
    """Settle each order in a transaction of its own, on one connection; return orders per second."""
    async with connect_ledger(postgres_url) as connection:
        insert, count = await connection.prepare(_INSERT), await connection.prepare(_COUNT)
        settled = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            async with connection.transaction():
                await insert.fetch(uuid4(), sale.sale_id, sale.terms.product_id, settled + 1)
                await count.fetch(sale.sale_id)
            settled += 1
        return settled / (time.perf_counter() - started)
