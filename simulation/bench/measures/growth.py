"""How the cost of a request grows with connections, products, stock, and orders already in the ledger.

Cost is time per request at saturation, 1 / rate. One connection does not saturate anything: there the cost is
a round trip, most of which everybody waits.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from engine.gate.gate import Gate
from engine.model.purchase import Outcome
from engine.settings import Settings
from simulation.bench.measures.ledger import settle_batches
from simulation.bench.options import Say
from simulation.bench.programs import run_wrk
from simulation.bench.results import Curve, Sample, make_curve
from simulation.bench.subjects import GATE, PLENTY, Engine
from simulation.errors import BenchError
from simulation.scenario.schema import SaleOffer

CONNECTIONS: Final = 256
BOUGHT_AT_ONCE: Final = 1_000
"""Purchases that arrive together where the gate is measured alone: the smallest stock is sold by them."""
_FILL: Final = Path(__file__).with_name("fill_orders.sql").read_text()
_FILLED_AT_ONCE: Final = 250_000
_A_MONTH_MS: Final = 30 * 86_400_000


async def grow_connections(
    engine: Engine, nginx_url: str | None, sizes: Sequence[int], rounds: int, seconds: float, say: Say
) -> list[Curve]:
    """Sold-out purchases by number of connections; what nginx loses, too, kernel and wrk cost."""
    await engine.open_sale(0)
    ours: dict[int, list[Sample]] = {size: [] for size in sizes}
    theirs: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(1, rounds + 1):
        for size in sizes:
            # Opening many connections takes part of the time.
            window_s = seconds + size // 5_000
            ours[size].append(await engine.measure(Outcome.SOLD_OUT, size, window_s))
            told = f"round {number}/{rounds}, {size:,} connections: {_rate(ours[size])}"
            if nginx_url:
                theirs[size].append((await run_wrk(nginx_url, size, window_s)).rps)
                told += f", nginx {theirs[size][-1]:,.0f}/s"
            say(told)
    note = "with 1 connection nothing is saturated: the cost is one round trip through HTTP and Redis"
    curves = [_curve("connections", "engine, sold out", ours, note)]
    if nginx_url:
        curves.append(make_curve("connections", "nginx", list(theirs.items()), "one round trip there, too"))
    return curves


async def grow_products(
    engine: Engine, sizes: Sequence[int], rounds: int, seconds: float, say: Say
) -> list[Curve]:
    """Purchases of a random product, by number of products; sold out, then accepting."""
    note = (
        "each request is for a random product; a batch of the gate holds as many sales as it has different"
        " products, and the script reads, and where it accepts writes, each of them by itself"
    )
    curves = []
    for outcome, stock, name in (
        (Outcome.SOLD_OUT, 0, "engine, sold out"),
        (Outcome.ACCEPTED, PLENTY, "engine, accepting"),
    ):
        await engine.open_sales([SaleOffer(product_id=1 + n, stock=stock) for n in range(max(sizes))])
        samples: dict[int, list[Sample]] = {size: [] for size in sizes}
        for number in range(1, rounds + 1):
            for size in sizes:
                samples[size].append(await engine.measure(outcome, CONNECTIONS, seconds, products=size))
                say(f"round {number}/{rounds}, {size:,} products: {name} {_rate(samples[size])}")
        curves.append(_curve("products", name, samples, note))
    return curves


async def grow_stock(engine: Engine, sizes: Sequence[int], rounds: int, seconds: float, say: Say) -> Curve:
    """Accepted purchases at the gate alone, by the stock of the sale."""
    settings = Settings(redis_url=engine.services.redis_url)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    gate = Gate(settings)
    try:
        for number in range(1, rounds + 1):
            for size in sizes:
                rates[size].append(await _buy_at_gate(engine, gate, size, seconds))
                say(f"round {number}/{rounds}, stock {size:,}: gate accepts {rates[size][-1]:,.0f}/s")
    finally:
        await gate.close()
    note = f"the gate without HTTP: {BOUGHT_AT_ONCE:,} purchases at a time, each time of a new sale"
    return make_curve("stock", "gate, accepting", list(rates.items()), note)


async def _buy_at_gate(engine: Engine, gate: Gate, stock: int, seconds: float) -> float:
    """Purchases accepted per second of the time that the gate took."""
    bought, busy_s = 0, 0.0
    while busy_s < seconds / 2:
        await engine.open_sale(stock)
        await engine.drain()
        started = time.perf_counter()
        answers = await asyncio.gather(*(gate.reserve(101, 1, None) for _ in range(BOUGHT_AT_ONCE)))
        busy_s += time.perf_counter() - started
        if Counter(outcome for outcome, _ in answers) != {Outcome.ACCEPTED: BOUGHT_AT_ONCE}:
            raise BenchError("the gate did not accept what it was meant to")
        bought += BOUGHT_AT_ONCE
    await engine.drain()
    return bought / busy_s


async def grow_orders(
    engine: Engine, sizes: Sequence[int], rounds: int, seconds: float, say: Say
) -> list[Curve]:
    """Settling, and accepting with the whole line at work, by the orders already in the ledger.

    The table only grows, so the sizes come one after the other, each with all of its rounds.
    """
    settled: dict[int, list[float]] = {}
    accepted: dict[int, list[Sample]] = {}
    there = 0
    for size in sizes:
        if size > there:
            say(f"filling the ledger up to {size:,} orders")
            await fill_ledger(engine.services.postgres_url, there, size)
            there = size
        sale = await engine.open_past_sale()
        settled[size], accepted[size] = [], []
        for number in range(1, rounds + 1):
            settled[size].append(await settle_batches(engine.services.postgres_url, sale, seconds))
            accepted[size].append(await engine.measure(Outcome.ACCEPTED, CONNECTIONS, seconds))
            say(
                f"round {number}/{rounds}, {size:,} orders in the ledger: {settled[size][-1]:,.0f}/s settled,"
                f" {accepted[size][-1].rps:,.0f}/s accepted"
            )
    note = "the sizes can't alternate: the table only grows; orders of this run's measurements come on top"
    return [
        make_curve("orders", "ledger, settling", list(settled.items()), note),
        _curve("orders", "engine, accepting", accepted, note),
    ]


async def fill_ledger(postgres_url: str, there: int, size: int) -> None:
    """Bring the table from `there` to `size` generated orders, vacuumed and on disk."""
    connection = await asyncpg.connect(postgres_url)
    month_ago_ms = time.time_ns() // 1_000_000 - _A_MONTH_MS
    try:
        for first in range(there + 1, size + 1, _FILLED_AT_ONCE):
            await connection.execute(_FILL, first, min(first + _FILLED_AT_ONCE - 1, size), month_ago_ms)
        await connection.execute("VACUUM (ANALYZE) orders")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _curve(axis: str, subject: str, samples: dict[int, list[Sample]], note: str) -> Curve:
    rates = [(size, [sample.rps for sample in found]) for size, found in samples.items()]
    faults = {sample.fault for found in samples.values() for sample in found if sample.fault}
    curve = make_curve(axis, subject, rates, note, [_cpu_us(found) for found in samples.values()])
    return msgspec.structs.replace(curve, note="; ".join([note, *sorted(faults)]))


def _cpu_us(samples: Sequence[Sample]) -> float | None:
    """Processor time of front door and Redis per request, all rounds together."""
    spent = sum(
        sample.cpu.get(name, 0.0) * sample.requests / sample.rps for sample in samples for name in GATE
    )
    return round(1e6 * spent / sum(sample.requests for sample in samples), 3)


def _rate(samples: Sequence[Sample]) -> str:
    latest = samples[-1]
    return f"{latest.rps:,.0f}/s{f' ({latest.fault})' if latest.fault else ''}"
