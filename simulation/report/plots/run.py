"""The plots of a run: each a function from its data to a drawing, or None where there is nothing to draw."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.judge.numbers.latency import Floats, delay_ms
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots.canvas import DASHED, FILL, Canvas, Course, Phase, note
from simulation.report.words import OUTCOMES, count, ms

CPU: Final = "cpu_percent "
MEMORY: Final = "rss_mib "
"""Columns of a timeline begin so; the name of a process follows."""
OUTCOME_COLOURS: Final = {"ACCEPTED": "blue", "SOLD_OUT": "orange"}
_STEPS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_LEAST_SHADE: Final = 0.006
"""A fault is shaded over at least this share of the run, so that one without duration is seen."""
_TIMELINE: Final = {
    "Stock and ledger": {
        "stock_remaining": ("left in stock", "blue"),
        "ledger_confirmed": ("confirmed", "green"),
        "ledger_failed": ("failed", "pink"),
    },
    "On its way": {"pending_orders": ("orders not settled", "olive")},
    "On its way, as records": {
        "outbox_entries": ("outbox entries", "sky"),
        "queue_messages": ("queue messages", "orange"),
    },
}
"""The panels of the stock plot, and the word and the colour of each column of the timeline; the live page
(pages/live.html) has the same words and colours."""


def mark_faults(faults: Sequence[Mapping[str, Any]], end_s: float) -> list[Phase]:
    """Return the faults of a summary as stretches of time, numbered in their order."""
    return [
        Phase(
            f"{number} {fault['kind']} {fault['on']}".replace("_", " "),
            fault["start_s"],
            max(fault["end_s"], fault["start_s"] + _LEAST_SHADE * end_s),
        )
        for number, fault in enumerate(faults, 1)
    ]


def last_second(history: pd.DataFrame) -> float:
    """Return when the last request was intended or answered, whichever is later."""
    return float(history[["intended_ns", "done_ns"]].max().max()) / 1e9


def draw_throughput(history: pd.DataFrame, course: Course) -> Canvas | None:
    """Draw requests per second over time: offered, answered, accepted, sold out, and any other outcome."""
    if history.empty:
        return None
    end_s = last_second(history)
    canvas = Canvas({"Requests per second": 230})
    draw_rates(canvas.panels[0], history, time_edges(end_s))
    canvas.time_axis(end_s, course)
    return canvas


def draw_thumbnail(history: pd.DataFrame) -> Figure:
    """Draw requests per second over time, small and without a word."""
    figure = Figure(figsize=(200 / 72, 64 / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    edges = time_edges(last_second(history), 80)
    draw_rates(axes, history, edges)
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.04 * axes.dataLim.y1))
    axes.axis("off")
    return figure


def draw_rates(axes: Axes, history: pd.DataFrame, edges: Floats) -> None:
    """Draw requests per second between edges: offered, answered, accepted, sold out, and other."""
    # A request without an answer counts where it was intended.
    done_ns, outcome = history["done_ns"].fillna(history["intended_ns"]), history["outcome"].astype("str")
    moments = {"offered": ("muted", history["intended_ns"]), "answered": ("ink", history["done_ns"].dropna())}
    moments |= {
        OUTCOMES[each.lower()]: (look, done_ns[outcome == each]) for each, look in OUTCOME_COLOURS.items()
    }
    moments["other"] = ("pink", done_ns[~outcome.isin(list(OUTCOME_COLOURS))])
    step_s = edges[1] - edges[0]
    for word, (colour, at_ns) in moments.items():
        counts, _ = np.histogram(at_ns.to_numpy("float64") / 1e9, edges)
        rate = counts / step_s
        if word == "offered":
            axes.stairs(rate, edges, fill=True, color=LIGHT[colour], alpha=0.2, lw=0, label=word)
        elif counts.any():
            width = 1.1 if word == "answered" else 1.9
            axes.plot(edges[:-1] + step_s / 2, rate, color=LIGHT[colour], lw=width, label=word)


def draw_stock(timeline: pd.DataFrame, course: Course) -> Canvas | None:
    """Draw over time the units left for sale, orders in the ledger, and what is under way between them."""
    # A line along zero says nothing. Of many samples the highest of each stretch is drawn: no peak is lost.
    numbers = timeline.select_dtypes("number")
    shown = numbers.loc[:, numbers.gt(0).any()]
    shown = shown.groupby(np.arange(len(shown)) // np.ceil(len(shown) / 400)).max()
    panels = {
        title: {name: look for name, look in lines.items() if name in shown}
        for title, lines in _TIMELINE.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    canvas = Canvas({title: 105 if number else 150 for number, title in enumerate(panels)})
    for axes, lines in zip(canvas.panels, panels.values(), strict=True):
        for column, (word, colour) in lines.items():
            look, label = LIGHT[colour], f"{word}, most {count(shown[column].max())}"
            axes.plot(shown["t_s"], shown[column], color=look, lw=1.7, label=label)
            if len(lines) == 1 or column == "stock_remaining":
                axes.fill_between(shown["t_s"], shown[column], color=look, alpha=FILL, lw=0)
    canvas.time_axis(float(timeline["t_s"].max()), course)
    return canvas


def draw_processes(timeline: pd.DataFrame, course: Course, cores: int | None) -> Canvas | None:
    """Draw processor and memory over time, stacked: as many processes as there are colours, and the rest.

    The machine has so many `cores`.
    """
    names = list_processes(timeline)
    if not names:
        return None
    shown, others = names[: len(SERIES) - 1], names[len(SERIES) - 1 :]
    end_s = float(timeline["t_s"].max())
    # A sample is too short for the kernel's clock: its ticks would be all that shows.
    edges = np.linspace(0, end_s, 81)
    bins = np.clip(np.digitize(timeline["t_s"], edges) - 1, 0, len(edges) - 2)
    processor = "Processor" + (f" (dashed: {cores} core{'s' if cores != 1 else ''})" if cores else "")
    canvas = Canvas({processor: 150, "Memory, MiB": 105})
    for axes, prefix in zip(canvas.panels, (CPU, MEMORY), strict=True):
        used = timeline[[prefix + name for name in names]].set_axis(names, axis=1).groupby(bins).mean()
        used = used.fillna(0.0).reindex(range(len(edges) - 1)).interpolate(limit_direction="both")
        layers = used[shown]
        if others:
            layers = layers.assign(**{f"{len(others)} others": used[others].sum(axis=1)})
        axes.stackplot(
            (edges[:-1] + edges[1:]) / 2, layers.to_numpy().T, colors=[LIGHT[colour] for colour in SERIES],
            alpha=0.75, lw=0, labels=[str(name) for name in layers] if prefix == CPU else (),
        )  # fmt: skip
    canvas.panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    if cores:
        canvas.panels[0].axhline(100 * cores, color=LIGHT["ink"], lw=0.9, ls=DASHED)
    canvas.time_axis(end_s, course)
    return canvas


def list_processes(timeline: pd.DataFrame) -> list[str]:
    """Return the names of the processes in a timeline, the busiest first."""
    busy = timeline[[name for name in timeline if str(name).startswith(CPU)]].mean()
    return [str(name).removeprefix(CPU) for name in busy.sort_values(ascending=False, kind="stable").index]


def draw_delay(orders: pd.DataFrame | None) -> Canvas | None:
    """Draw the share of the orders that were settled within a time of being accepted."""
    orders = None if orders is None else orders.dropna(subset=["accepted_us", "settled_us"])
    if orders is None or orders.empty:
        return None
    delay = np.clip(delay_ms(orders), 0.1, None)
    share = np.linspace(0, 100, 400)
    at_share = np.percentile(delay, share)
    canvas = Canvas({"Orders settled within": 200})
    [axes] = canvas.panels
    axes.fill_between(at_share, share, color=LIGHT["green"], alpha=FILL, lw=0)
    axes.plot(at_share, share, color=LIGHT["green"])
    for percent in (50, 99):
        value = float(np.percentile(delay, percent))
        axes.plot(value, percent, "o", color=LIGHT["green"], ms=6)
        note(axes, f"p{percent} {ms(value)}", (value, percent), left=True)
    canvas.log_axis("x", 3, 2)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    return canvas


def time_edges(end_s: float, most: int = 160) -> Floats:
    """Return the edges of at most `most` whole bins from 0 to `end_s`, in seconds."""
    step = next((step for step in _STEPS_S if end_s / step <= most), end_s / most)
    # Whole bins only: a rate over a part of one would look like a dip.
    return np.arange(max(int(end_s / step + 1e-9), 1) + 1, dtype=np.float64) * step
