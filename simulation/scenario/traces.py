"""Traces: recorded arrivals, read from a file that lies beside its scenario.

    counts      one number a line: requests in each step of `step_s` seconds, one second if not said
    times       one time a line: ISO 8601, seconds or milliseconds since 1970, or, under a header such as
                `time`, seconds from any start
    rows        time, user and product, separated by commas or semicolons
    access log  lines in the common or the combined format of Apache and nginx

Counts and rows may have a header, and a file may be compressed by gzip. Of rows and logs only the time
counts: who buys what is drawn as the population says.
"""

import gzip
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import MAX_RPS, MOST_STEPS

STEP_S: Final = 0.1
"""Shortest step into which times are counted; those of a log are whole seconds."""
FORMS: Final = (
    "a count (12), a time (2026-11-29T08:00:00Z, or seconds since 1970), a row of time, user and product,"
    " or a line of an access log"
)
GZIP: Final = b"\x1f\x8b"
_LOG: Final = re.compile(r'\S+ \S+ .*?\[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "')
_SEPARATORS: Final = re.compile("[,;]")
_TIME_HEADERS: Final = {"time", "timestamp", "date", "datetime", "at", "t", "t_s", "seconds"}


class Recorded(NamedTuple):
    """Requests in each step of so many seconds."""

    counts: list[float]
    step_s: float


class _Form(NamedTuple):
    """How the lines of a trace are read."""

    name: str
    parse: Callable[[str], float]
    """Raises ValueError, or ScenarioError in words that follow the line's number."""


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8 or, as PowerShell writes it, UTF-16, and perhaps in gzip.

    Raises OSError, ValueError.
    """
    raw = file.read_bytes()
    if raw.startswith(GZIP):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error) as error:
            raise OSError(f"is no whole gzip file: {error}") from None
    return raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def read_trace(file: Path, step_s: float = 1.0) -> Recorded:
    """Return the counts in a file, or those of the times in it; counts are of steps of `step_s`.

    Raises ScenarioError, which names the file and the line at fault, and what would be understood.
    """
    try:
        lines = read_text(file).rstrip().splitlines()
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{file}: is no text in UTF-8: {error.reason} at byte {error.start}") from None
    header, form = _find_form(lines, file)
    values: list[float] = []
    for number, line in enumerate(lines[header:], 1 + header):
        if not line.strip() and form is not _COUNT:
            continue
        try:
            values.append(form.parse(line))
        except ScenarioError as error:
            raise ScenarioError(f"{file}: line {number}: {error}") from None
        except ValueError:
            raise ScenarioError(f"{file}: line {number}: must be {form.name}, got {line!r}") from None
    if form is not _COUNT:
        return _count(values, 1.0 if form is _LOG_LINE else STEP_S)
    if not any(values):
        raise ScenarioError(f"{file}: line {len(lines)}: ends without a count above 0")
    return Recorded(values, step_s)


def _find_form(lines: list[str], file: Path) -> tuple[int, _Form]:
    """Return the number of lines that are a header, and how the others are read, by the first of them."""
    first = lines[0] if lines else "0"
    if form := _match(first):
        return 0, form
    header = first.strip('"').lower()
    form = _match(lines[1]) if len(lines) > 1 else None
    is_row = _SEPARATORS.search(header) is not None
    if form is _ROW and is_row:
        return 1, form
    if not is_row and form in (None, _COUNT, _TIME) and len(lines) > 1:
        return 1, _ANY_TIME if header in _TIME_HEADERS else form or _COUNT
    raise ScenarioError(f"{file}: line 1: must be {FORMS}, got {first!r}")


def _match(line: str) -> _Form | None:
    """Return how a line is read; None where it is not understood."""
    for form in (_LOG_LINE, _ROW, _TIME, _COUNT):
        try:
            form.parse(line)
        except ScenarioError:
            return form  # a number, and no count
        except ValueError:
            continue
        return form
    return None


def _count(times_s: list[float], step_s: float) -> Recorded:
    """Return how many of the times lie in each step from the first one on."""
    since_s = np.sort(np.array(times_s)) - min(times_s)
    step_s = max(step_s, float(since_s[-1]) / (MOST_STEPS - 1))
    steps = np.floor(since_s / step_s + 1e-6).astype(int)
    return Recorded(np.bincount(steps).astype(float).tolist(), step_s)


def _parse_count(text: str) -> float:
    """Return a number of requests. Raises ScenarioError for a number that is none."""
    count = float(text.strip('"'))
    if not 0 <= count <= MAX_RPS:
        raise ScenarioError(f"must be a count from 0 to {MAX_RPS:,.0f}, got {text}")
    return count


def _parse_any_time(text: str) -> float:
    """Return a time in seconds: a number, or ISO 8601, in UTC where it names no zone."""
    text = text.strip().strip('"')
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= number < 1e15:
        raise ValueError(text)
    # Seconds since 1970 have ten digits for the next two centuries, milliseconds thirteen.
    return number / 1e3 if number > 1e11 else number


def _parse_time(text: str) -> float:
    """Return a time that can be told from a count."""
    moment_s = _parse_any_time(text)
    if moment_s <= MAX_RPS:
        raise ValueError(text)
    return moment_s


def _parse_row(text: str) -> float:
    moment, user, product = _SEPARATORS.split(text)
    if not user.strip('" ') or not product.strip('" '):
        raise ValueError(text)
    return _parse_any_time(moment)


def _parse_log(text: str) -> float:
    found = _LOG.match(text)
    if found is None:
        raise ValueError(text)
    return datetime.strptime(found[1], "%d/%b/%Y:%H:%M:%S %z").timestamp()


_COUNT: Final = _Form("a count", _parse_count)
_TIME: Final = _Form("a time", _parse_time)
_ANY_TIME: Final = _Form("a time", _parse_any_time)
_ROW: Final = _Form("a row of time, user and product", _parse_row)
_LOG_LINE: Final = _Form("a line of an access log", _parse_log)


def fill_traces(raw: Mapping[str, Any], path: Path) -> None:
    """Put the counts of each trace into the scenario read from `path`, which then needs the file no more.

    Raises ScenarioError.
    """
    arrivals = raw.get("arrivals")
    for number, segment in enumerate(arrivals if isinstance(arrivals, list) else []):
        if not isinstance(segment, dict) or segment.get("shape") != "trace" or "counts" in segment:
            continue
        if not isinstance(file := segment.get("file"), str):
            raise ScenarioError(f"{path.name}: arrivals.{number}.file: must name the CSV file of a trace")
        step_s = segment.get("step_s", 1.0)
        if isinstance(step_s, bool) or not isinstance(step_s, int | float) or not 0 < step_s <= 86_400:
            raise ScenarioError(f"{path.name}: arrivals.{number}.step_s: must be seconds, up to a day")
        counts, step_s = read_trace(path.parent / file, float(step_s))
        length = {"seconds": len(counts) * step_s, "rate_rps": max(counts) / step_s}
        segment.update(length | segment, counts=counts, step_s=step_s)
