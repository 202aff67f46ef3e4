"""The plots of how long answers took: each a function from the history to a drawing, or None where there is
nothing to draw.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from simulation.judge.numbers.latency import PERCENTILES, TRUSTED, Floats, response_ms, service_ms
from simulation.judge.numbers.requests import select_waits
from simulation.report.page import HEAT, LIGHT
from simulation.report.plots.canvas import DASHED, FILL, Canvas, Course, note
from simulation.report.plots.run import OUTCOME_COLOURS, last_second, time_edges
from simulation.report.words import OUTCOMES, count, ms, short

_LINES: Final = {
    "p50": ("p50", "sky", 1.6),
    "p99": ("p99", "blue", 2.2),
    "p999": ("p99.9", "pink", 1.3),
    "max": ("max", "muted", 0.8),
}
"""Word, colour and width of each percentile over time."""


def percentile_steps(at_s: Floats, values: Floats, edges: Floats, percentile: float) -> Floats:
    """Return a percentile over time: its value in each bin, the same in all bins of a step.

    A step lasts until it holds so many values that one is expected beyond the percentile: with fewer, the
    percentile can't be told from the maximum. A bin without values ends a step. A step with too few values is
    NaN.
    """
    needed = np.ceil(round(1 / (1 - percentile / 100), 6)) if percentile < 100 else 1
    order = np.argsort(at_s, kind="stable")
    values = values[order]
    bounds = np.searchsorted(at_s[order], edges)
    steps = np.full(len(edges) - 1, np.nan)
    first = 0
    for last in range(len(edges) - 1):
        if bounds[last] == bounds[last + 1]:
            first = last + 1
        elif bounds[last + 1] - bounds[first] >= needed:
            steps[first : last + 1] = np.percentile(values[bounds[first] : bounds[last + 1]], percentile)
            first = last + 1
    return steps


def draw_latency(history: pd.DataFrame, course: Course, timeout_ms: float) -> Canvas | None:
    """Draw response time by percentile over intended start, of accepted and of sold-out requests.

    A percentile with too few requests for any step is one point that says on how many it rests.
    """
    answers = {
        OUTCOMES[name]: time_answers(chosen, timeout_ms)
        for name in map(str.lower, OUTCOME_COLOURS)
        if len(chosen := select_waits(history, name))
    }
    if not answers:
        return None
    end_s = last_second(history)
    edges = time_edges(end_s, 80)
    canvas = Canvas({word.capitalize(): 165 for word in answers})
    for axes, (at_s, took) in zip(canvas.panels, answers.values(), strict=True):
        for name, (word, colour, width) in _LINES.items():
            look = LIGHT[colour]
            steps = percentile_steps(at_s, took, edges, PERCENTILES[name])
            if np.isnan(steps).all():
                middle = (float(at_s.min()) + float(at_s.max())) / 2
                value = float(np.percentile(took, PERCENTILES[name]))
                axes.plot(middle, value, "o", color=look, ms=5)
                note(axes, f"{word} of {count(len(took))} requests", (middle, value), middle > 0.6 * end_s)
            else:
                axes.stairs(
                    steps, edges, baseline=None, color=look, lw=width, zorder=3 - width / 9, label=word
                )
    canvas.log_axis("y", 1.5, 4 if course.faults or course.moments else 2.4)
    canvas.time_axis(end_s, course)
    return canvas


def time_answers(history: pd.DataFrame, timeout_ms: float) -> tuple[Floats, Floats]:
    """Return of each request the intended start, in seconds, and the response time, in ms."""
    return history["intended_ns"].to_numpy("float64") / 1e9, response_ms(history, timeout_ms)


def tail_of(took: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return places along sorted values that are dense towards the slowest, as 1/(1−p) and as indices."""
    size = len(took)
    beyond = np.unique(np.round(np.geomspace(1, size, 240)).astype(np.int64))[::-1]
    nines: Floats = size / beyond
    return nines, size - beyond


def draw_percentiles(history: pd.DataFrame, timeout_ms: float) -> Canvas | None:
    """Draw response and service time at every percentile; between them is the lag.

    The x axis counts nines, as HdrHistogram's plots do. A curve is thin where fewer than TRUSTED requests are
    slower, since another run would draw it elsewhere.
    """
    canvas = Canvas({"Latency at a percentile": 260})
    [axes] = canvas.panels
    for outcome, colour in OUTCOME_COLOURS.items():
        chosen = select_waits(history, outcome.lower())
        response, service = np.sort(response_ms(chosen, timeout_ms)), np.sort(service_ms(chosen))
        if not len(service):
            continue
        nines, at = tail_of(response)
        # Requests without an answer have no service time: each curve has places of its own.
        service_nines, service_at = tail_of(service)
        firm = len(response) - at >= TRUSTED
        look, word = LIGHT[colour], OUTCOMES[outcome.lower()]
        axes.plot(nines, response[at], color=look, lw=0.9)
        axes.plot(nines[firm], response[at][firm], color=look, lw=2.2, label=f"{word}, response")
        axes.plot(service_nines, service[service_at], color=look, lw=1.1, ls=DASHED, label=f"{word}, service")
        beside = np.interp(nines, service_nines, service[service_at])
        axes.fill_between(nines, beside, response[at], color=look, alpha=FILL, lw=0)
    if not axes.lines:
        return None
    canvas.log_axis("y", 1.2, 1.3)
    canvas.nines_axis()
    return canvas


def draw_knee(rates: Floats, p99_ms: Floats, knee: Mapping[str, Any]) -> Canvas | None:
    """Draw the p99 response at each offered rate of a climb, the knee, and the plateau before it."""
    if not len(rates):
        return None
    canvas = Canvas({"By offered rate": 230})
    [axes] = canvas.panels
    plateau_ms, rps = knee["plateau_p99_ms"], knee["rps"]
    highest = float(rates.max())
    end = highest if rps is None else rps
    axes.set_xlim(0, highest * 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{short(value)}/s")
    axes.plot([0, end], [plateau_ms] * 2, color=LIGHT["green"], lw=2.2, label=f"plateau, {ms(plateau_ms)}")
    for word, colour, chosen in (
        ("p99 response", "blue", rates <= end),
        ("beyond the knee", "orange", rates > end),
    ):
        if chosen.any():
            axes.plot(rates[chosen], p99_ms[chosen], "o", color=LIGHT[colour], ms=4, label=word)
    if rps is not None:
        axes.axvspan(rps, highest * 1.02, color=LIGHT["shade"], lw=0, zorder=0)
        note(axes, f"knee at {count(rps)}/s offered", (rps, float(p99_ms.max()) * 1.6), rps > 0.6 * highest)
    canvas.log_axis("y", 1.6, 2.5)
    return canvas


def draw_heat(history: pd.DataFrame, course: Course, timeout_ms: float) -> Canvas | None:
    """Draw how many requests took how long, over time: all that were answered, by their intended start."""
    at_s, took = time_answers(history.dropna(subset=["sent_ns", "done_ns"]), timeout_ms)
    if not len(at_s):
        return None
    end_s = last_second(history)
    took = np.maximum(took, 1e-3)
    across, up = time_edges(end_s, 80), np.geomspace(took.min() / 1.05, took.max() * 1.05, 35)
    cells, _, _ = np.histogram2d(at_s, took, (across, up))
    canvas = Canvas({"Response time, and requests in a cell": 230})
    # Steps of equal ratio, so that a lone slow request shows beside thousands of quick ones.
    steps = np.geomspace(1, max(float(cells.max()), 2) + 1, len(HEAT) + 1)
    levels = np.where(cells > 0, np.digitize(cells, steps), 0)
    for level, colour in enumerate(HEAT, 1):
        boxes = []
        for x, y in zip(*np.nonzero(levels == level), strict=True):
            (left, right), (bottom, top) = across[x : x + 2], up[y : y + 2]
            corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
            boxes.append(Path(corners, closed=True))
        if boxes:
            first = count(np.ceil(steps[level - 1]))
            cell = PathPatch(
                Path.make_compound_path(*boxes), color=LIGHT[colour], lw=0, label=f"from {first}"
            )
            canvas.panels[0].add_patch(cell)
    canvas.log_axis("y", 1, 3 if course.faults or course.moments else 1.8)
    canvas.time_axis(end_s, course)
    return canvas
