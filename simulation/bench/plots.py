"""The benchmark's plots: each a function from results to a drawing, or None without results."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from simulation.bench.results import Curve, FrontDoor, Responses, Scaling
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots.canvas import Canvas, note
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
    """Draw response times by percentile: a panel for each subject, a line for each rate, with the spread of
    the rounds."""
    if not rows:
        return None
    subjects = list(dict.fromkeys(row.subject for row in rows))
    canvas = Canvas({f"Response time, {subject}": 140 for subject in subjects})
    for axes, subject in zip(canvas.panels, subjects, strict=True):
        shown = [row for row in rows if row.subject == subject]
        for number, (row, colour) in enumerate(zip(shown, SERIES, strict=False)):
            # Beside each other: spreads of several rates would hide one another.
            places = np.arange(len(row.ms)) + 0.06 * (number - (len(shown) - 1) / 2)
            share = f"{row.share:.0%}, " if row.share else ""
            label, look = f"{share}{short(round(row.offered_rps, -2))}/s", LIGHT[colour]
            times = list(row.ms.values())
            axes.plot(places, [time.median for time in times], "o-", color=look, ms=4, lw=1.4, label=label)
            axes.vlines(places, [time.low for time in times], [time.high for time in times], look, lw=1.2)
        axes.set_xticks(range(len(rows[0].ms)), list(rows[0].ms))
    canvas.log_axis("y", 1.5, 1.5)
    return canvas


def draw_growth(curves: Sequence[Curve]) -> Canvas | None:
    """Draw the cost of a request over that at the cheapest size, a panel for each axis."""
    if not curves:
        return None
    axes_names = list(dict.fromkeys(curve.axis for curve in curves))
    canvas = Canvas({f"Cost × the cheapest, by {axis}": 130 for axis in axes_names})
    for panel, axis in zip(canvas.panels, axes_names, strict=True):
        shown = [curve for curve in curves if curve.axis == axis]
        for number, (curve, colour) in enumerate(zip(shown, SERIES, strict=False)):
            costs = [point.cost_us for point in curve.points]
            cheapest, look = min(cost.median for cost in costs), LIGHT[colour]
            places = np.linspace(0, 1, len(costs)) + 0.008 * (number - (len(shown) - 1) / 2)
            medians = [cost.median / cheapest for cost in costs]
            panel.plot(places, medians, "o-", color=look, ms=4, label=curve.subject)
            lows, highs = ([getattr(cost, end) / cheapest for cost in costs] for end in ("low", "high"))
            panel.vlines(places, lows, highs, look, lw=1.2)
        panel.axhline(1, color=LIGHT["muted"], lw=0.8)
        low, high = panel.dataLim.intervaly
        panel.set(xlim=(-0.05, 1.05), yscale="log", ylim=(min(low, 0.8) / 1.1, max(high, 2.2) * 1.1))
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(lambda value, _: f"× {value:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        # The panels share their x axis, but not their sizes: each names its own.
        panel.tick_params(labelbottom=False)
        sizes = shown[0].points
        for place, point in zip(np.linspace(0, 1, len(sizes)), sizes, strict=True):
            panel.annotate(
                short(point.size), (place, 0), (0, -6), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="top", color=LIGHT["muted"], size=10,
                annotation_clip=False,
            )  # fmt: skip
    return canvas


def draw_scaling(curves: Sequence[Scaling]) -> Canvas | None:
    """Draw the rate over that of one machine, a panel for each kind of machine, beside linear growth."""
    if not curves:
        return None
    kinds = list(dict.fromkeys(curve.machines for curve in curves))
    canvas = Canvas({f"Rate × that of the fewest {kind}": 150 for kind in kinds})
    for panel, kind in zip(canvas.panels, kinds, strict=True):
        shown = [curve for curve in curves if curve.machines == kind]
        sizes = sorted({point.size for curve in shown for point in curve.points})
        panel.plot(sizes, [size / sizes[0] for size in sizes], color=LIGHT["muted"], lw=0.8, label="linear")
        for number, (curve, colour) in enumerate(zip(shown, SERIES, strict=False)):
            look, label = LIGHT[colour], f"{curve.state}, {curve.share:g} cores each"
            places = [point.size * (1 + 0.01 * number) for point in curve.points]
            times = [(point.efficiency, point.size / sizes[0]) for point in curve.points]
            panel.plot(places, [each.median * of for each, of in times], "o-", color=look, ms=4, label=label)
            lows, highs = ([getattr(each, end) * of for each, of in times] for end in ("low", "high"))
            panel.vlines(places, lows, highs, look, lw=1.2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
    return canvas
