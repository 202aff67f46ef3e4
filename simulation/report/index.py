"""The page that lists all runs of a folder: a pure function of what the runs left there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from simulation.report.page import fill_page
from simulation.report.report import PICTURE

COMPARISON: Final = "comparison.html"


class Entry(NamedTuple):
    """A run of the list."""

    name: str
    summary: dict[str, Any]
    picture: Markup
    """An SVG element; empty where there is none."""


def write_index(folder: Path) -> Path:
    """Write index.html into the folder of the runs; returns its path. Raises OSError."""
    entries = list_runs(folder)
    page = folder / "index.html"
    text = fill_page(
        "index.html",
        entries=entries,
        counts=Counter(entry.summary["verdict"] for entry in entries),
        comparison=COMPARISON if (folder / COMPARISON).exists() else None,
    )
    page.write_text(text, encoding="utf-8")
    return page


def list_runs(folder: Path) -> list[Entry]:
    """The runs with a summary and a report, the latest first; folders of anything else are passed over."""
    entries = []
    for file in folder.glob("*/summary.json"):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not {"verdict", "load", "stock", "started_at"} <= summary.keys():
            continue
        if not (file.parent / "report.html").exists():
            continue
        drawing = file.parent / "plots" / PICTURE
        # Drawn by the report, of numbers alone.
        picture = Markup(drawing.read_text(encoding="utf-8")) if drawing.exists() else Markup()  # noqa: S704
        entries.append(Entry(file.parent.name, summary, picture))
    return sorted(entries, key=lambda entry: (entry.summary["started_at"], entry.name), reverse=True)
