"""The open loop: what the driver can do, and response times at shares of what engine and driver can do.

Capacity is what the driver and the server answer together when far more is due: the driver then has a request
for every connection at any time. It is measured with the same driver as everything that refers to it, so that
a share of it is the same share for both.
"""

from typing import Final

import numpy as np
import pandas as pd

from simulation.bench.options import Say
from simulation.bench.results import Capacity, DriverRates, Responses, Spread
from simulation.bench.subjects import PLENTY, Engine
from simulation.drive.driver import LoadSpec, drive
from simulation.drive.plan import Plan
from simulation.errors import BenchError
from simulation.scenario.arrivals import Constant as ConstantRate
from simulation.scenario.arrivals import draw_arrivals
from simulation.scenario.schema import DriverOptions

CONNECTIONS: Final = 256
FLOOD_RPS: Final = 500_000
"""A rate that nothing answers."""
GUESS_REQUESTS: Final = 20_000
"""Requests by which the size of a longer flood is guessed."""
SHARES: Final = (0.25, 0.5, 0.75)
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
TIMEOUT_MS: Final = 60_000
USERS: Final = 1_000_000
CROWD_CONNECTIONS: Final = 10_000


async def measure_driver(nginx_url: str, rounds: int, seconds: float, say: Say) -> DriverRates:
    """Capacity of one driver process against nginx, then its lag at half of that."""
    capacity = []
    size = round(await flood(nginx_url, GUESS_REQUESTS) * seconds)
    for number in range(1, rounds + 1):
        capacity.append(await flood(nginx_url, size))
        say(f"round {number}/{rounds}: driver {capacity[-1]:,.0f}/s")
    spread = Spread.of(capacity)
    lags = []
    for number in range(1, rounds + 1):
        history = await offer(nginx_url, spread.median / 2, seconds)
        lags.append(_lag_p99_ms(history))
        say(f"round {number}/{rounds}: driver lag p99 {lags[-1]:.2f} ms at {spread.median / 2:,.0f}/s")
    return DriverRates(
        connections=CONNECTIONS,
        capacity_rps=spread,
        offered_rps=round(spread.median / 2, 1),
        lag_p99_ms=Spread.of(lags),
    )


async def measure_responses(
    engine: Engine, sold_out: bool, rounds: int, seconds: float, say: Say
) -> tuple[Capacity, list[Responses]]:
    """Capacity, then response times at shares of it, in turn."""
    name = "engine, sold out" if sold_out else "engine, accepting"
    await engine.open_sale(0 if sold_out else PLENTY)
    capacity = []
    size = round(await flood(engine.url, GUESS_REQUESTS) * seconds)
    for number in range(1, rounds + 1):
        await engine.drain()
        capacity.append(await flood(engine.url, size))
        say(f"round {number}/{rounds}: {name}, open loop: capacity {capacity[-1]:,.0f}/s")
    await engine.drain()
    spread = Spread.of(capacity)
    histories: dict[float, list[pd.DataFrame]] = {share: [] for share in SHARES}
    for number in range(1, rounds + 1):
        for share in SHARES:
            history = await offer(engine.url, spread.median * share, seconds)
            await engine.drain()
            histories[share].append(history)
            p99 = _response_ms(history)["p99"]
            say(f"round {number}/{rounds}: {name} at {share:.0%} of that: response p99 {p99:.2f} ms")
    outcome = "SOLD_OUT" if sold_out else "ACCEPTED"
    return Capacity(subject=name, connections=CONNECTIONS, rps=spread), [
        _describe(name, share, spread.median * share, histories[share], outcome) for share in SHARES
    ]


async def measure_crowd(
    engine: Engine, rate_rps: float, rounds: int, seconds: float, say: Say
) -> tuple[Capacity, Responses]:
    """Shoppers that each open a connection of their own, against a sale that is sold out: how many of them
    can be served per second, then response times at a given rate."""
    name = "engine, sold out, a connection each"
    await engine.open_sale(0)
    few = DriverOptions(connections=CONNECTIONS, connection_per_request=True, timeout_ms=TIMEOUT_MS)
    many = DriverOptions(connections=CROWD_CONNECTIONS, connection_per_request=True, timeout_ms=TIMEOUT_MS)
    capacity, histories = [], []
    size = round(await flood(engine.url, GUESS_REQUESTS // 10, few) * seconds)
    for number in range(1, rounds + 1):
        capacity.append(await flood(engine.url, size, few))
        histories.append(await offer(engine.url, rate_rps, seconds, many))
        p99 = _response_ms(histories[-1])["p99"]
        say(
            f"round {number}/{rounds}: {capacity[-1]:,.0f} new connections/s;"
            f" at {rate_rps:,.0f}/s: response p99 {p99:.2f} ms"
        )
    return (
        Capacity(subject=name, connections=CONNECTIONS, rps=Spread.of(capacity)),
        _describe(name, None, rate_rps, histories, "SOLD_OUT"),
    )


async def flood(url: str, size: int, options: DriverOptions | None = None) -> float:
    """Requests answered per second, first sent to last answered, when far more are due."""
    plan = _plan(np.arange(size) * (10**9 // FLOOD_RPS))
    history = (await drive(LoadSpec(plan, url, options or _options()))).history
    answered = history[history["status"] > 0]
    if len(answered) < size:
        raise BenchError(f"{url} answered {len(answered):,} of {size:,} requests")
    return float(len(answered) / (answered["done_ns"].max() - answered["sent_ns"].min()) * 1e9)


async def offer(
    url: str, rate_rps: float, seconds: float, options: DriverOptions | None = None
) -> pd.DataFrame:
    """The history of a Poisson stream of so many requests per second."""
    arrivals = draw_arrivals([ConstantRate(seconds=seconds, rate_rps=rate_rps)], np.random.SeedSequence(1))
    return (await drive(LoadSpec(_plan(arrivals), url, options or _options()))).history


def _options() -> DriverOptions:
    return DriverOptions(connections=CONNECTIONS, timeout_ms=TIMEOUT_MS)


def _plan(intended_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Plan:
    size = len(intended_ns)
    return Plan(
        intended_ns=intended_ns,
        user_id=np.random.default_rng(1).integers(1, USERS, size, endpoint=True),
        product_id=np.ones(size, np.int64),
        key=[None] * size,
    )


def _describe(
    subject: str, share: float | None, rate_rps: float, histories: list[pd.DataFrame], outcome: str
) -> Responses:
    times = [_response_ms(history) for history in histories]
    return Responses(
        subject=subject,
        share=share,
        offered_rps=round(rate_rps, 1),
        answered_rps=Spread.of(_answered_rps(history) for history in histories),
        ms={name: Spread.of(each[name] for each in times) for name in PERCENTILES},
        lag_p99_ms=Spread.of(_lag_p99_ms(history) for history in histories),
        lost=sum(int((history["outcome"] != outcome).sum()) for history in histories),
    )


def _answered_rps(history: pd.DataFrame) -> float:
    answered = history[history["status"] > 0]
    length_ns = max(history["intended_ns"].max(), answered["done_ns"].max() if len(answered) else 0)
    return float(len(answered) / length_ns * 1e9)


def _response_ms(history: pd.DataFrame) -> dict[str, float]:
    answered = history[history["status"] > 0]
    response_ms = (answered["done_ns"].to_numpy(np.int64) - answered["intended_ns"].to_numpy(np.int64)) / 1e6
    if not len(response_ms):
        return dict.fromkeys(PERCENTILES, float("inf"))
    return {name: float(np.percentile(response_ms, 100 * share)) for name, share in PERCENTILES.items()}


def _lag_p99_ms(history: pd.DataFrame) -> float:
    sent = history.dropna(subset=["sent_ns"])
    lag_ms = (sent["sent_ns"].to_numpy(np.int64) - sent["intended_ns"].to_numpy(np.int64)) / 1e6
    return float(np.percentile(lag_ms, 99)) if len(lag_ms) else float("inf")
