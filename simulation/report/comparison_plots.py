"""The plots of a comparison: the runs laid over each other, each in a colour of its own."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.ticker import NullLocator

from simulation.judge.comparison import Row, Run
from simulation.judge.numbers.latency import response_ms
from simulation.report.canvas import Canvas, Course
from simulation.report.latency_plots import tail_of
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots import last_second, middles_of, time_edges

LETTERS: Final = "ABCDEFGH"
"""The names of the runs; SERIES has their colours."""
_FAR_PERCENT: Final = 400.0
"""Changes beyond this are drawn as factors, on a logarithmic axis: percents would hide all smaller ones."""
_LEAST_FACTOR: Final = 0.01


def draw_changes(rows: Sequence[Row]) -> Canvas | None:
    """Draw the change of every time with its interval, around the line of no change."""
    shown = [row for row in rows if any(change and change.low is not None for change in row.changes)]
    if not shown:
        return None
    others = len(shown[0].changes)
    reach = _reach(shown)
    far = reach > _FAR_PERCENT

    def place(percent: float) -> float:
        return max(1 + percent / 100, _LEAST_FACTOR) if far else max(percent, -99.0)

    canvas = Canvas({"Change from A": (14 + 14 * others) * len(shown)})
    [axes] = canvas.panels
    labelled: set[str] = set()
    for number, row in enumerate(shown):
        for letter, colour, change in zip(LETTERS[1:], SERIES[1:], row.changes, strict=False):
            if change is None or change.percent is None or change.low is None or change.high is None:
                continue
            y = number + (LETTERS.index(letter) / (others + 1) - 0.5) * 0.8
            look = LIGHT[colour]
            axes.plot([place(change.low), place(change.high)], [y, y], color=look, lw=2)
            axes.plot(
                place(change.percent), y, "o", color=look, mfc=look if change.sure else LIGHT["paper"],
                ms=7, mew=1.8, label=None if letter in labelled else letter,
            )  # fmt: skip
            labelled.add(letter)
    axes.axvline(place(0), color=LIGHT["muted"], lw=1, zorder=1)
    if far:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    else:
        axes.set_xlim(-min(reach * 1.1, 105), reach * 1.1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}%" if value else "0")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [row.title for row in shown])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return canvas


def _reach(rows: Sequence[Row]) -> float:
    """Return how far the changes reach, in percent. An interval may reach anywhere: it counts up to 150 %."""
    reach = 5.0
    for change in (change for row in rows for change in row.changes):
        if change is not None and None not in (change.percent, change.low, change.high):
            percent, low, high = change.percent or 0.0, change.low or 0.0, change.high or 0.0
            reach = max(reach, min(abs(low), 99.0), min(abs(high), 150.0), abs(percent))
    return reach


def draw_curves(runs: Sequence[Run], outcome: str) -> Canvas | None:
    """Draw the response time at every percentile of one outcome's requests; the x axis counts nines."""
    canvas = Canvas({"Response time at a percentile": 240})
    [axes] = canvas.panels
    lowest, highest, most = np.inf, 0.0, 0
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        took = np.sort(response_ms(run.metrics.history[run.metrics.history["outcome"] == outcome]))
        if len(took):
            nines, at = tail_of(took)
            axes.plot(nines, took[at], color=LIGHT[colour], label=letter)
            lowest, highest = min(lowest, float(took[0])), max(highest, float(took[-1]))
            most = max(most, len(took))
    if not most:
        return None
    canvas.log_axis("y", max(lowest, 1e-3) / 1.2, highest * 1.3)
    canvas.nines_axis(most)
    return canvas


def draw_times(runs: Sequence[Run], course: Course) -> Canvas | None:
    """Draw the p99 of the response time of all answered requests, over time."""
    end_s = max(last_second(run.metrics.history) for run in runs)
    edges = time_edges(end_s)
    canvas = Canvas({"Response time, p99": 230})
    [axes] = canvas.panels
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        answered = run.metrics.history.dropna(subset=["sent_ns", "done_ns"])
        bins = np.digitize(answered["intended_ns"].to_numpy("int64") / 1e9, edges) - 1
        took = response_ms(answered)
        line = np.full(len(edges) - 1, np.nan)
        for place in np.unique(bins[bins < len(line)]):
            line[place] = np.percentile(took[bins == place], 99)
        axes.plot(middles_of(edges), line, color=LIGHT[colour], lw=1.7, label=letter)
    low, high = axes.dataLim.intervaly
    if not high > 0:
        return None
    canvas.log_axis("y", low / 1.3, high * 2)
    canvas.time_axis(end_s, course)
    return canvas
