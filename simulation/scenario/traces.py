"""Traces: recorded arrivals, read from a CSV file that lies beside its scenario."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import MAX_RPS


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8 or, as PowerShell writes it, UTF-16. Raises OSError, ValueError."""
    raw = file.read_bytes()
    return raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def read_trace(file: Path) -> list[float]:
    """Return the counts of a CSV file: one column, a row for each second, with or without a header.

    Raises ScenarioError, which names the file and the line at fault.
    """
    try:
        lines = read_text(file).rstrip().splitlines()
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{file}: is not CSV: {error}") from None
    counts: list[float] = []
    for number, line in enumerate(lines, 1):
        try:
            count = float(line.strip('"'))
        except ValueError:
            if number == 1 and line and "," not in line:
                continue  # the header
            raise ScenarioError(f"{file}: line {number}: must be one number, got {line!r}") from None
        if not 0 <= count <= MAX_RPS:
            raise ScenarioError(
                f"{file}: line {number}: must be a count from 0 to {MAX_RPS:,.0f}, got {line}"
            )
        counts.append(count)
    if not any(counts):
        raise ScenarioError(f"{file}: line {len(lines)}: ends without a count above 0")
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
