"""How runs, or series of runs, differ from the first of them, and how sure each difference is."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from simulation.judge.chance import (
    LEVEL,
    Estimate,
    correct,
    estimate_shift,
    find_cutoff,
    find_detectable,
    rank_test,
)
from simulation.judge.figures import FIGURES, Spread
from simulation.judge.numbers.doubt import Mark
from simulation.scenario.condition import Condition, unit_of

CERTAIN: Final = ("oversold", "all.count")
"""Metrics that are no matter of chance: one unit oversold in one run is a fault; the load is as planned."""

Values = Sequence[Sequence[float | None]]
"""A metric of every run of every side."""
Marks = Sequence[Sequence[Mark | None]]
"""Why a metric is in doubt, of every run of every side."""


class Change(NamedTuple):
    """How a metric changed from the first side to another one."""

    delta: Estimate
    """In its unit."""
    percent: Estimate | None
    """None where the first side has 0."""
    chance: float | None = None
    """p of the test, corrected; None where so few runs can't show any difference."""
    detectable: float | None = None
    """The smallest change, in percent, that so many such runs show in nine of ten comparisons; None: none."""
    doubtful: bool = False
    """Whether the driver or the machine may have made all of it."""

    @property
    def sure(self) -> bool:
        """Whether the two sides differ by more than chance, driver and machine make."""
        return self.chance is not None and self.chance <= LEVEL and not self.doubtful


class Row(NamedTuple):
    """A metric of every side, and its change from the first side to each other one."""

    metric: str
    title: str
    unit: str
    values: Values
    changes: list[Change | None]
    marks: Marks = ()


def compare(
    values: Mapping[str, Values], primary: str | None = None, marks: Mapping[str, Marks] | None = None
) -> list[Row]:
    """Return each metric that any run has, and how it changed from the first side.

    All that is claimed is wrong in at most LEVEL of the comparisons without a difference, together. A primary
    metric is tested by itself; the others only if it differs, so that they take nothing from it.
    """
    rows = [
        _doubt(
            Row(metric, FIGURES.get(metric, metric), unit_of(metric), sides, _change(metric, sides)),
            (marks or {}).get(metric, ()),
        )
        for metric, sides in values.items()
        if any(value is not None for value in chain(*sides))
    ]
    first = _correct([row for row in rows if row.metric == primary], 0.0)
    gate = max((each.chance or 0.0 for row in first for each in row.changes if each), default=0.0)
    others = _correct([row for row in rows if row.metric != primary], gate)
    done = {row.metric: row for row in first + others}
    return [done[row.metric] for row in rows]


def count_tests(rows: Sequence[Row]) -> int:
    """Return how many changes were tested."""
    return sum(change is not None and change.chance is not None for row in rows for change in row.changes)


def judge_change(condition: Condition, rows: Sequence[Row]) -> bool | None:
    """Return whether the condition is true of any side's change; None where it could not be measured.

    Of a change with an interval, it must be true of all of the interval. A doubtful change is not measured.
    """
    changes = [
        None if change is None or change.doubtful else change.percent if condition.relative else change.delta
        for row in rows
        if row.metric == condition.metric
        for change in row.changes
    ]
    if any(change is not None and _holds(condition, change) for change in changes):
        return True
    return None if not changes or None in changes else False


def _holds(condition: Condition, change: Estimate) -> bool:
    low = change.value if change.low is None else change.low
    high = change.value if change.high is None else change.high
    return all(condition.holds(value) for value in (low, high, min(max(condition.limit, low), high)))


def _doubt(row: Row, marks: Marks) -> Row:
    """Return the row with the marks of its values; a change no larger than what they may have added is
    doubtful."""
    if not any(chain(*marks)):
        return row
    excess = [float(np.median([mark.excess_ms if mark else 0.0 for mark in side])) for side in marks]
    changes = [
        change and change._replace(doubtful=abs(change.delta.value) <= max(excess[0], added))
        for change, added in zip(row.changes, excess[1:], strict=True)
    ]
    return row._replace(changes=changes, marks=marks)


def _change(metric: str, sides: Values) -> list[Change | None]:
    known = [[value for value in side if value is not None] for side in sides]
    # A run without the value, such as one that did not sell out, is no smaller sample but another result.
    whole = [len(values) == len(side) > 0 for values, side in zip(known, sides, strict=True)]
    return [
        _compare_sides(metric, known[0], values) if whole[0] and complete else None
        for values, complete in zip(known[1:], whole[1:], strict=True)
    ]


def _compare_sides(metric: str, before: Sequence[float], after: Sequence[float]) -> Change:
    if metric in CERTAIN or len(before) == len(after) == 1:
        delta = Estimate(max(after) - max(before))
        return Change(delta, _in_percent(delta, max(before)))
    delta = estimate_shift(before, after)
    percent = _in_percent(delta, float(np.median(before)))
    if min(*before, *after) > 0:
        shift = estimate_shift(np.log(before).tolist(), np.log(after).tolist())
        low, high = (None if end is None else 100 * np.expm1(end) for end in shift[1:])
        percent = Estimate(float(100 * np.expm1(shift.value)), low, high)
    constant = len({*before, *after}) == 1
    if constant or find_cutoff(len(before), len(after), LEVEL) is None:
        return Change(delta, percent)
    return Change(delta, percent, rank_test(before, after))


def _in_percent(delta: Estimate, before: float) -> Estimate | None:
    if not before:
        return None if delta.value else Estimate(0.0)
    return Estimate(100 * delta.value / before)


def _correct(rows: Sequence[Row], least: float) -> list[Row]:
    """Return the rows with the p of their tests corrected together, none of them below `least`."""
    tested = [each.chance for row in rows for each in row.changes if each and each.chance is not None]
    corrected = iter(correct(tested))
    level = LEVEL / max(len(tested), 1)
    return [
        row._replace(
            changes=[
                change
                if change is None or change.chance is None
                else change._replace(
                    chance=max(next(corrected), least),
                    detectable=_find_detectable(row.values[0], row.values[number], level),
                )
                for number, change in enumerate(row.changes, 1)
            ]
        )
        for row in rows
    ]


def _find_detectable(
    before: Sequence[float | None], after: Sequence[float | None], level: float
) -> float | None:
    spreads = [_measure_spread(side) for side in (before, after)]
    shift = find_detectable(len(before), len(after), level)
    if shift is None or None in spreads:
        return None
    return float(100 * np.expm1(shift * np.sqrt(np.mean(np.square(np.array(spreads, np.float64))))))


def measure_spread(values: Mapping[str, Sequence[float | None]]) -> dict[str, Spread]:
    """Return how far each metric that any run of a series has spreads over its runs."""
    found = {}
    for metric, runs in values.items():
        known = [value for value in runs if value is not None]
        spread = _measure_spread(runs)
        if known:
            found[metric] = Spread(
                values=list(runs),
                median=float(np.median(known)),
                low=min(known),
                high=max(known),
                spread_percent=None if spread is None else 100 * spread,
                detectable_percent=None if metric in CERTAIN else _find_detectable(runs, runs, LEVEL),
            )
    return found


def _measure_spread(runs: Sequence[float | None]) -> float | None:
    """Return the standard deviation of the logarithms; None where a value is missing or 0, or alone."""
    known = np.array([value for value in runs if value is not None])
    if len(known) < max(len(runs), 2) or known.min() <= 0:
        return None
    return float(np.std(np.log(known), ddof=1))
