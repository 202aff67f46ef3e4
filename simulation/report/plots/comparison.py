"""The plots of a comparison: the runs laid over each other, each in a colour of its own."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from simulation.judge.comparison import Row
from simulation.judge.numbers.latency import response_ms
from simulation.judge.thresholds import Metrics
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots.canvas import Canvas, Course
from simulation.report.plots.latency import percentile_steps, tail_of, time_answers
from simulation.report.plots.run import last_second, time_edges

LETTERS: Final = "ABCDEFGH"
"""The names of the runs; SERIES has their colours."""


def draw_spread(rows: Sequence[Row]) -> Canvas | None:
    """Draw every run's times as multiples of the first side's median, and the interval of each change."""
    shown = [row for row in rows if row.unit and (known := _list_known(row, 0)) and min(known) > 0]
    if not shown:
        return None
    sides = len(shown[0].values)
    title = "Multiples of the median" if sides == 1 else "Multiples of the median of A"
    canvas = Canvas({title: (16 + 12 * sides) * len(shown)})
    [axes] = canvas.panels
    for number, row in enumerate(shown):
        middle = np.median(_list_known(row, 0))
        for side in range(sides):
            y = number + ((side + 1) / (sides + 1) - 0.5) * 0.8
            look = LIGHT[SERIES[side]]
            values = np.array(_list_known(row, side)) / middle
            axes.plot(values, np.full(len(values), y), "o", color=look, mfc="none", ms=5, mew=1.2)
            change = row.changes[side - 1] if side else None
            if change and (ratio := change.percent) and ratio.low is not None and ratio.high is not None:
                ends = 1 + np.array([ratio.low, ratio.high]) / 100
                axes.plot(ends, [y, y], color=look, lw=4, alpha=0.9 if change.sure else 0.3)
    for letter, colour in zip(LETTERS[:sides], SERIES[:sides], strict=True) if sides > 1 else ():
        axes.plot([], "o", color=LIGHT[colour], mfc="none", label=letter)
    axes.axvline(1, color=LIGHT["muted"], lw=1, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.5, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: f"×{value:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [row.title for row in shown])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return canvas


def _list_known(row: Row, side: int) -> list[float]:
    return [value for value in row.values[side] if value is not None]


def draw_curves(runs: Sequence[Metrics], outcome: str) -> Canvas | None:
    """Draw the response time at every percentile of one outcome's requests; the x axis counts nines."""
    canvas = Canvas({"Response time at a percentile": 240})
    [axes] = canvas.panels
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        chosen = run.history[run.history["outcome"] == outcome]
        took = np.sort(response_ms(chosen, run.driver.timeout_ms))
        if len(took):
            nines, at = tail_of(took)
            axes.plot(nines, took[at], color=LIGHT[colour], label=letter)
    if not axes.lines:
        return None
    canvas.log_axis("y", 1.2, 1.3)
    canvas.nines_axis()
    return canvas


def draw_times(runs: Sequence[Metrics], course: Course) -> Canvas | None:
    """Draw the p99 of the response time of all requests, over time."""
    end_s = max(last_second(run.history) for run in runs)
    edges = time_edges(end_s)
    canvas = Canvas({"Response time, p99": 230})
    [axes] = canvas.panels
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        p99_ms = percentile_steps(*time_answers(run.history, run.driver.timeout_ms), edges, 99)
        axes.stairs(p99_ms, edges, baseline=None, color=LIGHT[colour], lw=1.7, label=letter)
    if not axes.dataLim.y1 > 0:
        return None
    canvas.log_axis("y", 1.3, 2)
    canvas.time_axis(end_s, course)
    return canvas
