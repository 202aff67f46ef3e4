"""The plots of a run: each a function from its data to a drawing, or None where there is nothing to draw."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from simulation.judge.numbers.latency import Floats, delay_ms
from simulation.report.canvas import LIGHT, SERIES, Canvas, Course, Entry, Phase, milliseconds

_STEPS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
FILL: Final = 0.16
CPU: Final = "cpu_percent "
MEMORY: Final = "rss_mib "
"""Before a process' name, its columns in the timeline."""
OUTCOME_COLOURS: Final = {"ACCEPTED": "blue", "SOLD_OUT": "orange"}
LEAST_SHADE: Final = 0.006
"""A fault is shaded over at least this share of the run, so that one that lasts no time is seen."""


def mark_faults(faults: Sequence[Mapping[str, Any]], end_s: float) -> list[Phase]:
    """The faults of a summary, to be shaded and named, numbered in their order."""
    return [
        Phase(
            f"{number} {describe_fault(fault)}",
            fault["start_s"],
            max(fault["end_s"], fault["start_s"] + LEAST_SHADE * end_s),
        )
        for number, fault in enumerate(faults, 1)
    ]


def describe_fault(fault: Mapping[str, Any]) -> str:
    """A fault of a summary in words, as in "drop replies redis"."""
    return f"{fault['kind']} {fault['on']}".replace("_", " ")


def last_second(history: pd.DataFrame) -> float:
    """When the last request was meant to start or was answered, whichever is later."""
    done = history["done_ns"].dropna()
    return float(max(history["intended_ns"].max(), done.max() if len(done) else 0)) / 1e9


def draw_throughput(history: pd.DataFrame, course: Course, wide: bool) -> Canvas | None:
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
    top = max(float(offered.max()), 1.0)
    for word, (chosen, colour) in lines.items():
        if not chosen.any():
            continue
        rate = _rate(done_s[chosen], edges)
        top = max(top, float(rate.max()))
        axes.plot(middles_of(edges), rate, color=LIGHT[colour], lw=1.1 if word == "answered" else 1.9)
        entries.append(Entry(word, colour))
    axes.set_ylim(0, top * (1.3 if course.faults else 1.2))
    canvas.key(0, "Requests per second", entries)
    canvas.time_axis(end_s, *course)
    return canvas


def draw_stock(timeline: pd.DataFrame, course: Course, wide: bool) -> Canvas | None:
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
    return _draw_timeline(timeline, panels, course, wide)


def draw_processes(timeline: pd.DataFrame, course: Course, cores: int | None, wide: bool) -> Canvas | None:
    """Processor and memory over time, stacked: as many processes as colours can tell apart, and the rest.

    `cores` is what the machine has.
    """
    names = list_processes(timeline)
    if not names:
        return None
    shown = names[: len(SERIES) - 1]
    end_s = float(timeline["t_s"].max())
    # A sample is too short for the kernel's clock: its ticks would be all that shows.
    edges = np.linspace(0, end_s, (80 if wide else 40) + 1)
    bins = np.clip(np.digitize(timeline["t_s"], edges) - 1, 0, len(edges) - 2)
    canvas = Canvas(wide, [150, 105], key_rows=1 if wide else 2)
    for number, (title, prefix) in enumerate((("Processor", CPU), ("Memory, MiB", MEMORY))):
        columns = [prefix + name for name in names]
        used = timeline[columns].groupby(bins).mean().fillna(0.0).reindex(range(len(edges) - 1))
        used = used.interpolate(limit_direction="both")
        layers = [used[prefix + name].to_numpy() for name in shown]
        words = list(shown)
        if len(names) > len(shown):
            layers.append(used[[prefix + name for name in names[len(shown) :]]].sum(axis=1).to_numpy())
            words.append(f"{len(names) - len(shown)} others")
        axes = canvas.panels[number]
        colours = [LIGHT[colour] for colour in SERIES[: len(layers)]]
        axes.stackplot(middles_of(edges), layers, colors=colours, alpha=0.75, lw=0)
        top = float(np.nansum(layers, axis=0).max())
        if prefix == CPU:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
            if cores:
                axes.axhline(100 * cores, color=LIGHT["ink"], lw=0.9, dashes=(3, 2))
                top = max(top, 100.0 * cores)
                title += f", {cores} core{'s' if cores != 1 else ''} dashed"
        axes.set_ylim(0, top * 1.2)
        entries = [Entry(word, colour) for word, colour in zip(words, SERIES, strict=False)]
        canvas.key(number, title, entries if number == 0 else [])
    canvas.time_axis(end_s, *course)
    return canvas


def list_processes(timeline: pd.DataFrame) -> list[str]:
    """The names of the processes in a timeline, the busiest first."""
    busy = timeline[[name for name in timeline if str(name).startswith(CPU)]].mean()
    return [str(name).removeprefix(CPU) for name in busy.sort_values(ascending=False, kind="stable").index]


def draw_lag(orders: pd.DataFrame | None, wide: bool) -> Canvas | None:
    """The share of the orders that were settled within a time of being accepted."""
    orders = None if orders is None else orders.dropna(subset=["accepted_us", "settled_us"])
    if orders is None or orders.empty:
        return None
    lag = np.clip(np.sort(delay_ms(orders)), 0.1, None)
    share = np.linspace(0, 100, 400)
    canvas = Canvas(wide, [200], key_rows=1 if wide else 0)
    axes = canvas.panels[0]
    canvas.log_axis("x", lag[0] / (2.2 if wide else 5), lag[-1] * (1.5 if wide else 3))
    at_share = np.percentile(lag, share)
    axes.fill_between(at_share, share, color=LIGHT["green"], alpha=FILL, lw=0)
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
    timeline: pd.DataFrame, panels: Sequence[Panel], course: Course, wide: bool
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
    canvas = Canvas(wide, [150 if number == 0 else 105 for number in range(len(shown))])
    for number, (title, lines) in enumerate(shown):
        axes = canvas.panels[number]
        entries, top = [], 1.0
        for column, (word, colour) in lines.items():
            t_s, values = _thin(
                timeline["t_s"].to_numpy(), timeline[column].to_numpy("float64", na_value=np.nan)
            )
            axes.plot(t_s, values, color=LIGHT[colour], lw=1.7)
            if len(lines) == 1 or column == "stock_remaining":
                axes.fill_between(t_s, values, color=LIGHT[colour], alpha=FILL, lw=0)
            most = float(np.nanmax(values))
            top = max(top, most)
            entries.append(Entry(word if len(lines) > 3 else f"{word}, most {most:,.0f}", colour))
        axes.set_ylim(0, top * 1.2)
        canvas.key(number, title, entries)
    canvas.time_axis(float(timeline["t_s"].max()), *course)
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


def time_edges(end_s: float, wide: bool, most: int | None = None) -> Floats:
    """The edges of whole bins from 0 to `end_s`, in seconds: at most `most`, or as many as can be told
    apart."""
    most = most or (160 if wide else 80)
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
