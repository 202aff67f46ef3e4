"""How the key figures of one scenario went from run to run: a small line for each figure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from simulation.judge.figures import FIGURES, read_metric
from simulation.report.words import FLASHGRID, figure
from simulation.scenario.condition import unit_of

FEWEST: Final = 2
"""Runs that make a trend."""
WIDTH: Final = 220
HEIGHT: Final = 30
_MARGIN: Final = 5
_SHOWN: Final = (
    "accepted.response.p50",
    "accepted.response.p99",
    "sold_out.response.p99",
    "fulfilment.lag_p99",
    "sold_out_after_s",
    "oversold",
)
ALIKE: Final = 1.15
"""Most by which the numbers of requests of two runs of one load differ: chance makes less."""

Summary = Mapping[str, Any]


class Point(NamedTuple):
    """A run in a line: its place in pixels, its verdict, and what it says."""

    x: float
    y: float
    verdict: str
    words: str


class Line(NamedTuple):
    """A figure over the runs."""

    title: str
    points: list[Point]
    first: str
    last: str
    low: str
    high: str


class Trend(NamedTuple):
    """Runs of the same load, the earliest first, and their figures."""

    scenario: str
    runs: int
    first: str
    last: str
    """The names of its first and its last run."""
    lines: list[Line]


def find_trends(runs: Sequence[tuple[str, Summary]]) -> list[Trend]:
    """Return the trends of the runs, given as name and summary.

    In one are only runs of the same scenario, length, stock, faults, engine and driver, and of about as many
    requests.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, Summary]]] = defaultdict(list)
    for name, summary in sorted(runs, key=lambda run: (_place(run[1]), run[1]["load"]["requests"])):
        key, requests = _place(summary), summary["load"]["requests"]
        turn = max((other[-1] for other in groups if other[:-1] == key), default=0)
        last = groups.get((*key, turn))
        if last and requests > ALIKE * last[-1][1]["load"]["requests"]:
            turn += 1
        groups[(*key, turn)].append((name, summary))
    for group in groups.values():
        group.sort(key=lambda run: (run[1]["started_at"], run[0]))
    return [
        Trend(
            key[0],
            len(group),
            group[0][0],
            group[-1][0],
            [line for metric in _SHOWN if (line := _draw(metric, group))],
        )
        for key, group in groups.items()
        if len(group) >= FEWEST
    ]


def _place(summary: Summary) -> tuple[Any, ...]:
    faults = [(fault["kind"], fault["on"]) for fault in summary.get("faults", [])]
    sides = summary.get("engine", FLASHGRID), summary.get("driver", "")
    return summary["scenario"], summary["duration_s"], summary["stock"]["initial"], *sides, *faults


def _draw(metric: str, runs: Sequence[tuple[str, Summary]]) -> Line | None:
    """Return the line of a metric; None where fewer than two runs have it."""
    known = [
        (at, name, summary, value)
        for at, (name, summary) in enumerate(runs)
        if (value := read_metric(dict(summary), metric)) is not None
    ]
    if len(known) < FEWEST:
        return None
    numbers = [value for *_, value in known]
    low, high, unit = min(numbers), max(numbers), unit_of(metric)
    step = (WIDTH - 2 * _MARGIN) / (len(runs) - 1)
    # From zero: a line that fills its height by a change of a percent would mislead.
    scale = (HEIGHT - 2 * _MARGIN) / (high or 1.0)
    points = [
        Point(
            round(_MARGIN + at * step, 1),
            round(HEIGHT - _MARGIN - value * scale, 1),
            summary["verdict"],
            f"{name}: {figure(value, unit)}",
        )
        for at, name, summary, value in known
    ]
    first, last, least, most = (figure(value, unit) for value in (numbers[0], numbers[-1], low, high))
    return Line(FIGURES[metric], points, first, last, least, most)
