"""Where one of two runs went wrong for a while and the other one did not: a stall, a stretch of refusals.

Both runs are cut into the same slices of time. How the slices of the two differ otherwise is the noise; a
slice that differs by many times that noise, and manifold, did not come from it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.judge.figures import Run
from simulation.judge.numbers.latency import Floats
from simulation.judge.numbers.requests import is_decided

SLICE_S: Final = 1.0
"""Length of a slice; shorter where less than ten seconds were measured, longer at a low rate."""
ENOUGH: Final = 20
"""Fewest samples of a slice that says something."""
QUANTILE: Final = 0.9
"""A tenth of a slice that stands still shows, a pause of the disk does not."""
TIMES: Final = 5.0
"""Least factor between the slices of two runs, beyond what is usual between them."""
SHARE: Final = 0.1
"""Least difference of the shares of requests that were not served."""
NOISES: Final = 8.0
"""How many standard deviations of the noise a slice must differ by."""


class Samples(NamedTuple):
    """What a run measured over time."""

    at_s: Floats
    values: Floats
    """Times in ms; for shares 1 or 0."""


class Stall(NamedTuple):
    """A stretch in which two runs differ as noise does not make them differ."""

    what: str
    """response, delay (of fulfilment) or unserved."""
    start_s: float
    end_s: float
    worse: int
    """Which of the two had it, 0 or 1."""
    values: tuple[float, float]
    """What the stretch gave in each of the two: the QUANTILE of times, the mean of shares."""
    silent_s: float
    """The longest time without any answer in it, in the worse run."""

    @property
    def factor(self) -> float:
        """How many times the other run's value the worse one's is."""
        return self.values[self.worse] / max(self.values[1 - self.worse], 1e-9)


def find_stalls(first: Run, other: Run) -> list[Stall] | None:
    """Return the stretches in which one run went wrong and the other one did not, in order of time.

    None where the record of one of them was not kept. A request without an answer took the whole timeout.
    """
    if first.metrics is None or other.metrics is None:
        return None
    duration_s = min(first.scenario.duration_s(), other.scenario.duration_s())
    seen: dict[str, list[Samples]] = {"response": [], "delay": [], "unserved": []}
    answers = []
    for run, metrics in ((first, first.metrics), (other, other.metrics)):
        history = metrics.history
        at_s = history["intended_ns"].to_numpy("float64") / 1e9
        done_s = history["done_ns"].to_numpy("float64", na_value=np.nan) / 1e9
        took_ms = np.nan_to_num(1e3 * (done_s - at_s), nan=run.scenario.driver.timeout_ms)
        seen["response"].append(Samples(at_s, np.maximum(took_ms, 1e-3)))
        seen["delay"].append(Samples(*metrics.sample_delays()))
        seen["unserved"].append(Samples(at_s, (~is_decided(history)).astype(np.float64)))
        answers.append(done_s[np.isfinite(done_s)])
    found = [
        Stall(what, start_s, end_s, worse, values, _find_silence(answers[worse], start_s, end_s))
        for what, pair in seen.items()
        for start_s, end_s, worse, values in _find_stretches(pair, duration_s, shares=what == "unserved")
    ]
    return sorted(found, key=lambda stall: stall.start_s)


def _find_silence(done_s: Floats, start_s: float, end_s: float) -> float:
    within = np.sort(done_s[(done_s > start_s) & (done_s < end_s)])
    return float(np.diff(within, prepend=start_s, append=end_s).max())


def _find_stretches(
    runs: Sequence[Samples], duration_s: float, *, shares: bool
) -> Iterator[tuple[float, float, int, tuple[float, float]]]:
    """Yield start and end of each stretch, which run is the worse, and what it gave in each."""
    fewest = min(len(run.at_s) for run in runs)
    if not fewest:
        return
    span_s = min(duration_s, max(float(run.at_s.max()) for run in runs))
    width_s = max(min(SLICE_S, span_s / 10), ENOUGH * span_s / fewest)
    count = int(np.ceil(span_s / width_s))
    first, other = (_slice(run, width_s, count, shares) for run in runs)
    change = other - first
    known = change[np.isfinite(change)]
    if len(known) < 3:
        return
    # The quartile nearest to no change: a run that is slower throughout has no stall, and a long stall is
    # no more usual than the rest of the run.
    usual = float(np.clip(0.0, *np.quantile(known, [0.25, 0.75])))
    noise = 1.4826 * float(np.median(np.abs(np.diff(known)))) / np.sqrt(2)
    limit = max(NOISES * noise, SHARE if shares else np.log(TIMES))
    signs = np.where(np.abs(change - usual) > limit, np.sign(change - usual), 0).astype(int)
    edges = [0, *(np.flatnonzero(np.diff(signs)) + 1), count]
    for start, end in pairwise(edges):
        if signs[start]:
            start_s, end_s = start * width_s, min(end * width_s, duration_s)
            within = [run.values[(run.at_s >= start_s) & (run.at_s < end_s)] for run in runs]
            before, after = (float(v.mean() if shares else np.quantile(v, QUANTILE)) for v in within)
            yield start_s, end_s, int(signs[start] > 0), (before, after)


def _slice(run: Samples, width_s: float, count: int, shares: bool) -> Floats:
    """Return each slice's share, or the logarithm of its time; NaN where it holds too little."""
    slices = pd.Series(run.values).groupby((run.at_s // width_s).astype(np.int64))
    found = slices.mean() if shares else slices.quantile(QUANTILE).map(np.log)
    return np.asarray(found.where(slices.size() >= ENOUGH).reindex(range(count)), np.float64)
