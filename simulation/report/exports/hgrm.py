"""HdrHistogram's percentile format (.hgrm), as its plotter and other load generators read and write it."""

from io import BytesIO
from typing import Final

import numpy as np
from hdrh.histogram import HdrHistogram

from simulation.errors import RunError
from simulation.judge.figures import Run

LONGEST_US: Final = 3_600_000_000
DIGITS: Final = 3
"""Significant digits of a value."""
TICKS: Final = 100
"""Lines for each halving of what is left above a percentile: so many that a reader finds p50 or p99 as
exactly as the values are."""
_US_IN_MS: Final = 1_000


class _Histogram(HdrHistogram):  # type: ignore[misc] # it has no types
    """A histogram in µs that writes ms."""

    def get_stddev(self) -> float:
        """Return the deviation in the unit of the output, as HdrHistogram does and its package forgets."""
        return float(super().get_stddev()) / _US_IN_MS


def write_hgrm(run: Run, times: str) -> bytes:
    """Return the distribution of times such as `accepted.response`, in ms.

    Raises RunError without a record, or where there is nothing to measure.
    """
    if run.metrics is None:
        raise RunError(f"{run.folder}: its record was not kept: there are only the summary's percentiles")
    outcome, _, kind = times.partition(".")
    _, took_ms = run.metrics.sample_times(outcome, kind)
    if not len(took_ms):
        raise RunError(f"{run.folder}: there are no times of {times}")
    histogram = _Histogram(1, LONGEST_US, DIGITS)
    took_us, numbers = np.unique(
        np.clip(np.rint(took_ms * _US_IN_MS), 1, LONGEST_US).astype("int64"), return_counts=True
    )
    for value, number in zip(took_us.tolist(), numbers.tolist(), strict=True):
        histogram.record_value(value, number)
    output = BytesIO()
    histogram.output_percentile_distribution(output, _US_IN_MS, TICKS)
    return output.getvalue()
