"""The comparison as one self-contained page, and as a table for the terminal."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from simulation.drive.driver import OPEN_LOOP
from simulation.judge.comparison import RESAMPLES, SLICES, Change, Row, Run, count_changes
from simulation.report.canvas import SERIES, Canvas, Phase
from simulation.report.comparison_plots import LETTERS, draw_changes, draw_curves, draw_times, percents
from simulation.report.page import count, fill_page, ms, seconds
from simulation.report.report import Plot

MOST_RUNS: Final = len(LETTERS)
METHOD: Final = (
    "Each run is compared with A. In brackets, where the change lies with a confidence of 95%: a bootstrap of"
    f" {RESAMPLES:,} resamples over {SLICES} slices of time. A coloured change is sure: its interval does not"
    " hold zero. It speaks of these runs alone; another day or machine may differ by more."
)


def write_comparison(
    runs: Sequence[Run], rows: Sequence[Row], conditions: Sequence[tuple[str, bool | None]], file: Path
) -> None:
    """Write the page; `conditions` are those it fails by, and whether each is true."""
    counted = [count_changes(rows, number) for number in range(1, len(runs))]
    failed = any(broken for _, broken in conditions)
    word, state = judge_in_a_word(counted)
    file.parent.mkdir(parents=True, exist_ok=True)
    page = fill_page(
        "comparison.html",
        word=word,
        state="fail" if failed else state,
        sentences=[describe_changes(LETTERS[number], found) for number, found in enumerate(counted, 1)],
        conditions=conditions,
        runs=[_describe_run(run, number, file.parent) for number, run in enumerate(runs)],
        notes=find_obstacles(runs),
        method=METHOD,
        rows=[
            {
                "title": row.title,
                "first": write_value(row, row.values[0]),
                "rest": [
                    (write_value(row, value), _describe_change(row, change))
                    for value, change in zip(row.values[1:], row.changes, strict=True)
                ],
            }
            for row in rows
        ],
        plots=_draw(runs, rows),
        differences=find_differences(runs),
    )
    file.write_text(page, encoding="utf-8")


def make_table(runs: Sequence[Run], rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for number in range(len(runs)):
        table.add_column(LETTERS[number], justify="right")
        if number:
            table.add_column("change", justify="right")
            table.add_column("95%", justify="right", style="dim")
    colours = {"longer": "bold red", "shorter": "bold green", "": ""}
    for row in rows:
        cells = [row.title, write_value(row, row.values[0])]
        for value, change in zip(row.values[1:], row.changes, strict=True):
            look = _describe_change(row, change)
            colour = colours[look["state"]]
            text = f"[{colour}]{look['text']}[/]" if colour else look["text"]
            cells += [write_value(row, value), text, look["interval"]]
        table.add_row(*cells)
    return table


def judge_in_a_word(counted: Sequence[tuple[int, int, int]]) -> tuple[str, str]:
    """Slower, quicker, mixed or alike, and the state whose colour it has."""
    longer, shorter = any(each[0] for each in counted), any(each[1] for each in counted)
    if longer and shorter:
        return "Mixed", "unknown"
    return ("Slower", "fail") if longer else ("Quicker", "pass") if shorter else ("Alike", "pass")


def describe_changes(letter: str, counted: tuple[int, int, int]) -> str:
    """How a run fares against the first, in a sentence."""
    words = ("surely longer", "surely shorter", "not surely either")
    parts = [f"{number} {word}" for number, word in zip(counted, words, strict=True) if number]
    return f"{letter} against A: of {sum(counted)} times, {', '.join(parts) or 'none to tell of'}."


def find_obstacles(runs: Sequence[Run]) -> list[str]:
    """Why the runs should not be compared, if there is a reason."""
    found = []
    for number, run in enumerate(runs):
        if not run.summary["load"]["valid"]:
            found.append(f"The load of {LETTERS[number]} is not valid: {run.summary['load']['reason']}.")
    for name, words in (("scenario", "scenarios"), ("machine", "machines")):
        if any(run.summary[name] != runs[0].summary[name] for run in runs):
            found.append(f"The runs are of different {words}.")
    return found


def find_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What is not the same in all runs: command, seed, commit, machine, versions."""
    facts = [
        {
            "Command": run.summary["command"],
            "Scenario": run.summary["scenario"],
            "Driver": run.summary.get("driver", OPEN_LOOP),
            "Seed": run.summary["seed"],
            "Offered, requests/s": count(run.summary["load"]["offered_rps"]),
            "Stock": count(run.summary["stock"]["initial"]),
            "Commit": run.summary["commit"][:12],
            **{name.replace("_", " ").capitalize(): value for name, value in run.summary["machine"].items()},
            **run.summary["versions"],
        }
        for run in runs
    ]
    names = dict.fromkeys(name for each in facts for name in each)
    values = {name: [str(each.get(name, "–")) for each in facts] for name in names}
    return [(name, each) for name, each in values.items() if len(set(each)) > 1]


def write_value(row: Row, value: float | None) -> str:
    """A value in the unit that suits it."""
    return {"ms": ms, "s": seconds, "": count}[row.unit](value)


def _describe_change(row: Row, change: Change | None) -> dict[str, str]:
    if change is None:
        return {"text": "–", "interval": "", "state": ""}
    if not change.delta:
        text = "0"
    elif change.percent is None or not row.unit:
        text = f"{change.delta:+,.0f}"
    else:
        text = percents(change.percent)
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f"[{percents(change.low)}, {percents(change.high)}]"
    return {
        "text": text,
        "interval": interval,
        "state": change.sure * ("longer" if change.delta > 0 else "shorter"),
    }


def _describe_run(run: Run, number: int, base: Path) -> dict[str, Any]:
    load = run.summary["load"]
    return {
        "letter": LETTERS[number],
        "name": run.name,
        "colour": SERIES[number % len(SERIES)],
        "verdict": run.summary["verdict"],
        "link": Path(os.path.relpath(run.folder, base)).as_posix() + "/report.html",
        "detail": f"{run.summary['scenario']}, {count(load['requests'])} requests,"
        f" commit {run.summary['commit'][:12]}, {run.summary['started_at'][:16].replace('T', ' ')} UTC",
    }


def _draw(runs: Sequence[Run], rows: Sequence[Row]) -> list[Plot]:
    same = all(run.summary["phases"] and run.duration_s == runs[0].duration_s for run in runs)
    phases = [Phase(each["name"], each["start_s"], each["end_s"]) for each in runs[0].summary["phases"]]
    drafts: list[tuple[str, str, str, Callable[[bool], Canvas | None]]] = [
        (
            "changes",
            "Changes and how sure they are",
            "The bar is the interval; a ring is a change that may be chance.",
            lambda wide: draw_changes(rows, wide),
        ),
        (
            "times",
            "Over the run",
            "99th percentile of the response time of all requests that were answered.",
            lambda wide: draw_times(runs, phases if same else [], wide),
        ),
        (
            "accepted",
            "Purchases that were accepted",
            "From intended start to answer.",
            lambda wide: draw_curves(runs, "ACCEPTED", wide),
        ),
        (
            "sold_out",
            "Purchases that were turned away",
            "From intended start to answer.",
            lambda wide: draw_curves(runs, "SOLD_OUT", wide),
        ),
    ]
    drawn = []
    for name, title, caption, draw in drafts:
        wide, narrow = draw(True), draw(False)
        if wide and narrow:
            svgs = (wide.to_svg(f"compare-{name}"), narrow.to_svg(f"compare-{name}"))
            drawn.append(Plot(name, title, caption, *svgs))
    return drawn
