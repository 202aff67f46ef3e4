"""The report: one self-contained page, a pure function of what a run left in its folder.

Reads summary.json, history.parquet, timeline.csv and final/; writes plots/*.png and report.html.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from simulation.judge.numbers.disturbance import Effect, Omission, find_omission, measure_effect
from simulation.judge.numbers.knee import find_ramp, measure_ramp
from simulation.judge.numbers.latency import TRUSTED, is_trusted
from simulation.model.hostile import KindCount
from simulation.record.facts import read_facts
from simulation.record.history import read_history
from simulation.record.hostile import read_hostile
from simulation.record.state import load_final_state
from simulation.report import latency_plots, plots
from simulation.report.canvas import Canvas, Course, Phase
from simulation.report.page import count, fill_page, ms, seconds

PICTURE: Final = "picture.svg"
"""Of plots/: a small picture of the run, for lists."""


KINDS: Final = {
    "kill": "ended at once, and started again",
    "stop": "stood still, and went on",
    "restart": "stopped in order, and started again",
    "latency": "every byte took longer",
    "cut": "connections reset and refused",
    "freeze": "bytes held back",
    "drop_replies": "some answers thrown away",
    "bandwidth": "only a trickle passed",
    "out_of_memory": "refused what takes memory",
    "disk_full": "refused what takes disk",
    "read_only": "refused every write",
    "no_connections": "every connection slot was taken",
    "flush": "lost all that it held",
    "wipe": "ended, and came back without its files",
    "rollback": "ended, and came back with older files",
    "failover": "ended, and a stale replica took its place",
}
"""What each kind of fault is (simulation.faults.fault)."""


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
    history = read_history(run_folder / "history.parquet")
    timeline = read_timeline(run_folder / "timeline.csv")
    hostile = read_hostile(run_folder)
    page = render_page(
        summary,
        draw_plots(run_folder, summary, history, timeline),
        effects=[measure_effect(history, fault) for fault in summary.get("faults", [])],
        omission=find_omission(history, summary),
        processes=measure_processes(timeline),
        hostile=tabulate_hostile(hostile.clients.kinds if hostile else {}),
    )
    report = run_folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def draw_plots(
    run_folder: Path, summary: dict[str, Any], history: pd.DataFrame, timeline: pd.DataFrame
) -> list[Plot]:
    """Draw all that the record allows, and write each plot to plots/NAME.png as well, and a small picture."""
    orders = load_final_state(run_folder).orders
    sold_out_s = None
    if summary["time_to_sell_out_s"] is not None:
        sold_out_s = summary["time_to_sell_out_s"] + float(history["intended_ns"].min()) / 1e9
    course = Course(
        [Phase(phase["name"], phase["start_s"], phase["end_s"]) for phase in summary["phases"]],
        plots.mark_faults(summary.get("faults", []), summary["duration_s"]),
        sold_out_s,
        [(each["at_s"], f"restock, {each['stock']:,} units") for each in summary.get("restocks", [])],
    )
    # A phone has no room for the words.
    short = [fault._replace(name=fault.name.split()[0]) for fault in course.faults]
    courses = {True: course, False: course._replace(faults=short)}
    folder = run_folder / "plots"
    folder.mkdir(exist_ok=True)

    drafts: list[tuple[str, str, str, Callable[[bool], Canvas | None]]] = [
        (
            "throughput",
            "What happened",
            "What was offered is counted at the intended start, everything else when it was answered.",
            lambda wide: plots.draw_throughput(history, courses[wide], wide),
        ),
        (
            "latency",
            "Response time over the run",
            "From intended start to answer. A step of p99 spans at least 100 requests, one of p99.9 at least"
            " 1,000, so that it is more than the slowest of a few.",
            lambda wide: latency_plots.draw_latency(history, courses[wide], wide),
        ),
        (
            "heat",
            "Every answer, over time",
            "Each cell is a moment and a response time; the colour is how many requests fell into it.",
            lambda wide: latency_plots.draw_heat(history, courses[wide], wide),
        ),
        (
            "percentiles",
            "Latency by percentile",
            "Response time counts from the intended start, service time from the moment of sending. What lies"
            " between is time that requests waited to be sent, which a closed loop would have hidden. A curve"
            f" is thin where fewer than {TRUSTED} requests were slower.",
            lambda wide: latency_plots.draw_percentiles(history, wide),
        ),
        (
            "knee",
            "How much it can take",
            "Each point is half a second of the climb. Beyond the knee response times leave their plateau.",
            lambda wide: draw_knee(run_folder, summary, history, wide),
        ),
        (
            "stock",
            "Stock, and what is under way",
            "Orders are not yet settled from the moment the gate accepts them until the ledger has them.",
            lambda wide: plots.draw_stock(timeline, courses[wide], wide),
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
            "Stacked, so that the upper edge is what all of them use; 100% is one core.",
            lambda wide: plots.draw_processes(timeline, courses[wide], summary["machine"].get("cores"), wide),
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


def draw_knee(run_folder: Path, summary: dict[str, Any], history: pd.DataFrame, wide: bool) -> Canvas | None:
    """The p99 at each offered rate of the run's climb, None where it has none."""
    if not summary.get("knee"):
        return None
    ramp = find_ramp(read_facts(run_folder).scenario)
    if ramp is None:
        return None
    start_s, segment = ramp
    at_s, p99_ms = measure_ramp(history, start_s, start_s + segment.seconds)
    rates = segment.rate_rps + (segment.to_rps - segment.rate_rps) * (at_s - start_s) / segment.seconds
    return latency_plots.draw_knee(rates, p99_ms, summary["knee"], wide)


def read_timeline(file: Path) -> pd.DataFrame:
    """The probes' samples; empty where there are none."""
    return pd.read_csv(file) if file.exists() else pd.DataFrame({"t_s": pd.Series(dtype="float64")})


def measure_processes(timeline: pd.DataFrame) -> list[dict[str, Any]]:
    """Name, mean and most CPU in percent of a core, and most memory in MiB of each process."""
    return [
        {
            "name": name,
            "cpu_mean": timeline[plots.CPU + name].mean(),
            "cpu_most": timeline[plots.CPU + name].max(),
            "memory_most": timeline[plots.MEMORY + name].max(),
        }
        for name in plots.list_processes(timeline)
    ]


def tabulate_hostile(kinds: Mapping[str, KindCount]) -> dict[str, Any] | None:
    """The hostile requests of a run by kind, and the words of their answers: statuses first."""
    if not kinds:
        return None
    return {
        "sent": sum(tally.sent for tally in kinds.values()),
        "kinds": dict(sorted(kinds.items())),
        "words": sorted({word for tally in kinds.values() for word in tally.answers}),
    }


def render_page(
    summary: dict[str, Any],
    drawn: list[Plot],
    *,
    effects: Sequence[Effect] = (),
    omission: Omission | None = None,
    processes: Sequence[dict[str, Any]] = (),
    hostile: dict[str, Any] | None = None,
) -> str:
    """The page."""
    return fill_page(
        "report.html",
        summary=summary,
        plots={plot.name: plot for plot in drawn},
        checks=sorted(summary["checks"], key=lambda check: {False: 0, None: 1, True: 2}[check["holds"]]),
        headline=headline(summary),
        too_few=TRUSTED if has_weak_percentile(summary) else None,
        outcomes=outcome_shares(summary["outcomes"]),
        effects=list(zip(summary.get("faults", []), effects, strict=False)),
        kinds=KINDS,
        omission=omission,
        processes=processes,
        hostile=hostile,
    )


def headline(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers that matter: units oversold, purchases lost, how long a buyer waited, and the sale took."""
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
            "name": "purchases lost",
            "detail": f"{count(fulfilment['confirmed'])} confirmed, {count(fulfilment['failed'])} failed,"
            f" {count(fulfilment['rejected'])} rejected",
            "state": _state(lost),
        },
        {
            "value": ms(accepted["p99"]),
            "name": "p99 of a purchase",
            "detail": f"median {ms(accepted['p50'])}, from intended start to answer"
            + ("" if is_trusted("p99", bought) else f"; {count(bought)} purchases are too few to trust it"),
            "state": "plain",
        },
        _sell_out(summary),
    ]


def _sell_out(summary: dict[str, Any]) -> dict[str, str]:
    took_s, left = summary["time_to_sell_out_s"], summary["stock"]["remaining"]
    if took_s is None:
        return {
            "value": count(left),
            "name": "units not sold",
            "detail": f"nothing sold out; {count(summary['outcomes']['accepted'])} purchases",
            "state": "plain",
        }
    return {
        "value": seconds(took_s),
        "name": "to sell out",
        "detail": f"from the first request; {count(summary['outcomes']['sold_out'])} were turned away",
        "state": "plain",
    }


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
