"""The benchmark's plots: each a function from results to a drawing, or None with nothing to draw."""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, NullLocator

from simulation.bench.results import Curve, FrontDoor, Responses
from simulation.report.canvas import LIGHT, SERIES, Canvas, Entry, short

_BAR = 26


def draw_front_door(rows: Sequence[FrontDoor]) -> Canvas | None:
    """Answers per second as bars, with the spread over the rounds."""
    if not rows:
        return None
    names = list(dict.fromkeys(row.subject for row in rows))
    sizes = sorted({row.connections for row in rows})
    canvas = Canvas(True, [_BAR * len(rows) + 20 * len(names)])
    axes = canvas.panels[0]
    axes.grid(visible=False)
    axes.set_yticks([])
    highest = max(row.rps.high for row in rows)
    for row in rows:
        colour = SERIES[sizes.index(row.connections)]
        place = names.index(row.subject) * (len(sizes) + 1) + sizes.index(row.connections) + 0.6
        axes.barh(place, row.rps.median, height=0.8, color=LIGHT[colour])
        axes.plot([row.rps.low, row.rps.high], [place, place], color=LIGHT["ink"], lw=1.2)
        canvas.note(0, f"{row.rps.median:,.0f}", (row.rps.high, place), "muted", "right")
    for number, name in enumerate(names):
        axes.annotate(
            name,
            (0, number * (len(sizes) + 1) - 0.25),
            color=LIGHT["ink"],
            fontsize=canvas.size,
            va="center",
        )
    axes.set_ylim(len(names) * (len(sizes) + 1) - 0.4, -0.8)
    axes.set_xlim(0, highest * 1.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    entries = [Entry(f"{size} connections", SERIES[number]) for number, size in enumerate(sizes)]
    canvas.key(0, "Answers per second", entries)
    return canvas


def draw_responses(rows: Sequence[Responses]) -> Canvas | None:
    """Response times by percentile, a line for each rate."""
    if not rows:
        return None
    canvas = Canvas(True, [260], key_rows=3)
    axes = canvas.panels[0]
    canvas.log_axis(
        "y",
        min(time.low for row in rows for time in row.ms.values()) / 1.5,
        max(time.high for row in rows for time in row.ms.values()) * 1.5,
    )
    entries = []
    for row, colour in zip(rows, SERIES, strict=False):
        places = range(len(row.ms))
        times = list(row.ms.values())
        axes.fill_between(
            places,
            [time.low for time in times],
            [time.high for time in times],
            color=LIGHT[colour],
            alpha=0.16,
            lw=0,
        )
        axes.plot(places, [time.median for time in times], "o-", color=LIGHT[colour], lw=1.9, ms=4)
        share = f"{row.share:.0%}, " if row.share else ""
        entries.append(Entry(f"{row.subject}, {share}{short(round(row.offered_rps, -2))}/s", colour))
    axes.set_xticks(range(len(rows[0].ms)), list(rows[0].ms))
    canvas.key(0, "Response time", entries)
    return canvas


def draw_growth(curves: Sequence[Curve]) -> Canvas | None:
    """Cost per request over that of the smallest size, a panel for each axis."""
    if not curves:
        return None
    axes_names = list(dict.fromkeys(curve.axis for curve in curves))
    canvas = Canvas(True, [150] * len(axes_names))
    # The panels share their x axis, and each has sizes of its own: they are put at equal distances.
    for number, axis in enumerate(axes_names):
        panel = canvas.panels[number]
        shown = [curve for curve in curves if curve.axis == axis]
        entries = []
        for curve, colour in zip(shown, SERIES, strict=False):
            ratios = [point.times_smallest for point in curve.points]
            places = _places(curve)
            panel.plot(places, [ratio.median for ratio in ratios], "o-", color=LIGHT[colour], lw=1.9, ms=4)
            panel.vlines(
                places, [ratio.low for ratio in ratios], [ratio.high for ratio in ratios],
                color=LIGHT[colour], lw=1.2,
            )  # fmt: skip
            entries.append(Entry(curve.subject, colour))
        panel.axhline(1, color=LIGHT["muted"], lw=0.8)
        panel.set_xlim(-0.05, 1.05)
        panel.set_ylim(0, 1.1 * max(point.times_smallest.high for curve in shown for point in curve.points))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.tick_params(labelbottom=False)
        for place, point in zip(_places(shown[0]), shown[0].points, strict=True):
            panel.annotate(
                short(point.size), (place, 0), (0, -6), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="top", color=LIGHT["muted"],
                fontsize=canvas.size - 1, annotation_clip=False,
            )  # fmt: skip
        canvas.key(number, f"Cost × that of the smallest, by {axis}", entries)
    return canvas


def _places(curve: Curve) -> list[float]:
    last = max(len(curve.points) - 1, 1)
    return [number / last for number in range(len(curve.points))]
