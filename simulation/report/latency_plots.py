"""The plots of how long answers took: each a function from the history to a drawing, or None where there is
nothing to draw."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from simulation.judge.numbers.latency import PERCENTILES, TRUSTED, Floats, response_ms, service_ms
from simulation.report.canvas import HEAT, LIGHT, Canvas, Course, Entry, milliseconds, short
from simulation.report.plots import FILL, OUTCOME_COLOURS, last_second, time_edges


class Line(NamedTuple):
    """How a percentile over time is drawn."""

    word: str
    colour: str
    width: float


LINES: Final = {
    "p50": Line("p50", "sky", 1.6),
    "p99": Line("p99", "blue", 2.2),
    "p999": Line("p99.9", "pink", 1.3),
    "max": Line("max", "muted", 1.0),
}


class Step(NamedTuple):
    """A percentile of the requests that were meant to start within a stretch of time."""

    start_s: float
    end_s: float
    value: float


def percentile_steps(at_s: Floats, values: Floats, edges: Floats, percentile: float) -> list[Step]:
    """The percentile over time, in steps of whole bins, each as long as it takes for it to be told from the
    maximum: until one value in the step is expected beyond it. A bin without values ends a step; one that
    ends with too few values is not drawn.
    """
    needed = np.ceil(round(1 / (1 - percentile / 100), 6)) if percentile < 100 else 1
    order = np.argsort(at_s, kind="stable")
    values = values[order]
    bounds = np.searchsorted(at_s[order], edges)
    steps = []
    first = 0
    for last in range(len(edges) - 1):
        if bounds[last] == bounds[last + 1]:
            first = last + 1
        elif bounds[last + 1] - bounds[first] >= needed:
            value = np.percentile(values[bounds[first] : bounds[last + 1]], percentile)
            steps.append(Step(float(edges[first]), float(edges[last + 1]), float(value)))
            first = last + 1
    return steps


def draw_latency(history: pd.DataFrame, course: Course, wide: bool) -> Canvas | None:
    """Response time over time by percentile, of accepted and of sold-out requests, by their intended start.

    Of what is too rare for any step, a percentile is one point that says how many requests it rests on.
    """
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    shown = [word for word in OUTCOME_COLOURS if (answered["outcome"] == word).any()]
    if not shown:
        return None
    end_s = last_second(history)
    edges = time_edges(end_s, wide, 80 if wide else 40)
    canvas = Canvas(wide, [165] * len(shown))
    # Few requests are much quicker than the median: the axis is for those that are slower.
    took = response_ms(answered[answered["outcome"].isin(shown)])
    room = 4 if course.faults or course.sold_out_s else 2.4
    canvas.log_axis("y", max(float(np.percentile(took, 5)), 1e-3) / 1.5, float(took.max()) * room)
    for number, outcome in enumerate(shown):
        chosen = answered[answered["outcome"] == outcome]
        axes = canvas.panels[number]
        at_s, took = chosen["intended_ns"].to_numpy("float64") / 1e9, response_ms(chosen)
        for name, line in reversed(LINES.items()):
            steps = percentile_steps(at_s, took, edges, PERCENTILES[name])
            if not steps:
                middle = (float(at_s.min()) + float(at_s.max())) / 2
                value = float(np.percentile(took, PERCENTILES[name]))
                axes.plot(middle, value, "o", color=LIGHT[line.colour], ms=5)
                where = "left" if middle > 0.6 * end_s else "right"
                canvas.note(number, f"{line.word} of {len(took):,} requests", (middle, value), "ink", where)
            xs, ys = _trace(steps)
            if name == "max":
                middles = [(step.start_s + step.end_s) / 2 for step in steps]
                axes.plot(middles, [step.value for step in steps], "o", color=LIGHT[line.colour], ms=2.2)
            else:
                axes.plot(xs, ys, color=LIGHT[line.colour], lw=line.width)
        word = outcome.lower().replace("_", " ").capitalize()
        canvas.key(number, word, [Entry(line.word, line.colour) for line in LINES.values()])
    canvas.time_axis(end_s, *course)
    return canvas


def _trace(steps: list[Step]) -> tuple[Floats, Floats]:
    """The corners of the steps; a gap in time is a gap in the line."""
    xs: list[float] = []
    ys: list[float] = []
    for step in steps:
        if xs and step.start_s > xs[-1] + 1e-9:
            xs.append(np.nan)
            ys.append(np.nan)
        xs += [step.start_s, step.end_s]
        ys += [step.value, step.value]
    return np.array(xs), np.array(ys)


def draw_percentiles(history: pd.DataFrame, wide: bool) -> Canvas | None:
    """Response and service time at every percentile; what lies between them is the wait to be sent.

    The x axis counts nines, as HdrHistogram's plots do. A curve is thin where fewer than TRUSTED requests are
    slower, since another run would draw it elsewhere.
    """
    curves = []
    for outcome, colour in OUTCOME_COLOURS.items():
        chosen = history[history["outcome"] == outcome]
        response, service = np.sort(response_ms(chosen)), np.sort(service_ms(chosen))
        if len(response):
            curves.append((outcome.lower().replace("_", " "), colour, response, service))
    if not curves:
        return None
    most = max(len(response) for _, _, response, _ in curves)
    canvas = Canvas(wide, [260])
    axes = canvas.panels[0]
    entries = []
    for word, colour, response, service in curves:
        size = len(response)
        beyond = np.unique(np.round(np.geomspace(1, size, 240)).astype(np.int64))[::-1]
        nines, at = size / beyond, size - beyond
        firm = beyond >= TRUSTED
        axes.fill_between(nines, service[at], response[at], color=LIGHT[colour], alpha=FILL, lw=0)
        axes.plot(nines, response[at], color=LIGHT[colour], lw=0.9)
        axes.plot(nines[firm], response[at][firm], color=LIGHT[colour], lw=2.2)
        axes.plot(nines, service[at], color=LIGHT[colour], lw=1.1, dashes=(3, 2))
        entries.append(Entry(word, colour))
    lowest = min(float(service[0]) for _, _, _, service in curves)
    highest = max(float(response[-1]) for _, _, response, _ in curves)
    canvas.log_axis("y", max(lowest, 1e-3) / 1.2, highest * 1.3)
    canvas.nines_axis(max(most, 10))
    axes.grid(axis="x", color=LIGHT["grid"], lw=0.8)
    canvas.key(0, "Latency at a percentile", [*entries, Entry("response solid, service dashed", "muted")])
    return canvas


def draw_knee(rates: Floats, p99_ms: Floats, knee: Mapping[str, Any], wide: bool) -> Canvas | None:
    """The p99 response at each offered rate of a climb, the summary's knee, and the plateau before it."""
    if not len(rates):
        return None
    canvas = Canvas(wide, [230])
    axes = canvas.panels[0]
    axes.set_xlim(0, float(rates.max()) * 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{short(value)}/s")
    axes.xaxis.set_major_locator(MaxNLocator(8 if wide else 4))
    canvas.log_axis("y", float(p99_ms.min()) / 1.6, float(p99_ms.max()) * 2.5)
    entries = [Entry("p99 response", "blue")]
    plateau_ms, rps = knee["plateau_p99_ms"], knee["rps"]
    end = float(rates.max()) if rps is None else rps
    beyond = rates > end
    axes.plot([0, end], [plateau_ms] * 2, color=LIGHT["green"], lw=2.2)
    entries.append(Entry(f"plateau {milliseconds(plateau_ms)}", "green"))
    axes.plot(rates[~beyond], p99_ms[~beyond], "o", color=LIGHT["blue"], ms=4)
    axes.plot(rates[beyond], p99_ms[beyond], "o", color=LIGHT["orange"], ms=4)
    if rps is not None:
        entries.append(Entry("beyond the knee", "orange"))
        axes.axvspan(rps, axes.get_xlim()[1], color=LIGHT["shade"], lw=0, zorder=0)
        axes.axvline(rps, color=LIGHT["muted"], lw=0.9, dashes=(3, 2))
        where = "left" if rps > 0.6 * rates.max() else "right"
        canvas.note(0, f"knee at {rps:,.0f}/s offered", (rps, float(p99_ms.max()) * 1.6), "ink", where)
    canvas.key(0, "By offered rate", entries)
    return canvas


def draw_heat(history: pd.DataFrame, course: Course, wide: bool) -> Canvas | None:
    """How many requests took how long, over time: all that were answered, by their intended start."""
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    if answered.empty:
        return None
    end_s = last_second(history)
    took = np.maximum(response_ms(answered), 1e-3)
    low, high = np.log10(took.min()) - 0.02, np.log10(took.max()) + 0.02
    rows = 34 if wide else 26
    across, up = time_edges(end_s, wide), np.logspace(low, high, rows + 1)
    cells, _, _ = np.histogram2d(answered["intended_ns"].to_numpy("int64") / 1e9, took, (across, up))
    canvas = Canvas(wide, [230], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    most = float(cells.max())
    # Steps of equal ratio, so that a lone slow request shows beside thousands of quick ones.
    steps = np.geomspace(1, max(most, 2) * (1 + 1e-9), len(HEAT) + 1)
    levels = np.where(cells > 0, np.digitize(cells, steps), 0)
    for level, colour in enumerate(HEAT, 1):
        boxes = [
            Path([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], closed=True)
            for x0, x1, y0, y1 in _join_cells(levels == level, across, up)
        ]
        if boxes:
            axes.add_patch(PathPatch(Path.make_compound_path(*boxes), color=LIGHT[colour], lw=0))
    canvas.log_axis(
        "y", 10**low, 10 ** (high + (high - low) * (0.16 if course.faults or course.sold_out_s else 0.09))
    )
    canvas.key(0, "Response time" if wide else "Response")
    canvas.scale(0, "1", f"{most:,.0f} requests in a cell" if wide else f"{short(most)} a cell")
    canvas.time_axis(end_s, *course)
    return canvas


def _join_cells(
    chosen: npt.NDArray[np.bool_], across: Floats, up: Floats
) -> list[tuple[float, float, float, float]]:
    """Left, right, bottom and top of boxes that cover the chosen cells; neighbours in time are one box."""
    boxes = []
    for row in range(chosen.shape[1]):
        turns = np.flatnonzero(np.diff(chosen[:, row].astype(np.int8), prepend=0, append=0))
        boxes += [
            (float(across[first]), float(across[last]), float(up[row]), float(up[row + 1]))
            for first, last in turns.reshape(-1, 2)
        ]
    return boxes
