"""The plots of a run: each a function from its data to a drawing, or None where there is nothing to draw."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from simulation.canvas import HEAT, LIGHT, SERIES, Canvas, Entry, Phase, milliseconds, short
from simulation.summary import TRUSTED, Floats, fulfilment_lag_ms, response_ms, service_ms

_STEPS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_FILL: Final = 0.16
OUTCOME_COLOURS: Final = {"ACCEPTED": "blue", "SOLD_OUT": "orange"}


LEAST_SHADE_S: Final = 0.15
"""A fault that lasts no time is shaded this wide, so that it is seen."""


def mark_faults(faults: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The faults of a summary as phases to shade: quiet and faults in turn, faults that overlap as one."""
    found = [Phase("", 0.0, 0.0)]
    for fault in sorted(faults, key=lambda fault: float(fault["start_s"])):
        name, start_s = f"{fault['kind']} {fault['on']}".replace("_", " "), max(fault["start_s"], 0.0)
        end_s = max(fault["end_s"], start_s + LEAST_SHADE_S)
        if len(found) > 1 and start_s <= found[-1].end_s:
            last = found.pop()
            found.append(Phase(f"{last.name}, {name}", last.start_s, max(last.end_s, end_s)))
        else:
            found += [Phase("", found[-1].end_s, start_s), Phase(name, start_s, end_s)]
    return found[1:]


def last_second(history: pd.DataFrame) -> float:
    """When the last request was meant to start or was answered, whichever is later."""
    done = history["done_ns"].dropna()
    return float(max(history["intended_ns"].max(), done.max() if len(done) else 0)) / 1e9


def draw_throughput(
    history: pd.DataFrame, phases: Sequence[Phase], sold_out_s: float | None, wide: bool
) -> Canvas | None:
    """Requests per second over time: offered, answered, and those accepted, sold out, or otherwise."""
    if history.empty:
        return None
    end_s = last_second(history)
    edges = time_edges(end_s, wide)
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
        axes.plot(middles_of(edges), rate, color=LIGHT[colour], lw=1.1 if word == "answered" else 1.9)
        entries.append(Entry(word, colour))
    axes.set_ylim(0, max(offered.max(), 1) * 1.2)
    canvas.key(0, "Requests per second", entries)
    canvas.time_axis(end_s, phases)
    _mark_sold_out(canvas, sold_out_s)
    return canvas


def draw_latency(history: pd.DataFrame, phases: Sequence[Phase], wide: bool) -> Canvas | None:
    """Response time over time: p50 to p99 of accepted and sold-out requests, by their intended start."""
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    answered = answered[answered["outcome"].isin(list(OUTCOME_COLOURS))]
    if answered.empty:
        return None
    end_s = last_second(history)
    edges = time_edges(end_s, wide)
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
        middles = middles_of(edges)
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
        axes.fill_between(nines, service[at], response[at], color=LIGHT[colour], alpha=_FILL, lw=0)
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


def draw_heat(
    history: pd.DataFrame, phases: Sequence[Phase], sold_out_s: float | None, wide: bool
) -> Canvas | None:
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
    canvas.log_axis("y", 10**low, 10 ** (high + (high - low) * (0.16 if sold_out_s else 0.09)))
    canvas.key(0, "Response time" if wide else "Response")
    canvas.scale(0, "1", f"{most:,.0f} requests in a cell" if wide else f"{short(most)} a cell")
    canvas.time_axis(end_s, phases)
    _mark_sold_out(canvas, sold_out_s)
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


def _mark_sold_out(canvas: Canvas, sold_out_s: float | None) -> None:
    if sold_out_s is not None:
        canvas.mark_time(sold_out_s, f"sold out, {sold_out_s:.2f} s")


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
    """Processor and memory over time of the busiest processes, as many as colours can tell apart."""
    cpu = "cpu_percent "
    busy = timeline[[name for name in timeline if str(name).startswith(cpu)]].mean().nlargest(len(SERIES))
    names = sorted(str(name).removeprefix(cpu) for name in busy.index)
    colour_of = dict(zip(names, SERIES, strict=False))
    panels = []
    for title, prefix in (("Processor, % of a core", cpu), ("Memory, MiB", "rss_mib ")):
        lines = {prefix + name: (name, colour) for name, colour in colour_of.items()}
        panels.append((title, {column: line for column, line in lines.items() if column in timeline}))
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


def draw_picture(history: pd.DataFrame) -> str:
    """Requests offered, accepted and sold out over time, as a small SVG element in the page's colours."""
    bins, width, height = 80, 200, 64
    end_s = last_second(history) if len(history) else 1.0
    edges = np.linspace(0, max(end_s, 1e-3), bins + 1)
    outcome = history["outcome"].astype("str").to_numpy()
    done_s = history["done_ns"].fillna(history["intended_ns"]).to_numpy("float64") / 1e9
    offered = _rate(history["intended_ns"].to_numpy("float64") / 1e9, edges)
    scale = (height - 2) / max(float(offered.max()), 1.0)

    def trace(rate: Floats) -> str:
        xs, ys = (np.arange(bins) + 0.5) * width / bins, np.maximum(height - rate * scale, 1)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))

    corners = f"0,{height} {trace(offered)} {width},{height}"
    area = f'<polygon points="{corners}" fill="var(--muted)" opacity="0.22"/>'
    lines = "".join(
        f'<polyline points="{trace(_rate(done_s[outcome == word], edges))}" fill="none"'
        f' stroke="var(--{colour})" stroke-width="1.6" stroke-linejoin="round"/>'
        for word, colour in OUTCOME_COLOURS.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" xmlns="http://www.w3.org/2000/svg">'
        f"{area}{lines}</svg>\n"
    )


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


def time_edges(end_s: float, wide: bool) -> Floats:
    """The edges of whole bins from 0 to `end_s`, in seconds, as many as can be told apart."""
    most = 160 if wide else 80
    step = next((step for step in _STEPS_S if end_s / step <= most), end_s / most)
    # Whole bins only: a rate over a part of one would look like a dip.
    return np.arange(max(int(end_s / step + 1e-9), 1) + 1, dtype=np.float64) * step


def middles_of(edges: Floats) -> Floats:
    """The middle of each bin."""
    middles: Floats = (edges[:-1] + edges[1:]) / 2
    return middles


def _rate(seconds: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(seconds, edges)
    rate: Floats = counts / float(edges[1] - edges[0])
    return rate
