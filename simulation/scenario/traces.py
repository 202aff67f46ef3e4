"""Traces: recorded arrivals, read from a CSV file that lies beside its scenario."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import MAX_RPS


def read_trace(file: Path) -> list[float]:
    """Return the counts of a CSV file: one column, a row for each second, with or without a header.

    Raises ScenarioError, which names the file and the line at fault.
    """
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8-sig").rstrip().splitlines()))
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{file}: is not CSV: {error}") from None
    counts: list[float] = []
    for line, row in enumerate(rows, 1):
        try:
            (text,) = row
            count = float(text)
        except ValueError:
            if line == 1 and len(row) == 1:
                continue
            raise ScenarioError(f"{file}: line {line}: must be one number, got {','.join(row)!r}") from None
        if not 0 <= count <= MAX_RPS:
            raise ScenarioError(f"{file}: line {line}: must be a count from 0 to {MAX_RPS:,.0f}, got {text}")
        counts.append(count)
    if not any(counts):
        raise ScenarioError(f"{file}: line {len(rows)}: ends without a count above 0")
    return counts


def fill_traces(raw: Mapping[str, Any], path: Path) -> None:
    """Put the counts of each trace into the scenario read from `path`, which then needs the CSV no more.

    Raises ScenarioError.
    """
    arrivals = raw.get("arrivals")
    for number, segment in enumerate(arrivals if isinstance(arrivals, list) else []):
        if not isinstance(segment, dict) or segment.get("shape") != "trace" or "counts" in segment:
            continue
        if not isinstance(file := segment.get("file"), str):
            raise ScenarioError(f"{path.name}: arrivals.{number}.file: must name the CSV file of a trace")
        counts = read_trace(path.parent / file)
        segment.update({"seconds": float(len(counts)), "rate_rps": max(counts)} | segment, counts=counts)
