"""What a series of runs leaves in its folder, beside a folder for each run."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from simulation.judge.figures import Spread
from simulation.record.facts import read_part
from simulation.record.manifest import MANIFEST, PRODUCTS

SERIES: Final = "series.json"
KEPT: Final = (*PRODUCTS, MANIFEST, "run.json", "faults.json")
"""What is left of a run whose record is dropped. The manifest still has the digests of all of it."""


class SeriesRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a series."""

    folder: str
    seed: int
    verdict: str
    verdict_in_words: str


class SeriesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one scenario, one after the other, and how far their figures spread."""

    scenario: str
    command: str
    started_at: datetime
    commit: str
    machine: dict[str, str | int]
    runs: list[SeriesRun] = []
    figures: dict[str, Spread] = {}
    """By the metric's name."""


def read_series(folder: Path) -> SeriesRecord | None:
    """Return the series in a folder; None where it holds none. Raises RunError if it can't be read."""
    return read_part(folder, SERIES, SeriesRecord)


def drop_record(folder: Path) -> None:
    """Delete what a run recorded, but for its verdict, its report and the facts of its set-up."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()
