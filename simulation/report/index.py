"""The page that lists the runs of a folder: a pure function of what they left there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from simulation.report.page import fill_page
from simulation.report.report import THUMBNAIL

COMPARISON: Final = "comparison.html"


class Entry(NamedTuple):
    """A run in the list."""

    name: str
    summary: dict[str, Any]
    thumbnail: str
    """An SVG element; empty where there is none."""


def write_index(folder: Path) -> Path:
    """Write index.html into the folder of the runs; return its path. Raises OSError."""
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
    """Return the runs with a report and a summary, the latest first. Skip every other folder."""
    entries = []
    for report in folder.glob("*/report.html"):
        try:
            summary = json.loads((report.parent / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        thumbnail = report.parent / "plots" / THUMBNAIL
        drawing = thumbnail.read_text(encoding="utf-8") if thumbnail.exists() else ""
        entries.append(Entry(report.parent.name, summary, drawing))
    return sorted(entries, key=lambda entry: (entry.summary["started_at"], entry.name), reverse=True)
