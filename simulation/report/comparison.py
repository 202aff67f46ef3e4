"""A comparison of runs or series as one self-contained page, and as a table for the terminal."""

import os
from collections.abc import Sequence
from itertools import chain, compress
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from simulation.judge.chance import LEVEL, count_runs_needed
from simulation.judge.comparison import Change, Row, count_tests
from simulation.judge.differences import find_differences
from simulation.judge.figures import Run, Side
from simulation.judge.stalls import QUANTILE, Stall
from simulation.report.page import SERIES, fill_page
from simulation.report.plots.canvas import Course, Phase
from simulation.report.plots.comparison import LETTERS, draw_curves, draw_spread, draw_times
from simulation.report.plots.responsive import Plot, make_plot
from simulation.report.words import count, figure, ms, percent

MOST_SIDES: Final = len(LETTERS)

Stalls = Sequence[Sequence[Stall] | None]
"""The stalls of each side but the first, which is compared with it; None where slices can't be compared."""


def write_comparison(
    sides: Sequence[Side],
    rows: Sequence[Row],
    stalls: Stalls,
    conditions: Sequence[tuple[str, bool | None]],
    file: Path,
    primary: str | None = None,
) -> None:
    """Write the page. `conditions` make it fail, each with whether it is true. Raises OSError."""
    failed = any(broken for _, broken in conditions)
    word, state = judge_in_a_word(sides, rows, stalls)
    file.parent.mkdir(parents=True, exist_ok=True)
    page = fill_page(
        "comparison.html",
        word=word,
        state="fail" if failed else state,
        sentences=describe_changes(sides, rows, stalls, primary),
        conditions=conditions,
        sides=[_describe_side(side, number, file.parent) for number, side in enumerate(sides)],
        notes=find_obstacles(sides),
        tests=count_tests(rows),
        primary=primary,
        heads=_name_columns(sides, rows),
        rows=[_fill_row(row, rows) for row in rows],
        plots=_draw(sides, rows),
        differences=find_differences(sides),
    )
    file.write_text(page, encoding="utf-8")


def make_table(sides: Sequence[Side], rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in _name_columns(sides, rows):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    colours = {"longer": "bold red", "shorter": "bold green", "differs": "bold"}
    for row in rows:
        cells = (
            cell
            if isinstance(cell, str)
            else Text(f"{cell['text']} {cell['note']}".rstrip(), colours.get(cell["class"], ""))
            for cell in _fill_row(row, rows)
        )
        table.add_row(*cells)
    return table


def judge_in_a_word(sides: Sequence[Side], rows: Sequence[Row], stalls: Stalls) -> tuple[str, str]:
    """Return the headline of a comparison, and the state that has its colour: first what no chance does."""
    for word, failed in (
        ("oversold", [side.oversold > 0 for side in sides]),
        ("failed", [side.is_broken for side in sides]),
    ):
        if any(failed):
            return f"{' and '.join(compress(LETTERS, failed))} {word}", "fail"
    sure = [(row, change) for row in rows for change in row.changes if change and change.sure]
    longer = any(_classify(row, change) == "longer" for row, change in sure)
    shorter = any(_classify(row, change) == "shorter" for row, change in sure)
    if longer and shorter:
        return "Mixed", "unknown"
    if longer or shorter:
        return ("Slower", "fail") if longer else ("Quicker", "pass")
    if sure:
        return "Different", "unknown"
    found = [(number, stall) for number, each in enumerate(stalls, 1) for stall in each or ()]
    if found:
        number, stall = max(found, key=lambda each: (each[1].what == "unserved", each[1].factor))
        word = {"response": "stalled", "delay": "settled late", "unserved": "turned away"}[stall.what]
        return f"{LETTERS[number * stall.worse]} {word}", "fail" if stall.worse else "pass"
    if count_tests(rows):
        return "No difference shown", "pass"
    return ("One run each" if all(len(side.runs) == 1 for side in sides) else "Too few runs"), "unknown"


def describe_changes(
    sides: Sequence[Side], rows: Sequence[Row], stalls: Stalls, primary: str | None
) -> list[str]:
    """Return what a comparison shows and what it can't show, in sentences."""
    said = [_describe_fault(*each) for each in _name_runs(sides) if each[1].is_broken]
    for number, found in enumerate(stalls, 1):
        said += [describe_stall(stall, LETTERS[number]) for stall in found or ()]
    for number, side in enumerate(sides[1:], 1):
        letter, sizes = LETTERS[number], f"{len(sides[0].runs)} and {len(side.runs)} runs"
        tested = [
            (row, change)
            for row in rows
            if (change := row.changes[number - 1]) is not None and change.chance is not None
        ]
        if tested:
            names: dict[str, list[str]] = {"longer": [], "shorter": [], "differs": []}
            for row, change in tested:
                if change.sure:
                    names[_classify(row, change)].append(row.title.lower())
            parts = [f"{word}: {', '.join(found)}" for word, found in names.items() if found]
            shown = "; ".join(parts) or "none is shown to differ"
            said.append(f"{letter} against A, {sizes}, {len(tested)} metrics tested; {shown}.")
        elif len(sides[0].runs) == len(side.runs) == 1:
            said.append(
                f"{letter} and A are one run each. The table says what changed, and nothing of chance:"
                " two runs of the same engine may differ as much. To tell, compare series"
                " (flashsim run SCENARIO --repeat 6)."
            )
        else:
            needed = count_runs_needed(LEVEL)
            said.append(f"{letter} against A, {sizes}: so few show no difference; {needed} a side can.")
    doubts = dict.fromkeys(mark.reason for row in rows for mark in chain(*row.marks) if mark)
    if doubts:
        said.append(f"† in doubt: {'; '.join(doubts)}. A change that this may have made is not claimed.")
    return said + _describe_power(sides, rows, primary)


def describe_stall(stall: Stall, letter: str) -> str:
    """Return in a sentence where a run went wrong and by how much; `letter` is that of the second run."""
    worse, better = (letter, "A") if stall.worse else ("A", letter)
    mine, other = stall.values[stall.worse], stall.values[1 - stall.worse]
    when = f"From {stall.start_s:.3g} to {stall.end_s:.3g} s"
    if stall.what == "unserved":
        return f"{when}, {mine:.0%} of {worse}'s requests were not served, of {better}'s {other:.0%}."
    what = "answers" if stall.what == "response" else "orders to settle"
    said = f"{when}, {worse} stalled: {QUANTILE * 100:g}% of the {what} took up to {ms(mine)},"
    said += f" {percent(100 * (stall.factor - 1))} of {better}'s {ms(other)}"
    if stall.what == "response" and stall.silent_s >= (stall.end_s - stall.start_s) / 4:
        said += f"; no answer came for {stall.silent_s:.2f} s"
    return f"{said}. The other slices of the two runs don't differ so: this is no noise."


def _describe_power(sides: Sequence[Side], rows: Sequence[Row], primary: str | None) -> list[str]:
    tests = count_tests([row for row in rows if row.metric != primary])
    if not tests:
        return []
    shown = [row for row in rows if any(change and change.detectable is not None for change in row.changes)]
    named = next((row for row in rows if row.metric == primary), None)
    said = []
    if named and (change := named.changes[0]) and change.detectable is not None:
        said.append(
            f"{named.title} is the primary metric: a change of {percent(change.detectable)} would show."
        )
    if named and count_tests([named]) and not any(each and each.sure for each in named.changes):
        said.append("It shows no difference, so the other metrics count as not tested.")
    if not [row for row in shown if row.metric != primary]:
        said.append(
            f"So few runs can't show a difference in any of {tests} metrics together:"
            f" that takes {count_runs_needed(LEVEL / tests)} runs a side,"
            f" or {count_runs_needed(LEVEL)} with one --primary metric named beforehand."
        )
    return said


def find_obstacles(sides: Sequence[Side]) -> list[str]:
    """Return the reasons, if any, not to compare the sides."""
    found = []
    for name, run in _name_runs(sides):
        if not run.summary["load"]["valid"]:
            found.append(f"The load of {name} is not valid: {run.summary['load']['reason']}.")
        elif run.summary["verdict"] != "pass" and not run.is_broken:
            found.append(f"{name} did not pass: {run.summary['verdict_in_words']}")
    for name, words in (("scenario", "scenarios"), ("machine", "machines")):
        if len({str(side.runs[0].summary[name]) for side in sides}) > 1:
            found.append(f"The runs are of different {words}.")
    if count_series(sides):
        found.append(
            "A machine that drifts between two series makes a difference as well: no test can tell it apart."
        )
    return found


def _describe_fault(name: str, run: Run) -> str:
    """Return in words what a run did that broke a rule."""
    units = run.summary["stock"]["oversold"]
    oversold = f" oversold {count(units)} units and" if units else ""
    return f"{name}{oversold} failed: {run.summary['verdict_in_words']}"


def _name_runs(sides: Sequence[Side]) -> list[tuple[str, Run]]:
    return [
        (f"{letter}, {run.name}" if len(side.runs) > 1 else letter, run)
        for letter, side in zip(LETTERS, sides, strict=False)
        for run in side.runs
    ]


def count_series(sides: Sequence[Side]) -> int:
    """Return how many sides have more than one run."""
    return sum(len(side.runs) > 1 for side in sides)


def _name_columns(sides: Sequence[Side], rows: Sequence[Row]) -> list[str]:
    more = ["change", "would show"] if count_tests(rows) else ["change"]
    return ["", "A"] + [head for letter in LETTERS[1 : len(sides)] for head in (letter, *more)]


def _fill_row(row: Row, rows: Sequence[Row]) -> list[str | dict[str, str]]:
    cells: list[str | dict[str, str]] = [row.title, _describe_values(row, 0)]
    for number, change in enumerate(row.changes, 1):
        cells += [_describe_values(row, number), _describe_change(row, change)]
        if count_tests(rows):
            cells.append(percent(change.detectable) if change and change.detectable is not None else "–")
    return cells


def _describe_values(row: Row, number: int) -> str | dict[str, str]:
    known = sorted(value for value in row.values[number] if value is not None)
    if not known:
        return "–"
    if len(known) < len(row.values[number]):
        note = f"in {len(known)} of {len(row.values[number])} runs"
    else:
        note = (
            f"{figure(known[0], row.unit)} to {figure(known[-1], row.unit)}" if known[0] < known[-1] else ""
        )
    doubt = " †" if row.marks and any(row.marks[number]) else ""
    return {"text": figure(median(known), row.unit) + doubt, "note": note, "class": ""}


def _describe_change(row: Row, change: Change | None) -> dict[str, str]:
    if change is None:
        return {"text": "–", "note": "", "class": ""}
    relative = change.percent if row.unit else None
    value, low, high = relative or change.delta
    write = percent if relative else lambda number: f"{number:+,.4g}"
    return {
        "text": write(value),
        "note": "in doubt"
        if change.doubtful
        else ""
        if low is None or high is None
        else f"[{write(low)}, {write(high)}]",
        "class": _classify(row, change) if change.sure else "",
    }


def _classify(row: Row, change: Change) -> str:
    """Return which way a change went: only times are longer or shorter."""
    if row.unit not in ("ms", "s"):
        return "differs"
    return "longer" if (change.percent or change.delta).value > 0 else "shorter"


def _describe_side(side: Side, number: int, base: Path) -> dict[str, Any]:
    summary = side.runs[0].summary
    requests = sum(run.summary["load"]["requests"] for run in side.runs)
    many = f"{len(side.runs)} runs, " if len(side.runs) > 1 else ""
    return {
        "letter": LETTERS[number],
        "name": side.name,
        "colour": SERIES[number % len(SERIES)],
        "verdict": side.verdict,
        "words": summary["verdict_in_words"] if len(side.runs) == 1 else "",
        "link": Path(os.path.relpath(side.folder, base)).as_posix() + f"/{side.page}",
        "detail": f"{summary['scenario']}, {many}{count(requests)} requests,"
        f" commit {summary['commit'][:12]}, {summary['started_at'][:16].replace('T', ' ')} UTC",
    }


def _draw(sides: Sequence[Side], rows: Sequence[Row]) -> dict[str, Plot]:
    drawn = {"spread": draw_spread(rows) if count_series(sides) else None}
    runs = [side.runs[0] for side in sides]
    records = [run.metrics for run in runs if run.metrics is not None]
    if not count_series(sides) and len(records) == len(runs):
        phases = [Phase(each["name"], each["start_s"], each["end_s"]) for each in runs[0].summary["phases"]]
        same = all(run.scenario.phases() == runs[0].scenario.phases() for run in runs)
        drawn |= {
            "times": draw_times(records, Course(phases if same else [])),
            "accepted": draw_curves(records, "ACCEPTED"),
            "sold_out": draw_curves(records, "SOLD_OUT"),
        }
    return {name: make_plot(canvas) for name, canvas in drawn.items() if canvas}
