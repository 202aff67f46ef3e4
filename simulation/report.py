"""The report: one self-contained page, a pure function of what a run left in its folder.

Reads summary.json, history.parquet, timeline.csv and final/; writes plots/*.png and report.html.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import jinja2
import pandas as pd

from simulation import plots
from simulation.canvas import DARK, LIGHT, Canvas, Phase, milliseconds
from simulation.final_state import load_final_state
from simulation.history import read_history
from simulation.summary import TRUSTED, is_trusted

MARKS: Final = {"pass": "✓", "fail": "✕", "unknown": "?", True: "✓", False: "✕", None: "?"}
PICTURE: Final = "picture.svg"
"""Of plots/: a small picture of the run, for lists."""
STATES: Final = {True: "pass", False: "fail", None: "unknown"}


class Plot(NamedTuple):
    """A drawing in its two forms: the page shows the narrow one on a phone."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str


def write_report(run_folder: Path) -> Path:
    """Write the run's plots and report.html from its record; returns the path of the page.

    Raises OSError where summary.json, history.parquet or final/ can't be read.
    """
    summary: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    page = render_page(summary, draw_plots(run_folder, summary))
    report = run_folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def draw_plots(run_folder: Path, summary: dict[str, Any]) -> list[Plot]:
    """Draw all that the record allows, and write each plot to plots/NAME.png as well, and a small picture."""
    history = read_history(run_folder / "history.parquet")
    timeline = read_timeline(run_folder / "timeline.csv")
    orders = load_final_state(run_folder).orders
    phases = [Phase(phase["name"], phase["start_s"], phase["end_s"]) for phase in summary["phases"]]
    phases = plots.mark_faults(summary.get("faults", [])) or phases
    sold_out_s = None
    if summary["time_to_sell_out_s"] is not None:
        sold_out_s = summary["time_to_sell_out_s"] + float(history["intended_ns"].min()) / 1e9
    folder = run_folder / "plots"
    folder.mkdir(exist_ok=True)

    drafts: list[tuple[str, str, str, Callable[[bool], Canvas | None]]] = [
        (
            "latency",
            "Response time over the run",
            "Intended start to answer; the upper edge is the 99th percentile, the lower the median.",
            lambda wide: plots.draw_latency(history, phases, wide),
        ),
        (
            "heat",
            "Every answer, over time",
            "Each cell is a moment and a response time; the colour is how many requests fell into it.",
            lambda wide: plots.draw_heat(history, phases, sold_out_s, wide),
        ),
        (
            "percentiles",
            "Latency by percentile",
            "Response time counts from the intended start, service time from the moment of sending. What lies"
            " between is time that requests waited to be sent, which a closed loop would have hidden. A curve"
            f" is thin where fewer than {TRUSTED} requests were slower.",
            lambda wide: plots.draw_percentiles(history, wide),
        ),
        (
            "throughput",
            "Throughput",
            "What was offered is counted at the intended start, everything else when it was answered.",
            lambda wide: plots.draw_throughput(history, phases, sold_out_s, wide),
        ),
        (
            "stock",
            "Stock, and what is under way",
            "Orders are not yet settled from the moment the gate accepts them until the ledger has them.",
            lambda wide: plots.draw_stock(timeline, phases, wide),
        ),
        (
            "lag",
            "Fulfilment lag",
            "From accepted at the gate to settled in the ledger.",
            lambda wide: plots.draw_lag(orders, wide),
        ),
        (
            "processes",
            "Processor and memory",
            "The busiest processes, by name; 100% is one core. All are in timeline.csv.",
            lambda wide: plots.draw_processes(timeline, phases, wide),
        ),
    ]
    drawn = []
    for name, title, caption, draw in drafts:
        wide, narrow = draw(True), draw(False)
        if wide is None or narrow is None:
            continue
        wide.to_png(folder / f"{name}.png")
        drawn.append(Plot(name, title, caption, wide.to_svg(name), narrow.to_svg(name)))
    (folder / PICTURE).write_text(plots.draw_picture(history), encoding="utf-8")
    return drawn


def read_timeline(file: Path) -> pd.DataFrame:
    """The probes' samples; empty where there are none."""
    return pd.read_csv(file) if file.exists() else pd.DataFrame({"t_s": pd.Series(dtype="float64")})


def render_page(summary: dict[str, Any], drawn: list[Plot]) -> str:
    """The page."""
    return fill_page(
        "report.html",
        summary=summary,
        plots={plot.name: plot for plot in drawn},
        checks=sorted(summary["checks"], key=lambda check: {False: 0, None: 1, True: 2}[check["holds"]]),
        headline=headline(summary),
        too_few=TRUSTED if has_weak_percentile(summary) else None,
        outcomes=outcome_shares(summary["outcomes"]),
    )


def fill_page(template: str, **values: Any) -> str:
    """A page of the simulation's, in its one style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "ms": ms, "seconds": seconds}
    environment.tests["trusted"] = is_trusted
    look = {"light": LIGHT, "dark": DARK, "marks": MARKS, "states": STATES}
    return environment.get_template(template).render(**values, **look)


def headline(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The three numbers that matter: units oversold, purchases lost, and how long a buyer waited."""
    stock, fulfilment = summary["stock"], summary["fulfilment"]
    settled = next((check for check in summary["checks"] if check["name"] == "accepted is settled"), None)
    accepted = summary["latency_ms"]["accepted"]["response"]
    bought = summary["outcomes"]["accepted"]
    lost = None if settled is None or settled["holds"] is None else settled["violations"]
    return [
        {
            "value": count(stock["oversold"]),
            "name": "units oversold",
            "detail": f"{count(stock['sold'])} sold of {count(stock['initial'])} in stock",
            "state": _state(stock["oversold"]),
        },
        {
            "value": count(lost),
            "name": "accepted purchases lost",
            "detail": f"{count(fulfilment['confirmed'])} confirmed, {count(fulfilment['failed'])} failed,"
            f" {count(fulfilment['rejected'])} rejected",
            "state": _state(lost),
        },
        {
            "value": ms(accepted["p99"]),
            "name": "p99 response of a buyer",
            "detail": f"median {ms(accepted['p50'])}, from intended start to answer"
            + ("" if is_trusted("p99", bought) else f"; {count(bought)} purchases are too few to trust it"),
            "state": "plain",
        },
    ]


def has_weak_percentile(summary: dict[str, Any]) -> bool:
    """Whether any percentile of the summary rests on too few samples."""
    return any(
        value is not None and not is_trusted(name, summary["outcomes"][outcome])
        for outcome, kinds in summary["latency_ms"].items()
        for name, value in kinds["response"].items()
    )


def outcome_shares(outcomes: dict[str, int]) -> list[dict[str, Any]]:
    """Name, count, share of all requests in percent, and colour of each outcome that occurred."""
    colours = {
        "accepted": "blue",
        "sold_out": "orange",
        "rejected": "olive",
        "error": "pink",
        "unknown": "muted",
    }
    total = sum(outcomes.values()) or 1
    return [
        {
            "name": name.replace("_", " "),
            "count": number,
            "share": 100 * number / total,
            "colour": colours[name],
        }
        for name, number in outcomes.items()
        if number
    ]


def _state(violations: int | None) -> str:
    return "unknown" if violations is None else "fail" if violations else "pass"


def count(value: float | None) -> str:
    """A whole number with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def ms(value: float | None) -> str:
    """A duration given in milliseconds, or a dash."""
    return "–" if value is None else milliseconds(value)


def seconds(value: float | None) -> str:
    """A duration given in seconds, or a dash."""
    return "–" if value is None else milliseconds(value * 1e3)
