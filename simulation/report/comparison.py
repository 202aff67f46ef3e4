"""A comparison of runs as one self-contained page, and as a table for the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from simulation.drive.driver import OPEN_LOOP
from simulation.judge.comparison import RESAMPLES, SLICES, Change, Row, Run, count_changes
from simulation.report.canvas import Course, Phase
from simulation.report.comparison_plots import LETTERS, draw_changes, draw_curves, draw_times
from simulation.report.page import SERIES, fill_page
from simulation.report.words import count, ms, percent, seconds

MOST_RUNS: Final = len(LETTERS)


def write_comparison(
    runs: Sequence[Run], rows: Sequence[Row], conditions: Sequence[tuple[str, bool | None]], file: Path
) -> None:
    """Write the page. `conditions` make it fail, each with whether it is true. Raises OSError."""
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
        resamples=RESAMPLES,
        slices=SLICES,
        heads=_name_columns(runs),
        rows=[_fill_row(row) for row in rows],
        doubtful=[{row.metric: mark.reason} for row in rows for mark in row.marks if mark],
        plots=_draw(runs, rows),
        differences=find_differences(runs),
    )
    file.write_text(page, encoding="utf-8")


def make_table(runs: Sequence[Run], rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in _name_columns(runs):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    colours = {"longer": "bold red", "shorter": "bold green", "": ""}
    for row in rows:
        cells = (
            cell if isinstance(cell, str) else Text(f"{cell['text']} {cell['note']}", colours[cell["class"]])
            for cell in _fill_row(row)
        )
        table.add_row(*cells)
    return table


def _name_columns(runs: Sequence[Run]) -> list[str]:
    return ["", "A"] + [head for letter in LETTERS[1 : len(runs)] for head in (letter, "change")]


def judge_in_a_word(counted: Sequence[tuple[int, int, int]]) -> tuple[str, str]:
    """Return Slower, Quicker, Mixed or Alike, and the state that has its colour."""
    longer, shorter = any(each[0] for each in counted), any(each[1] for each in counted)
    if longer and shorter:
        return "Mixed", "unknown"
    return ("Slower", "fail") if longer else ("Quicker", "pass") if shorter else ("Alike", "pass")


def describe_changes(letter: str, counted: tuple[int, int, int]) -> str:
    """Return a sentence that compares a run with the first."""
    words = ("certainly longer", "certainly shorter", "not certainly either")
    parts = [f"{number} {word}" for number, word in zip(counted, words, strict=True) if number]
    return f"{letter} against A: of {sum(counted)} times, {', '.join(parts) or 'none compared'}."


def find_obstacles(runs: Sequence[Run]) -> list[str]:
    """Return the reasons, if any, not to compare the runs."""
    found = []
    for number, run in enumerate(runs):
        if not run.summary["load"]["valid"]:
            found.append(f"The load of {LETTERS[number]} is not valid: {run.summary['load']['reason']}.")
    for name, words in (("scenario", "scenarios"), ("machine", "machines")):
        if any(run.summary[name] != runs[0].summary[name] for run in runs):
            found.append(f"The runs are of different {words}.")
    return found


def find_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return what differs between the runs: command, seed, commit, machine, versions."""
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


def _fill_row(row: Row) -> list[str | dict[str, str]]:
    write = {"ms": ms, "s": seconds, "": count}[row.unit]
    values = [
        write(value) + " †" * (mark is not None) for value, mark in zip(row.values, row.marks, strict=True)
    ]
    cells: list[str | dict[str, str]] = [row.title, values[0]]
    for value, change in zip(values[1:], row.changes, strict=True):
        cells += [value, _describe_change(row, change)]
    return cells


def _describe_change(row: Row, change: Change | None) -> dict[str, str]:
    if change is None:
        return {"text": "–", "note": "", "class": ""}
    text = f"{change.delta:+,.0f}"
    if change.percent is not None and row.unit:
        text = percent(change.percent)
    interval = "in doubt" if change.doubtful else ""
    if change.low is not None and change.high is not None:
        interval = f"[{percent(change.low)}, {percent(change.high)}]"
    return {
        "text": text,
        "note": interval,
        "class": change.sure * ("longer" if change.delta > 0 else "shorter"),
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


def _draw(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    phases = [Phase(each["name"], each["start_s"], each["end_s"]) for each in runs[0].summary["phases"]]
    same = all(run.summary["phases"] and run.duration_s == runs[0].duration_s for run in runs)
    drawn = {
        "changes": draw_changes(rows),
        "times": draw_times(runs, Course(phases if same else [])),
        "accepted": draw_curves(runs, "accepted"),
        "sold_out": draw_curves(runs, "sold_out"),
    }
    return {name: canvas.to_svg(name) for name, canvas in drawn.items() if canvas}
