"""The report: one self-contained page, a pure function of what a run left in its folder.

It is made of summary.json, history.parquet, timeline.csv and final/. Beside it, plots/ has the plots as PNG.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from simulation.judge.numbers.disturbance import Effect, Omission, find_omission, measure_effect
from simulation.judge.numbers.knee import find_ramp, measure_ramp
from simulation.judge.numbers.latency import TRUSTED, is_trusted
from simulation.model.history import take_buys
from simulation.model.hostile import KindCount
from simulation.record.facts import read_facts, read_hostile, read_timeline
from simulation.record.history import read_history
from simulation.record.state import read_state
from simulation.report.page import fill_page
from simulation.report.plots import latency, load, run
from simulation.report.plots.canvas import Canvas, Course, Phase
from simulation.report.plots.load import Cause, list_causes
from simulation.report.plots.moment import draw_moment
from simulation.report.plots.responsive import Plot, make_plot, to_svg
from simulation.report.scenario import list_facts, tabulate_arrivals, tabulate_sales
from simulation.report.words import FAULTS, OUTCOMES, ROLES, count, ms, seconds
from simulation.scenario.schema import DriverOptions

THUMBNAIL: Final = "picture.svg"
"""In plots/: a small picture of the run, for the index."""
_COLOURS: Final = {
    "accepted": "blue", "sold_out": "orange", "rejected": "olive", "error": "pink", "unknown": "muted",
}  # fmt: skip

_ORDER: Final = ("broken", "not judged", "held", "not exercised")
"""Checks as the page lists them, by state."""

_BRIEF: Final = ("throughput", "moment", "errors", "latency", "stock")
"""The plots of a brief report."""

Figures = Mapping[str, Plot]


def write_report(run_folder: Path, brief: bool = False) -> Path:
    """Write the run's plots and report.html from its record; return the path of the page.

    A `brief` report is a third of the size: it has the main plots alone, and none beside the page.

    Raises OSError or RunError where a file can't be read or written.
    """
    summary: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    whole = read_history(run_folder / "history.parquet")
    history = take_buys(whole)
    scenario = read_facts(run_folder).scenario
    probed = (run_folder / "timeline.csv").exists()
    timeline = read_timeline(run_folder) if probed else pd.DataFrame({"t_s": []})
    hostile, driver = read_hostile(run_folder), scenario.driver
    page = render_page(
        summary,
        write_plots(run_folder, summary, whole, timeline, driver, brief),
        effects=[measure_effect(history, fault, driver.timeout_ms) for fault in summary.get("faults", [])],
        omission=find_omission(whole, summary, driver),
        processes=measure_processes(timeline),
        hostile=tabulate_hostile(hostile.clients.kinds if hostile else {}),
        causes=list_causes(whole, driver.timeout_ms),
        asked={
            "sales": tabulate_sales(scenario),
            "arrivals": tabulate_arrivals(scenario),
            "facts": list_facts(scenario),
        },
    )
    report = run_folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def write_plots(
    run_folder: Path,
    summary: dict[str, Any],
    whole: pd.DataFrame,
    timeline: pd.DataFrame,
    driver: DriverOptions,
    brief: bool = False,
) -> Figures:
    """Draw all that the record allows; write plots/NAME.png and the thumbnail. Raises OSError."""
    history, timeout_ms = take_buys(whole), driver.timeout_ms
    orders = read_state(run_folder).orders
    moments = [
        (each["at_s"], f"restock, {count(each['stock'])} units") for each in summary.get("restocks", [])
    ]
    sold_out_s = None
    if summary["time_to_sell_out_s"] is not None:
        sold_out_s = summary["time_to_sell_out_s"] + float(history["intended_ns"].min()) / 1e9
        moments.insert(0, (sold_out_s, f"sold out, {sold_out_s:.2f} s"))
    course = Course(
        [Phase(phase["name"], phase["start_s"], phase["end_s"]) for phase in summary["phases"]],
        run.mark_faults(summary.get("faults", []), summary["duration_s"]),
        moments,
    )
    drawn = {
        "throughput": run.draw_throughput(history, course),
        "moment": draw_moment(
            history,
            orders,
            datetime.fromisoformat(summary["started_at"]).timestamp() * 1e6,
            sold_out_s,
            summary["stock"]["initial"],
            course,
            timeout_ms,
        ),
        "errors": load.draw_errors(whole, course, timeout_ms),
        "flight": load.draw_flight(whole, course, driver),
        "lag": load.draw_lag(whole, course),
        "latency": latency.draw_latency(history, course, timeout_ms),
        "heat": latency.draw_heat(history, course, timeout_ms),
        "percentiles": latency.draw_percentiles(history, timeout_ms),
        "knee": _draw_knee(run_folder, summary, history, timeout_ms),
        "stock": run.draw_stock(timeline, course),
        "delay": run.draw_delay(orders),
        "processes": run.draw_processes(timeline, course, summary["machine"].get("cores")),
    }
    if brief:
        return {name: make_plot(canvas) for name in _BRIEF if (canvas := drawn[name])}
    folder = run_folder / "plots"
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.png"):
        file.unlink()  # an older version may have drawn other plots
    figures = {}
    for name, canvas in drawn.items():
        if canvas:
            canvas.to_png(folder / f"{name}.png")
            figures[name] = make_plot(canvas)
    if "throughput" in figures:
        (folder / THUMBNAIL).write_text(to_svg(run.draw_thumbnail(history)), encoding="utf-8")
    return figures


def _draw_knee(
    run_folder: Path, summary: dict[str, Any], history: pd.DataFrame, timeout_ms: float
) -> Canvas | None:
    ramp = find_ramp(read_facts(run_folder).scenario) if summary.get("knee") else None
    if ramp is None:
        return None
    _, rates, p99_ms = measure_ramp(history, *ramp, timeout_ms)
    return latency.draw_knee(rates, p99_ms, summary["knee"])


def measure_processes(timeline: pd.DataFrame) -> list[dict[str, Any]]:
    """Return name, mean and most CPU in percent of a core, and most memory in MiB of each process."""
    return [
        {
            "name": name,
            "cpu_mean": timeline[run.CPU + name].mean(),
            "cpu_most": timeline[run.CPU + name].max(),
            "memory_most": timeline[run.MEMORY + name].max(),
        }
        for name in run.list_processes(timeline)
    ]


def tabulate_hostile(kinds: Mapping[str, KindCount]) -> dict[str, Any] | None:
    """Return the hostile requests of a run by kind, and the words of their answers: statuses first."""
    if not kinds:
        return None
    return {
        "sent": sum(tally.sent for tally in kinds.values()),
        "kinds": dict(sorted(kinds.items())),
        "words": sorted({word for tally in kinds.values() for word in tally.answers}),
    }


def render_page(
    summary: dict[str, Any],
    figures: Figures,
    *,
    effects: Sequence[Effect] = (),
    omission: Omission | None = None,
    processes: Sequence[dict[str, Any]] = (),
    hostile: dict[str, Any] | None = None,
    causes: Sequence[Cause] = (),
    asked: dict[str, Any] | None = None,
) -> str:
    """Return the page of a run."""
    total = sum(summary["outcomes"].values()) or 1
    return fill_page(
        "report.html",
        summary=summary,
        plots=figures,
        checks=sorted(summary["checks"], key=lambda check: list(_ORDER).index(check["state"])),
        headline=headline(summary),
        trusted_from=TRUSTED,
        outcomes=[
            {"name": OUTCOMES[name], "count": number, "share": 100 * number / total, "colour": _COLOURS[name]}
            for name, number in summary["outcomes"].items()
            if number
        ],
        effects=list(zip(summary.get("faults", []), effects, strict=False)),
        faults=FAULTS,
        roles=ROLES,
        omission=omission,
        processes=processes,
        hostile=hostile,
        causes=causes,
        asked=asked,
    )


def headline(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Return the main numbers: units oversold, purchases lost, a buyer's wait, and time to sell out."""
    stock, ledger = summary["stock"], summary["fulfilment"]
    settled = next((check for check in summary["checks"] if check["name"] == "accepted is settled"), None)
    accepted, bought = summary["latency_ms"]["accepted"]["response"], summary["outcomes"]["accepted"]
    lost = None if settled is None or settled["state"] == "not judged" else settled["violations"]
    took_s = summary["time_to_sell_out_s"]
    weak = "" if is_trusted("p99", bought) else f"; {count(bought)} purchases are too few to trust it"
    if doubt := summary["marks"].get("accepted.response.p99"):
        weak += f"; {doubt}"
    cells = [
        (
            count(stock["oversold"]), "units oversold", _state(stock["oversold"]),
            f"{count(stock['sold'])} sold of {count(stock['initial'])} in stock",
        ),
        (
            count(lost), "purchases lost", _state(lost),
            f"{count(ledger['confirmed'])} confirmed, {count(ledger['failed'])} failed,"
            f" {count(ledger['rejected'])} rejected",
        ),
        (
            ms(accepted["p99"]), "p99 of a purchase", "plain",
            f"median {ms(accepted['p50'])}, from intended start to answer{weak}",
        ),
        (
            count(stock["remaining"]), "units not sold", "plain",
            f"nothing sold out; {count(bought)} purchases",
        ) if took_s is None else (
            seconds(took_s), "to sell out", "plain",
            f"from the first request; {count(summary['outcomes']['sold_out'])} were refused as sold out",
        ),
    ]  # fmt: skip
    return [dict(zip(("value", "name", "state", "detail"), cell, strict=True)) for cell in cells]


def _state(violations: int | None) -> str:
    return "unknown" if violations is None else "fail" if violations else "pass"
