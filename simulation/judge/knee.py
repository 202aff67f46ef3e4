"""The knee of a ramp: the offered rate at which response times leave their plateau. Pure.

Along a linear climb each half second stands for a rate. The knee is the break of a regression in two regimes
(Quandt, The Estimation of the Parameters of a Linear Regression System Obeying Two Separate Regimes, Journal
of the American Statistical Association 53, 1958): a constant up to it and a line beyond, where least squares
are least. They are fitted to log p99, since response times grow by factors, after a running median, which a
lone slow half second does not move.
"""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.scenario.arrivals import Linear
from simulation.scenario.schema import Scenario

BUCKET_S: Final = 0.5
LEAST_REQUESTS: Final = 100
"""Fewest requests of a bucket whose p99 says something."""
LEAST_BUCKETS: Final = 20
"""Fewest buckets of a ramp that has a shape."""
SMOOTH: Final = 5
"""Buckets of the running median: up to two slow ones in a row don't move it."""
LEAST_SIDE: Final = 3
"""Fewest buckets on either side of a knee."""
RISE: Final = 3.0
"""Beyond a knee the p99 is at least so many times the plateau's."""

Floats = npt.NDArray[np.float64]


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ramp passed the capacity of what it met, the driver included."""

    rps: float | None
    """Offered rate of the last half second on the plateau; None: the p99 never left it."""
    at_s: float | None
    """When that was, from the run's start."""
    plateau_p99_ms: float
    """Median of the half seconds' p99 response up to there."""
    achieved_max_rps: float
    """Most requests decided within a second."""


def find_knee(history: pd.DataFrame, scenario: Scenario) -> Knee | None:
    """The knee in a run's history; None where the scenario has no climb that is long enough to have one."""
    if (ramp := find_ramp(scenario)) is None:
        return None
    start_s, segment = ramp
    at_s, p99_ms = measure_ramp(history, start_s, start_s + segment.seconds)
    if len(at_s) < LEAST_BUCKETS:
        return None
    rates = segment.rate_rps + (segment.to_rps - segment.rate_rps) * (at_s - start_s) / segment.seconds
    last = locate_knee(p99_ms)
    return Knee(
        rps=None if last is None else float(rates[last]),
        at_s=None if last is None else float(at_s[last]),
        plateau_p99_ms=float(np.median(p99_ms if last is None else p99_ms[: last + 1])),
        achieved_max_rps=_achieved_max(history),
    )


def find_ramp(scenario: Scenario) -> tuple[float, Linear] | None:
    """The longest linear segment that climbs, and when it starts, in seconds from the run's start."""
    starts = [start for _, start, _ in scenario.phases()]
    climbs = [
        (start, segment)
        for start, segment in zip(starts, scenario.arrivals, strict=True)
        if isinstance(segment, Linear) and segment.to_rps > segment.rate_rps
    ]
    return max(climbs, key=lambda climb: climb[1].seconds, default=None)


def measure_ramp(history: pd.DataFrame, start_s: float, end_s: float) -> tuple[Floats, Floats]:
    """The middle of each half second, in seconds from the run's start, and the p99 response in ms of what was
    meant to start in it. A request that got no decision counts as slow as the slowest that did."""
    meant_s = history["intended_ns"].to_numpy("int64") / 1e9
    took_ms = (history["done_ns"].to_numpy("float64", na_value=np.nan) / 1e9 - meant_s) * 1e3
    decided = _is_decided(history)
    if not decided.any():
        return np.empty(0), np.empty(0)
    took_ms = np.where(decided, took_ms, took_ms[decided].max())
    climbing = (meant_s >= start_s) & (meant_s < end_s)
    number = ((meant_s[climbing] - start_s) // BUCKET_S).astype(np.int64)
    buckets = pd.Series(took_ms[climbing]).groupby(number)
    found = buckets.quantile(0.99)[buckets.size() >= LEAST_REQUESTS]
    at_s: Floats = start_s + (found.index.to_numpy("float64") + 0.5) * BUCKET_S
    return at_s, found.to_numpy().astype(np.float64)


def locate_knee(p99_ms: Floats) -> int | None:
    """The index of the last of these on the plateau; None where they do not leave it."""
    logs = np.log(np.maximum(p99_ms, 1e-3))
    reach = SMOOTH // 2
    # Windows are cut at the ends: a repeated end would let a lone slow bucket be its own neighbour.
    smooth = np.array([np.median(logs[max(i - reach, 0) : i + reach + 1]) for i in range(len(logs))])
    breaks = range(LEAST_SIDE - 1, len(smooth) - LEAST_SIDE)
    last = min(breaks, key=lambda last: _squares(smooth[: last + 1], 0) + _squares(smooth[last + 1 :], 1))
    rise = np.median(smooth[last + 1 :]) - np.median(smooth[: last + 1])
    return last if rise >= np.log(RISE) else None


def _squares(values: Floats, degree: int) -> float:
    """What a polynomial of that degree leaves of evenly spaced values, in least squares."""
    places = np.arange(len(values))
    return float(np.sum((values - np.polyval(np.polyfit(places, values, degree), places)) ** 2))


def _is_decided(history: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether a request was answered by a decision: one that is shed or lost achieves nothing."""
    undecided = history["outcome"].isin(["UNAVAILABLE", "UNKNOWN"]) | history["done_ns"].isna()
    decided: npt.NDArray[np.bool_] = ~undecided.to_numpy(np.bool_)
    return decided


def _achieved_max(history: pd.DataFrame) -> float:
    done_s = history["done_ns"].to_numpy("float64", na_value=np.nan)[_is_decided(history)] / 1e9
    per_bucket = np.bincount((np.maximum(done_s, 0) // BUCKET_S).astype(np.int64))
    whole = round(1 / BUCKET_S)
    return float(np.convolve(per_bucket, np.ones(whole)).max())
