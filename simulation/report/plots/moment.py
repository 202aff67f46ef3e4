"""The plot of the decisive moment: from half a second before the rush to a second after the last unit."""

from typing import Final

import numpy as np
import pandas as pd

from simulation.judge.numbers.latency import PERCENTILES, Floats
from simulation.judge.numbers.requests import select_waits
from simulation.report.page import LIGHT
from simulation.report.plots.canvas import DASHED, Canvas, Course, Phase
from simulation.report.plots.latency import percentile_steps, time_answers
from simulation.report.plots.run import draw_rates
from simulation.report.words import count, ms

BEFORE_S: Final = 0.5
AFTER_S: Final = 1.0
_BINS: Final = 90
_SHORTEST_S: Final = 0.01
"""Length of a bin: in a shorter one a rate is noise."""
_RUSH: Final = 0.5
"""The rush begins where the offered rate first reaches this share of its peak."""


def find_rush_s(history: pd.DataFrame) -> float:
    """Return when the rush begins, in seconds from the run's start."""
    meant_s = history["intended_ns"].to_numpy("float64") / 1e9
    edges = np.arange(0, meant_s.max() + 0.1, 0.05)
    counts, _ = np.histogram(meant_s, edges)
    smooth = np.convolve(counts, np.ones(4) / 4, "same")
    return float(edges[int((smooth >= _RUSH * smooth.max()).argmax())])


def draw_moment(
    history: pd.DataFrame,
    orders: pd.DataFrame | None,
    started_us: float,
    sold_out_s: float | None,
    units: int,
    course: Course,
    timeout_ms: float,
) -> Canvas | None:
    """Draw rates, units and response time around the moment at which `units` of stock were sold out.

    None where nothing sold out. `orders` are those of the ledger, `started_us` is the run's start in Unix
    microseconds.
    """
    if sold_out_s is None:
        return None
    start_s = max(min(find_rush_s(history), sold_out_s) - BEFORE_S, 0.0)
    end_s = sold_out_s + AFTER_S
    step_s = max((end_s - start_s) / _BINS, _SHORTEST_S)
    edges: Floats = start_s + step_s * np.arange(int((end_s - start_s) / step_s) + 1, dtype=np.float64)
    canvas = Canvas({"Requests per second": 150, "Units": 130, "Response time of all": 110})
    rates, stock, times = canvas.panels
    draw_rates(rates, history, edges)

    accepted = history[history["outcome"] == "ACCEPTED"].drop_duplicates("order_id")
    told_s = np.sort(accepted["done_ns"].to_numpy("float64") / 1e9)
    lines = {"told accepted": ("blue", told_s, np.ones(len(told_s)))}
    if orders is not None and len(orders):
        weights = orders["quantity"].fillna(1).to_numpy("float64")
        for word, colour, column in (
            ("reserved", "orange", "accepted_us"),
            ("settled", "green", "settled_us"),
        ):
            known = orders[column].notna().to_numpy()
            at_s = (orders[column][known].to_numpy("float64") - started_us) / 1e6
            order = np.argsort(at_s)
            lines[word] = (colour, at_s[order], weights[known][order])
        lines["told accepted"] = ("blue", told_s, np.full(len(told_s), float(np.median(weights))))
    grid = np.linspace(start_s, end_s, 200)
    for word, (colour, at_s, weights) in lines.items():
        total = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(at_s, grid, "right")]
        stock.plot(grid, total, color=LIGHT[colour], lw=1.6, label=word)
    stock.axhline(units, color=LIGHT["ink"], lw=0.9, ls=DASHED, label=f"stock, {count(units)}")

    at_s, took = time_answers(select_waits(history, "all"), timeout_ms)
    within = (at_s >= start_s) & (at_s < edges[-1])
    coarse = edges[::2] if len(edges) % 2 else edges[:-1:2]
    for word, colour, width in (("p50", "sky", 1.6), ("p99", "blue", 2.0)):
        steps = percentile_steps(at_s[within], took[within], coarse, PERCENTILES[word])
        if not np.isnan(steps).all():
            times.stairs(steps, coarse, baseline=None, color=LIGHT[colour], lw=width, label=word)
    times.yaxis.set_major_formatter(lambda value, _: ms(value) if value else "0")
    canvas.time_axis(end_s, _crop(course, start_s, end_s), start_s)
    return canvas


def _crop(course: Course, start_s: float, end_s: float) -> Course:
    """Return what happened within the span."""
    phases, faults = (
        [
            Phase(each.name, max(each.start_s, start_s), min(each.end_s, end_s))
            for each in spans
            if each.start_s < end_s and each.end_s > start_s
        ]
        for spans in (course.phases, course.faults)
    )
    return Course(
        phases, faults, [(at_s, words) for at_s, words in course.moments if start_s <= at_s < end_s]
    )
