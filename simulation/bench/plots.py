"""The benchmark's plots: each a function from results to a drawing, or None without results."""

from collections.abc import Sequence

import numpy as np

from simulation.bench.results import Curve, FrontDoor, Responses
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots.canvas import FILL, Canvas, note
from simulation.report.words import count, short


def draw_front_door(rows: Sequence[FrontDoor]) -> Canvas | None:
    """Draw answers per second as bars, with the spread over the rounds."""
    if not rows:
        return None
    names = list(dict.fromkeys(row.subject for row in rows))
    sizes = sorted({row.connections for row in rows})
    canvas = Canvas({"Answers per second": 26 * len(rows) + 10 * len(names)})
    [axes] = canvas.panels
    height = 0.84 / len(sizes)
    for number, (size, colour) in enumerate(zip(sizes, SERIES, strict=False)):
        shown = [row for row in rows if row.connections == size]
        places = [names.index(row.subject) + (number - (len(sizes) - 1) / 2) * height for row in shown]
        medians = [row.rps.median for row in shown]
        axes.barh(places, medians, 0.9 * height, color=LIGHT[colour], label=f"{size} connections")
        for row, place in zip(shown, places, strict=True):
            axes.plot([row.rps.low, row.rps.high], [place, place], color=LIGHT["ink"], lw=1.2)
            note(axes, count(row.rps.median), (row.rps.high, place))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, color=LIGHT["ink"])
    axes.grid(visible=False)
    axes.set_xlim(0, 1.15 * axes.dataLim.x1)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    return canvas


def draw_responses(rows: Sequence[Responses]) -> Canvas | None:
    """Draw response times by percentile, a line for each rate."""
    if not rows:
        return None
    canvas = Canvas({"Response time": 260})
    [axes] = canvas.panels
    for row, colour in zip(rows, SERIES, strict=False):
        names, times = list(row.ms), list(row.ms.values())
        share = f"{row.share:.0%}, " if row.share else ""
        label = f"{row.subject}, {share}{short(round(row.offered_rps, -2))}/s"
        axes.plot(names, [time.median for time in times], "o-", color=LIGHT[colour], ms=4, label=label)
        lows, highs = [time.low for time in times], [time.high for time in times]
        axes.fill_between(names, lows, highs, color=LIGHT[colour], alpha=FILL, lw=0)
    canvas.log_axis("y", 1.5, 1.5)
    return canvas


def draw_growth(curves: Sequence[Curve]) -> Canvas | None:
    """Draw the cost of a request over that of the smallest size, a panel for each axis."""
    if not curves:
        return None
    axes_names = list(dict.fromkeys(curve.axis for curve in curves))
    canvas = Canvas({f"Cost × that of the smallest, by {axis}": 150 for axis in axes_names})
    for panel, axis in zip(canvas.panels, axes_names, strict=True):
        shown = [curve for curve in curves if curve.axis == axis]
        for curve, colour in zip(shown, SERIES, strict=False):
            ratios = [point.times_smallest for point in curve.points]
            places, look = np.linspace(0, 1, len(ratios)), LIGHT[colour]
            panel.plot(
                places, [ratio.median for ratio in ratios], "o-", color=look, ms=4, label=curve.subject
            )
            panel.vlines(
                places, [ratio.low for ratio in ratios], [ratio.high for ratio in ratios], look, lw=1.2
            )
        panel.axhline(1, color=LIGHT["muted"], lw=0.8)
        panel.set_xlim(-0.05, 1.05)
        panel.set_ylim(0, 1.1 * panel.dataLim.y1)
        # The panels share their x axis, but not their sizes: each names its own.
        panel.tick_params(labelbottom=False)
        for place, point in zip(places, shown[0].points, strict=True):
            panel.annotate(
                short(point.size), (place, 0), (0, -6), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="top", color=LIGHT["muted"], size=10,
                annotation_clip=False,
            )  # fmt: skip
    return canvas
