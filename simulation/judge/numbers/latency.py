"""How long requests and orders took, in ms, and the percentiles of that."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.scenario.condition import quantile_of

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
"""The percentiles of a summary."""
TRUSTED: Final = 10
"""Fewest requests slower than a percentile with which it says something about the next run."""

Floats = npt.NDArray[np.float64]


def response_ms(history: pd.DataFrame, timeout_ms: float) -> Floats:
    """Return done − intended: how long each buyer waited, a late start included.

    A request without an answer counts with its lag, as far as it was sent, and the whole timeout: at least so
    long its buyer would have waited. To leave it out would make an engine look quicker the fewer it answers.
    """
    answered = history["sent_ns"].notna() & history["done_ns"].notna()
    given_up = history["sent_ns"].fillna(history["intended_ns"]) + round(timeout_ms * 1e6)
    return _time(
        history.assign(until_ns=history["done_ns"].where(answered, given_up)), "intended_ns", "until_ns"
    )


def service_ms(history: pd.DataFrame) -> Floats:
    """Return done − sent of the answered requests: how long the engine took."""
    return _time(history.dropna(subset=["sent_ns", "done_ns"]), "sent_ns", "done_ns")


def lag_ms(history: pd.DataFrame) -> Floats:
    """Return sent − intended of the requests that were sent: how late the driver was."""
    return _time(history.dropna(subset=["sent_ns"]), "intended_ns", "sent_ns")


def delay_ms(orders: pd.DataFrame) -> Floats:
    """Return settled − accepted of the settled orders: how long fulfilment took."""
    return 1e3 * _time(orders.dropna(subset=["accepted_us", "settled_us"]), "accepted_us", "settled_us")


def _time(rows: pd.DataFrame, start: str, end: str) -> Floats:
    time: Floats = (rows[end].to_numpy("int64") - rows[start].to_numpy("int64")) / 1e6
    return time


def take_stat(values: Floats, stat: str) -> float | None:
    """Return a percentile (`p50`, `p999`), the maximum (`max`) or the `mean`; None if there are no values."""
    if not len(values):
        return None
    return float(values.mean() if stat == "mean" else np.quantile(values, quantile_of(stat)))


def take_percentiles(values: Floats) -> dict[str, float | None]:
    """Return each of PERCENTILES, to a microsecond; None if there are no values."""
    found = {name: take_stat(values, name) for name in PERCENTILES}
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def measure_latency(history: pd.DataFrame, timeout_ms: float) -> dict[str, dict[str, float | None]]:
    """Return the percentiles of response and service time."""
    return {
        "response": take_percentiles(response_ms(history, timeout_ms)),
        "service": take_percentiles(service_ms(history)),
    }


def is_trusted(percentile: str, samples: int) -> bool:
    """Return whether at least TRUSTED of the samples lie beyond the percentile; the maximum needs none."""
    return percentile == "max" or samples * (1 - quantile_of(percentile)) >= TRUSTED - 1e-6
