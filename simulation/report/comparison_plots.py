"""The plots of a comparison: the runs laid over each other, each in a colour of its own."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.ticker import NullLocator

from simulation.judge.comparison import Row, Run
from simulation.judge.numbers.latency import Floats, response_ms
from simulation.report.canvas import LIGHT, SERIES, Canvas, Entry, Phase
from simulation.report.plots import last_second, middles_of, time_edges

LETTERS = "ABCDEFGH"
_FAR_PERCENT: Final = 400.0
"""Changes beyond this are drawn as factors, on a logarithmic axis: percents would hide all smaller ones."""
_LEAST_FACTOR: Final = 0.01


def percents(change: float) -> str:
    """A change in percent; from tenfold on as a factor, which reads better."""
    return f"{change:+.1f}%" if change < 900 else f"×{1 + change / 100:,.0f}"


def draw_changes(rows: Sequence[Row], wide: bool) -> Canvas | None:
    """The change of every time with its interval, around the line of no change."""
    shown = [row for row in rows if any(change and change.low is not None for change in row.changes)]
    if not shown:
        return None
    others = len(shown[0].changes)
    reach = _reach(shown)
    far = reach > _FAR_PERCENT

    def place(percent: float) -> float:
        return max(1 + percent / 100, _LEAST_FACTOR) if far else max(percent, -99.0)

    canvas = Canvas(wide, [(18 + 20 * others) * len(shown)], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    for number, row in enumerate(shown):
        top = len(shown) - number - 0.36
        axes.annotate(
            row.title, (0, top), (0, 7), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=LIGHT["ink"], fontsize=canvas.size - 0.5, va="center",
            bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        for other, change in enumerate(row.changes):
            if change is None or change.percent is None or change.low is None or change.high is None:
                continue
            y = top - (other + 1) * 0.62 / (others + 0.3)
            colour = LIGHT[SERIES[(other + 1) % len(SERIES)]]
            axes.plot(
                [place(change.low), place(change.high)], [y, y], color=colour, lw=2, solid_capstyle="butt"
            )
            face = colour if change.sure else LIGHT["paper"]
            axes.plot(place(change.percent), y, "o", color=colour, ms=7, mfc=face, mew=1.8)
    axes.axvline(place(0), color=LIGHT["muted"], lw=1, zorder=1)
    if far:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    else:
        axes.set_xlim(-min(reach * 1.1, 105), reach * 1.1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}%" if value else "0")
    axes.set_ylim(0, len(shown))
    axes.yaxis.set_visible(False)
    axes.grid(axis="x", color=LIGHT["grid"], lw=0.8)
    words = [Entry(letter, SERIES[number % len(SERIES)]) for number, letter in _others(others)]
    canvas.key(0, "Change from A", [*words, Entry("filled: sure", "muted")])
    return canvas


def _reach(rows: Sequence[Row]) -> float:
    """How far the changes reach, in percent; not all of an interval, which may reach anywhere."""
    reach = 5.0
    for change in (change for row in rows for change in row.changes):
        if change is not None and None not in (change.percent, change.low, change.high):
            percent, low, high = change.percent or 0.0, change.low or 0.0, change.high or 0.0
            reach = max(reach, min(abs(low), 99.0), min(abs(high), 150.0), abs(percent))
    return reach


def draw_curves(runs: Sequence[Run], outcome: str, wide: bool) -> Canvas | None:
    """Response time at every percentile of one outcome's requests; the x axis counts nines."""
    curves = []
    for number, run in enumerate(runs):
        took = np.sort(response_ms(run.metrics.history[run.metrics.history["outcome"] == outcome]))
        if len(took):
            curves.append((LETTERS[number], SERIES[number % len(SERIES)], took))
    if not curves:
        return None
    canvas = Canvas(wide, [240], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    for _, colour, took in curves:
        size = len(took)
        beyond = np.unique(np.round(np.geomspace(1, size, 240)).astype(np.int64))[::-1]
        axes.plot(size / beyond, took[size - beyond], color=LIGHT[colour], lw=1.9)
    lowest, highest = min(float(took[0]) for *_, took in curves), max(float(took[-1]) for *_, took in curves)
    canvas.log_axis("y", max(lowest, 1e-3) / 1.2, highest * 1.3)
    canvas.nines_axis(max(10, *(len(took) for *_, took in curves)))
    axes.grid(axis="x", color=LIGHT["grid"], lw=0.8)
    canvas.key(0, "Response time at a percentile", [Entry(letter, colour) for letter, colour, _ in curves])
    return canvas


def draw_times(runs: Sequence[Run], phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """The p99 of the response time of all that was answered, over time."""
    end_s = max(last_second(run.metrics.history) for run in runs)
    edges = time_edges(end_s, wide)
    canvas = Canvas(wide, [230], key_rows=1 if wide else 0)
    lines: list[Floats] = []
    for number, run in enumerate(runs):
        answered = run.metrics.history.dropna(subset=["sent_ns", "done_ns"])
        bins = np.digitize(answered["intended_ns"].to_numpy("int64") / 1e9, edges) - 1
        took = response_ms(answered)
        line = np.full(len(edges) - 1, np.nan)
        for place in np.unique(bins[bins < len(line)]):
            line[place] = np.percentile(took[bins == place], 99)
        canvas.panels[0].plot(middles_of(edges), line, color=LIGHT[SERIES[number % len(SERIES)]], lw=1.7)
        lines.append(line)
    found = np.concatenate(lines)
    if np.isnan(found).all():
        return None
    canvas.log_axis("y", float(np.nanmin(found)) / 1.3, float(np.nanmax(found)) * 2)
    words = [Entry(letter, SERIES[number % len(SERIES)]) for number, letter in _others(len(runs), 0)]
    canvas.key(0, "Response time, p99", words)
    canvas.time_axis(end_s, phases)
    return canvas


def _others(count: int, first: int = 1) -> list[tuple[int, str]]:
    return [(number, LETTERS[number]) for number in range(first, first + count)]
