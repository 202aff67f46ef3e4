"""The open loop: the capacity of driver and server together, then lag and response times below it.

The capacity is the rate that they reach when far more requests are due, so that each connection is always
busy. The same driver measures capacity and responses: a share of the capacity is the same share for both.
"""

import resource
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.bench.results import Capacity, DriverLag, DriverRates, Responses
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Spread
from simulation.bench.subjects import STATES, Engine
from simulation.drive.driver import LoadSpec, drive
from simulation.drive.pacer import IS_EXACT
from simulation.drive.plan import Plan
from simulation.errors import BenchError
from simulation.judge.numbers.doubt import find_mark
from simulation.judge.numbers.latency import lag_ms, response_ms, take_stat
from simulation.judge.numbers.load import measure_load, own_lag_ms
from simulation.model.history import BUY
from simulation.scenario.arrivals import Constant, draw_arrivals
from simulation.scenario.schema import DriverOptions

CONNECTIONS: Final = 256
FLOOD_RPS: Final = 500_000
"""A rate that no server reaches."""
GUESS_REQUESTS: Final = 10_000
"""Requests of a short flood, from whose rate the size of the longer ones follows."""
LAG_RPS: Final = 5_000.0
"""A rate far below every capacity, where the lag is the pacer's."""
SHARES: Final = (0.25, 0.5, 0.75)
PERCENTILES: Final = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9}
CROWD_CONNECTIONS: Final = 10_000


class Server(NamedTuple):
    """A server under the open-loop driver: a URL, or an engine, which comes to rest after each load."""

    url: str
    engine: Engine | None = None
    connections: int = CONNECTIONS
    connection_per_request: bool = False
    exact: bool = IS_EXACT
    """Whether the driver's starts are exact (simulation.drive.pacer)."""

    @property
    def options(self) -> DriverOptions:
        """How the driver loads it."""
        return DriverOptions(
            connections=self.connections,
            connection_per_request=self.connection_per_request,
            timeout_ms=60_000,
        )

    async def load(self, intended_ns: npt.NDArray[np.int64]) -> pd.DataFrame:
        """Send a request at each moment; return the history. Raises BenchError where nothing is answered."""
        size = len(intended_ns)
        plan = Plan(
            intended_ns=intended_ns,
            kind=np.full(size, BUY, np.uint8),
            user_id=np.random.default_rng(1).integers(1, 1_000_000, size, endpoint=True),
            product_id=np.ones(size, np.int64),
            key=[None] * size,
        )
        history = (await drive(LoadSpec(plan, (self.url,), self.options, exact=self.exact))).history
        if self.engine:
            await self.engine.drain()
        if not (history["status"] > 0).any():
            raise BenchError(f"{self.url} answered none of {size:,} requests")
        return history

    async def flood(self, size: int) -> float:
        """Return the requests answered per second, first sent to last answered, when far more are due."""
        history = await self.load(np.arange(size) * (10**9 // FLOOD_RPS))
        answered = history[history["status"] > 0]
        if len(answered) < size:
            raise BenchError(f"{self.url} answered {len(answered):,} of {size:,} requests")
        return float(len(answered) / (answered["done_ns"].max() - answered["sent_ns"].min()) * 1e9)

    async def offer(self, rate_rps: float, seconds: float) -> pd.DataFrame:
        """Send a Poisson stream of requests; return the history."""
        arrivals = draw_arrivals([Constant(seconds=seconds, rate_rps=rate_rps)], np.random.SeedSequence(1))
        return await self.load(arrivals)

    async def find_capacity(self, name: str, rounds: Rounds) -> Spread:
        """Return the rate of a flood that takes about as long as a measurement."""
        size = round(await self.flood(GUESS_REQUESTS) * rounds.seconds)
        (found,) = await rounds.repeat({f"{name}, open loop, capacity": partial(self.flood, size)})
        return Spread.of(found)


async def measure_driver(nginx_url: str, rounds: Rounds) -> DriverRates:
    """Measure the capacity of one driver process against nginx, then its lag at half of it and at LAG_RPS:
    there also by the event loop's timers, in turn."""
    server = Server(nginx_url)
    capacity = await server.find_capacity("driver", rounds)
    rate_rps = capacity.median / 2
    rows = [("event loop's timers", False, LAG_RPS)] + [("exact", True, LAG_RPS)] * IS_EXACT
    rows.append(("exact" if IS_EXACT else "event loop's timers", IS_EXACT, rate_rps))
    found = await rounds.repeat(
        {
            f"driver at {rate:,.0f}/s, {pacer}, lag": partial(
                _measure_cores, server._replace(exact=exact), rate, rounds.seconds
            )
            for pacer, exact, rate in rows
        }
    )
    lags = [
        DriverLag(
            pacer=pacer,
            offered_rps=round(rate, 1),
            p50_ms=Spread.of(take_stat(lag_ms(history), "p50") or 0.0 for history, _ in measured),
            p99_ms=Spread.of(_lag_p99_ms(history) for history, _ in measured),
            cores=Spread.of(cores for _, cores in measured),
            faults=find_faults((history for history, _ in measured), server.options),
        )
        for (pacer, _, rate), measured in zip(rows, found, strict=True)
    ]
    return DriverRates(
        connections=CONNECTIONS,
        capacity_rps=capacity,
        offered_rps=lags[-1].offered_rps,
        lag_p99_ms=lags[-1].p99_ms,
        lags=lags,
    )


async def _measure_cores(server: Server, rate_rps: float, seconds: float) -> tuple[pd.DataFrame, float]:
    """Offer a rate; return the history and the processor time of the driver process per second of the load,
    its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    history = await server.offer(rate_rps, seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return history, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds


def find_faults(histories: Iterable[pd.DataFrame], options: DriverOptions) -> list[str]:
    """Return why loops were not open, once each."""
    loads = [
        measure_load(history, options, float(history["intended_ns"].max()) / 1e9) for history in histories
    ]
    return sorted({load.reason for load in loads if not load.valid})


def find_doubtful(histories: Sequence[pd.DataFrame], options: DriverOptions) -> list[str]:
    """Return the percentiles of response time that are in doubt in any round."""
    lags = [take_stat(own_lag_ms(history, options).to_numpy(), "p99") for history in histories]
    waits = [response_ms(history, options.timeout_ms) for history in histories]
    return [
        name
        for name, rank in PERCENTILES.items()
        if any(
            find_mark(float(np.percentile(took, rank)), lag, None)
            for took, lag in zip(waits, lags, strict=True)
        )
    ]


async def measure_responses(
    engine: Engine, state: str, rounds: Rounds, crowd_rps: float | None = None
) -> tuple[Capacity, list[Responses]]:
    """Measure the capacity in one of STATES, then response times at shares of it, in turn.

    With `crowd_rps` every shopper makes a connection, and response times are measured at that rate.
    """
    name = f"engine, {state}"
    await engine.open_sale(STATES[state])
    server = Server(engine.url, engine)
    if crowd_rps:
        name += ", a connection each"
        server = server._replace(connection_per_request=True)
    capacity = await server.find_capacity(name, rounds)
    rates: dict[float | None, float] = {share: capacity.median * share for share in SHARES}
    if crowd_rps:
        rates = {None: crowd_rps}
        server = server._replace(connections=CROWD_CONNECTIONS)
    found = await rounds.repeat(
        {
            f"{name} at {rate_rps:,.0f}/s, response": partial(server.offer, rate_rps, rounds.seconds)
            for rate_rps in rates.values()
        }
    )
    outcome = "ACCEPTED" if STATES[state] else "SOLD_OUT"
    responses = [
        Responses(
            subject=name,
            share=share,
            offered_rps=round(rate_rps, 1),
            answered_rps=Spread.of(map(_answered_rps, histories)),
            ms={
                percentile: Spread.of(
                    np.percentile(response_ms(history, server.options.timeout_ms), rank)
                    for history in histories
                )
                for percentile, rank in PERCENTILES.items()
            },
            lag_p99_ms=Spread.of(map(_lag_p99_ms, histories)),
            doubtful=find_doubtful(histories, server.options),
            faults=find_faults(histories, server.options),
            lost=sum(int((history["outcome"] != outcome).sum()) for history in histories),
        )
        for (share, rate_rps), histories in zip(rates.items(), found, strict=True)
    ]
    return Capacity(subject=name, connections=CONNECTIONS, rps=capacity), responses


def _answered_rps(history: pd.DataFrame) -> float:
    answered = history[history["status"] > 0]
    return float(len(answered) / max(history["intended_ns"].max(), answered["done_ns"].max()) * 1e9)


def _lag_p99_ms(history: pd.DataFrame) -> float:
    return float(np.percentile(lag_ms(history), 99))
