"""The plots of a run: each a function from its data to a drawing, or None where there is nothing to draw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simulation.judge.numbers.latency import Floats, delay_ms
from simulation.report.canvas import DASHED, FILL, Canvas, Course, Phase, note
from simulation.report.page import LIGHT, SERIES
from simulation.report.words import OUTCOMES, count, ms

CPU: Final = "cpu_percent "
MEMORY: Final = "rss_mib "
"""Columns of a timeline begin so; the name of a process follows."""
OUTCOME_COLOURS: Final = {"ACCEPTED": "blue", "SOLD_OUT": "orange"}
_STEPS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_LEAST_SHADE: Final = 0.006
"""A fault is shaded over at least this share of the run, so that one without duration is seen."""
_TIMELINE: Final = {
    "Stock": {
        "stock_remaining": ("left at the gate", "blue"),
        "ledger_confirmed": ("confirmed in the ledger", "green"),
        "ledger_failed": ("failed", "pink"),
    },
    "Under way": {"pending_orders": ("orders not yet settled", "olive")},
    "Waiting": {
        "outbox_entries": ("entries in the outbox", "sky"),
        "queue_messages": ("messages in the queue", "orange"),
    },
}
"""The panels of the stock plot, and the word and the colour of each column of the timeline."""


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
    edges = time_edges(end_s)
    canvas = Canvas({"Requests per second": 230})
    [axes] = canvas.panels
    highest = 1.0
    for word, colour, rate in _measure_rates(history, edges):
        highest = max(highest, float(rate.max()))
        if word == "offered":
            axes.stairs(rate, edges, fill=True, color=LIGHT[colour], alpha=0.2, lw=0, label=word)
        else:
            width = 1.1 if word == "answered" else 1.9
            axes.plot(middles_of(edges), rate, color=LIGHT[colour], lw=width, label=word)
    axes.set_ylim(0, highest * (1.3 if course.faults else 1.2))
    canvas.time_axis(end_s, course)
    return canvas


def draw_thumbnail(history: pd.DataFrame) -> Figure:
    """Draw requests offered, accepted and sold out over time, small and without a word."""
    figure = Figure(figsize=(200 / 72, 64 / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    edges = np.linspace(0, max(last_second(history), 1e-3) if len(history) else 1, 81)
    for word, colour, rate in _measure_rates(history, edges):
        if word == "offered":
            axes.stairs(rate, edges, fill=True, color=LIGHT[colour], alpha=0.22, lw=0)
            top = max(float(rate.max()), 1.0)
            axes.set(xlim=(0, edges[-1]), ylim=(0, 1.04 * top))
        elif colour in OUTCOME_COLOURS.values():
            axes.plot(middles_of(edges), np.minimum(rate, top), color=LIGHT[colour], lw=1.6)
    return figure


def _measure_rates(history: pd.DataFrame, edges: Floats) -> Iterator[tuple[str, str, Floats]]:
    """Yield word, colour and requests per second in each bin: of all offered first, then of each outcome."""

    def rate(at_ns: pd.Series) -> Floats:
        counts, _ = np.histogram(at_ns.to_numpy("float64") / 1e9, edges)
        per_second: Floats = counts / float(edges[1] - edges[0])
        return per_second

    yield "offered", "muted", rate(history["intended_ns"])
    # A request without an answer counts where it was intended.
    done_ns, outcome = history["done_ns"].fillna(history["intended_ns"]), history["outcome"].astype("str")
    chosen = {"answered": ("ink", history["done_ns"].notna())}
    chosen |= {OUTCOMES[each.lower()]: (colour, outcome == each) for each, colour in OUTCOME_COLOURS.items()}
    chosen["other"] = ("pink", ~outcome.isin(list(OUTCOME_COLOURS)))
    for word, (colour, rows) in chosen.items():
        if rows.any():
            yield word, colour, rate(done_ns[rows])


def draw_stock(timeline: pd.DataFrame, course: Course) -> Canvas | None:
    """Draw over time the units left at the gate, orders in the ledger, and what is under way between them."""
    panels = {
        title: {name: look for name, look in lines.items() if _is_worth_drawing(timeline, name)}
        for title, lines in _TIMELINE.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    canvas = Canvas({title: 105 if number else 150 for number, title in enumerate(panels)})
    for axes, lines in zip(canvas.panels, panels.values(), strict=True):
        highest = 1.0
        for column, (word, colour) in lines.items():
            most = float(timeline[column].max())
            highest = max(highest, most)
            t_s, values = _thin(timeline["t_s"], timeline[column])
            axes.plot(t_s, values, color=LIGHT[colour], lw=1.7, label=f"{word}, most {count(most)}")
            if len(lines) == 1 or column == "stock_remaining":
                axes.fill_between(t_s, values, color=LIGHT[colour], alpha=FILL, lw=0)
        axes.set_ylim(0, highest * 1.2)
    canvas.time_axis(float(timeline["t_s"].max()), course)
    return canvas


def _is_worth_drawing(timeline: pd.DataFrame, column: str) -> bool:
    """Tell whether a column was measured. Failed orders are rare: a line along zero would say nothing."""
    least = 0 if column == "ledger_failed" else -1
    return column in timeline and bool(timeline[column].gt(least).any())


def _thin(t_s: pd.Series, values: pd.Series, most: int = 400) -> tuple[pd.Series, pd.Series]:
    """Return at most `most` points: the highest of each stretch, so that no peak is lost."""
    values = values.astype("float64")
    highest = values.fillna(0).groupby(np.arange(len(values)) // -(-len(values) // most)).idxmax()
    return t_s[highest], values[highest]


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
            middles_of(edges), layers.to_numpy().T, colors=[LIGHT[colour] for colour in SERIES],
            alpha=0.75, lw=0, labels=[str(name) for name in layers] if prefix == CPU else (),
        )  # fmt: skip
        highest = float(layers.sum(axis=1).max())
        if prefix == CPU:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
            if cores:
                axes.axhline(100 * cores, color=LIGHT["ink"], lw=0.9, ls=DASHED)
                highest = max(highest, 100.0 * cores)
        axes.set_ylim(0, highest * 1.2)
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
    canvas.log_axis("x", at_share[0] / 3, at_share[-1] * 2)
    axes.fill_between(at_share, share, color=LIGHT["green"], alpha=FILL, lw=0)
    axes.plot(at_share, share, color=LIGHT["green"])
    for percent in (50, 99):
        value = float(np.percentile(delay, percent))
        axes.plot(value, percent, "o", color=LIGHT["green"], ms=6)
        note(axes, f"p{percent} {ms(value)}", (value, percent), left=True)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    return canvas


def time_edges(end_s: float, most: int = 160) -> Floats:
    """Return the edges of at most `most` whole bins from 0 to `end_s`, in seconds."""
    step = next((step for step in _STEPS_S if end_s / step <= most), end_s / most)
    # Whole bins only: a rate over a part of one would look like a dip.
    return np.arange(max(int(end_s / step + 1e-9), 1) + 1, dtype=np.float64) * step


def middles_of(edges: Floats) -> Floats:
    """Return the middle of each bin."""
    middles: Floats = (edges[:-1] + edges[1:]) / 2
    return middles
