"""Clients and looks over nginx: each request goes to the engine and, the very same, to nginx, in turn."""

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from engine.model.purchase import Outcome
from simulation.bench.measures.front_door import Measure
from simulation.bench.programs import Program, serve_nginx
from simulation.bench.results import Compared
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Cost, Sample, Spread
from simulation.bench.spellings import PROXIED, list_spellings, look_at_orders, look_at_stock
from simulation.bench.subjects import PLENTY, Engine, measure_refusals
from simulation.errors import BenchError
from simulation.target.stores import connect_ledger

CONNECTIONS: Final = 64
ORDER_CONNECTIONS: Final = 256
CROWD_S: Final = 3.0
"""Shortest load from a crowd: an engine may let a look wait for a second or two before it refuses it."""
REMEMBERED: Final = 100
"""Orders that are looked at again and again."""


class _Pair(NamedTuple):
    subject: str
    connections: int
    nginx: Measure
    engine: Measure
    least_s: float = 0.0


async def measure_clients(
    engine: Engine, nginx: Program, count: int | None, rounds: Rounds
) -> tuple[list[Compared], list[Cost]]:
    """Measure refusals by so many spellings, and behind a proxy; there nginx is behind the same proxy."""
    await engine.open_sale(0)
    async with serve_nginx(engine.url) as before_engine, serve_nginx(nginx.url) as before_nginx:
        pairs = [
            _Pair(
                name,
                CONNECTIONS,
                partial(measure_refusals, nginx, requests=requests),
                partial(engine.measure, Outcome.SOLD_OUT, requests=requests),
            )
            for name, requests in [*list_spellings().items()][:count]
        ]
        pairs.append(
            _Pair(
                PROXIED,
                CONNECTIONS,
                partial(measure_refusals, nginx, proxy=before_nginx),
                partial(engine.measure, Outcome.SOLD_OUT, proxy=before_engine),
            )
        )
        return await _compare(pairs, rounds)


async def measure_looks(
    engine: Engine, nginx: Program, orders: int, crowd: int, rounds: Rounds
) -> tuple[list[Compared], list[Cost]]:
    """Measure looks at the stock and at settled orders: few, which an engine may remember, and so many that
    it must ask its stores."""
    order_ids = await _settle_orders(engine, orders)
    kinds = [
        ("stock", CONNECTIONS, look_at_stock()),
        ("stock", crowd, look_at_stock()),
        (f"orders, the same {REMEMBERED}", ORDER_CONNECTIONS, look_at_orders(order_ids[:REMEMBERED])),
        (f"orders, {orders:,} in turn", ORDER_CONNECTIONS, look_at_orders(order_ids)),
    ]
    pairs = [
        _Pair(
            name,
            connections,
            partial(measure_refusals, nginx, requests=requests),
            partial(engine.measure, None, requests=requests),
            CROWD_S * (connections == crowd),
        )
        for name, connections, requests in kinds
    ]
    return await _compare(pairs, rounds)


async def _settle_orders(engine: Engine, count: int) -> list[str]:
    """Sell until the ledger has so many orders of one sale; return their ids. Raises BenchError."""
    sale = await engine.open_sale(PLENTY)
    accepted = 0
    while accepted < count:
        sample = await engine.measure(Outcome.ACCEPTED, ORDER_CONNECTIONS, 1)
        if sample.fault:
            raise BenchError(f"orders to look at could not be made: {sample.fault}")
        accepted += sample.accepted
    async with connect_ledger(engine.services.postgres_url) as connection:
        rows = await connection.fetch(
            "SELECT order_id FROM orders WHERE sale_id = $1 LIMIT $2", sale.sale_id, count
        )
    return [str(row[0]) for row in rows]


async def _compare(pairs: Sequence[_Pair], rounds: Rounds) -> tuple[list[Compared], list[Cost]]:
    measures = {
        f"{pair.subject}, {pair.connections:,} connections: {server}": partial(
            measure, pair.connections, max(rounds.seconds, pair.least_s)
        )
        for pair in pairs
        for server, measure in (("nginx", pair.nginx), ("engine", pair.engine))
    }
    found = await rounds.repeat(measures)
    compared, costs = [], []
    for pair, nginx, engine in zip(pairs, found[::2], found[1::2], strict=True):
        nginx_cost, cost = (
            Cost.of_samples(f"{server}, {pair.subject}", pair.connections, each)
            for server, each in (("nginx", nginx), ("engine", engine))
        )
        nginx_rps, engine_rps = (Spread.of(sample.rps for sample in each) for each in (nginx, engine))
        compared.append(
            Compared(
                subject=pair.subject,
                connections=pair.connections,
                nginx_rps=nginx_rps,
                engine_rps=engine_rps,
                ratio=engine_rps.over(nginx_rps),
                nginx_us=nginx_cost.without_load(),
                engine_us=cost.without_load(),
                faults=[*_faults("nginx", nginx), *_faults("engine", engine)],
            )
        )
        costs.append(cost)
    return compared, costs


def _faults(server: str, samples: Sequence[Sample]) -> list[str]:
    return sorted({f"{server}: {sample.fault}" for sample in samples if sample.fault})
