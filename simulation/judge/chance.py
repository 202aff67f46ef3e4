"""How sure a difference between two series of runs is. One run is one sample.

The test is that of Wilcoxon, Mann and Whitney: exact, and true of any distribution. Its inversion gives the
interval, around the estimate of Hodges and Lehmann (Hollander, Wolfe and Chicken, Nonparametric Statistical
Methods, 3rd edition, chapter 4). Holm's correction keeps the errors of many tests together (Scandinavian
Journal of Statistics 6, 1979).
"""

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np

from simulation.judge.numbers.latency import Floats

LEVEL: Final = 0.05
"""Share of comparisons without any true difference in which one may be claimed."""
POWER: Final = 0.9
"""Share of comparisons in which a detectable difference is found."""
_SEED: Final = 1
_DRAWS: Final = 2_000


class Estimate(NamedTuple):
    """A value, and its 95 % confidence interval where the runs suffice for one."""

    value: float
    low: float | None = None
    high: float | None = None


def rank_test(first: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p of the rank test: exact, or by random permutations where there are many ties."""
    if len({*first, *other}) == len(first) + len(other):
        larger = int(np.count_nonzero(np.subtract.outer(first, other) > 0))
        return float(list_chances(len(first), len(other))[min(larger, len(first) * len(other) - larger)])
    from scipy import stats  # takes a second to load

    draws = stats.PermutationMethod(n_resamples=20_000, rng=np.random.default_rng(_SEED))
    return float(stats.mannwhitneyu(first, other, method=draws).pvalue)


def estimate_shift(first: Sequence[float], other: Sequence[float]) -> Estimate:
    """Return by how much the other values lie above the first: the median of all differences of pairs."""
    differences = np.sort(np.subtract.outer(other, first), axis=None)
    cut = find_cutoff(len(first), len(other), LEVEL)
    middle = float(np.median(differences))
    if cut is None:
        return Estimate(middle)
    return Estimate(middle, float(differences[cut]), float(differences[-cut - 1]))


def correct(chances: Sequence[float]) -> list[float]:
    """Return each p, corrected for the number of tests by Holm's method, in their order."""
    corrected, highest = [0.0] * len(chances), 0.0
    for done, place in enumerate(np.argsort(chances)):
        highest = max(highest, min(1.0, (len(chances) - done) * chances[place]))
        corrected[place] = highest
    return corrected


@cache
def list_chances(first: int, other: int) -> Floats:
    """Return the two-sided p of each U of the rank test of so many values without ties.

    U counts the pairs whose first value is the larger one. Without a difference each arrangement is
    equally likely; the numbers of those with each U are the coefficients of a product of polynomials.
    """
    ways = np.zeros(first * other + 1)
    ways[0] = 1
    for step in range(1, first + 1):
        high = other + step
        if high < len(ways):
            ways[high:] -= ways[:-high].copy()
        for place in range(step, len(ways)):
            ways[place] += ways[place - step]
    chances: Floats = np.minimum(2 * np.cumsum(ways) / ways.sum(), 1)
    return chances


def find_cutoff(first: int, other: int, level: float) -> int | None:
    """Return the largest U of the rank test of so many values whose p is at most `level`; None if none is."""
    allowed = np.flatnonzero(list_chances(first, other) <= level)
    return int(allowed[-1]) if len(allowed) else None


@cache
def find_detectable(first: int, other: int, level: float) -> float | None:
    """Return the smallest shift that the test at this level finds in a share of POWER; None if it finds none.

    In standard deviations of normal values. A draw is significant from the shift on that turns enough pairs.
    """
    cut = find_cutoff(first, other, level)
    if cut is None:
        return None
    random = np.random.default_rng(_SEED)
    pairs = random.normal(size=(_DRAWS, first, 1)) - random.normal(size=(_DRAWS, 1, other))
    needed: Floats = np.sort(pairs.reshape(_DRAWS, -1), axis=1)[:, first * other - cut - 1]
    return float(np.quantile(needed, POWER))


def count_runs_needed(level: float) -> int:
    """Return the fewest runs of each side with which the test can find any difference at this level."""
    runs = 1
    while find_cutoff(runs, runs, level) is None:
        runs += 1
    return runs
