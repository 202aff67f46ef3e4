"""The pages that list runs: those of a folder, and those of a series. Pure functions of what they left."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from simulation.errors import RunError
from simulation.judge.chance import LEVEL, count_runs_needed
from simulation.judge.comparison import CERTAIN, Row
from simulation.judge.figures import FIGURES, Run
from simulation.record.series import SeriesRecord, read_series
from simulation.record.summary import read_summary
from simulation.report.page import fill_page
from simulation.report.plots.comparison import draw_spread
from simulation.report.plots.responsive import make_plot
from simulation.report.report import THUMBNAIL
from simulation.report.trend import HEIGHT, WIDTH, find_trends
from simulation.report.words import figure, percent
from simulation.scenario.condition import unit_of

COMPARISON: Final = "comparison.html"
T = TypeVar("T")


CAMPAIGNS: Final = {
    "matrix": ("Matrix of faults", "cells", "verdict", "pass"),
    "pairs": ("Pairs of faults", "pairs", "verdict", "pass"),
    "mutants": ("Deliberate bugs", "trials", "outcome", "caught"),
    "soak": ("Soak", "runs", "verdict", "pass"),
    "worth": ("What the design is worth, Flashgrid", "cases", "flashgrid.verdict", "pass"),
    "model": ("Model of the protocol", None, "", ""),
    "interleave": ("The engine's steps in any order", None, "", ""),
    "bench": ("Benchmark", None, "", ""),
}
"""What each kind of campaign is called, where its JSON lists its rows, and which of a row's fields says, by
which word, that it is as it should be; `a.b` is a field of a field."""


class Campaign(NamedTuple):
    """Many runs that prove or measure one thing."""

    title: str
    link: str
    started_at: str
    words: str
    state: str


class Entry(NamedTuple):
    """A run in the list."""

    name: str
    summary: dict[str, Any]
    thumbnail: str
    """An SVG element; empty where there is none."""


def write_index(folder: Path) -> Path:
    """Write index.html into the folder of the runs; return its path. Raises OSError."""
    entries, series = list_runs(folder), list_series(folder)
    runs = [(entry.name, entry.summary) for entry in entries] + _read_series_runs(folder, series)
    page = folder / "index.html"
    text = fill_page(
        "index.html",
        entries=entries,
        counts=Counter(entry.summary["verdict"] for entry in entries),
        series=series,
        campaigns=list_campaigns(folder),
        trends=find_trends(runs),
        size=(WIDTH, HEIGHT),
        comparisons=list_comparisons(folder),
    )
    page.write_text(text, encoding="utf-8")
    return page


def list_runs(folder: Path) -> list[Entry]:
    """Return the runs with a report and a summary, the latest first. Skip every other folder."""
    entries = []
    for report in _find_pages(folder, "report.html"):
        summary = _skip(read_summary, report.parent)
        if summary is None:
            continue
        thumbnail = report.parent / "plots" / THUMBNAIL
        drawing = thumbnail.read_text(encoding="utf-8") if thumbnail.exists() else ""
        entries.append(Entry(report.parent.relative_to(folder).as_posix(), summary, drawing))
    return sorted(entries, key=lambda entry: (entry.summary["started_at"], entry.name), reverse=True)


def _skip(read: Callable[[Path], T | None], place: Path) -> T | None:
    """Return what is read in a folder; None where it has none that can be read."""
    try:
        return read(place)
    except RunError:
        return None


def _read_series_runs(
    folder: Path, series: Sequence[tuple[str, SeriesRecord]]
) -> list[tuple[str, dict[str, Any]]]:
    """Return name and summary of each run of the series."""
    names = [f"{name}/{run.folder}" for name, each in series for run in each.runs]
    return [(name, summary) for name in names if (summary := _skip(read_summary, folder / name))]


def _find_pages(folder: Path, name: str) -> list[Path]:
    """Return the pages of that name in the folders of the folder, and in those of its groups."""
    return [
        *folder.glob(f"*/{name}"),
        *(page for group in _find_groups(folder) for page in group.glob(f"*/{name}")),
    ]


def _find_groups(folder: Path) -> list[Path]:
    """Return the folders that have no record of their own: they hold runs, or series, to be read together."""
    places = sorted(each for each in folder.iterdir() if each.is_dir())
    return [place for place in places if not next(place.glob("*.json"), None)]


def list_comparisons(folder: Path) -> list[str]:
    """Return the pages that compare runs or series of a folder, or of a group in it."""
    pages = [folder / COMPARISON, *(page for group in _find_groups(folder) for page in group.glob("*.html"))]
    return [page.relative_to(folder).as_posix() for page in sorted(pages) if page.exists()]


def list_campaigns(folder: Path) -> list[Campaign]:
    """Return the campaigns in the folder, the latest first. Skip what can't be read."""
    found = []
    for kind, (title, rows, field, word) in CAMPAIGNS.items():
        for file in folder.glob(f"*/{kind}.json"):
            pages = [file.with_suffix(suffix) for suffix in (".html", ".md")]
            page = next((each for each in pages if each.exists()), file)
            try:
                result = json.loads(file.read_text(encoding="utf-8"))
                states = [reduce(getitem, field.split("."), row) for row in result[rows]] if rows else []
                # A record of several runs has a day.
                started_at = result.get("started_at") or result["date"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            good = states.count(word)
            said = f"{good} of {len(states)} {'caught' if kind == 'mutants' else 'passed'}" if rows else ""
            state = ("pass" if good == len(states) else "fail") if rows else "idle"
            found.append(Campaign(title, f"{file.parent.name}/{page.name}", started_at, said, state))
    return sorted(found, key=lambda each: each.started_at, reverse=True)


def list_series(folder: Path) -> list[tuple[str, SeriesRecord]]:
    """Return the series in the folder by name, the latest first."""
    pages = [page.parent for page in _find_pages(folder, "series.html")]
    found = [(place.relative_to(folder).as_posix(), _skip(read_series, place)) for place in pages]
    series = [(name, each) for name, each in found if each is not None]
    return sorted(series, key=lambda each: each[1].started_at, reverse=True)


def write_series_page(series: SeriesRecord, runs: Sequence[Run], folder: Path) -> None:
    """Write series.html into the folder of the series, whose runs these are. Raises OSError."""
    shown = {metric: each for metric, each in series.figures.items() if len(set(each.values)) > 1}
    same = {metric: each for metric, each in series.figures.items() if metric not in shown}
    verdicts = Counter(run.verdict for run in series.runs)
    rows = [
        Row(metric, FIGURES[metric], unit_of(metric), [each.values], []) for metric, each in shown.items()
    ]
    spread = draw_spread(rows)
    tests = sum(metric not in CERTAIN for metric in shown)
    text = fill_page(
        "series.html",
        series=series,
        state=next((word for word in ("fail", "unknown") if verdicts[word]), "pass"),
        verdicts=verdicts,
        reports=[(Path(run.folder) / "report.html").exists() for run in runs],
        heads=[FIGURES[metric] for metric in shown],
        rows=[
            [_write(metric, each.values[number]) for metric, each in shown.items()]
            for number in range(len(series.runs))
        ],
        medians=[_write(metric, each.median) for metric, each in shown.items()],
        spreads=[_percent(each.spread_percent, "±") for each in shown.values()],
        detectable=[_percent(each.detectable_percent, "+") for each in shown.values()],
        same=[f"{FIGURES[metric]} {_write(metric, each.median)}" for metric, each in same.items()],
        tests=tests,
        needed=count_runs_needed(LEVEL),
        needed_together=count_runs_needed(LEVEL / max(tests, 1)),
        plots={"spread": make_plot(spread)} if spread else {},
    )
    (folder / "series.html").write_text(text, encoding="utf-8")


def _write(metric: str, value: float | None) -> str:
    return "–" if value is None else figure(value, unit_of(metric))


def _percent(value: float | None, sign: str) -> str:
    return "–" if value is None else percent(value).replace("+", sign)
