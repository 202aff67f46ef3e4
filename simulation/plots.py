"""The plots of a run: each a function from its data to a drawing, or None where there is nothing to draw."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from simulation.canvas import LIGHT, SERIES, Canvas, Entry, Phase, milliseconds
from simulation.summary import PERCENTILES, Floats, fulfilment_lag_ms, measure_latency, response_ms

_STEPS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_FILL: Final = 0.16
OUTCOME_COLOURS: Final = {"ACCEPTED": "blue", "SOLD_OUT": "orange"}


def last_second(history: pd.DataFrame) -> float:
    """When the last request was meant to start or was answered, whichever is later."""
    done = history["done_ns"].dropna()
    return float(max(history["intended_ns"].max(), done.max() if len(done) else 0)) / 1e9


def draw_throughput(history: pd.DataFrame, phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """Requests per second over time: offered, answered, and those accepted, sold out, or otherwise."""
    if history.empty:
        return None
    end_s = last_second(history)
    edges = _edges(end_s, wide)
    canvas = Canvas(wide, [230])
    axes = canvas.panels[0]
    # What was never answered counts where it was meant to start.
    done_s = history["done_ns"].fillna(history["intended_ns"]).to_numpy("float64") / 1e9
    answered = history["done_ns"].notna().to_numpy()
    outcome = history["outcome"].astype("str").to_numpy()
    offered = _rate(history["intended_ns"].to_numpy() / 1e9, edges)
    axes.stairs(offered, edges, fill=True, color=LIGHT["muted"], alpha=0.2, lw=0)
    lines = {"answered": (answered, "ink")}
    lines |= {word.lower().replace("_", " "): (outcome == word, c) for word, c in OUTCOME_COLOURS.items()}
    lines["other"] = (~np.isin(outcome, list(OUTCOME_COLOURS)), "pink")
    entries = [Entry("offered", "muted")]
    for word, (chosen, colour) in lines.items():
        if not chosen.any():
            continue
        rate = _rate(done_s[chosen], edges)
        axes.plot(_middles(edges), rate, color=LIGHT[colour], lw=1.1 if word == "answered" else 1.9)
        entries.append(Entry(word, colour))
    axes.set_ylim(0, max(offered.max(), 1) * 1.18)
    canvas.key(0, "Requests per second", entries)
    canvas.time_axis(end_s, phases)
    return canvas


def draw_latency(history: pd.DataFrame, phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """Response time over time: p50 to p99 of accepted and sold-out requests, by their intended start."""
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    answered = answered[answered["outcome"].isin(list(OUTCOME_COLOURS))]
    if answered.empty:
        return None
    end_s = last_second(history)
    edges = _edges(end_s, wide)
    canvas = Canvas(wide, [230])
    axes = canvas.panels[0]
    entries = []
    lows, highs = [], []
    for outcome, colour in OUTCOME_COLOURS.items():
        chosen = answered[answered["outcome"] == outcome]
        if chosen.empty:
            continue
        bins = np.digitize(chosen["intended_ns"].to_numpy() / 1e9, edges) - 1
        spread = pd.Series(response_ms(chosen)).groupby(bins).quantile(np.array([0.5, 0.99])).unstack()
        spread = spread.reindex(range(len(edges) - 1))
        low, high = spread[0.5].to_numpy(), spread[0.99].to_numpy()
        middles = _middles(edges)
        lows.append(np.nanmin(low))
        highs.append(np.nanmax(high))
        axes.fill_between(middles, low, high, color=LIGHT[colour], alpha=_FILL, lw=0)
        lone = np.isnan(np.roll(high, 1)) & np.isnan(np.roll(high, -1))
        axes.plot(middles[lone], high[lone], "o", color=LIGHT[colour], ms=3)
        axes.plot(middles, high, color=LIGHT[colour], lw=1.9)
        axes.plot(middles, low, color=LIGHT[colour], lw=1.1)
        word = outcome.lower().replace("_", " ")
        entries.append(Entry(f"{word}, p50 to p99", colour))
    # Room above for the names of the phases.
    canvas.log_axis("y", max(min(lows), 1e-3) / 1.3, max(highs) * 2)
    canvas.key(0, "Response time", entries)
    canvas.time_axis(end_s, phases)
    return canvas


def draw_percentiles(history: pd.DataFrame, wide: bool) -> Canvas | None:
    """Response and service time of accepted and sold-out requests: p50, p90, p99, p99.9 and the maximum."""
    rows = [
        (f"{outcome.lower().replace('_', ' ').capitalize()}, {kind} time", values, OUTCOME_COLOURS[outcome])
        for outcome in OUTCOME_COLOURS
        for kind, values in measure_latency(history[history["outcome"] == outcome]).items()
        if values["max"] is not None
    ]
    if not rows:
        return None
    canvas = Canvas(wide, [60 * len(rows)], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    for number, (title, values, colour) in enumerate(rows):
        y = len(rows) - number - 0.7
        points = [max(values[name] or 0.0, 1e-3) for name in PERCENTILES]
        axes.plot([points[0], points[-1]], [y, y], color=LIGHT[colour], lw=2, solid_capstyle="butt")
        axes.scatter(points, [y] * 5, s=[26, 26, 70, 26, 26], color=LIGHT[colour], zorder=3)
        axes.scatter(points[2], y, s=16, color=LIGHT["paper"], zorder=4)
        canvas.note(0, milliseconds(points[0]), (points[0], y), "muted", "left")
        canvas.note(0, milliseconds(points[-1]), (points[-1], y), "muted", "right")
        axes.annotate(
            title,
            (0, y),
            (0, 15),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=LIGHT["ink"],
            fontsize=canvas.size,
        )
    lowest = min(max(values["p50"] or 0.0, 1e-3) for _, values, _ in rows)
    highest = max(values["max"] or 0.0 for _, values, _ in rows)
    room = (highest / lowest) ** (0.1 if wide else 0.3) * 1.15
    canvas.log_axis("x", lowest / room, highest * room)
    axes.set_ylim(0, len(rows))
    axes.yaxis.set_visible(False)
    axes.grid(axis="x", color=LIGHT["grid"], lw=0.8)
    canvas.key(0, "Percentiles", [Entry("p50, p90, p99 (ring), p99.9, max", "muted")])
    return canvas


def draw_stock(timeline: pd.DataFrame, phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """Over time: units left at the gate and orders in the ledger; what is accepted and not yet settled."""
    panels = [
        (
            "Stock",
            {
                "stock_remaining": ("left at the gate", "blue"),
                "ledger_confirmed": ("confirmed in the ledger", "green"),
                "ledger_failed": ("failed", "pink"),
            },
        ),
        ("On its way", {"pending_orders": ("orders not yet settled", "olive")}),
        (
            "Waiting",
            {"outbox_entries": ("outbox entries", "sky"), "queue_messages": ("queue messages", "orange")},
        ),
    ]
    return _draw_timeline(timeline, panels, phases, wide)


def draw_processes(timeline: pd.DataFrame, phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """Processor and memory of every process of the run over time."""
    panels = []
    for title, prefix in (("Processor, % of a core", "cpu_percent "), ("Memory, MiB", "rss_mib ")):
        names = [str(name).removeprefix(prefix) for name in timeline if str(name).startswith(prefix)]
        colours = [SERIES[number % len(SERIES)] for number in range(len(names))]
        panels.append((title, {prefix + n: (n, c) for n, c in zip(names, colours, strict=True)}))
    return _draw_timeline(timeline, panels, phases, wide, key_rows=1 if wide else 2)


def draw_lag(orders: pd.DataFrame | None, wide: bool) -> Canvas | None:
    """The share of the orders that were settled within a time of being accepted."""
    orders = None if orders is None else orders.dropna(subset=["accepted_us", "settled_us"])
    if orders is None or orders.empty:
        return None
    lag = np.clip(np.sort(fulfilment_lag_ms(orders)), 0.1, None)
    share = np.linspace(0, 100, 400)
    canvas = Canvas(wide, [200], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    canvas.log_axis("x", lag[0] / (2.2 if wide else 5), lag[-1] * 1.3)
    at_share = np.percentile(lag, share)
    axes.fill_between(at_share, share, color=LIGHT["green"], alpha=_FILL, lw=0)
    axes.plot(at_share, share, color=LIGHT["green"], lw=1.9)
    for percent, where in ((50, "left"), (99, "below")):
        value = float(np.percentile(lag, percent))
        axes.plot(value, percent, "o", color=LIGHT["green"], ms=6)
        canvas.note(0, f"p{percent} {milliseconds(value)}", (value, percent), "ink", where)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    canvas.key(0, "Orders settled within", [])
    return canvas


Panel = tuple[str, dict[str, tuple[str, str]]]


def _draw_timeline(
    timeline: pd.DataFrame, panels: Sequence[Panel], phases: Sequence[Phase], wide: bool, key_rows: int = 1
) -> Canvas | None:
    shown = [
        (
            title,
            {
                column: look
                for column, look in lines.items()
                if _has_values(timeline, column) and _ever_occurs(timeline, column)
            },
        )
        for title, lines in panels
    ]
    shown = [(title, lines) for title, lines in shown if lines]
    if not shown:
        return None
    canvas = Canvas(wide, [150 if number == 0 else 105 for number in range(len(shown))], key_rows)
    for number, (title, lines) in enumerate(shown):
        axes = canvas.panels[number]
        entries, top = [], 1.0
        for column, (word, colour) in lines.items():
            t_s, values = _thin(
                timeline["t_s"].to_numpy(), timeline[column].to_numpy("float64", na_value=np.nan)
            )
            axes.plot(t_s, values, color=LIGHT[colour], lw=1.7)
            if len(lines) == 1 or column == "stock_remaining":
                axes.fill_between(t_s, values, color=LIGHT[colour], alpha=_FILL, lw=0)
            most = float(np.nanmax(values))
            top = max(top, most)
            entries.append(Entry(word if len(lines) > 3 else f"{word}, most {most:,.0f}", colour))
        axes.set_ylim(0, top * 1.2)
        canvas.key(number, title, entries)
    canvas.time_axis(float(timeline["t_s"].max()), phases)
    return canvas


def _has_values(timeline: pd.DataFrame, column: str) -> bool:
    return column in timeline and bool(timeline[column].notna().any())


def _ever_occurs(timeline: pd.DataFrame, column: str) -> bool:
    """Failed orders are the exception: a line along zero would say nothing."""
    return column != "ledger_failed" or bool(timeline[column].gt(0).any())


def _thin(t_s: Floats, values: Floats, most: int = 400) -> tuple[Floats, Floats]:
    """At most `most` points: of each stretch the one farthest from zero, so that no peak is lost."""
    step = -(-len(t_s) // most)
    if step <= 1:
        return t_s, values
    starts = np.arange(0, len(t_s), step)
    kept = [start + int(np.argmax(np.nan_to_num(np.abs(values[start : start + step])))) for start in starts]
    return t_s[kept], values[kept]


def _edges(end_s: float, wide: bool) -> Floats:
    most = 160 if wide else 80
    step = next((step for step in _STEPS_S if end_s / step <= most), end_s / most)
    # Whole bins only: a rate over a part of one would look like a dip.
    return np.arange(max(int(end_s / step + 1e-9), 1) + 1, dtype=np.float64) * step


def _middles(edges: Floats) -> Floats:
    middles: Floats = (edges[:-1] + edges[1:]) / 2
    return middles


def _rate(seconds: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(seconds, edges)
    rate: Floats = counts / float(edges[1] - edges[0])
    return rate
