"""The plots of a comparison: the runs laid over each other, each in a colour of its own."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from simulation.judge.comparison import Row, Run
from simulation.judge.numbers.latency import response_ms
from simulation.report.canvas import Canvas, Course
from simulation.report.latency_plots import percentile_steps, tail_of, time_answers
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots import last_second, time_edges

LETTERS: Final = "ABCDEFGH"
"""The names of the runs; SERIES has their colours."""


def draw_changes(rows: Sequence[Row]) -> Canvas | None:
    """Draw the change of every time with its interval, around the line of no change."""
    shown = [row for row in rows if any(change and change.low is not None for change in row.changes)]
    if not shown:
        return None
    others = len(shown[0].changes)
    canvas = Canvas({"Change from A": (14 + 14 * others) * len(shown)})
    [axes] = canvas.panels
    for number, row in enumerate(shown):
        for other, change in enumerate(row.changes, 1):
            if change is None or change.percent is None or change.low is None or change.high is None:
                continue
            y = number + (other / (others + 1) - 0.5) * 0.8
            look = LIGHT[SERIES[other]]
            axes.plot([change.low, change.high], [y, y], color=look, lw=2)
            face = look if change.sure else LIGHT["paper"]
            axes.plot([change.percent], y, "o", color=look, mfc=face, ms=7, mew=1.8)
    for letter, colour in zip(LETTERS[1:], SERIES[1 : others + 1], strict=False):
        axes.plot([], "o", color=LIGHT[colour], label=letter)
    axes.axvline(0, color=LIGHT["muted"], lw=1, zorder=1)
    # Changes of a few percent and manifold ones are read off one axis.
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=max(axes.get_xlim()[0], -100))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+,g}%")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [row.title for row in shown])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return canvas


def draw_curves(runs: Sequence[Run], outcome: str) -> Canvas | None:
    """Draw the response time at every percentile of one outcome's requests; the x axis counts nines."""
    canvas = Canvas({"Response time at a percentile": 240})
    [axes] = canvas.panels
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        chosen = run.metrics.history[run.metrics.history["outcome"] == outcome]
        took = np.sort(response_ms(chosen, run.metrics.driver.timeout_ms))
        if len(took):
            nines, at = tail_of(took)
            axes.plot(nines, took[at], color=LIGHT[colour], label=letter)
    if not axes.lines:
        return None
    canvas.log_axis("y", 1.2, 1.3)
    canvas.nines_axis()
    return canvas


def draw_times(runs: Sequence[Run], course: Course) -> Canvas | None:
    """Draw the p99 of the response time of all answered requests, over time."""
    end_s = max(last_second(run.metrics.history) for run in runs)
    edges = time_edges(end_s)
    canvas = Canvas({"Response time, p99": 230})
    [axes] = canvas.panels
    for letter, colour, run in zip(LETTERS, SERIES, runs, strict=False):
        p99_ms = percentile_steps(
            *time_answers(run.metrics.history, run.metrics.driver.timeout_ms), edges, 99
        )
        axes.stairs(p99_ms, edges, baseline=None, color=LIGHT[colour], lw=1.7, label=letter)
    if not axes.dataLim.y1 > 0:
        return None
    canvas.log_axis("y", 1.3, 2)
    canvas.time_axis(end_s, course)
    return canvas
