"""How the cost of a request grows with connections, products, stock, and orders already in the ledger.

Cost is time per request at saturation, 1 / rate. One connection saturates nothing: there the cost is a round
trip, most of which is waiting.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from engine.gate.gate import Gate
from engine.model.purchase import Outcome
from engine.settings import Settings
from simulation.bench.measures.front_door import Measure
from simulation.bench.measures.ledger import settle_batches
from simulation.bench.programs import Program
from simulation.bench.results import Curve, Growth
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Cost, Sample, Spread
from simulation.bench.spellings import buy_any_of
from simulation.bench.subjects import GATE, STATES, Engine, measure_refusals
from simulation.errors import BenchError
from simulation.scenario.schema import SaleOffer
from simulation.target.stores import connect_ledger

CONNECTIONS: Final = 256
BOUGHT_AT_ONCE: Final = 1_000
"""Purchases that arrive together where the gate is measured alone; they sell the smallest stock."""
_FILL: Final = Path(__file__).with_name("fill_orders.sql").read_text()
_FILLED_AT_ONCE: Final = 250_000
_A_MONTH_MS: Final = 30 * 86_400_000


async def grow_connections(
    engine: Engine, nginx: Program, sizes: Sequence[int], rounds: Rounds
) -> list[Curve]:
    """Measure sold-out purchases by number of connections; nginx shows what kernel and wrk cost."""
    await engine.open_sale(0)
    servers: dict[str, tuple[Measure, str]] = {
        "engine, sold out": (
            partial(engine.measure, Outcome.SOLD_OUT),
            "with 1 connection nothing is saturated: the cost is one round trip through HTTP and Redis",
        ),
        "nginx": (partial(measure_refusals, nginx), "one round trip there, too"),
    }
    curves = []
    for name, (measure, note) in servers.items():
        # Opening many connections takes part of the time.
        measures = {
            f"{name}, {size:,} connections": partial(measure, size, rounds.seconds + size // 5_000)
            for size in sizes
        }
        curves.append(make_curve("connections", name, sizes, await rounds.repeat(measures), note))
    return curves


async def grow_products(engine: Engine, sizes: Sequence[int], rounds: Rounds) -> list[Curve]:
    """Measure purchases of a random product by number of products: sold out, then accepting."""
    note = (
        "each request is for a random product; a batch of the gate holds as many sales as it has different"
        " products, and the script reads each of them by itself, and writes each where it accepts"
    )
    curves = []
    for state, stock in STATES.items():
        await engine.open_sales([SaleOffer(product_id=1 + n, stock=stock) for n in range(max(sizes))])
        outcome = Outcome.ACCEPTED if stock else Outcome.SOLD_OUT
        measures = {
            f"{state}, {size:,} products": partial(
                engine.measure, outcome, CONNECTIONS, rounds.seconds, buy_any_of(size)
            )
            for size in sizes
        }
        found = await rounds.repeat(measures)
        curves.append(make_curve("products", f"engine, {state}", sizes, found, note))
    return curves


async def grow_stock(engine: Engine, sizes: Sequence[int], rounds: Rounds) -> Curve:
    """Measure accepted purchases at the gate alone, by the stock of the sale."""
    gate = Gate(Settings(redis_url=engine.services.redis_url))
    try:
        found = await rounds.repeat(
            {
                f"gate, stock {size:,}": partial(_buy_at_gate, engine, gate, size, rounds.seconds)
                for size in sizes
            }
        )
    finally:
        await gate.close()
    note = f"the gate without HTTP: {BOUGHT_AT_ONCE:,} purchases at a time, each time of a new sale"
    return make_curve("stock", "gate, accepting", sizes, found, note)


async def _buy_at_gate(engine: Engine, gate: Gate, stock: int, seconds: float) -> float:
    """Return the purchases accepted per second of the time that the gate took."""
    bought, busy_s = 0, 0.0
    while busy_s < seconds / 2:
        await engine.open_sale(stock)
        await engine.drain()
        started = time.perf_counter()
        answers = await asyncio.gather(*(gate.reserve(101, 1, None) for _ in range(BOUGHT_AT_ONCE)))
        busy_s += time.perf_counter() - started
        if Counter(outcome for outcome, _ in answers) != {Outcome.ACCEPTED: BOUGHT_AT_ONCE}:
            raise BenchError("the gate did not accept every purchase")
        bought += BOUGHT_AT_ONCE
    await engine.drain()
    return bought / busy_s


async def grow_orders(engine: Engine, sizes: Sequence[int], rounds: Rounds) -> list[Curve]:
    """Measure settling, and accepting with all stages at work, by the orders already in the ledger."""
    url = engine.services.postgres_url
    settled, accepted = [], []
    for there, size in zip((0, *sizes), sizes, strict=False):
        if size > there:
            rounds.say(f"filling the ledger up to {size:,} orders")
            await fill_ledger(url, there, size)
        sale = await engine.open_past_sale()
        name = f"{size:,} orders in the ledger"
        settle = partial(settle_batches, url, sale, rounds.seconds)
        settled += await rounds.repeat({f"{name}, settling": settle})
        accept = partial(engine.measure, Outcome.ACCEPTED, CONNECTIONS, rounds.seconds)
        accepted += await rounds.repeat({f"{name}, accepting": accept})
    note = "the sizes can't alternate: the table only grows; orders of this run's measurements come on top"
    return [
        make_curve("orders", "ledger, settling", sizes, settled, note),
        make_curve("orders", "engine, accepting", sizes, accepted, note),
    ]


async def fill_ledger(postgres_url: str, there: int, size: int) -> None:
    """Bring the table from `there` to `size` generated orders, vacuumed and on disk."""
    month_ago_ms = time.time_ns() // 1_000_000 - _A_MONTH_MS
    async with connect_ledger(postgres_url) as connection:
        for first in range(there + 1, size + 1, _FILLED_AT_ONCE):
            await connection.execute(_FILL, first, min(first + _FILLED_AT_ONCE - 1, size), month_ago_ms)
        await connection.execute("VACUUM (ANALYZE) orders")
        await connection.execute("CHECKPOINT")


def make_curve(
    axis: str, subject: str, sizes: Sequence[int], found: Sequence[Sequence[Sample | float]], note: str
) -> Curve:
    """Return the curve of what each round found at each size, smallest size first: samples or rates."""
    rates = [[each.rps if isinstance(each, Sample) else each for each in rounds] for rounds in found]
    costs = [Spread.of(1e6 / rate for rate in rps) for rps in rates]
    cheapest = min(cost.median for cost in costs)
    samples = [[each for each in rounds if isinstance(each, Sample)] for rounds in found]
    points = [
        Growth(
            size=size,
            rps=Spread.of(rps),
            cost_us=cost,
            times_smallest=cost.over(costs[0]),
            times_cheapest=round(cost.median / cheapest, 3),
            cpu_us=round(median(each.cpu_us(*GATE) for each in rounds), 3)
            if rounds and rounds[0].cpu_s
            else None,
        )
        for size, rps, cost, rounds in zip(sizes, rates, costs, samples, strict=True)
    ]
    costs_us = [
        Cost.of_samples(f"{subject}, {size:,} {axis}", size if axis == "connections" else CONNECTIONS, rounds)
        for size, rounds in zip(sizes, samples, strict=True)
        if rounds
    ]
    faults = {each.fault for rounds in samples for each in rounds if each.fault}
    return Curve(
        axis=axis, subject=subject, points=points, costs=costs_us, note="; ".join([note, *sorted(faults)])
    )
