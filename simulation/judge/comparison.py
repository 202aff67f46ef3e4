"""How runs differ from the first of them, and how sure each difference is.

How sure is a bootstrap over time (Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13).
Each run is cut into SLICES stretches, because requests of one moment share their luck and are not
independent. RESAMPLES times, as many stretches are drawn with replacement, and the change is computed anew.
The interval holds the middle 95 % of those changes. Runs of the same length draw the same stretches, so that
the shape of the load, which they share, is not taken for noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from simulation.judge.numbers.latency import Floats, response_ms, service_ms
from simulation.judge.numbers.requests import select_outcome
from simulation.judge.thresholds import Metrics
from simulation.scenario.condition import WHOLE, Condition, quantile_of, unit_of

SLICES: Final = 30
RESAMPLES: Final = 1_000
METRICS: Final = {
    "accepted.response.p50": "Accepted, response p50",
    "accepted.response.p99": "Accepted, response p99",
    "accepted.response.p999": "Accepted, response p99.9",
    "accepted.service.p99": "Accepted, service p99",
    "sold_out.response.p50": "Sold out, response p50",
    "sold_out.response.p99": "Sold out, response p99",
    "sold_out.response.p999": "Sold out, response p99.9",
    "fulfilment.lag_p50": "Fulfilment delay p50",
    "fulfilment.lag_p99": "Fulfilment delay p99",
    "sold_out_after_s": "Sold out after",
    "fulfilment.drained_s": "Drained after",
    "all.count": "Requests",
    "accepted.count": "Accepted",
    "unknown.count": "Unknown outcome",
    "error.count": "Unavailable",
    "oversold": "Units oversold",
}
_BIN: Final = float(np.log(1.005))
"""Width of a bin of the resampled distributions, as a logarithm: half a percent."""
_SEED: Final = 1


@dataclass(frozen=True)
class Run:
    """A run to compare."""

    name: str
    folder: str
    summary: dict[str, Any]
    metrics: Metrics
    duration_s: float


class Change(NamedTuple):
    """How a metric changed: in its unit, in percent, and the interval of the percentage."""

    delta: float
    percent: float | None
    low: float | None = None
    high: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval lies on one side of no change."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Row(NamedTuple):
    """A metric of every run, and its change from the first run to each other one."""

    metric: str
    title: str
    unit: str
    values: list[float | None]
    changes: list[Change | None]


def compare(runs: Sequence[Run], metrics: Sequence[str] = tuple(METRICS)) -> list[Row]:
    """Return each metric that any run has, and how it changed from the first run."""
    rows = []
    for metric in metrics:
        values = [run.metrics.measure(metric) for run in runs]
        if all(value is None for value in values):
            continue
        changes = [
            _change(runs[0], run, metric, values[0], value)
            for run, value in zip(runs[1:], values[1:], strict=True)
        ]
        rows.append(Row(metric, METRICS.get(metric, metric), unit_of(metric), values, changes))
    return rows


def judge_change(condition: Condition, rows: Sequence[Row]) -> bool | None:
    """Return whether the condition is true of any run's change; None where it could not be measured."""
    changes = [
        change and (change.percent if condition.relative else change.delta)
        for row in rows
        if row.metric == condition.metric
        for change in row.changes
    ]
    if any(change is not None and condition.holds(change) for change in changes):
        return True
    return None if not changes or None in changes else False


def count_changes(rows: Sequence[Row], number: int) -> tuple[int, int, int]:
    """Return how many times of run `number` (the first is 0) are surely longer, surely shorter, or
    neither."""
    changes = [row.changes[number - 1] for row in rows if row.unit]
    judged = [change for change in changes if change is not None and change.low is not None]
    longer = sum(change.sure and change.delta > 0 for change in judged)
    shorter = sum(change.sure and change.delta < 0 for change in judged)
    return longer, shorter, len(judged) - longer - shorter


def _change(first: Run, other: Run, metric: str, before: float | None, after: float | None) -> Change | None:
    if before is None or after is None:
        return None
    delta = after - before
    percent = 100 * delta / before if before else (0.0 if not delta else None)
    if percent is None or metric in WHOLE or unit_of(metric) != "ms":
        return Change(delta, percent)
    return Change(delta, percent, *_interval(first, other, metric))


# A resample may draw nothing but empty stretches: it has no statistic, and is left out.
@np.errstate(invalid="ignore", divide="ignore")
def _interval(first: Run, other: Run, metric: str) -> tuple[float, float]:
    """Return the interval of the change, in percent."""
    stat = metric.rpartition("_" if "lag_" in metric else ".")[2]
    samples = [_sample(run.metrics, metric) for run in (first, other)]
    lowest = min(float(took.min()) for _, took in samples)
    bins = 1 + max(int(np.log(took.max() / lowest) / _BIN) for _, took in samples)
    paired = first.duration_s == other.duration_s
    start, end = min(at_s.min() for at_s, _ in samples), max(at_s.max() for at_s, _ in samples)
    stats = []
    for number, (at_s, took) in enumerate(samples):
        if not paired:
            start, end = at_s.min(), at_s.max()
        place = np.minimum(((at_s - start) / (end - start + 1e-9) * SLICES).astype(np.int64), SLICES - 1)
        bin_of = (np.log(took / lowest) / _BIN).astype(np.int64)
        counts = np.bincount(place * bins + bin_of, minlength=SLICES * bins).reshape(SLICES, bins)
        random = np.random.default_rng(_SEED if paired else _SEED + number)
        drawn = random.multinomial(SLICES, np.full(SLICES, 1 / SLICES), RESAMPLES)
        stats.append(_stat_of_bins(drawn @ counts, stat))
    changes = 100 * (np.exp(_BIN * (stats[1] - stats[0])) - 1)
    changes = changes[np.isfinite(changes)]
    low, high = np.percentile(changes, [2.5, 97.5]) if len(changes) else (-np.inf, np.inf)
    return float(low), float(high)


def _stat_of_bins(counts: np.ndarray[Any, np.dtype[np.int64]], stat: str) -> Floats:
    """Return for each row of counts the bin of its percentile or mean; NaN where all counts are 0."""
    totals = counts.sum(axis=1)
    if stat == "mean":
        mean: Floats = np.log(counts @ np.exp(_BIN * np.arange(counts.shape[1])) / totals) / _BIN
        return mean
    wanted = np.maximum(np.ceil(quantile_of(stat) * totals), 1)
    found = np.argmax(np.cumsum(counts, axis=1) >= wanted[:, None], axis=1)
    return np.where(totals > 0, found, np.nan).astype(np.float64)


def _sample(run: Metrics, metric: str) -> tuple[Floats, Floats]:
    """Return the samples of a metric: when, in seconds from the run's start, and how long, in ms."""
    kind, _, rest = metric.partition(".")
    if kind == "fulfilment":
        at_s, took = run.sample_delays()
    else:
        answered = select_outcome(run.history, kind).dropna(subset=["sent_ns", "done_ns"])
        at_s = answered["intended_ns"].to_numpy("int64") / 1e9
        is_response = rest.startswith("response")
        took = response_ms(answered, run.driver.timeout_ms) if is_response else service_ms(answered)
    return at_s, np.maximum(took, 1e-3)
