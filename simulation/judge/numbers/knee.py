"""The knee of a ramp: the offered rate at which response times leave their plateau.

Along a linear climb each half second stands for a rate. The knee is the break of a regression in two regimes
(Quandt, The Estimation of the Parameters of a Linear Regression System Obeying Two Separate Regimes, Journal
of the American Statistical Association 53, 1958): a constant before it and a line beyond, with the least sum
of squares. Both are fitted to log p99, because response times grow by factors, after a running median, which
a single slow half second does not move.
"""

from typing import Final

import msgspec
import numpy as np
import pandas as pd

from simulation.judge.numbers.latency import Floats, response_ms
from simulation.judge.numbers.requests import is_decided, select_span
from simulation.scenario.arrivals import Linear
from simulation.scenario.schema import Scenario

BUCKET_S: Final = 0.5
LEAST_REQUESTS: Final = 100
"""Fewest requests of a bucket that has a p99."""
LEAST_BUCKETS: Final = 20
"""Fewest buckets of a ramp that has a shape."""
SMOOTH: Final = 5
"""Buckets of the running median: up to two slow ones in a row don't move it."""
LEAST_SIDE: Final = 3
"""Fewest buckets on either side of a knee."""
RISE: Final = 3.0
"""Least factor from the plateau's p99 to the p99 beyond a knee."""


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ramp passed the capacity of the engine and the driver together."""

    rps: float | None
    """Offered rate of the last half second on the plateau; None if the p99 never left it."""
    at_s: float | None
    """When that was, from the run's start."""
    plateau_p99_ms: float
    """Median p99 response of the half seconds up to there."""
    achieved_max_rps: float
    """Most requests that were decided within a second."""


def find_knee(history: pd.DataFrame, scenario: Scenario) -> Knee | None:
    """Return the knee in a run's history; None where the scenario has no climb of enough length."""
    if (ramp := find_ramp(scenario)) is None:
        return None
    at_s, rates, p99_ms = measure_ramp(history, *ramp, scenario.driver.timeout_ms)
    if len(at_s) < LEAST_BUCKETS:
        return None
    last = locate_knee(p99_ms)
    return Knee(
        rps=None if last is None else float(rates[last]),
        at_s=None if last is None else float(at_s[last]),
        plateau_p99_ms=float(np.median(p99_ms if last is None else p99_ms[: last + 1])),
        achieved_max_rps=_achieved_max(history),
    )


def find_ramp(scenario: Scenario) -> tuple[float, Linear] | None:
    """Return the longest linear climb, after its start in seconds from the run's start."""
    climbs = [
        (start_s, segment)
        for (_, start_s, _), segment in zip(scenario.phases(), scenario.arrivals, strict=True)
        if isinstance(segment, Linear) and segment.to_rps > segment.rate_rps
    ]
    return max(climbs, key=lambda climb: climb[1].seconds, default=None)


def measure_ramp(
    history: pd.DataFrame, start_s: float, ramp: Linear, timeout_ms: float
) -> tuple[Floats, Floats, Floats]:
    """Return of each half second its middle, in seconds from the run's start, the offered rate there, and the
    p99 response in ms.

    A request counts by its intended start. One with an answer and no decision counts as slow as the slowest
    decided request.
    """
    decided = is_decided(history)
    if not decided.any():
        return np.empty(0), np.empty(0), np.empty(0)
    took_ms = pd.Series(response_ms(history, timeout_ms), history.index)
    took_ms = took_ms.where(decided, took_ms.where(history["status"] == 0, took_ms[decided].max()))
    climbing = select_span(history, start_s, start_s + ramp.seconds)
    number = ((climbing["intended_ns"] / 1e9 - start_s) // BUCKET_S).astype("int64")
    buckets = took_ms[climbing.index].groupby(number)
    found = buckets.quantile(0.99)[buckets.size() >= LEAST_REQUESTS]
    passed_s: Floats = (found.index.to_numpy("float64") + 0.5) * BUCKET_S
    rates = ramp.rate_rps + (ramp.to_rps - ramp.rate_rps) * passed_s / ramp.seconds
    return start_s + passed_s, rates, found.to_numpy().astype(np.float64)


def locate_knee(p99_ms: Floats) -> int | None:
    """Return the index of the last bucket on the plateau; None if the buckets never leave it."""
    logs = np.log(np.maximum(p99_ms, 1e-3))
    # Windows are cut at the ends: a repeated end would let a single slow bucket be its own neighbour.
    smooth = pd.Series(logs).rolling(SMOOTH, center=True, min_periods=1).median().to_numpy()
    breaks = range(LEAST_SIDE - 1, len(smooth) - LEAST_SIDE)
    last = min(breaks, key=lambda last: _squares(smooth[: last + 1], 0) + _squares(smooth[last + 1 :], 1))
    rise = np.median(smooth[last + 1 :]) - np.median(smooth[: last + 1])
    return last if rise >= np.log(RISE) else None


def _squares(values: Floats, degree: int) -> float:
    """Return the sum of squares that the best polynomial of that degree leaves of evenly spaced values."""
    places = np.arange(len(values))
    return float(np.sum((values - np.polyval(np.polyfit(places, values, degree), places)) ** 2))


def _achieved_max(history: pd.DataFrame) -> float:
    done_s = history["done_ns"][is_decided(history)].to_numpy("float64") / 1e9
    per_bucket = np.bincount((np.maximum(done_s, 0) // BUCKET_S).astype(np.int64))
    return float(np.convolve(per_bucket, np.ones(round(1 / BUCKET_S))).max())
